"""Hits that are near what was asked for and unlike each other: maximal marginal relevance (Carbonell and Goldstein
1998). Pure.

Invariant: equal vectors are equally far from every other one, to the last bit, whatever else is in the pool, so that of
two that would do the nearer is taken, and of two as near the one with the smaller id: equal pools give equal hits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from needle.base.model import Metric

BLOCK_NUMBERS: Final = 1 << 15
"""So many are worked at a time, which caches of processors hold: whole pools of long vectors take three times as
long."""

Floats = npt.NDArray[np.float64]


def varied(
    vectors: npt.NDArray[np.float32],
    distances: Sequence[float],
    metric: Metric,
    weight: float,
    take: int,
    go_on: Callable[[], None] = lambda: None,
) -> list[int]:
    """The rows to take, in their order: the first, which is the nearest; then at each step the one with the greatest
    weight * (distance to the nearest that was taken) - (1 - weight) * (distance to what was asked for). vectors: of
    shape (n, d), of bits the bytes that have them. distances: of each, ascending. go_on: called before each step, which
    looks at all of them; what it raises ends the work."""
    if not len(vectors):
        return []
    apart_from = _of_bits(vectors) if metric is Metric.HAMMING else _of_numbers(vectors, metric)
    far, apart, taken = np.asarray(distances, np.float64), np.full(len(vectors), np.inf), list(range(min(1, take)))
    while 0 < len(taken) < min(take, len(vectors)):
        go_on()
        apart = np.minimum(apart, apart_from(taken[-1]))
        worth = weight * apart - (1.0 - weight) * far
        worth[taken] = -np.inf
        taken.append(int(worth.argmax()))  # the first of equal ones
    return taken


def _of_bits(vectors: npt.NDArray[np.float32]) -> Callable[[int], Floats]:
    """The distances of all to one of them, counted on bytes."""
    packed = vectors.astype(np.uint8)

    def distances(at: int) -> Floats:
        counts: Floats = np.bitwise_count(packed ^ packed[at]).sum(axis=1, dtype=np.float64)
        return counts

    return distances


def _of_numbers(vectors: npt.NDArray[np.float32], metric: Metric) -> Callable[[int], Floats]:
    """The same, as base.model.Metric has them. Row by row, not by a matrix product, whose rounding depends on where a
    row is; of some rows at a time, which changes none of them."""
    rows = vectors.astype(np.float64)
    if metric is Metric.COSINE:  # those of some types come as they were given, of any length
        rows /= np.sqrt(np.square(rows).sum(axis=1))[:, None]
    size = max(1, BLOCK_NUMBERS // rows.shape[1])
    room = np.empty((min(size, len(rows)), rows.shape[1]))

    def distances(at: int) -> Floats:
        found = np.empty(len(rows))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            numbers = room[: len(part)]
            if metric is Metric.L2:
                np.subtract(part, rows[at], out=numbers)
                np.square(numbers, out=numbers)
            else:
                np.multiply(part, rows[at], out=numbers)
            numbers.sum(axis=1, out=found[start : start + size])
        if metric is Metric.L2:
            return np.sqrt(found, out=found)
        return -found if metric is Metric.DOT else 1.0 - found

    return distances
