"""One immutable segment: an index file with its ordinals and a checksum, memory-mapped.

Invariant: a `SealedSegment` exists only for a file that was read through once and whose checksum was right; that read
also warms the page cache. The file format is documented byte for byte in docs/segments.md. Tombstones are not in the
file: the caller hands a mask.

How a mask is searched, and why recall does not collapse under a restrictive filter: the beam of a search is widened by
the inverse share of rows that count, and a query's answer is taken only if enough rows that count were among the
nearest rows of *all* (then the nearest that count are among them). Otherwise, or where it costs less, exactly the rows
that count are scored. What index it is, opened.py knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from needle.base.dtypes import StoredRows
from needle.base.errors import CorruptSegment
from needle.base.explain import Way
from needle.base.model import CollectionSpec, IndexKind
from needle.shard.plan import PublishedSegment
from needle.shard.segments import page_cache
from needle.shard.segments.bits import differing_pairs
from needle.shard.segments.format import read_layout, searched_bytes, verify_file
from needle.shard.segments.graph import ROUNDING, Band
from needle.shard.segments.lists import LISTED
from needle.shard.segments.opened import RESCORE_MARGIN, OpenIndex
from needle.shard.segments.scoring import (
    TIES_MAX,
    Bools,
    Candidates,
    Floats,
    Ints,
    Scan,
    pair_distances,
    square_norms,
    top_k,
)
from needle.shard.segments.shared_nodes import SharedNodes
from needle.shard.segments.trace import Ways

# Rows copied out of the mapping at a time: a block that stays in the cache.
SCAN_ROWS = 2048
IN_PLACE_ROWS = 8192
"""Of rows that are scored where they lie."""


def segment_file(segment: PublishedSegment, *, own: bool = False) -> str:
    """File name of a published segment; own: built here because nobody offered the published file."""
    kind = "own" if own else "seg"
    return f"{segment.collection_id}-{segment.first}-{segment.last}-{segment.checksum}.{kind}"


class Effort(NamedTuple):
    """How hard a search looks. near: so many of the rows that count are to be within the beam, about; never fewer than
    2k. beam: and no narrower than this is the beam."""

    near: int
    beam: int

    def within(self, band: Band, count: int) -> int:
        """How many rows that count, of so many in the band, are to be within the beam. Of a half the k nearest are some
        of the 2k nearest of all, for which the beam has to be wider than for the k nearest, and less than twice."""
        return max(self.near, ceil(self.beam * sqrt(count / band.nodes)))


class SealedSegment:
    """An open segment. `segment` is the manifest entry it serves (an own build differs in size and checksum)."""

    def __init__(self, path: str, segment: PublishedSegment, spec: CollectionSpec, *, own: bool = False) -> None:
        """Verify and map the file. Raises CorruptSegment, also when it is not what `segment` and `spec` say."""
        page_cache.fill(path, searched_bytes(path))
        footer = verify_file(path)
        held = footer.segment
        self.path = path
        self.segment = segment
        self.own = own
        self.size = held.size
        self._file_bytes = os.path.getsize(path)
        self._damage = ""
        self.metric = spec.metric
        self._form = spec.form
        expected = segment if not own else PublishedSegment(*_identity(segment), held.rows, held.size, held.checksum)
        if held != expected or footer.dimensions != spec.dimensions or footer.metric != spec.metric:
            raise CorruptSegment(f"segment file {os.path.basename(path)} holds {held}, expected {expected}", path=path)
        self.rows, self.dimensions = held.rows, spec.dimensions
        self.norm_max = footer.longest
        layout = read_layout(path, footer, spec.dtype)
        self._offsets = layout.offsets
        self.bands = layout.bands
        self.beam = layout.beam
        self._index = OpenIndex(path, spec.form, spec.metric, footer.faiss_bytes, layout)
        nodes = self._index.nodes
        if layout.node_of is None and nodes != held.rows:
            raise CorruptSegment(f"{path}: index of {nodes} nodes for {held.rows} rows", path=path)
        self._shared = None if layout.node_of is None else SharedNodes(layout.node_of, nodes)
        self._whole = Band(0, nodes, self.norm_max, even=True)

    def condemn(self, damage: str) -> None:
        """The file is damaged and about to be deleted: nothing reads it any more, whatever the name stands for then."""
        self._damage = damage

    def check_size(self) -> None:
        """Raises CorruptSegment if the file was condemned, or made shorter in place: reading behind its end would end
        the process. A whole file that has no name any more cannot be."""
        if self._damage:
            raise CorruptSegment(self._damage, path=self.path)
        try:
            size = os.stat(self.path).st_size
        except OSError:
            return
        if size < self._file_bytes:
            name = os.path.basename(self.path)
            self.condemn(
                f"segment file {name} has {size} of {self._file_bytes} bytes: it was made shorter while it was in use"
            )
            raise CorruptSegment(self._damage, path=self.path)

    @property
    def nodes(self) -> int:
        """How many vectors it has; of some there may be no row."""
        return self._index.nodes

    def node_vectors(self, nodes: Ints | slice) -> Floats:
        """(n, d) float32: an aligned copy of those of nodes."""
        return self._index.vectors(nodes)

    @property
    def kind(self) -> IndexKind:
        """Of this file; a collection may have files of several."""
        return self._index.kind

    @property
    def way(self) -> Way:
        """How its index is searched, if it has one."""
        return Way.LISTS if self.kind in LISTED else Way.GRAPH

    @property
    def node_of(self) -> Ints | None:
        """(rows,) the node of each row, or None when row i is node i."""
        return None if self._shared is None else self._shared.node_of

    def ordinals(self, local: Ints) -> Ints:
        """Ordinals of local row numbers."""
        return self.segment.first + (local if self._offsets is None else self._offsets[local])

    def all_ordinals(self) -> Ints:
        """(rows,) int64, ascending."""
        return self.ordinals(np.arange(self.rows, dtype=np.int64))

    def locals_of(self, ordinals: Ints) -> Ints:
        """Local row numbers of those sorted `ordinals` that are in this file."""
        offsets = ordinals - self.segment.first
        if self._offsets is None:
            return offsets[(offsets >= 0) & (offsets < self.rows)]
        at = np.searchsorted(self._offsets, offsets)
        inside = at < self.rows
        at = at[inside]
        found: Ints = at[self._offsets[at] == offsets[inside]]
        return found

    def vectors(self, local: Ints | slice) -> Floats:
        """(n, d) float32: an aligned copy of these rows."""
        return self._index.vectors(local if self._shared is None else self._shared.node_of[local])

    def blocks(self, mask: Bools | None) -> Iterator[tuple[Ints, StoredRows]]:
        """(ordinals, vectors as they are stored) of the rows that count, a block at a time. Raises CorruptSegment."""
        for at in range(0, self.rows, SCAN_ROWS):
            local = np.arange(at, min(at + SCAN_ROWS, self.rows))
            if mask is not None:
                local = local[mask[at : at + SCAN_ROWS]]
            self.check_size()
            nodes = local if self._shared is None else self._shared.node_of[local]
            yield self.ordinals(local), self._index.stored(nodes)

    def node_blocks(self) -> Iterator[Floats]:
        """The vectors of all nodes in order, a block at a time. Raises CorruptSegment."""
        for rows in self.stored_nodes():
            yield self._form.scored(rows)

    def stored_nodes(self) -> Iterator[StoredRows]:
        """The same, as they are stored."""
        for at in range(0, self._index.nodes, SCAN_ROWS):
            self.check_size()
            yield self._index.stored(slice(at, at + SCAN_ROWS))

    def scan(self, scan: Scan, mask: Bools | None) -> None:
        """Score every row that counts exactly."""
        if self._shared is not None:
            before, scan.found = scan.found, []
            self._scan_nodes(scan, self._shared.representatives(mask), self._whole)
            scan.found = [*before, *self._rows_of(scan.found, mask, scan.k)]
            return
        step = self._step(scan)
        if mask is not None and (step > SCAN_ROWS or np.count_nonzero(mask) < self.rows // 4):
            chosen = np.flatnonzero(mask)
            for at in range(0, len(chosen), step):
                local = chosen[at : at + step]
                self._add(scan, local, self.ordinals(local))
            return
        for at in range(0, self.rows, step):
            local = np.arange(at, min(at + step, self.rows))
            block = None if mask is None else mask[at : at + step]
            self._add(scan, slice(at, at + step), self.ordinals(local), block)

    def search(
        self,
        queries: Floats,
        k: int,
        ef_search: int,
        mask: Bools | None,
        ways: Ways | None = None,
        *,
        measured: bool = False,
    ) -> list[Candidates]:
        """Candidates for the k nearest rows that count (mask True, or all). Thread-safe.

        queries: (nq, d) float32. Every query gets at least min(k, rows that count) candidates. ways: where to note how.
        measured: with a beam no narrower than this file's graph needs.
        """
        effort = self._effort(k, ef_search, measured=measured)
        if self._shared is None:
            found = self._search_band(self._whole, queries, k, effort, mask, ways)
            return [Candidates(c.query, self.ordinals(c.ordinal), c.distance) for c in found]
        first_rows = self._shared.representatives(mask)
        counts = None if mask is None and self._shared.whole else first_rows >= 0
        if self.bands:
            found = self._search_bands(queries, k, effort, counts, ways)
        else:
            found = self._search_band(self._whole, queries, k, effort, counts, ways)
        return self._rows_of([Candidates(c.query, first_rows[c.ordinal], c.distance) for c in found], mask, k)

    def scores(self, count: int, k: int, ef_search: int, *, measured: bool = False) -> bool:
        """Whether a search among so many of the rows scores them exactly, so that `score` does the same."""
        effort = self._effort(k, ef_search, measured=measured)
        return self._shared is None and self._rather_exact(self._whole, count, k, effort.within(self._whole, count))

    def _effort(self, k: int, ef_search: int, *, measured: bool) -> Effort:
        return Effort(max(ef_search, 2 * k), self.beam.width if measured else 0)

    def score(self, queries: Floats, k: int, local: Ints, ways: Ways | None = None) -> list[Candidates]:
        """Candidates for the k nearest of these rows, exactly. What it costs goes with them, not with the file."""
        if ways is not None:
            ways.exactly()
        scan = Scan(self.metric, queries, k, self.norm_max)
        step = self._step(scan)
        for at in range(0, len(local), step):
            part = local[at : at + step]
            self._add(scan, part, self.ordinals(part))  # rows are nodes: `scores` says so
        return scan.found

    def _step(self, scan: Scan) -> int:
        """How many nodes to score at a time."""
        return IN_PLACE_ROWS if self._index.in_place(len(scan.queries)) else SCAN_ROWS

    def _add(self, scan: Scan, nodes: Ints | slice, names: Ints, mask: Bools | None = None) -> None:
        """Score these nodes, each under its name."""
        if mask is None and (not isinstance(nodes, slice) or self._index.copies):
            wanted = np.arange(nodes.start, nodes.start + len(names)) if isinstance(nodes, slice) else nodes
            keys = self._index.keys(scan.queries, wanted)
            if keys is not None:
                scan.add_keys(keys, lambda places: self._index.vectors(wanted[places]), names)
                return
        if self._form.bits:
            scan.add_bits(self._form, self._index.stored(nodes), names, mask)
        elif self._form.divides:
            rows = self._index.stored(nodes)
            scan.add_stored(self._form, rows, names, mask, self._index.lengths(nodes, rows))
        else:
            scan.add(self._index.vectors(nodes), names, mask)

    def _rather_exact(self, band: Band, count: int, k: int, base: int) -> bool:
        """Whether to score `count` nodes of a band. base: so many of them are to be within the beam, about."""
        dear = self._index.cost(band, -(-base * band.nodes // count)) >= count
        return not band.even or not self._index.searches or dear or k + RESCORE_MARGIN >= count

    def _search_bands(
        self, queries: Floats, k: int, effort: Effort, counts: Bools | None, ways: Ways | None
    ) -> list[Candidates]:
        """The bands in turn, longest first; a query is done when no vector of the next can be as near as its k-th."""
        lengths = np.sqrt(square_norms(queries)) * np.float32(ROUNDING)
        best = np.full((len(queries), k), np.inf, np.float32)
        found: list[Candidates] = []
        for band in self.bands:
            with np.errstate(over="ignore", invalid="ignore"):
                nearest = -(lengths * np.float32(band.longest))
            rest = np.flatnonzero(~(nearest > best[:, -1]))  # of an infinite length and a zero, nothing is known
            if not len(rest):
                break
            some = None if ways is None else ways.some(rest)
            part = self._search_band(band, queries[rest], k, effort, counts, some)
            found += [Candidates(rest[c.query], c.ordinal, c.distance) for c in part]
            _, distances = top_k(part, len(rest), k)
            best[rest] = np.sort(np.concatenate((best[rest], distances), axis=1), axis=1)[:, :k]
        return found

    def _search_band(
        self, band: Band, queries: Floats, k: int, effort: Effort, counts: Bools | None, ways: Ways | None
    ) -> list[Candidates]:
        """Candidates for the k nearest nodes of a band that count; their `ordinal` is a node."""
        end = band.first + band.nodes
        count = band.nodes if counts is None else int(np.count_nonzero(counts[band.first : end]))
        if count == 0:
            return []
        base = effort.within(band, count)
        if self._rather_exact(band, count, k, base):
            return self._exact(band, queries, k, counts, ways)
        base = ceil(base * self._index.stretch)
        beam = -(-base * band.nodes // count)
        if ways is not None:
            ways.by_index(beam)
        if counts is not None:
            near = self._index.nearest(band, queries, beam, beam)
        else:
            near = self._index.best(band, queries, k, beam)
            if (near[:, -1].min() if len(queries) > 1 else near[0, -1]) >= 0:  # none comes last
                width, among = near.shape[1], self._index.rescored(k, base)
                found = self._scored(queries, np.arange(len(queries) * width) // width, near.ravel())
                if width >= among or not _cuts_ties(found.distance.reshape(-1, width), k):
                    return [found]
                near = self._index.nearest(band, queries, among, beam)
        good = near >= 0
        if counts is not None:
            good &= counts[near]
        # Half of what the widened beam should hold proves that the k nearest that count lie within it.
        enough = good.sum(axis=1) >= (k if counts is None else min(count, max(k, base // 2)))
        good &= (np.cumsum(good, axis=1) <= self._index.rescored(k, base)) & enough[:, None]
        query, column = np.nonzero(good)
        scored = [self._scored(queries, query, near[query, column])]
        if not enough.all():
            rest = np.flatnonzero(~enough)
            some = None if ways is None else ways.some(rest)
            exact = self._exact(band, queries[rest], k, counts, some)
            scored += [Candidates(rest[c.query], c.ordinal, c.distance) for c in exact]
        return scored

    def _scored(self, queries: Floats, query: Ints, nodes: Ints) -> Candidates:
        """Pairs of a query and a node, some at a time: a batch of wide beams finds hundreds of thousands, of which all
        vectors together would be gigabytes."""
        asked = self._form.stored(queries) if self._form.bits else queries
        if len(nodes) <= SCAN_ROWS:
            return Candidates(query, nodes, self._distances(asked, query, nodes))
        distances = np.empty(len(nodes), np.float32)
        for at in range(0, len(nodes), SCAN_ROWS):
            block = slice(at, at + SCAN_ROWS)
            distances[block] = self._distances(asked, query[block], nodes[block])
        return Candidates(query, nodes, distances)

    def _distances(self, asked: StoredRows, query: Ints, nodes: Ints) -> Floats:
        """(n,) of each pair. asked: the queries; of bits, as they are stored."""
        left = asked if len(asked) == 1 else asked[query]
        if self._form.bits:
            return differing_pairs(left, self._index.stored(nodes))
        return pair_distances(self.metric, left, self._index.vectors(nodes))

    def _exact(self, band: Band, queries: Floats, k: int, counts: Bools | None, ways: Ways | None) -> list[Candidates]:
        if ways is not None:
            ways.exactly()
        scan = Scan(self.metric, queries, k, band.longest)
        nodes = np.arange(self._index.nodes)
        self._scan_nodes(scan, nodes if counts is None else np.where(counts, nodes, -1), band)
        return scan.found

    def _scan_nodes(self, scan: Scan, names: Ints, band: Band) -> None:
        """Score the nodes of a band exactly, each under its name; those below zero do not count."""
        end = band.first + band.nodes
        chosen = band.first + np.flatnonzero(names[band.first : end] >= 0)
        step = self._step(scan)
        for at in range(0, len(chosen), step):
            nodes = chosen[at : at + step]
            whole = slice(int(nodes[0]), int(nodes[-1]) + 1)
            self._add(scan, whole if whole.stop - whole.start == len(nodes) else nodes, names[nodes])

    def _rows_of(self, found: list[Candidates], mask: Bools | None, k: int) -> list[Candidates]:
        """Candidates that name a row of each node as candidates of all rows of these nodes that count."""
        assert self._shared is not None
        rows = [(c, *self._shared.rows_of(c.ordinal, mask, k + TIES_MAX)) for c in found]
        return [Candidates(c.query[pair], self.ordinals(row), c.distance[pair]) for c, pair, row in rows]


def _cuts_ties(distances: Floats, k: int) -> bool:
    """Whether candidates that were left out may be as near as the k-th of a query, and have lower ordinals."""
    if len(distances) == 1:
        return int(np.count_nonzero(distances < distances.max())) < k
    return bool((np.count_nonzero(distances < distances.max(axis=1, keepdims=True), axis=1) < k).any())


def _identity(segment: PublishedSegment) -> tuple[int, int, int]:
    return segment.collection_id, segment.first, segment.last
