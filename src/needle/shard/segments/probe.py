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
from needle.shard.segments.scoring import PAIR_BLOCK, Floats, Ints, pair_distances, slack, square_norms

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
        self._index = index
        self._stretch = stretch
        ends = lists.of_bands.tolist()
        self._of_band = {band.first: (a, b) for band, a, b in zip(bands, ends[:-1], ends[1:], strict=True)}

    def nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        """(nq, width) the nearest nodes of the lists that a beam of this width is worth, nearest first, -1 for none."""
        first, end = self._of_band[band.first]
        count = max(1, min(end - first, round(share(self._lists, beam / self._stretch) * (end - first))))
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

    def _scan(self, query: Floats, chosen: Ints, width: int, longest: float) -> Ints:
        chosen = np.sort(chosen)
        starts, ends = self._lists.starts[chosen], self._lists.ends[chosen]
        sizes = ends - starts
        behind = np.cumsum(sizes)
        keys = np.empty(int(behind[-1]), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start, end, upto in zip(starts.tolist(), ends.tolist(), behind.tolist(), strict=True):
                np.dot(self._rows[start:end], query, out=keys[upto - end + start : upto])
            nodes = np.arange(len(keys)) + np.repeat(starts - behind + sizes, sizes)
            if self._lists.norms is None:
                np.negative(keys, out=keys)
                lengths: Floats | float = longest
            else:
                norms = self._lists.norms[nodes]
                keys *= np.float32(-2)
                keys += norms
                lengths = np.sqrt(norms)
            near = _within(keys, slack(self._metric, query[None], lengths)[0], width)
        # Of vectors that are alike but for their last digits, a product tells no order.
        order, nodes = np.empty(len(near), np.float32), nodes[near]
        for at in range(0, len(near), PAIR_BLOCK):
            block = slice(at, at + PAIR_BLOCK)
            order[block] = pair_distances(self._metric, query[None], self._rows[nodes[block]])
        found = np.full(width, -1, np.int64)
        found[: len(nodes)] = nodes[np.argsort(order, kind="stable")][:width]
        return found


def _within(keys: Floats, wide: Floats, width: int) -> Ints:
    """Which rows may be among the `width` nearest. wide: (n,) or (1,) how far two such keys may be out of order. Each
    row's own counts: one that is a million times longer than the rest would otherwise leave none out."""
    if len(keys) <= width:
        return np.arange(len(keys))
    error = np.float32(0.5) * wide
    bound = np.partition(keys + error, width - 1)[width - 1]
    return np.flatnonzero(~(keys - error > bound))  # "not greater" keeps NaN
