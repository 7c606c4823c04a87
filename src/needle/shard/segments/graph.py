"""What the HNSW graph of one segment file consists of: one node a distinct vector, and bands of like length.

A *node* is a vector of the graph; rows with equal bytes share one (distinct.py says why). For the inner product the
nodes are sorted into *bands* of like length, longest first, each a graph of its own inside the one index: no link
leaves a band. Why: on a raw inner product long vectors are everybody's neighbours, so the others can hardly be reached;
inside a band the inner product orders nearly as the angle does, and a band whose longest vector cannot beat what was
found is not asked at all (after Yan et al. 2018, "Norm-ranging LSH"; measured in docs/adr/0018-lengths-and-copies.md).

It does not know how it is built (graph_builder.py), file names or manifests; faiss's errors pass through.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from needle.base.dtypes import StoredRows
from needle.base.model import Metric
from needle.shard.segments.bits import differing_pairs
from needle.shard.segments.scoring import Floats, square_norms

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


class Beam(NamedTuple):
    """The least width of a beam that finds what is wanted (beams.py), 0 if that is not known. nodes: of the graph in
    which that was measured."""

    width: int
    nodes: int


UNMEASURED: Final = Beam(0, 0)


def faiss_metric(metric: Metric) -> int:
    """The faiss metric of a collection; cosine vectors are normalised, so their inner product is the cosine. Of zeros
    and ones the squared distance, by which faiss has L2, is the Hamming distance."""
    return int(faiss.METRIC_L2 if metric in (Metric.L2, Metric.HAMMING) else faiss.METRIC_INNER_PRODUCT)


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


def scored(nodes: StoredRows) -> Floats:
    """(n, d) float32: vectors of a graph that is built as distances are computed from them, without a copy but for
    bits."""
    if nodes.dtype != np.uint8:
        return nodes
    wide: Floats = np.unpackbits(nodes, axis=1).astype(np.float32)
    return wide


def lengths_of(nodes: StoredRows) -> Floats:
    """(n,) float32 of such vectors."""
    if nodes.dtype != np.uint8:
        return np.sqrt(square_norms(nodes))
    none, lengths = np.zeros((1, nodes.shape[1]), np.uint8), np.empty(len(nodes), np.float32)
    for at in range(0, len(nodes), SLICE_ROWS):
        lengths[at : at + SLICE_ROWS] = np.sqrt(differing_pairs(none, nodes[at : at + SLICE_ROWS]))
    return lengths


def nodes_of(index: Any) -> Floats:
    """The vectors of a graph's or a flat index's nodes, without a copy: (nodes, d) float32, until more are added."""
    storage: Any = faiss.downcast_index(index.storage) if hasattr(index, "storage") else index
    if not storage.ntotal:
        return np.empty((0, storage.d), np.float32)
    rows: Floats = faiss.rev_swig_ptr(storage.get_xb(), storage.ntotal * storage.d).reshape(-1, storage.d)
    return rows
