"""Which vectors are equal, bit by bit: an index holds each distinct vector once, whatever number of documents have it.

Why: an HNSW graph links a node to its nearest neighbours. Where many rows are equal (the vector of an empty text), all
their links go to each other, and what lies behind them cannot be reached any more.

Hashes only propose; bytes decide, so that rows made to collide cost nothing but their place in the graph. It does not
know graphs, files or ordinals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from needle.base.dtypes import StoredRows
from needle.base.vector_hashes import Hashes, row_hashes
from needle.shard.arrays import Bools, Ints


def same_rows(left: StoredRows, right: StoredRows) -> Bools:
    """(n,) True where left[i] and right[i] have the same bytes. Both are float32, or bytes."""
    if left.dtype == np.float32:
        left, right = left.view(np.uint32), right.view(np.uint32)
    same: Bools = (left == right).all(axis=1)
    return same


def unique_rows(rows: StoredRows) -> tuple[Ints, Ints]:
    """The first of each set of equal rows, ascending, and for every row its place in that list."""
    hashes = row_hashes(rows)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    leader = first[which.reshape(-1)]
    false = ~same_rows(rows, rows[leader])
    leader[false] = np.flatnonzero(false)  # a collision: a row for itself
    chosen, place = np.unique(leader, return_inverse=True)
    return chosen.astype(np.int64), place.reshape(-1).astype(np.int64)


class DistinctRows:
    """Numbers distinct vectors in the order in which they come. stored: reads back the vectors of numbers."""

    def __init__(self, stored: Callable[[Ints], StoredRows]) -> None:
        self._stored = stored
        self._hashes = np.empty(0, np.uint64)
        self._numbers = np.empty(0, np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: StoredRows) -> tuple[Ints, Ints]:
        """Returns (number of each row, indexes of the rows that are new, in the order of their numbers). The caller
        stores the new rows before the next call."""
        chosen, place = unique_rows(rows)
        hashes = row_hashes(rows[chosen])
        numbers = np.full(len(chosen), -1, np.int64)
        at = np.searchsorted(self._hashes, hashes)
        seen = np.flatnonzero(at < len(self._hashes))
        seen = seen[self._hashes[at[seen]] == hashes[seen]]
        if len(seen):
            known = self._numbers[at[seen]]
            equal = same_rows(np.ascontiguousarray(self._stored(known)), rows[chosen[seen]])
            numbers[seen[equal]] = known[equal]
        new = np.flatnonzero(numbers < 0)
        numbers[new] = np.arange(self._count, self._count + len(new))
        self._remember(hashes[new], numbers[new])
        self._count += len(new)
        return numbers[place], chosen[new]

    def take(self, rows: StoredRows) -> None:
        """Number all these rows, equal or not: they are stored already."""
        self._remember(row_hashes(rows), np.arange(self._count, self._count + len(rows)))
        self._count += len(rows)

    def _remember(self, hashes: Hashes, numbers: Ints) -> None:
        order = np.argsort(hashes, kind="stable")
        at = np.searchsorted(self._hashes, hashes[order])
        self._hashes = np.insert(self._hashes, at, hashes[order])
        self._numbers = np.insert(self._numbers, at, numbers[order])
