"""Short codes of a graph's vectors: what a search compares in their stead, to need less memory.

The graph is built over the full vectors and then given codes, so that codes cost a search some accuracy and the graph
none. How much wider a beam must be to make up for it depends on the data, so it is measured for each file (`stretch`);
where no beam does, the file keeps full vectors in its graph. Candidates are scored from the full vectors anyway.

Codes of bands (graph.py) are of vectors divided by the band's longest: a factor for all of a band leaves their order,
and short vectors would otherwise have no digits left. It does not know files, ordinals or masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from needle.base.dtypes import BYTE_BITS, DType, StoredRows
from needle.base.model import CollectionSpec, IndexKind, Metric
from needle.shard.segments.graph import SLICE_ROWS, Band, BuildCancelled, faiss_metric, nodes_of, scored
from needle.shard.segments.scoring import Floats, Ints, Scan, square_norms, top_k
from needle.shard.segments.walk import Walk, as_coded, divisor

CODED: Final = (IndexKind.HNSW_SQ8, IndexKind.HNSW_RABITQ)
"""Kinds of a graph over codes."""
STRETCHES: Final = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
SAMPLE_QUERIES, SAMPLE_K, SAMPLE_BEAMS = 128, 10, (20, 64)
"""What a file is measured by: so many of its own vectors as queries, their nearest others, with beams so wide."""
LOSS_MAX: Final = 0.004
"""So much less recall than the same graph has over full vectors is no reason for a wider beam."""
QUERY_BITS: Final = 1
"""Of a component of a query, where vectors are bits."""
_RANGE_ROWS: Final = 16_384
_OUTSIDE: Final = 0.0005
_MARGIN: Final = 0.02


class Coding(NamedTuple):
    """Which codes. half: of each component two bytes (float16) instead of one. bits: the vectors are bits, which codes
    of a bit say as they are."""

    kind: IndexKind
    half: bool = False
    bits: bool = False


def coding(spec: CollectionSpec) -> Coding | None:
    """Of a collection's graphs; None for full vectors. A graph over more digits than are stored would be a waste, so
    `hnsw` means two bytes a component for float16, one for int8, and a bit for bits."""
    if spec.index.kind in CODED:
        return Coding(spec.index.kind)
    if spec.index.kind is not IndexKind.HNSW or spec.dtype is DType.FLOAT32:
        return None
    if spec.form.bits:
        return Coding(IndexKind.HNSW_RABITQ, bits=True)
    return Coding(IndexKind.HNSW_SQ8, half=spec.dtype is DType.FLOAT16)


class Coded(NamedTuple):
    """A graph over codes. storage: is kept alive beside it, the graph does not own it. stretch: so many times wider its
    beam is to be than that of a graph over full vectors."""

    index: Any
    storage: Any
    stretch: float


def coded(
    of: Coding,
    metric: Metric,
    index: Any,
    nodes: StoredRows,
    bands: tuple[Band, ...],
    cancelled: Callable[[], bool],
) -> Coded | None:
    """A graph over full vectors with codes instead; None where these do not do. nodes: all that it has, as it holds
    them. Raises BuildCancelled."""
    kind = of.kind
    storage = _empty_storage(of, metric, nodes, bands)
    if storage is None:
        return None
    for rows in _scaled(nodes, bands):
        if cancelled():
            raise BuildCancelled
        storage.add(as_coded(kind, metric, rows))
    empty: Any = faiss.IndexHNSWSQ if kind is IndexKind.HNSW_SQ8 else faiss.IndexHNSWRaBitQ
    made = empty()
    made.d, made.ntotal, made.metric_type, made.is_trained = storage.d, storage.ntotal, storage.metric_type, True
    made.hnsw, made.storage, made.own_fields = index.hnsw, storage, False
    made.hnsw.is_similarity = storage.metric_type == faiss.METRIC_INNER_PRODUCT
    stretch = 1.0 if of.bits else _stretch(kind, metric, index, made, bands, cancelled)
    return None if stretch is None else Coded(made, storage, stretch)


def _empty_storage(of: Coding, metric: Metric, nodes: StoredRows, bands: tuple[Band, ...]) -> Any | None:
    """Trained on some of the vectors."""
    kind = of.kind
    if of.half:
        halves: Any = faiss.IndexScalarQuantizer(nodes.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss_metric(metric))
        halves.is_trained = True
        return halves
    if of.bits:
        return _of_bits(nodes.shape[1] * BYTE_BITS)
    sample = _sample(nodes, bands)
    if kind is IndexKind.HNSW_RABITQ:
        rows = as_coded(kind, metric, sample)
        bits: Any = faiss.IndexRaBitQ(rows.shape[1], faiss.METRIC_L2)
        bits.train(rows)
        return bits
    # Faiss would take the least and the greatest of each component: one odd vector would leave all others no digits.
    low, high = np.quantile(sample, (_OUTSIDE, 1 - _OUTSIDE), axis=0).astype(np.float32)
    with np.errstate(over="ignore"):
        margin = np.float32(_MARGIN) * (high - low)
        low, width = low - margin, high - low + 2 * margin
    if not np.isfinite(width).all() or not np.isfinite(low).all():
        return None
    one_byte = faiss.ScalarQuantizer.QT_8bit
    storage: Any = faiss.IndexScalarQuantizer(nodes.shape[1], one_byte, faiss_metric(metric))
    faiss.copy_array_to_vector(np.concatenate((low, width)), storage.sq.trained)
    storage.is_trained = True
    return storage


def _of_bits(dimensions: int) -> Any:
    """Codes that say which side of a half each component is on, and the same of a query: of zeros and ones that is all
    there is to say."""
    made: Any = faiss.IndexRaBitQ(dimensions, faiss.METRIC_L2)
    faiss.copy_array_to_vector(np.full(dimensions, 0.5, np.float32), made.center)
    made.qb, made.is_trained = QUERY_BITS, True
    return made


def _sample(nodes: Floats, bands: tuple[Band, ...]) -> Floats:
    """Vectors from everywhere, scaled like the rest."""
    chosen = np.unique(np.linspace(0, len(nodes) - 1, min(len(nodes), _RANGE_ROWS)).astype(np.int64))
    rows = nodes[chosen]
    if bands:
        rows /= _lengths(bands, len(nodes))[chosen, None]
    return rows


def _lengths(bands: tuple[Band, ...], nodes: int) -> Floats:
    """(nodes,) what each vector is divided by."""
    lengths = np.ones(nodes, np.float32)
    for band in bands:
        lengths[band.first : band.first + band.nodes] = divisor(band)
    return lengths


def _scaled(nodes: StoredRows, bands: tuple[Band, ...]) -> Iterator[Floats]:
    """All vectors, a slice at a time."""
    lengths = _lengths(bands, len(nodes)) if bands else None
    for at in range(0, len(nodes), SLICE_ROWS):
        rows = scored(nodes[at : at + SLICE_ROWS])
        yield rows if lengths is None else rows / lengths[at : at + SLICE_ROWS, None]


def _stretch(
    kind: IndexKind, metric: Metric, index: Any, made: Any, bands: tuple[Band, ...], cancelled: Callable[[], bool]
) -> float | None:
    """How much wider beams have to be, by the largest band that is searched by its graph; None: no width does."""
    nodes = nodes_of(index)
    band = max((b for b in bands if b.even), key=lambda b: b.nodes, default=None)
    if not bands:
        band = Band(0, len(nodes), float(np.sqrt(square_norms(nodes).max(initial=0.0))), even=True)
    if band is None or band.nodes <= SAMPLE_K:
        return 1.0  # scored exactly, whatever a search asks for (opened.BEAM_ROWS)
    chosen = band.first + np.linspace(0, band.nodes - 1, SAMPLE_QUERIES).astype(np.int64)
    queries = nodes[chosen]
    near = nearest_others(metric, lambda rows: nodes[rows], band, chosen, cancelled)
    plain = Walk(index, metric, bands, lambda rows: nodes[rows])
    short = Walk(made, metric, bands, lambda rows: nodes[rows], kind)
    wanted = {beam: recall(plain.nearest(band, queries, beam, beam), near) - LOSS_MAX for beam in SAMPLE_BEAMS}
    for stretch in STRETCHES:
        if cancelled():
            raise BuildCancelled
        widths = {int(stretch * beam): least for beam, least in wanted.items()}
        if all(recall(short.nearest(band, queries, w, w), near) >= least for w, least in widths.items()):
            return stretch
    return None


def nearest_others(
    metric: Metric, vectors: Callable[[Ints], Floats], band: Band, chosen: Ints, cancelled: Callable[[], bool]
) -> Ints:
    """(len(chosen), SAMPLE_K) the nodes of a band that are nearest to some of them, without these themselves."""
    scan = Scan(metric, vectors(chosen), SAMPLE_K + 1, band.longest)
    for at in range(band.first, band.first + band.nodes, SLICE_ROWS):
        if cancelled():
            raise BuildCancelled
        rows = np.arange(at, min(at + SLICE_ROWS, band.first + band.nodes))
        scan.add(vectors(rows), rows)
    found, _ = top_k(scan.found, len(chosen), SAMPLE_K + 1)
    others = found != chosen[:, None]
    others[others.all(axis=1), -1] = False  # so many are as near as itself that it is not among them
    near: Ints = found[others].reshape(len(chosen), SAMPLE_K)
    return near


def recall(found: Ints, near: Ints) -> float:
    """Which part of the nearest was found. near: (nq, n)."""
    return float(np.mean([np.isin(wanted, got).mean() for got, wanted in zip(found, near, strict=True)]))
