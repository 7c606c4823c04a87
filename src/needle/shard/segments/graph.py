"""The HNSW graph of one segment file while it is built: one node a distinct vector, and bands of like length.

A *node* is a vector of the graph; rows with equal bytes share one (distinct.py says why). For the inner product the
nodes are sorted into *bands* of like length, longest first, each a graph of its own inside the one index: no link
leaves a band. Why: on a raw inner product long vectors are everybody's neighbours, so the others can hardly be reached;
inside a band the inner product orders nearly as the angle does, and a band whose longest vector cannot beat what was
found is not asked at all (after Yan et al. 2018, "Norm-ranging LSH"; measured in docs/adr/0018-lengths-and-copies.md).

It does not know file names, manifests or who builds; faiss's errors pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from needle.base.dtypes import DType, StoredRows
from needle.base.model import GRAPHS, CollectionSpec, Metric
from needle.shard.segments.distinct import DistinctRows
from needle.shard.segments.scoring import Floats, Ints, square_norms

SLICE_ROWS = 1024
BAND_RATIO: Final = 1.1
"""Within a band no vector is longer than the shortest by more than this factor, unless the band is small."""
BAND_ROWS_MIN: Final = 2048
"""A band has at least so many nodes, if need be of uneven lengths: then they are scored exactly, which is cheap."""
BANDS_MAX: Final = 64
ROUNDING: Final = 1.001
"""Lengths are kept a little high: they bound rounding errors."""


class Band(NamedTuple):
    """Nodes [first, first + nodes) of a segment. longest: no vector of them is longer. even: their graph may be
    searched; otherwise lengths differ too much and they are scored exactly."""

    first: int
    nodes: int
    longest: float
    even: bool


class Graph(NamedTuple):
    """A finished graph. node_of: (rows,) the node of each row, or None when row i is node i. bands: empty for one graph
    over all nodes."""

    index: Any
    node_of: Ints | None
    bands: tuple[Band, ...]
    longest: float


def faiss_metric(metric: Metric) -> int:
    """The faiss metric of a collection; cosine vectors are normalised, so their inner product is the cosine."""
    return int(faiss.METRIC_L2 if metric == Metric.L2 else faiss.METRIC_INNER_PRODUCT)


class BuildCancelled(Exception):
    """The build is no longer wanted; nothing was left behind."""


def bands_of(lengths: Floats) -> tuple[Band, ...]:
    """Bands over nodes with these lengths, sorted from long to short; empty when one graph serves all of them."""
    found: list[Band] = []
    at, total = 0, len(lengths)
    while at < total:
        floor = lengths[at] / BAND_RATIO
        end = total
        if len(found) < BANDS_MAX - 1:
            end = max(int(np.searchsorted(-lengths, -floor, side="right")), at + BAND_ROWS_MIN)
            # A short rest goes with the band before it, unless that would make a large one uneven: scored row by row.
            joins = lengths[-1] >= floor or total - at <= 2 * BAND_ROWS_MIN
            end = total if total - end < BAND_ROWS_MIN // 2 and joins else end
        found.append(Band(at, end - at, float(lengths[at]) * ROUNDING, bool(lengths[end - 1] >= floor)))
        at = end
    return () if not found or (len(found) == 1 and found[0].even) else tuple(found)


def nodes_of(index: Any) -> Floats:
    """The vectors of a graph's or a flat index's nodes, without a copy: (nodes, d) float32, until more are added."""
    storage: Any = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if not storage.ntotal:
        return np.empty((0, storage.d), np.float32)
    rows: Floats = faiss.rev_swig_ptr(storage.get_xb(), storage.ntotal * storage.d).reshape(-1, storage.d)
    return rows


class Rows(NamedTuple):
    """Distinct vectors alone. vectors: (nodes, d) float32. node_of, longest: as in Graph."""

    vectors: Floats
    node_of: Ints | None
    longest: float


class GraphBuilder:
    """Feed it the rows of a segment in order, then `finish`, or `rows` for no graph. Inserting is done in slices
    between which `cancelled` is asked (raises BuildCancelled).

    base: a graph without bands that was read from a file, with the node of each of its rows (None: row i is node i).
    """

    def __init__(
        self, spec: CollectionSpec, cancelled: Callable[[], bool], base: tuple[Any, int, Ints | None] | None = None
    ) -> None:
        self._spec = spec
        self._cancelled = cancelled
        self._index = _empty_graph(spec) if base is None else base[0]
        # By length is sorted what is all known: until then the vectors of an inner product wait here.
        waits = spec.metric == Metric.DOT or spec.index.kind not in GRAPHS
        self._held = faiss.IndexFlat(spec.dimensions) if waits else None
        self._distinct = DistinctRows(lambda nodes: self._nodes()[nodes])
        self._node_of: list[Ints] = []
        self._form = spec.form
        self._kept: list[StoredRows] | None = None
        """Of each node, where that does not follow from what is scored."""
        if self._form.unit and self._form.dtype is not DType.FLOAT32:
            self._kept = []
        if base is not None:
            self._start_from(*base)

    def _nodes(self) -> Floats:
        return nodes_of(self._index if self._held is None else self._held)

    def _start_from(self, index: Any, rows: int, node_of: Ints | None) -> None:
        nodes = nodes_of(index)
        for part in _slices(nodes):
            self._distinct.take(part)
            if self._held is not None:
                self._held.add(part)
        self._node_of.append(np.arange(rows) if node_of is None else node_of)

    @property
    def keeps_stored(self) -> bool:
        """Whether it has to be told what is stored of each node of the base."""
        return self._kept is not None

    def keep(self, rows: StoredRows) -> None:
        """The next nodes of the base, as they are stored."""
        if self._kept is not None:
            self._kept.append(rows)

    def stored(self, nodes: Floats) -> StoredRows:
        """All nodes, as they are stored, in their order."""
        if self._kept is None:
            return self._form.stored(nodes)
        return np.concatenate(self._kept) if self._kept else self._form.rows(b"")

    def add(self, rows: StoredRows) -> None:
        """rows: of the next ordinals, as they are stored."""
        for at in range(0, len(rows), SLICE_ROWS):
            self._go_on()
            given = rows[at : at + SLICE_ROWS]
            part = np.ascontiguousarray(self._form.scored(given))
            nodes, new = self._distinct.add(part)
            self._node_of.append(nodes)
            self.keep(given[new])
            if len(new):
                (self._index if self._held is None else self._held).add(part[new])

    def finish(self) -> Graph:
        """The graph of everything that was added."""
        nodes = self._nodes()
        node_of = np.concatenate([np.empty(0, np.int64), *self._node_of])
        lengths = np.sqrt(square_norms(nodes))
        longest = float(lengths.max(initial=0.0)) * ROUNDING
        bands: tuple[Band, ...] = ()
        if self._held is not None:
            order = np.argsort(-lengths, kind="stable")
            bands = bands_of(lengths[order])
            if bands:
                self._build_bands(nodes, order, bands)
                place = np.empty(len(order), np.int64)
                place[order] = np.arange(len(order))
                return Graph(self._index, place[node_of], bands, longest)
            self._insert(nodes[self._index.ntotal :])
        return Graph(self._index, _named(node_of, len(nodes)), (), longest)

    def rows(self) -> Rows:
        """Everything that was added, where no graph is made of it."""
        nodes = self._nodes()
        node_of = np.concatenate([np.empty(0, np.int64), *self._node_of])
        longest = float(np.sqrt(square_norms(nodes).max(initial=0.0))) * ROUNDING
        return Rows(nodes, _named(node_of, len(nodes)), longest)

    def _build_bands(self, nodes: Floats, order: Ints, bands: tuple[Band, ...]) -> None:
        self._index = _empty_graph(self._spec)
        for band in bands:
            # With no entry point, the next node starts a graph that no link joins to the others.
            self._index.hnsw.entry_point, self._index.hnsw.max_level = -1, -1
            for at in range(band.first, band.first + band.nodes, SLICE_ROWS):
                self._insert(nodes[order[at : min(at + SLICE_ROWS, band.first + band.nodes)]])

    def _insert(self, nodes: Floats) -> None:
        for part in _slices(nodes):
            self._go_on()
            self._index.add(part)

    def _go_on(self) -> None:
        if self._cancelled():
            raise BuildCancelled


def _named(node_of: Ints, nodes: int) -> Ints | None:
    """As in Graph. The base may have rows in another order than nodes, and nodes without a row (docs/adr/0093)."""
    return None if len(node_of) == nodes and np.array_equal(node_of, np.arange(nodes)) else node_of


def _empty_graph(spec: CollectionSpec) -> Any:
    index = faiss.IndexHNSWFlat(spec.dimensions, spec.index.m, faiss_metric(spec.metric))
    index.hnsw.efConstruction = spec.index.ef_construction
    return index


def graph_over(spec: CollectionSpec, hnsw: Any, nodes: Iterable[Floats]) -> Any:
    """A graph over full vectors, of the links of one that has codes in their stead."""
    index = _empty_graph(spec)
    storage = faiss.downcast_index(index.storage)
    for part in nodes:
        storage.add(np.ascontiguousarray(part, dtype=np.float32))
    index.hnsw, index.ntotal = hnsw, storage.ntotal
    # Its codes may have been compared otherwise.
    index.hnsw.is_similarity = faiss_metric(spec.metric) == faiss.METRIC_INNER_PRODUCT
    index.hnsw.efConstruction = spec.index.ef_construction
    return index


def _slices(rows: Floats) -> Iterator[Floats]:
    for at in range(0, len(rows), SLICE_ROWS):
        yield np.ascontiguousarray(rows[at : at + SLICE_ROWS], dtype=np.float32)
