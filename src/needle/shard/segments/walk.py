"""Finding the nearest nodes of a graph, or of one band of it, by walking it. It knows no files, ordinals or masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from needle.base.model import IndexKind, Metric
from needle.shard.segments.graph import Band
from needle.shard.segments.scoring import Floats, Ints, square_norms

ENTRIES: Final = 128
"""Nodes of a band among which a search of it starts at the nearest."""
ROTATION_SEED: Final = 0x6E65_6564
BEAMS_KEPT: Final = 64
"""Of so many widths the parameters for faiss are kept."""

Ints32 = npt.NDArray[np.int32]


def as_coded(kind: IndexKind, metric: Metric, rows: Floats) -> Floats:
    """Vectors, or queries, as the codes of a kind of index are made of. rows: (n, d) float32."""
    if kind is not IndexKind.HNSW_RABITQ:
        return rows
    if metric == Metric.HAMMING:  # they are bits already
        return np.ascontiguousarray(rows, np.float32)
    if metric == Metric.DOT:  # faiss walks such codes by distances; in a band, the inner product is nearly the angle
        rows = of_unit_length(rows)
    return np.asarray(rotation(rows.shape[1]).apply(np.ascontiguousarray(rows)), np.float32)


def of_unit_length(rows: Floats) -> Floats:
    """Divided by their lengths, but for zeros."""
    lengths = np.sqrt(square_norms(rows))[:, None]
    return np.divide(rows, np.where(lengths > 0, lengths, 1), dtype=np.float32)


@cache
def rotation(dimensions: int) -> Any:
    """Of vectors before they become bits. One bit says enough of a component only if none stands out: signs and sums
    spread each over all."""
    return faiss.HadamardRotation(dimensions, ROTATION_SEED)


def divisor(band: Band) -> float:
    """What the vectors of one of several bands are divided by before they are coded."""
    return band.longest if band.longest > 0 else 1.0


class Walk:
    """index: a faiss HNSW index, over full vectors or over codes. bands: none for one graph over all nodes. vectors:
    full ones of nodes. kind: of its codes. metric: the collection's."""

    def __init__(
        self,
        index: Any,
        metric: Metric,
        bands: tuple[Band, ...],
        vectors: Callable[[Ints], Floats],
        kind: IndexKind = IndexKind.HNSW,
    ) -> None:
        self._index = index
        self._metric = metric
        self._bands = bands
        self._vectors = vectors
        self._kind = kind
        self._parameters: dict[int, Any] = {}

    def nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        """(nq, width) the nearest nodes of a band, -1 for none; about, where the graph is one over codes."""
        # The OpenMP thread count belongs to the calling thread: searches run side by side, one thread each.
        faiss.omp_set_num_threads(1)
        parameters = self._with_beam(beam)
        asked = as_coded(self._kind, self._metric, queries)
        near, distances = np.empty((len(queries), width), np.int64), np.empty((len(queries), width), np.float32)
        if not self._bands:
            # Its own name stands for a function in Python around this one: 10 us of a search that takes 90.
            arrays = [faiss.swig_ptr(array) for array in (distances, near)]
            self._index.search_c(len(queries), faiss.swig_ptr(asked), width, *arrays, parameters)
            return near
        first, distance = self._entries(band, queries, asked)
        arrays = [faiss.swig_ptr(array) for array in (first, distance, distances, near)]
        self._index.search_level_0(len(queries), faiss.swig_ptr(asked), width, *arrays, 1, 1, parameters)
        return near

    def _with_beam(self, beam: int) -> Any:
        """faiss only reads them, so that threads may share them."""
        found = self._parameters.get(beam)
        if found is None:
            found = faiss.SearchParametersHNSW(efSearch=beam)  # type: ignore[attr-defined]
            if len(self._parameters) < BEAMS_KEPT:
                self._parameters[beam] = found
        return found

    def _entries(self, band: Band, queries: Floats, asked: Floats) -> tuple[Ints32, Floats]:
        """Where the search of a band begins, for each query, and how far that is as the graph measures."""
        entries = np.linspace(band.first, band.first + band.nodes - 1, min(band.nodes, ENTRIES)).astype(np.int64)
        rows = self._vectors(entries)
        scores = queries @ rows.T
        start = scores.argmax(axis=1)
        score = scores[np.arange(len(queries)), start]
        distance = np.negative(score)
        if self._kind is IndexKind.HNSW_SQ8:
            distance /= np.float32(divisor(band))
        elif self._kind is IndexKind.HNSW_RABITQ:
            distance = square_norms(asked - as_coded(self._kind, self._metric, rows[start]))
        return entries[start].astype(np.int32), distance
