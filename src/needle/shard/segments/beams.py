"""How wide a beam a graph needs, measured by vectors that it does not have yet (docs/adr/0101-measured-beams.md).

The graph is asked for what is nearest to them with wider and wider beams, until it finds the GOAL. What is nearest says
a scan. Distances are compared, not nodes: of neighbours as near as each other any will do.

It does not know files, ordinals or who builds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, exp, log
from typing import Any, Final

import faiss
import numpy as np

from needle.base.dtypes import StoredRows
from needle.base.model import Metric
from needle.shard.segments.bit_graph import BitWalk
from needle.shard.segments.graph import ROUNDING, SLICE_ROWS, Band, Beam, BuildCancelled, lengths_of, scored
from needle.shard.segments.opened import BEAM_ROWS, RESCORE_MARGIN
from needle.shard.segments.scoring import Floats, Ints, Scan, pair_distances, top_k
from needle.shard.segments.walk import Walk

GOAL: Final = 0.97
"""Recall that a graph is to have, of the K nearest: 0.95, what a sample of QUERIES may be wrong by, and what a graph of
few links loses by the vectors that come after it was measured."""
K: Final = 10
QUERIES: Final = 256
QUERIES_MIN: Final = 64
"""Of fewer vectors that wait nothing is learned."""
TAIL_SHARE: Final = 8
"""A graph is measured before its last eighth comes, at most: one of fewer vectors needs no narrower a beam."""
TAIL_BYTES: Final = 8 << 20
"""So many bytes of vectors wait, at most."""
GROWN: Final = 1.5
"""A graph that grew by less than this since it was measured is not measured again: that costs as much as inserting some
2,000 vectors, and a file may be extended by few."""
LADDER: Final = (20, 30, 45, 68, 100, 150, 225, 340, 512, 768, 1150, 1730, 2600)
"""A million vectors in a graph of few links need some thousand."""
_AT_ONCE: Final = 32


def waiting_max(dimensions: int) -> int:
    """How many vectors wait to measure the graph, at most."""
    return max(SLICE_ROWS, TAIL_BYTES // (4 * dimensions))


def tail_of(nodes: int, waiting: int, before: Beam) -> int:
    """How many of the vectors that wait are put in after the graph was measured; 0 if it is not to be. nodes: that it
    will have. before: what is known of it."""
    if before.width and nodes < GROWN * before.nodes:
        return 0
    tail = min(waiting, nodes // TAIL_SHARE)
    return tail if tail >= QUERIES_MIN else 0


def sample(tail: int) -> Ints:
    """Which of so many vectors that wait are asked."""
    return np.linspace(0, tail - 1, min(tail, QUERIES)).astype(np.int64)


def least_beam(
    metric: Metric,
    index: Any,
    nodes: StoredRows,
    bands: tuple[Band, ...],
    band: Band | None,
    queries: StoredRows,
    cancelled: Callable[[], bool],
) -> Beam:
    """Ask a graph, or one band of it (None: there are none). queries: (nq, d) of the vectors that wait, nodes:
    all that the graph has, both as it holds them. Raises BuildCancelled."""
    if band is None:
        band = Band(0, len(nodes), float(lengths_of(nodes).max(initial=0.0)) * ROUNDING, even=True)
    bits = nodes.dtype == np.uint8
    asked = _Asked(
        metric,
        nodes,
        band,
        np.ascontiguousarray(scored(queries)),
        BitWalk(index) if bits else Walk(index, metric, bands, lambda rows: nodes[rows]),
        cancelled,
    )
    threads = faiss.omp_get_max_threads()  # a walk sets them to one for this thread, which goes on inserting
    try:
        return Beam(asked.least(), band.nodes)
    finally:
        faiss.omp_set_num_threads(threads)


class _Asked:
    """A graph that is asked queries of which the exact answers are known."""

    def __init__(
        self,
        metric: Metric,
        nodes: StoredRows,
        band: Band,
        queries: Floats,
        walk: Walk | BitWalk,
        cancelled: Callable[[], bool],
    ) -> None:
        self._metric = metric
        self._nodes = nodes
        self._band = band
        self._queries = queries
        self._walk = walk
        self._cancelled = cancelled
        scan = Scan(metric, queries, K, band.longest)
        for at in range(band.first, band.first + band.nodes, SLICE_ROWS):
            self._go_on()
            rows = np.arange(at, min(at + SLICE_ROWS, band.first + band.nodes))
            scan.add(scored(nodes[rows[0] : rows[-1] + 1]), rows)
        self._farthest = top_k(scan.found, len(queries), K)[1][:, -1:]

    def least(self) -> int:
        """The narrowest beam of the ladder that will do, or one between two steps."""
        before, missed_before = 0, 1.0
        for beam in LADDER:
            missed = max(1 - self._recall(beam), 0.1 / (K * len(self._queries)))
            if missed <= 1 - GOAL:
                if not before:
                    return beam
                # What is missed falls like a power of the beam.
                part = log(missed_before / (1 - GOAL)) / log(missed_before / missed)
                return min(beam, ceil(before * exp(part * log(beam / before))))
            if beam * BEAM_ROWS >= self._band.nodes:
                return beam  # searched with a wider one, each vector is scored
            before, missed_before = beam, missed
        return LADDER[-1]

    def _recall(self, beam: int) -> float:
        found = 0
        for at in range(0, len(self._queries), _AT_ONCE):
            self._go_on()
            queries = self._queries[at : at + _AT_ONCE]
            near = self._walk.nearest(self._band, queries, K + RESCORE_MARGIN, beam)
            query, column = np.nonzero(near >= 0)
            distances = pair_distances(self._metric, queries[query], scored(self._nodes[near[query, column]]))
            good = query[~(distances > self._farthest[at + query, 0])]
            found += int(np.minimum(np.bincount(good, minlength=len(queries)), K).sum())
        return found / (K * len(self._queries))

    def _go_on(self) -> None:
        if self._cancelled():
            raise BuildCancelled
