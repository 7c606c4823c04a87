"""What a reader sees of a collection's vectors: the growing rows and the open segments, as between two apply batches.

It does not know documents, filters, nor how files come and go (collection_vectors.py does).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from pyroaring import BitMap

from needle.base.dtypes import StoredRows
from needle.base.model import CollectionSpec
from needle.shard.segments.allowed import Allowed
from needle.shard.segments.growing import GrowingSegment
from needle.shard.segments.scoring import Bools, Candidates, Floats, Ints, Scan, top_k, with_ties
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.trace import Trace


@dataclass(frozen=True, slots=True)
class Served:
    """An open segment and which of its rows live (None: all)."""

    sealed: SealedSegment
    live: Bools | None

    def live_rows(self) -> int:
        return self.sealed.rows if self.live is None else int(np.count_nonzero(self.live))

    def without(self, dead: Ints) -> Served:
        local = self.sealed.locals_of(dead)
        if len(local) == 0:
            return self
        live = np.ones(self.sealed.rows, np.bool_) if self.live is None else self.live.copy()
        live[local] = False
        return replace(self, live=live)

    def only(self, live: Ints) -> Served:
        """With the sorted ordinals `live` only."""
        local = self.sealed.locals_of(live)
        if len(local) == self.sealed.rows:
            return self
        mask = np.zeros(self.sealed.rows, np.bool_)
        mask[local] = True
        return replace(self, live=mask)

    def counted(self, allowed: Allowed | None) -> int:
        """How many rows count for a search."""
        if allowed is None:
            return self.live_rows()
        local = allowed.locals_of(self.sealed)
        return len(local) if self.live is None else int(np.count_nonzero(self.live[local]))


def between(ordinals: Ints, first: int, last: int) -> Ints:
    """The part of sorted `ordinals` within [first, last]."""
    return ordinals[np.searchsorted(ordinals, first) : np.searchsorted(ordinals, last, side="right")]


class VectorsView:
    """The vectors of a collection between two apply batches. Any number of threads may search it.

    Which vectors those are never changes; how they are served may: a file that arrives later is used by the views that
    are already held, so that a reader who keeps the last view does not keep scoring exactly.
    """

    def __init__(self, spec: CollectionSpec, growing: GrowingSegment, served: tuple[Served, ...]) -> None:
        self.spec = spec
        self._state = growing, served

    @property
    def growing(self) -> GrowingSegment:
        return self._state[0]

    @property
    def served(self) -> tuple[Served, ...]:
        return self._state[1]

    def serve_by(self, growing: GrowingSegment, served: tuple[Served, ...]) -> None:
        """Serve the same vectors from other places from now on; one assignment, so that no search sees half of it."""
        self._state = growing, served

    def frozen(self) -> VectorsView:
        """A view whose places do not change either: for a build that reads them one by one."""
        return VectorsView(self.spec, *self._state)

    def __len__(self) -> int:
        """Live vectors."""
        growing, served = self._state
        return len(growing) + sum(s.live_rows() for s in served)

    def search(
        self, queries: Floats, k: int, *, allow: BitMap | None = None, exact: bool = False, ef_search: int = 0
    ) -> tuple[Ints, Floats]:
        """The k nearest of each query by (distance, ordinal).

        queries: (nq, d) float32, normalised for cosine. allow: only these ordinals count. exact: score every vector.
        ef_search: beam width, 0 for the collection's or what a file's graph needs. Returns ordinals (nq, k) int64 (-1
        for none) and distances (nq, k) float32 (inf for none). Raises CorruptSegment if a file was made shorter.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        allowed = None if allow is None else Allowed(allow)
        return top_k(self._candidates(queries, k, allowed, exact, ef_search, 0, None), len(queries), k)

    def nearest(
        self,
        queries: Floats,
        k: int,
        *,
        allow: Allowed | None = None,
        exact: bool = False,
        ef_search: int = 0,
        usual_ef: int = 0,
        trace: Trace | None = None,
    ) -> list[tuple[list[int], list[float]]]:
        """Like `search`, and with what is as near as the k-th (TIES_MAX more at most): for each query its ordinals and
        distances. With exact=True all ties are there, without it those that the graphs show. usual_ef: the collection's
        `ef_search`, where another one is known than this view's. trace: told how."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = with_ties(self._candidates(queries, k, allow, exact, ef_search, usual_ef, trace), len(queries), k)
        ends = np.searchsorted(found.query, np.arange(len(queries) + 1)).tolist()
        ordinals, distances = found.ordinal.tolist(), found.distance.tolist()
        return [(ordinals[a:b], distances[a:b]) for a, b in pairwise(ends)]

    def _candidates(
        self,
        queries: Floats,
        k: int,
        allowed: Allowed | None,
        exact: bool,
        ef_search: int,
        usual_ef: int,
        trace: Trace | None,
    ) -> list[Candidates]:
        """What every place finds: the k nearest of each query are among them."""
        found: list[Candidates] = []
        scan = None
        growing, places = self._state
        # What a search asks for, it gets.
        beam, measured = ef_search or usual_ef or self.spec.index.ef_search, not ef_search
        for served in places:
            served.sealed.check_size()
        if exact or growing.chunks:
            norm_max = max([growing.norm_max, *(s.sealed.norm_max for s in places)])
            scan = Scan(self.spec.metric, queries, k, norm_max)
            since = 0.0 if trace is None else trace.clock()
            growing.scan(scan, None if allowed is None else allowed.ordinals())
            if trace is not None and growing.chunks:
                _trace_growing(trace, growing, allowed, since)
        for served in places:
            segment = served.sealed.segment
            ways, since = (None, 0.0) if trace is None else (trace.ways(), trace.clock())
            sealed, live = served.sealed, served.live
            few = None if allowed is None else allowed.locals_of(sealed)
            if few is not None and not len(few):
                pass
            elif exact and scan is not None:
                sealed.scan(scan, live if allowed is None else allowed.mask(sealed, live))
                if ways is not None:
                    ways.exactly()
            elif few is not None and sealed.scores(len(few), k, beam, measured=measured):
                found += sealed.score(queries, k, few if live is None else few[live[few]], ways)
            else:
                mask = live if allowed is None else allowed.mask(sealed, live)
                found += sealed.search(queries, k, beam, mask, ways, measured=measured)
            if trace is not None:
                rows, counted = served.live_rows(), served.counted(allowed)
                trace.searched(segment.first, segment.last, rows, counted, since, ways, served.sealed.way)
        return found + scan.found if scan is not None else found

    def live_blocks(self, first: int, last: int) -> Iterator[tuple[Ints, StoredRows]]:
        """(ordinals, vectors as they are stored) of the live rows of [first, last], ascending."""
        growing, places = self._state
        parts: list[tuple[int, Iterator[tuple[Ints, StoredRows]]]] = [
            (served.sealed.segment.first, _clipped(served.sealed.blocks(served.live), first, last))
            for served in places
            if first <= served.sealed.segment.last and served.sealed.segment.first <= last
        ]
        parts += [
            (chunk.first, iter([chunk.rows_of(first, last)]))
            for chunk in growing.chunks
            if chunk.last >= first and chunk.first <= last
        ]
        for _, blocks in sorted(parts, key=lambda part: part[0]):
            yield from blocks


def _clipped(blocks: Iterator[tuple[Ints, StoredRows]], first: int, last: int) -> Iterator[tuple[Ints, StoredRows]]:
    """What of these blocks is within [first, last]: a file may hold more, where two were joined since."""
    for ordinals, vectors in blocks:
        inside = slice(*np.searchsorted(ordinals, (first, last + 1)).tolist())
        if inside.start < inside.stop:
            yield ordinals[inside], vectors[inside]


def _trace_growing(trace: Trace, growing: GrowingSegment, allowed: Allowed | None, since: float) -> None:
    rows = len(growing)
    counted = rows if allowed is None else growing.count(allowed.ordinals())
    trace.searched(growing.chunks[0].first, growing.chunks[-1].last, rows, counted, since)
