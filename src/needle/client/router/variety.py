"""Hits that are near what was asked for and unlike each other: maximal marginal relevance (Carbonell and Goldstein
1998). Pure.

Invariant: equal vectors are equally far from every other one, to the last bit, whatever else is in the pool, so that of
two that would do the nearer is taken, and of two as near the one with the smaller id: equal pools give equal hits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from needle.base.model import Metric

Floats = npt.NDArray[np.float64]


def varied(
    vectors: npt.NDArray[np.float32], distances: Sequence[float], metric: Metric, weight: float, take: int
) -> list[int]:
    """The rows to take, in their order: the first, which is the nearest; then at each step the one with the greatest
    weight * (distance to the nearest that was taken) - (1 - weight) * (distance to what was asked for). vectors: of
    shape (n, d). distances: of each, ascending."""
    rows, far = vectors.astype(np.float64), np.asarray(distances, np.float64)
    if metric is Metric.COSINE:  # those of some types come as they were given, of any length
        rows /= np.sqrt(np.square(rows).sum(axis=1))[:, None]
    apart, taken = np.full(len(rows), np.inf), list(range(min(1, take, len(rows))))
    while 0 < len(taken) < min(take, len(rows)):
        apart = np.minimum(apart, _distances(rows, rows[taken[-1]], metric))
        worth = weight * apart - (1.0 - weight) * far
        worth[taken] = -np.inf
        taken.append(int(worth.argmax()))  # the first of equal ones
    return taken


def _distances(rows: Floats, row: Floats, metric: Metric) -> Floats:
    """As base.model.Metric has them. Row by row, not by a matrix product, whose rounding depends on where a row is."""
    if metric is Metric.L2:
        squares: Floats = np.square(rows - row).sum(axis=1)
        return np.sqrt(squares)
    products: Floats = (rows * row).sum(axis=1)
    return -products if metric is Metric.DOT else 1.0 - products
