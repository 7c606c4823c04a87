"""Documents that the indexes of a collection read: a piece at a time, from memory or from where they are stored.

Threads: any. It must not know indexes, SQLite or filters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any, Final

from pyroaring import BitMap

from needle.shard.documents.metadata_rows import Rows, Stored, decode_rows
from needle.shard.documents.tail import Tail

PIECE_ROWS_MAX: Final = 2048
PIECE_BYTES: Final = 512 << 10
"""One piece of work reads about so much."""
DENSE: Final = 4
"""All documents of a range are read if those that are wanted are at least this part of them."""


class Reader:
    """rows: how many documents are read at a time."""

    def __init__(self, stored: Stored, tail: Tail) -> None:
        self._stored, self._tail = stored, tail
        self.rows = 256

    def next(self, first: int, end: int) -> tuple[Rows, int]:
        """The next documents from `first` on, and up to where they are all."""
        upto = min(end, first + self.rows)
        rows = self._tail.between(first, upto)
        if rows is None:
            rows = self._stored.between(first, upto)
            self._fit(rows)
        return rows, upto

    def some(self, wanted: BitMap, keys: frozenset[str], go_on: Callable[[], None]) -> Iterator[tuple[int, Any]]:
        """The decoded metadata of these, in order, with at least these keys. go_on: called every now and then."""
        ordinals, at, start = wanted.to_array(), 0, self._tail.start()
        while at < len(ordinals):
            part = list(ordinals[at : at + self.rows])
            if part[0] < start <= part[-1]:
                part = part[: bisect_left(part, start)]
            at += len(part)
            first, last = part[0], part[-1]
            rows = self._tail.between(first, last + 1)
            if rows is None:
                dense = last - first < DENSE * len(part)
                rows = self._stored.between(first, last + 1) if dense else self._stored.some(part)
            documents = decode_rows(rows, keys)
            for n, (ordinal, one) in enumerate(zip(rows.ordinals, documents, strict=True)):
                if not n % 64:  # what is made of each may take long
                    go_on()
                if ordinal in wanted:
                    yield ordinal, one
            self._fit(rows)

    def _fit(self, rows: Rows) -> None:
        """Read as many at a time as take about PIECE_BYTES."""
        fitting = PIECE_BYTES * max(1, len(rows.ordinals)) // max(1, len(rows.json))
        self.rows = max(16, min(PIECE_ROWS_MAX, 2 * self.rows, fitting))
