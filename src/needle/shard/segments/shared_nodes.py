"""Which rows of a segment share a node of its graph, and back. Immutable; any number of threads may ask.

A node is named by its first row that counts: rows stand in the order of ordinals, so nodes of equal distance come in
the order in which their rows would, whatever numbers the nodes have in this file.
"""

from __future__ import annotations

import numpy as np

from needle.shard.segments.scoring import Bools, Ints

SHARE = 8
"""Of nodes with more than this part of all rows together, the rows that count are found once for all queries."""


class SharedNodes:
    """node_of: (rows,) int64, the node of each row. whole: every node has a row; where an index came with a restore
    (docs/adr/0093), some may have none."""

    def __init__(self, node_of: Ints, nodes: int) -> None:
        self.node_of = node_of
        self._nodes = nodes
        self._order = np.argsort(node_of, kind="stable")
        self._starts = np.searchsorted(node_of[self._order], np.arange(nodes + 1))
        counts = self._starts[1:] > self._starts[:-1]
        self.whole = bool(counts.all())
        self._first = np.full(nodes, -1, np.int64)
        self._first[counts] = self._order[self._starts[:-1][counts]]
        self._last: tuple[Bools | None, Ints] = None, self._first
        self._counting: tuple[Bools | None, Ints, Ints] = None, self._order, self._starts

    def representatives(self, mask: Bools | None) -> Ints:
        """(nodes,) the first row of each node that counts, -1 where none does. The answer for a mask that is asked for
        again, as that of the dead is between two updates, is kept."""
        last = self._last
        if last[0] is mask:
            return last[1]
        if mask is None:
            return self._first
        rows = np.flatnonzero(mask)[::-1]
        first = np.full(self._nodes, -1, np.int64)
        first[self.node_of[rows]] = rows  # of several, the last one written stays: the lowest row
        self._last = mask, first
        return first

    def rows_of(self, rows: Ints, mask: Bools | None, limit: int) -> tuple[Ints, Ints]:
        """For each row in `rows` up to `limit` rows of its node that count, in order: (index into `rows`, row)."""
        nodes = self.node_of[rows]
        order, starts = self._order, self._starts
        if mask is not None and int((starts[nodes + 1] - starts[nodes]).sum()) > len(order) // SHARE:
            (order, starts), mask = self._rows_that_count(mask), None
        sizes = starts[nodes + 1] - starts[nodes]
        if mask is None:
            sizes = np.minimum(sizes, limit)
        pair = np.repeat(np.arange(len(rows)), sizes)
        rank = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found = order[starts[nodes][pair] + rank]
        if mask is None:
            return pair, found
        counts = mask[found]
        pair, found = pair[counts], found[counts]
        rank = np.arange(len(pair)) - np.searchsorted(pair, pair)
        keep = rank < limit
        return pair[keep], found[keep]

    def _rows_that_count(self, mask: Bools) -> tuple[Ints, Ints]:
        """As `_order` and `_starts`, of the rows that count. Kept as in `representatives`."""
        last = self._counting
        if last[0] is not mask:
            counts = mask[self._order]
            starts = np.append(0, np.cumsum(counts))[self._starts]
            last = self._counting = mask, self._order[counts], starts
        return last[1], last[2]
