"""Builds the graph of one segment file (graph.py): rows come in order, and the last of them wait to measure it.

A graph that is searched with vectors of its own finds nearly all of their neighbours, whatever it would find of others.
So the last vectors are put in last: before that they are asked (beams.py), and the beam that they need goes into the
file. Invariant: nodes have the order in which their vectors came, whether that is measured or not.

Vectors are held in float32, as they are scored; bits as they are stored (bit_graph.py).

It does not know file names, manifests or who builds; faiss's errors pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import faiss
import numpy as np

from needle.base.dtypes import DType, StoredRows
from needle.base.model import GRAPHS, CollectionSpec, Metric
from needle.shard.segments import bit_graph
from needle.shard.segments.beams import least_beam, sample, tail_of, waiting_max
from needle.shard.segments.distinct import DistinctRows
from needle.shard.segments.graph import (
    ROUNDING,
    SLICE_ROWS,
    UNMEASURED,
    Band,
    Beam,
    BuildCancelled,
    bands_of,
    faiss_metric,
    lengths_of,
    nodes_of,
)
from needle.shard.segments.scoring import Ints


class Graph(NamedTuple):
    """A finished graph. nodes: its vectors as it holds them, without a copy. node_of: (rows,) the node of each row, or
    None when row i is node i. bands: empty for one graph over all nodes. beam: that it needs."""

    index: Any
    nodes: StoredRows
    node_of: Ints | None
    bands: tuple[Band, ...]
    longest: float
    beam: Beam


class Rows(NamedTuple):
    """Distinct vectors alone. vectors: of the nodes, as they are held. node_of, longest: as in Graph."""

    vectors: StoredRows
    node_of: Ints | None
    longest: float


class GraphBuilder:
    """Feed it the rows of a segment in order, then `finish`, or `rows` for no graph. Inserting is done in slices
    between which `cancelled` is asked (raises BuildCancelled).

    base: a graph without bands that was read from a file, with the number of its rows, the node of each (None: row i is
    node i), and the beam that it needed.
    """

    def __init__(
        self,
        spec: CollectionSpec,
        cancelled: Callable[[], bool],
        base: tuple[Any, int, Ints | None, Beam] | None = None,
    ) -> None:
        self._spec = spec
        self._cancelled = cancelled
        self._index = _empty_graph(spec) if base is None else base[0]
        # By length is sorted what is all known: until then the vectors of an inner product wait here.
        waits = spec.metric == Metric.DOT or spec.index.kind not in GRAPHS
        self._held = _empty_flat(spec) if waits else None
        self._waiting: list[StoredRows] = []
        """Behind the graph's nodes, slices that were not put in yet."""
        self._waiting_max = waiting_max(spec.dimensions)
        self._beam = UNMEASURED
        self._distinct = DistinctRows(self._known)
        self._node_of: list[Ints] = []
        self._form = spec.form
        self._kept: list[StoredRows] | None = None
        """Of each node, where that does not follow from what is scored."""
        if self._form.unit and self._form.dtype is not DType.FLOAT32:
            self._kept = []
        if base is not None:
            self._start_from(*base)

    def _nodes(self) -> StoredRows:
        return self._nodes_of(self._index if self._held is None else self._held)

    def _nodes_of(self, index: Any) -> StoredRows:
        return bit_graph.rows_of(index) if self._form.bits else nodes_of(index)

    def _known(self, nodes: Ints) -> StoredRows:
        """(n, d) vectors that came already."""
        held = self._nodes()
        inside = nodes < len(held)
        if inside.all():
            return held[nodes]
        found = np.empty((len(nodes), held.shape[1]), held.dtype)
        found[inside] = held[nodes[inside]]
        found[~inside] = np.concatenate(self._waiting)[nodes[~inside] - len(held)]
        return found

    def _start_from(self, index: Any, rows: int, node_of: Ints | None, beam: Beam) -> None:
        self._beam = beam
        nodes = self._nodes_of(index)
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

    def stored(self, nodes: StoredRows) -> StoredRows:
        """All nodes, as they are stored, in their order."""
        if self._kept is None:
            return nodes if self._form.bits else self._form.stored(nodes)
        return np.concatenate(self._kept) if self._kept else self._form.rows(b"")

    def add(self, rows: StoredRows) -> None:
        """rows: of the next ordinals, as they are stored."""
        for at in range(0, len(rows), SLICE_ROWS):
            self._go_on()
            given = rows[at : at + SLICE_ROWS]
            part = np.ascontiguousarray(given if self._form.bits else self._form.scored(given))
            nodes, new = self._distinct.add(part)
            self._node_of.append(nodes)
            self.keep(given[new])
            if not len(new):
                continue
            if self._held is not None:
                self._held.add(part[new])
                continue
            self._waiting.append(part[new])
            while sum(map(len, self._waiting)) - len(self._waiting[0]) >= self._waiting_max:
                self._insert(self._waiting.pop(0))

    def finish(self) -> Graph:
        """The graph of everything that was added."""
        if self._held is None:
            waiting = np.concatenate([self._nodes()[:0], *self._waiting])
            self._waiting.clear()
            self._insert_measured(waiting)
        nodes = self._nodes()
        node_of = np.concatenate([np.empty(0, np.int64), *self._node_of])
        lengths = lengths_of(nodes)
        longest = float(lengths.max(initial=0.0)) * ROUNDING
        bands: tuple[Band, ...] = ()
        if self._held is not None:
            order = np.argsort(-lengths, kind="stable")
            bands = bands_of(lengths[order])
            if bands:
                self._build_bands(nodes, order, bands)
                place = np.empty(len(order), np.int64)
                place[order] = np.arange(len(order))
                return self._graph(place[node_of], bands, longest)
            self._insert_measured(nodes[self._index.ntotal :])
        return self._graph(_named(node_of, len(nodes)), (), longest)

    def _graph(self, node_of: Ints | None, bands: tuple[Band, ...], longest: float) -> Graph:
        return Graph(self._index, self._nodes_of(self._index), node_of, bands, longest, self._beam)

    def rows(self) -> Rows:
        """Everything that was added, where no graph is made of it."""
        nodes = self._nodes()
        node_of = np.concatenate([np.empty(0, np.int64), *self._node_of])
        longest = float(lengths_of(nodes).max(initial=0.0)) * ROUNDING
        return Rows(nodes, _named(node_of, len(nodes)), longest)

    def _build_bands(self, nodes: StoredRows, order: Ints, bands: tuple[Band, ...]) -> None:
        self._index, self._beam = _empty_graph(self._spec), UNMEASURED
        largest = max((band for band in bands if band.even), key=lambda band: band.nodes, default=None)
        for band in bands:
            # With no entry point, the next node starts a graph that no link joins to the others.
            self._index.hnsw.entry_point, self._index.hnsw.max_level = -1, -1
            inside = order[band.first : band.first + band.nodes]
            tail = tail_of(band.nodes, self._waiting_max, UNMEASURED) if band is largest else 0
            first, last = inside[: band.nodes - tail], inside[band.nodes - tail :]
            self._insert_some(nodes, first)
            if tail:
                queries = nodes[last[sample(tail)]]
                self._measure(queries, bands, band._replace(nodes=len(first)))
            self._insert_some(nodes, last)

    def _insert_measured(self, waiting: StoredRows) -> None:
        """Into the one graph over all nodes; before the last of them come, they are asked."""
        total = self._index.ntotal + len(waiting)
        tail = tail_of(total, min(len(waiting), self._waiting_max), self._beam)
        self._insert(waiting[: len(waiting) - tail])
        if tail:
            self._measure(waiting[-tail:][sample(tail)])
            self._insert(waiting[-tail:])

    def _measure(self, queries: StoredRows, bands: tuple[Band, ...] = (), band: Band | None = None) -> None:
        nodes = self._nodes_of(self._index)
        self._beam = least_beam(self._spec.metric, self._index, nodes, bands, band, queries, self._cancelled)

    def _insert_some(self, nodes: StoredRows, chosen: Ints) -> None:
        for at in range(0, len(chosen), SLICE_ROWS):
            self._insert(nodes[chosen[at : at + SLICE_ROWS]])

    def _insert(self, nodes: StoredRows) -> None:
        for part in _slices(nodes):
            self._go_on()
            self._index.add(part)

    def _go_on(self) -> None:
        if self._cancelled():
            raise BuildCancelled


def _named(node_of: Ints, nodes: int) -> Ints | None:
    """As in Graph. The base may have rows in another order than nodes, and nodes without a row (docs/adr/0093)."""
    return None if len(node_of) == nodes and np.array_equal(node_of, np.arange(nodes)) else node_of


def _empty_flat(spec: CollectionSpec) -> Any:
    return faiss.IndexBinaryFlat(spec.dimensions) if spec.form.bits else faiss.IndexFlat(spec.dimensions)


def _empty_graph(spec: CollectionSpec) -> Any:
    return bit_graph.empty_graph(spec) if spec.form.bits else full_graph(spec)


def full_graph(spec: CollectionSpec) -> Any:
    """Without nodes yet, for full vectors in float32."""
    index = faiss.IndexHNSWFlat(spec.dimensions, spec.index.m, faiss_metric(spec.metric))
    index.hnsw.efConstruction = spec.index.ef_construction
    return index


def graph_over(spec: CollectionSpec, hnsw: Any, nodes: Iterable[StoredRows]) -> Any:
    """A graph over full vectors, of the links of one that has codes in their stead. nodes: as graphs hold them."""
    index = _empty_graph(spec)
    storage: Any = index.storage if spec.form.bits else faiss.downcast_index(index.storage)
    for part in nodes:
        storage.add(np.ascontiguousarray(part))
    index.hnsw, index.ntotal = hnsw, storage.ntotal
    # Its codes may have been compared otherwise.
    index.hnsw.is_similarity = faiss_metric(spec.metric) == faiss.METRIC_INNER_PRODUCT
    index.hnsw.efConstruction = spec.index.ef_construction
    return index


def _slices(rows: StoredRows) -> Iterator[StoredRows]:
    for at in range(0, len(rows), SLICE_ROWS):
        yield np.ascontiguousarray(rows[at : at + SLICE_ROWS])
