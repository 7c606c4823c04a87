"""Ids and versions of documents that searches found lately, so that hits of which no more is asked for need no SQLite.

Kept in blocks of neighbouring ordinals, packed, about 25 bytes a document. A stored row never changes, and an ordinal
is never given twice; so nothing that is kept here is ever wrong, and a row that is not known is read from the file.

Threads: any. It must not know SQLite.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from needle.shard.documents.records import StoredDocument

BLOCK_BITS: Final = 6
BLOCK: Final = 1 << BLOCK_BITS
BLOCK_BYTES: Final = 600 + 12 * BLOCK
"""What a block takes beside the ids."""
BYTES_MAX: Final = 16 << 20
MISSED: Final = 2
"""A block is read once so many hits were missing in it; of one search one block at most, to keep it short."""
IDLE_LOOKS: Final = 10_000
"""A block that none of the last so many searches looked at makes place for others; one that is in use does not, or all
would be read again and again."""

Named = tuple[int, str, int]
"""Ordinal, id, version."""
Key = tuple[int, int]
"""Collection id, number of the block."""


class _Block:
    """ends: of the i-th id within `ids`. versions: -1 for a row that is not known."""

    __slots__ = ("ends", "ids", "looked_at", "versions")

    def __init__(self, rows: Iterable[Named], looked_at: int) -> None:
        ids, self.ends = [b""] * BLOCK, array("I")
        self.versions = array("q", [-1] * BLOCK)
        for ordinal, id_, version in rows:
            ids[ordinal % BLOCK], self.versions[ordinal % BLOCK] = id_.encode(), version
        end = 0
        for one in ids:
            self.ends.append(end := end + len(one))
        self.ids, self.looked_at = b"".join(ids), looked_at

    @property
    def nbytes(self) -> int:
        return len(self.ids) + BLOCK_BYTES

    def find(self, ordinal: int) -> StoredDocument | None:
        at = ordinal % BLOCK
        version = self.versions[at]
        if version < 0:
            return None
        id_ = self.ids[self.ends[at - 1] if at else 0 : self.ends[at]]
        return StoredDocument(id_.decode(), ordinal, version, b"")


class Names:
    """Of one file of documents."""

    def __init__(self, read: Callable[[int, int, int], Iterable[Named]], bytes_max: int = BYTES_MAX) -> None:
        """read: the stored rows of a collection with ordinals in [first, end)."""
        self._read = read
        self._bytes_max = bytes_max
        self.used = 0
        self._looks = 0
        self._swept_at = 0
        self._blocks: dict[Key, _Block] = {}
        self._missed: dict[Key, int] = {}
        self._lock = threading.Lock()

    def find(self, collection_id: int, ordinals: Sequence[int]) -> dict[int, StoredDocument]:
        """Those of the rows that are known. The others should be given to `missed`."""
        self._looks += 1
        found: dict[int, StoredDocument] = {}
        for ordinal in ordinals:
            block = self._blocks.get((collection_id, ordinal >> BLOCK_BITS))
            if block is not None:
                block.looked_at = self._looks
                if (document := block.find(ordinal)) is not None:
                    found[ordinal] = document
        return found

    def missed(self, collection_id: int, ordinals: Iterable[int]) -> None:
        """Stored rows that were not known: remember the block in which most are missed. Raises what `read` does."""
        due: Key | None = None
        with self._lock:
            for ordinal in ordinals:
                key = collection_id, ordinal >> BLOCK_BITS
                count = self._missed[key] = self._missed.get(key, 0) + 1
                if count >= MISSED and (due is None or count > self._missed[due]):
                    due = key
            if due is not None:
                del self._missed[due]
            if len(self._missed) > self._bytes_max // BLOCK_BYTES:
                self._missed.clear()
            if due is None or not self._has_room():
                return
        first = due[1] << BLOCK_BITS
        block = _Block(self._read(collection_id, first, first + BLOCK), self._looks)
        with self._lock:
            before = self._blocks.pop(due, None)
            self.used += block.nbytes - (0 if before is None else before.nbytes)
            self._blocks[due] = block
            while self.used > self._bytes_max:
                _, gone = self._blocks.popitem()
                self.used -= gone.nbytes

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._blocks.clear()
            self._missed.clear()
            self.used = 0

    def _has_room(self) -> bool:
        """Now, or once what is idle was given back. That looks at all blocks, so it is not done often."""
        if self.used + BLOCK_BYTES > self._bytes_max and self._looks - self._swept_at > IDLE_LOOKS:
            self._swept_at = self._looks
            self._blocks = {key: one for key, one in self._blocks.items() if self._looks - one.looked_at <= IDLE_LOOKS}
            self.used = sum(one.nbytes for one in self._blocks.values())
        return self.used + BLOCK_BYTES <= self._bytes_max
