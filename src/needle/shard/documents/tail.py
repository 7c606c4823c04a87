"""The newest documents of one collection in memory, as apply hands them in, so that searches need not read them back.

Threads: any. It must not know SQLite, vectors or Raft.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from needle.shard.documents.metadata_rows import Rows, rows_of

TAIL_BYTES: Final = 64 << 10
ROW_BYTES: Final = 100
NO_ORDINAL: Final = 1 << 62


class Tail:
    """Its memory is reserved; nbytes, used_at and declared are the budget's."""

    def __init__(self) -> None:
        self.nbytes = self.used_at = 0
        self.declared = False
        self._kept = False
        self._rows: list[tuple[int, bytes]] = []
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self) -> None:
        """From now on."""
        with self._lock:
            self._kept = True

    def give_back(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            self._kept, self._rows, self._bytes = False, [], 0

    def add(self, documents: Sequence[tuple[int, bytes]]) -> None:
        if not self._kept:
            return
        with self._lock:
            if self._kept:
                self._rows.extend(documents)
                self._bytes += sum(len(data) for _, data in documents) + ROW_BYTES * len(documents)
                while self._bytes > TAIL_BYTES:
                    # Who needs the older ones reads them from where they are stored.
                    self._rows = self._rows[len(self._rows) // 2 + 1 :]
                    self._bytes = sum(len(data) for _, data in self._rows) + ROW_BYTES * len(self._rows)

    def start(self) -> int:
        """The first ordinal from which on it has all documents."""
        with self._lock:
            return self._rows[0][0] if self._rows else NO_ORDINAL

    def between(self, first: int, end: int) -> Rows | None:
        """The documents of [first, end), if it has them all."""
        with self._lock:
            if not self._rows or self._rows[0][0] > first:
                return None
            part = self._rows[bisect_left(self._rows, first, key=_ordinal) : bisect_left(self._rows, end, key=_ordinal)]
        return rows_of(part)


def _ordinal(document: tuple[int, bytes]) -> int:
    return document[0]
