"""Makes lists of vectors that lie together, for a file: an inverted file, with full vectors or product codes.

Nodes stand in the order of their lists, so a list is a range of nodes. Of an inner product with uneven lengths each
band (graph.py) has lists of its own. For each file it is measured, by some of its own vectors, which part of the lists
holds their nearest others, and how many of the nearest by code have to be scored again. It does not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from needle.base.model import IndexKind, Metric
from needle.shard.segments.codes import LOSS_MAX, SAMPLE_BEAMS, SAMPLE_QUERIES, nearest_others, recall
from needle.shard.segments.graph import ROUNDING, SLICE_ROWS, Band, BuildCancelled, bands_of, faiss_metric
from needle.shard.segments.probe import Lists, Probe, centre_keys, padded, sub_codes
from needle.shard.segments.scoring import Floats, Ints, square_norms
from needle.shard.segments.walk import divisor

LISTED: Final = (IndexKind.IVF_FLAT, IndexKind.IVF_PQ)
"""Kinds of index that are lists."""
LISTS_ROWS_MIN: Final = 4096
"""Of fewer vectors each is scored."""
EFFORTS: Final = (1, 10, 20, 50, 100, 200, 500, 1000)
"""The widths of a beam for which the lists to look through are measured."""
MISSED: Final = 0.8
"""A search of effort e may miss this divided by e of what is nearest."""
SEED: Final = 1234
STRETCHES: Final = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_ITERATIONS, _SAMPLE_PER_LIST, _CODE_SAMPLE = 6, 64, 8192


class Listed(NamedTuple):
    """kind: that it became. index: what faiss is to write: the lists of codes, or the centres alone. order: (nodes,)
    which vector each node is. bands: none for all vectors together."""

    kind: IndexKind
    index: Any
    order: Ints
    bands: tuple[Band, ...]
    lists: Lists | None
    stretch: float


def listed(kind: IndexKind, metric: Metric, vectors: Floats, cancelled: Callable[[], bool]) -> Listed | None:
    """Lists over (n, d) float32; None where they would be no use. Raises BuildCancelled."""
    made = _Lister(metric, vectors, cancelled)
    return made.made(kind) if made.sort() else made.by_length()


class _Lister:
    """One file's lists while they are made."""

    def __init__(self, metric: Metric, vectors: Floats, cancelled: Callable[[], bool]) -> None:
        self._metric = metric
        self._vectors = vectors
        self._cancelled = cancelled
        lengths = np.sqrt(square_norms(vectors))
        self._order = np.arange(len(vectors))
        bands: tuple[Band, ...] = ()
        if metric == Metric.DOT:
            self._order = np.argsort(-lengths, kind="stable")
            bands = bands_of(lengths[self._order])
        whole = Band(0, len(vectors), float(lengths.max(initial=0.0)) * ROUNDING, even=True)
        self._bands = tuple(b._replace(even=b.even and b.nodes >= LISTS_ROWS_MIN) for b in bands or (whole,))
        self._even = [band for band in self._bands if band.even]
        self._told = self._bands if bands else ()
        self._finite = bool(np.isfinite(lengths).all())

    def sort(self) -> bool:
        """Find centres and sort vectors by them. False: there are too few vectors, or too long ones."""
        if not self._even or not self._finite:
            return False
        centres, starts, ends, of_bands = [], [], [], [0]
        for band in self._bands:
            if band.even:
                found, sizes = self._of_band(band)
                ends.append(band.first + np.cumsum(sizes))
                starts.append(ends[-1] - sizes)
                centres.append(found)
            of_bands.append(of_bands[-1] + (len(centres[-1]) if band.even else 0))
        self._centres = np.ascontiguousarray(np.concatenate(centres))
        self._starts, self._ends = np.concatenate(starts), np.concatenate(ends)
        self._of_bands = np.array(of_bands, np.int64)
        return True

    def by_length(self) -> Listed | None:
        """Bands alone, each scored row by row, if there are any: of many, a search reads but the first ones."""
        return Listed(IndexKind.FLAT, None, self._order, self._told, None, 1.0) if self._told else None

    def _of_band(self, band: Band) -> tuple[Floats, Ints]:
        """Centres of a band, and how many vectors each has; sorts the band by them."""
        count = max(2, round(band.nodes**0.5))
        inside = slice(band.first, band.first + band.nodes)
        order = self._order[inside]
        picked = np.unique(np.linspace(0, band.nodes - 1, min(band.nodes, _SAMPLE_PER_LIST * count)).astype(np.int64))
        self._go_on()
        means = faiss.Kmeans(
            self._vectors.shape[1],
            count,
            niter=_ITERATIONS,
            seed=SEED,
            spherical=self._metric != Metric.L2,
            min_points_per_centroid=1,
            max_points_per_centroid=_SAMPLE_PER_LIST + 1,
        )
        means.train(np.ascontiguousarray(self._vectors[order[picked]]))
        centres = np.ascontiguousarray(means.centroids, np.float32)
        nearest = np.concatenate([
            centre_keys(self._metric, rows, centres).argmin(axis=1) for rows in self._slices(order)
        ])  # fmt: skip
        sorted_ = np.argsort(nearest, kind="stable")
        self._order[inside] = order[sorted_]
        return centres, np.bincount(nearest, minlength=count).astype(np.int64)

    def made(self, kind: IndexKind) -> Listed:
        """The lists of a kind, or of ivf_flat where codes do not do."""
        band = max(self._even, key=lambda one: one.nodes)
        chosen = band.first + np.linspace(0, band.nodes - 1, SAMPLE_QUERIES).astype(np.int64)
        near = nearest_others(self._metric, self._rows, band, chosen, self._cancelled)
        queries = self._rows(chosen)
        norms = square_norms(self._vectors)[self._order] if self._metric == Metric.L2 else None
        efforts = np.array(EFFORTS, np.float32)
        lists = Lists(self._starts, self._ends, self._of_bands, efforts, self._shares(band, queries, near), norms)
        if kind is IndexKind.IVF_PQ and (coded := self._coded()) is not None:
            lists = lists._replace(norms=None)
            for stretch in STRETCHES:
                self._go_on()
                probe = Probe(self._metric, self._bands, lists, self._centres, queries, coded, stretch)
                if all(self._enough(probe, band, queries, near, beam, stretch) for beam in SAMPLE_BEAMS):
                    return Listed(kind, coded, self._order, self._told, lists, stretch)
            lists = lists._replace(norms=norms)
        centres = faiss.IndexFlat(self._vectors.shape[1], faiss_metric(self._metric))
        centres.add(self._centres)
        return Listed(IndexKind.IVF_FLAT, centres, self._order, self._told, lists, 1.0)

    def _enough(self, probe: Probe, band: Band, queries: Floats, near: Ints, beam: int, stretch: float) -> bool:
        """Whether codes lose hardly more than lists do."""
        width = int(stretch * beam)
        return recall(probe.nearest(band, queries, width, width), near) >= 1 - MISSED / beam - LOSS_MAX

    def _shares(self, band: Band, queries: Floats, near: Ints) -> Floats:
        """For each effort the part of a band's lists that holds what is nearest, but for what may be missed."""
        at = self._bands.index(band)
        first, end = self._of_bands[at], self._of_bands[at + 1]
        keys = centre_keys(self._metric, queries, self._centres[first:end])
        rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1)
        holds = np.searchsorted(self._starts[first:end], near, side="right") - 1
        ranks = np.sort(np.take_along_axis(rank, holds, axis=1).ravel()) + 1
        upto = [ranks[min(len(ranks) - 1, int(np.ceil(len(ranks) * max(0.0, 1 - MISSED / e))))] for e in EFFORTS]
        return np.asarray(np.array(upto, np.float32) / np.float32(end - first))

    def _coded(self) -> Any | None:
        """The lists as product codes, of vectors divided by their band's longest."""
        scale = np.ones(len(self._vectors), np.float32)
        if len(self._bands) > 1:
            for band in self._bands:
                scale[band.first : band.first + band.nodes] = divisor(band)
        nodes = np.concatenate([np.arange(band.first, band.first + band.nodes) for band in self._even])
        picked = np.unique(np.linspace(0, len(nodes) - 1, min(len(nodes), _CODE_SAMPLE)).astype(np.int64))
        sample = padded(self._vectors[self._order[nodes[picked]]] / scale[nodes[picked], None])
        dimensions = sample.shape[1]
        centres = faiss.IndexFlat(dimensions, faiss_metric(self._metric))
        centres.add(padded(self._centres))
        codes = sub_codes(self._vectors.shape[1])
        index: Any = faiss.IndexIVFPQ(centres, dimensions, len(self._centres), codes, 8, faiss_metric(self._metric))
        index.by_residual = False
        index.pq.cp.seed, index.pq.cp.min_points_per_centroid, index.pq.cp.niter = SEED, 1, _ITERATIONS
        self._go_on()
        index.train(sample)
        for at in range(0, len(nodes), SLICE_ROWS):
            self._go_on()
            part = nodes[at : at + SLICE_ROWS]
            rows = padded(self._vectors[self._order[part]] / scale[part, None])
            held = np.searchsorted(self._starts, part, side="right") - 1
            arrays = [faiss.swig_ptr(array) for array in (np.ascontiguousarray(rows), part, held)]
            index.add_core(len(part), *arrays)
        return index

    def _rows(self, nodes: Ints) -> Floats:
        rows: Floats = self._vectors[self._order[nodes]]
        return rows

    def _slices(self, order: Ints) -> Iterator[Floats]:
        for at in range(0, len(order), SLICE_ROWS):
            self._go_on()
            yield self._vectors[order[at : at + SLICE_ROWS]]

    def _go_on(self) -> None:
        if self._cancelled():
            raise BuildCancelled
