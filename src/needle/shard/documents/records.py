"""The records of a replica's state: what `batch` decides, `documents` stores and searches get to see.

Row id = collection id << 40 | ordinal. Plain values; they know neither SQLite nor commands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from needle.base.dtypes import DType
from needle.base.model import CollectionSpec
from needle.shard.plan import PublishedSegment

ORDINAL_BITS: Final = 40
ORDINAL_MAX: Final = 2**32 - 1  # what a roaring bitmap holds
ORDINAL_WARN: Final = ORDINAL_MAX // 2
"""A collection that used up so many is reported: there is time to copy it into a new one."""


DocumentRow = tuple[int, str, int, bytes, int]
"""(row, id, version, metadata, ordinal of the vector)."""
DEAD_DOCUMENT: Final = 1
DEAD_VECTOR: Final = 2
"""Of a row: its version of a document, and the vector that came with it, which later versions may go on having."""


SessionRow = tuple[int, bytes, int, int]
"""(session id, nonce and owner of 8 bytes each, index of the last entry that used it, acked)."""


AnswerRow = tuple[int, int, bytes]
"""(session id, seq, answer as MessagePack)."""


KeptRow = tuple[int, str, int, int, int, int, int]
"""(collection id, id, ordinal, that of its vector, version, expires, died): a version that a pinned scan may see, and
the index of the batch of entries in which it died."""


INDEXING: Final = "indexing-"
"""What rows of `meta` with a collection's IndexState are called, before its id."""


class DocRef(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Where the current version of an id is. vector: the ordinal that its vector has: its own, or that of the version
    which brought it, if only metadata changed since. hash: digest.document_hash of it. expires: microseconds since
    1970, 0 for never."""

    ordinal: int
    version: int
    hash: bytes
    vector: int
    expires: int = 0


class CollectionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One collection incarnation. total: sum of its documents' hashes modulo 2^128."""

    id: int
    spec: CollectionSpec
    next_ordinal: int = 0
    documents: int = 0
    total: int = 0


class StoredDocument(msgspec.Struct, frozen=True, gc=False):
    """One document as stored. metadata: JSON bytes (b"" for null). vector: as it is stored, or b"".
    expires: as in DocRef, where it was read by id; 0 otherwise. named: of one that is copied to another shard, its
    named vectors: the name in the shard, the bytes as they are stored, their type."""

    id: str
    ordinal: int
    version: int
    metadata: bytes
    vector: bytes = b""
    expires: int = 0
    named: tuple[tuple[str, bytes, DType], ...] = ()


class AppliedAt(msgspec.Struct, frozen=True):
    """The log position the state stands at, and the ids handed out so far."""

    index: int = 0
    term: int = 0
    conf: bytes = b""
    next_collection_id: int = 1


class Doomed(msgspec.Struct):
    """Row ids and what of them is dead (DEAD_DOCUMENT, DEAD_VECTOR), and ids of dropped collections, that nothing
    points at any more."""

    rows: list[tuple[int, int]]
    collections: list[int]

    def __bool__(self) -> bool:
        return bool(self.rows or self.collections)


class LoadedBlock(NamedTuple):
    """Rows of the three tables that a part of a bulk load makes: documents, vectors, ids."""

    documents: list[DocumentRow]
    vectors: list[tuple[int, bytes | memoryview]]
    ids: list[tuple[int, str, int, int, bytes, int, int]]


class WriteSet(msgspec.Struct):
    """What one batch of entries changes, or several of them after `merge`. Row ids as in the module docstring. ids: by
    collection id and document id, None for one that is deleted. vectors: of rows that brought one. graves: as in
    Doomed. first_rows: the first of `documents` of each collection. sessions: by id. answers: by session and seq, None
    for one that is forgotten. size: bytes of the log entries. holdings, pins, catalog: None if unchanged. indexing:
    encoded IndexState, by collection. kept: see KeptRow. loaded: reads a bulk load's rows; it waits for nothing, and is
    merged with nothing."""

    at: AppliedAt
    collections: dict[int, CollectionRecord]
    removed: list[int]
    documents: list[DocumentRow]
    vectors: list[tuple[int, bytes | memoryview]]
    ids: dict[tuple[int, str], DocRef | None]
    graves: list[tuple[int, int]]
    manifests: dict[int, list[PublishedSegment]]
    sessions: dict[int, SessionRow]
    sessions_removed: list[int]
    answers: dict[tuple[int, int], bytes | None]
    first_rows: dict[int, int]
    size: int = 0
    holdings: bytes | None = None
    pins: bytes | None = None
    catalog: bytes | None = None
    indexing: dict[int, bytes] = msgspec.field(default_factory=dict)
    kept: list[KeptRow] = msgspec.field(default_factory=list)
    loaded: Callable[[], Iterator[LoadedBlock]] | None = None

    @property
    def rows(self) -> int:
        """About how many rows it writes or names."""
        return len(self.documents) + len(self.graves)

    @property
    def rare(self) -> bool:
        """Whether it changes what files and other shards are judged by when the replica is opened."""
        named = (self.holdings, self.pins, self.catalog)
        return bool(self.manifests or self.removed or self.indexing) or any(one is not None for one in named)

    def _merge_answers(self, later: dict[tuple[int, int], bytes | None]) -> None:
        """Of an answer that was kept since the last commit, and is forgotten by now, the file knows nothing: a number
        of a session is answered once. (What is remembered of requests, under session 0, may come again.)"""
        answers = self.answers
        for key, answer in later.items():
            if answer is None and key[0] and answers.get(key) is not None:
                del answers[key]
            else:
                answers[key] = answer

    def merge(self, later: WriteSet) -> None:
        """Add what the entries right behind these change."""
        self.at = later.at
        self.collections.update(later.collections)
        self.removed += later.removed
        self.documents += later.documents
        self.vectors += later.vectors
        for collection_id, row in later.first_rows.items():
            self.first_rows.setdefault(collection_id, row)
        self.ids.update(later.ids)
        self.graves += later.graves
        self.manifests.update(later.manifests)
        self.indexing.update(later.indexing)
        for collection_id in later.removed:  # for want of room even a manifest may wait
            self.manifests.pop(collection_id, None)
            self.indexing.pop(collection_id, None)
        self.sessions.update(later.sessions)
        for session in later.sessions_removed:
            self.sessions.pop(session, None)
        self.sessions_removed += later.sessions_removed
        if later.answers:
            self._merge_answers(later.answers)
        self.size += later.size
        self.kept += later.kept
        for name in ("holdings", "pins", "catalog"):
            if (value := getattr(later, name)) is not None:
                setattr(self, name, value)


def row_id(collection_id: int, ordinal: int) -> int:
    """The SQLite row of an ordinal."""
    return collection_id << ORDINAL_BITS | ordinal
