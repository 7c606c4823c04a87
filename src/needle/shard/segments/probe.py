"""Finding near nodes in lists of vectors that lie together: those lists are looked through whose centres are nearest.

How many of them a search has to look through for the recall that its effort asks for depends on the data, so it is
measured for each file (lists.py). It knows no files, ordinals or masks.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from needle.base.model import Metric
from needle.shard.segments.graph import Band
from needle.shard.segments.scoring import PAIR_BLOCK, Floats, Ints, may_be_near, pair_distances, slack, square_norms

SUB_DIMENSIONS: Final = 8
"""Components that one byte of a product code stands for; fewer where it would be fewer bytes than this number."""


class Lists(NamedTuple):
    """List i holds the nodes [starts[i], ends[i]). of_bands: the first list of each band, and behind them the
    number of lists. efforts, shares: for these widths of a beam that part of a band's lists is looked through. norms:
    (nodes,) squared lengths, where the metric needs them."""

    starts: Ints
    ends: Ints
    of_bands: Ints
    efforts: Floats
    shares: Floats
    norms: Floats | None = None


def share(lists: Lists, effort: float) -> float:
    """Which part of the lists is looked through."""
    if effort <= lists.efforts[-1]:
        return float(np.interp(effort, lists.efforts, lists.shares))
    return min(1.0, float(lists.shares[-1] * effort / lists.efforts[-1]))


def sub_codes(dimensions: int) -> int:
    """Bytes of a product code."""
    return -(-dimensions // max(1, min(SUB_DIMENSIONS, dimensions // SUB_DIMENSIONS)))


def padded(rows: Floats) -> Floats:
    """With zeros behind, so that they fall into as many equal parts as a product code has bytes."""
    dimensions = rows.shape[1]
    codes = sub_codes(dimensions)
    more = -(-dimensions // codes) * codes - dimensions
    return np.pad(rows, ((0, 0), (0, more))) if more else np.ascontiguousarray(rows)


def centre_keys(metric: Metric, queries: Floats, centres: Floats) -> Floats:
    """(nq, centres), lower is nearer."""
    with np.errstate(over="ignore", invalid="ignore"):
        keys: Floats = queries @ centres.T
        if metric == Metric.L2:
            keys *= np.float32(-2)
            keys += square_norms(centres)
            return keys
        return np.negative(keys, out=keys)


class Probe:
    """centres: (lists, d). index: faiss lists of product codes, None where full vectors are looked through. rows:
    (nodes, d) these. bands: those of the lists. stretch: as codes.Coded."""

    def __init__(
        self,
        metric: Metric,
        bands: tuple[Band, ...],
        lists: Lists,
        centres: Floats,
        rows: Floats,
        index: Any | None,
        stretch: float,
    ) -> None:
        self._metric = metric
        self._lists = lists
        self._centres = centres
        self._rows = rows
        self._at = faiss.cast_integer_to_float_ptr(rows.ctypes.data)
        self._index = index
        self._stretch = stretch
        ends = lists.of_bands.tolist()
        self._of_band = {band.first: (a, b) for band, a, b in zip(bands, ends[:-1], ends[1:], strict=True)}

    def nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        """(nq, width) the nearest nodes of the lists that a beam of this width is worth, nearest first, -1 for none."""
        first, end = self._of_band[band.first]
        count = self.looked_through(band, beam)
        keys = centre_keys(self._metric, queries, self._centres[first:end])
        chosen = first + np.argpartition(keys, count - 1, axis=1)[:, :count]
        if self._index is None:
            return np.stack([self._scan(*one, width, band.longest) for one in zip(queries, chosen, strict=True)])
        # The OpenMP thread count belongs to the calling thread: searches run side by side, one thread each.
        faiss.omp_set_num_threads(1)
        near, distances = np.empty((len(queries), width), np.int64), np.empty((len(queries), width), np.float32)
        asked, lists, of_lists = padded(queries), np.ascontiguousarray(chosen), np.zeros(chosen.shape, np.float32)
        arrays = [faiss.swig_ptr(array) for array in (lists, of_lists, distances, near)]
        parameters = faiss.SearchParametersIVF(nprobe=count)  # type: ignore[call-arg]
        # By its own name faiss would take the number of lists from the index, which all searches share.
        self._index.search_preassigned_c(len(queries), faiss.swig_ptr(asked), width, *arrays, False, parameters)
        return near

    def looked_through(self, band: Band, beam: int) -> int:
        """How many lists a beam of this width is worth."""
        first, end = self._of_band[band.first]
        return int(max(1, min(end - first, round(share(self._lists, beam / self._stretch) * (end - first)))))

    def _scan(self, query: Floats, chosen: Ints, width: int, longest: float) -> Ints:
        chosen = np.sort(chosen)
        starts, ends = self._lists.starts[chosen], self._lists.ends[chosen]
        sizes = ends - starts
        nodes = np.arange(int(sizes.sum())) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
        keys = np.empty(len(nodes), np.float32)
        faiss.omp_set_num_threads(1)
        keys_in_place(self._metric, query, self._at, nodes, keys)
        lengths = longest if self._lists.norms is None else np.sqrt(self._lists.norms[nodes])
        with np.errstate(over="ignore", invalid="ignore"):
            near = may_be_near(keys, slack(self._metric, query[None], lengths)[0], width)
        # Of vectors that are alike but for their last digits, a product tells no order.
        nodes = nodes[near]
        order = np.empty(len(nodes), np.float32)
        for at in range(0, len(nodes), PAIR_BLOCK):
            block = slice(at, at + PAIR_BLOCK)
            order[block] = pair_distances(self._metric, query[None], self._rows.take(nodes[block], axis=0))
        found = np.full(width, -1, np.int64)
        found[: len(nodes)] = nodes[np.argsort(order, kind="stable")][:width]
        return found


def keys_in_place(metric: Metric, query: Floats, at: Any, nodes: Ints, out: Floats) -> None:
    """What orders these nodes by their distance to a query, but for rounding, of vectors where they lie. at: faiss'
    pointer to the first of all. query: (d,), nodes: (n,), out: (n,), all in one piece. Lets go of the interpreter's
    lock; who calls it has set faiss to one thread."""
    squares = metric == Metric.L2
    score = getattr(faiss, "fvec_L2sqr_by_idx" if squares else "fvec_inner_products_by_idx")
    score(faiss.swig_ptr(out), faiss.swig_ptr(query), at, faiss.swig_ptr(nodes), len(query), 1, len(nodes))
    if not squares:
        np.negative(out, out=out)
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out -= square_norms(query[None])  # as a product says it, so that one scan may have both
