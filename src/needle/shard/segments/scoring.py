"""Exact distances and top-k. Every distance that leaves a replica is computed by `pair_distances`.

Invariant: a vector's distance to a query is the same 32 bits wherever the vector lives (growing rows, any segment
file, any batch size, any CPU type): one float32 multiply per component and NumPy's pairwise sum along the row, neither
of which depends on the number of rows. A matrix product does depend on it, so it only *selects* candidates: all rows
within a proven rounding error of the k-th best are scored again (Higham 2002, section 3.1: |error| <= d u |x| |q|).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Final, NamedTuple

import numpy as np

from needle.base.dtypes import StoredRows, VectorForm
from needle.base.model import Metric
from needle.shard.arrays import Bools as Bools
from needle.shard.arrays import Floats as Floats
from needle.shard.arrays import Ints as Ints
from needle.shard.segments.bits import differing
from needle.shard.segments.blas import use_one_thread
from needle.shard.segments.distinct import unique_rows

PAIR_BLOCK = 4096
TIES_MAX = 1024
"""How many rows beyond the k-th of equal distance are told apart by id; of more, those of the lowest ordinals are."""
_PAIRS_HELD = 65_536
UNIT_ROUNDOFF = 2.0**-24
_STORED_ROWS: Final = 2048
_LENGTHS_SLACK: Final = 1.5
"""Where a scan measures lengths: a sum of squares by float32 is wrong by d units of rounding at most, its root by half
of that."""


class Candidates(NamedTuple):
    """Scored pairs as columns: index of the query, ordinal of the vector, distance."""

    query: Ints
    ordinal: Ints
    distance: Floats


def pair_distances(metric: Metric, queries: Floats, rows: Floats) -> Floats:
    """Distance of queries[i], or of the only query, to rows[i]. queries, rows: (n, d) float32. Returns (n,) float32,
    lower is nearer."""
    if len(rows) <= PAIR_BLOCK:
        return _pair_block(metric, queries, rows)
    out = np.empty(len(rows), np.float32)
    for at in range(0, len(rows), PAIR_BLOCK):
        block = slice(at, at + PAIR_BLOCK)
        out[block] = _pair_block(metric, queries if len(queries) == 1 else queries[block], rows[block])
    return out


def _pair_block(metric: Metric, queries: Floats, rows: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        if metric in (Metric.L2, Metric.HAMMING):
            difference = np.subtract(rows, queries)
            np.multiply(difference, difference, out=difference)
            squares: Floats = difference.sum(axis=1, dtype=np.float32)
            return squares if metric == Metric.HAMMING else np.sqrt(squares, out=squares)
        product: Floats = np.add.reduce(np.multiply(rows, queries), axis=1, dtype=np.float32)
        if metric == Metric.DOT:
            return np.negative(product, out=product)
        np.subtract(np.float32(1), product, out=product)
        np.maximum(product, np.float32(0), out=product)
        return np.minimum(product, np.float32(2), out=product)


def square_norms(rows: Floats) -> Floats:
    """Squared length of each row: (n,) float32."""
    squares: Floats = np.einsum("ij,ij->i", rows, rows)
    return squares


def slack(metric: Metric, queries: Floats, norm_max: float | Floats) -> Floats:
    """(nq, 1): how far two `_keys` may be out of order against `pair_distances`, for rows no longer than norm_max; with
    lengths of n rows (nq, n), for each. Sums of zeros and ones are exact."""
    if metric == Metric.HAMMING:
        return np.zeros((len(queries), 1), np.float32)
    unit = 4.0 * (queries.shape[1] + 8) * UNIT_ROUNDOFF
    if len(queries) == 1 and isinstance(norm_max, float):
        return _slack_of_one(metric, unit, queries[0], norm_max)
    lengths = np.sqrt(square_norms(queries), dtype=np.float32)[:, None]
    norm = np.asarray(norm_max, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if metric == Metric.L2:
            return np.asarray(np.float32(4 * unit) * (lengths + norm) ** 2, np.float32)
        # The constant covers the rounding of 1 - ip, by which distances of different products may tie.
        return np.asarray(np.float32(unit) * (lengths * norm + np.float32(1)), np.float32)


def _slack_of_one(metric: Metric, unit: float, query: Floats, norm: float) -> Floats:
    """`slack` without arrays: it is a tenth of a short search otherwise."""
    with np.errstate(over="ignore", invalid="ignore"):
        length = sqrt(np.dot(query, query))
        wide = 4 * unit * (length + norm) * (length + norm) if metric == Metric.L2 else unit * (length * norm + 1)
        return np.full((1, 1), wide, np.float32)


def _keys(metric: Metric, queries: Floats, rows: Floats, norms: Floats | None) -> Floats:
    """(nq, n) float32, ordered like the distances but for rounding: one matrix product."""
    with np.errstate(over="ignore", invalid="ignore"):
        keys: Floats = np.matmul(queries, rows.T)
        if metric not in (Metric.L2, Metric.HAMMING):
            return np.negative(keys, out=keys)
        keys *= np.float32(-2)
        keys += square_norms(rows) if norms is None else norms
        if metric == Metric.HAMMING:  # as `add_bits` has them
            keys += square_norms(queries)[:, None]
        return keys


class Scan:
    """Exact top-k over blocks of rows: feed it every block, then take `found`.

    queries: (nq, d) float32. k >= 1. norm_max: no row is longer.
    """

    def __init__(self, metric: Metric, queries: Floats, k: int, norm_max: float) -> None:
        use_one_thread()
        self.k = k
        self._metric = metric
        self.queries = queries
        self._pairs = 0
        self._slack = slack(metric, queries, norm_max)
        self._divided = False
        self._packed: StoredRows | None = None
        self._bound = np.full((len(queries), 1), np.inf, np.float32)
        self.found: list[Candidates] = []

    def add(self, rows: Floats, ordinals: Ints, mask: Bools | None = None, norms: Floats | None = None) -> None:
        """Score one block. rows: (n, d). ordinals: (n,). mask: (n,) True for rows that count. norms: squared."""
        if mask is not None:
            count = int(np.count_nonzero(mask))
            if count == 0:
                return
            if count < len(rows) // 4:
                chosen = np.flatnonzero(mask)
                rows, ordinals, mask = rows[chosen], ordinals[chosen], None
                norms = None if norms is None else norms[chosen]
        if len(rows) == 0:
            return
        keys = _keys(self._metric, self.queries, rows, norms)
        if mask is not None:
            keys[:, ~mask] = np.inf
        near = self._near(keys)
        if mask is not None:
            near &= mask
        query, row = np.nonzero(near)
        self._take(Candidates(query, ordinals[row], self._distances(rows, query, row)))

    def add_keys(self, keys: Floats, rows: Callable[[Ints], Floats], ordinals: Ints) -> None:
        """Score rows of which keys are known: each the negated product, or the squared distance less the query's,
        by float32 in any order of its terms. keys: (nq, n). rows: their vectors, by place. ordinals: (n,)."""
        query, row = np.nonzero(self._near(keys))
        if len(self.queries) == 1:
            self._take(Candidates(query, ordinals[row], self._distances(rows(row), query, np.arange(len(row)))))
            return
        seen, place = np.unique(row, return_inverse=True)
        self._take(Candidates(query, ordinals[row], self._distances(rows(seen), query, place.reshape(-1))))

    def add_stored(
        self,
        form: VectorForm,
        rows: StoredRows,
        ordinals: Ints,
        mask: Bools | None = None,
        lengths: Floats | None = None,
    ) -> None:
        """Like `add`, of rows as they are stored in a form that `divides`: one product of the widened numbers, and
        their lengths, say which rows may be near; only these are made unit vectors. rows: (n, numbers).
        lengths: (n,) of the widened rows, where these are known: to measure them takes longer than the product."""
        if mask is not None:
            chosen = np.flatnonzero(mask)
            rows, ordinals = rows[chosen], ordinals[chosen]
            lengths = None if lengths is None else lengths[chosen]
        if not self._divided:
            self._divided = True
            self._slack *= np.float32(_LENGTHS_SLACK)
        for at in range(0, len(rows), _STORED_ROWS):
            block = slice(at, at + _STORED_ROWS)
            keys = self._keys_of_stored(form, rows[block], None if lengths is None else lengths[block])
            self.add_keys(keys, partial(_unit_rows, form, rows[block]), ordinals[block])

    def add_bits(self, form: VectorForm, rows: StoredRows, ordinals: Ints, mask: Bools | None = None) -> None:
        """Like `add`, of rows of bits as they are stored: what is counted are their distances. rows: (n, numbers)."""
        if mask is not None:
            chosen = np.flatnonzero(mask)
            rows, ordinals = rows[chosen], ordinals[chosen]
        if self._packed is None:
            self._packed = form.stored(self.queries)
        for at in range(0, len(rows), _STORED_ROWS):
            keys = differing(self._packed, rows[at : at + _STORED_ROWS])
            query, row = np.nonzero(self._near(keys))
            self._take(Candidates(query, ordinals[at + row], keys[query, row]))

    def _keys_of_stored(self, form: VectorForm, rows: StoredRows, lengths: Floats | None) -> Floats:
        wide = form.widened(rows)
        keys: Floats = np.matmul(self.queries, wide.T)
        if lengths is None:
            lengths = np.sqrt(square_norms(wide))
        with np.errstate(over="ignore", invalid="ignore"):
            keys /= np.negative(np.where(lengths > 0, lengths, np.float32(1)))
        return keys

    def _near(self, keys: Floats) -> Bools:
        """Which may be among the k nearest of all so far."""
        if keys.shape[1] > self.k:
            kth = np.partition(keys, self.k - 1, axis=1)[:, self.k - 1 : self.k]
            np.fmin(self._bound, kth, out=self._bound)
        # "not greater" keeps NaN: overflowed scores are decided by the exact distance.
        near: Bools = ~(keys > self._bound + self._slack)
        return near

    def _take(self, found: Candidates) -> None:
        self.found.append(found)
        query = found.query
        self._pairs += len(query)
        if self._pairs > max(_PAIRS_HELD, 4 * len(self.queries) * (self.k + TIES_MAX)):
            self.found = [with_ties(self.found, len(self.queries), self.k)]
            self._pairs = len(self.found[0].query)

    def _distances(self, rows: Floats, query: Ints, row: Ints) -> Floats:
        """Distance of each pair. Equal rows, which many pairs mean, are scored once a query."""
        if len(query) <= 4 * len(self.queries) * (self.k + TIES_MAX // 8):
            return self._scored(rows, query, row)
        seen, which = np.unique(row, return_inverse=True)
        chosen, place = unique_rows(rows[seen])
        pairs, inverse = np.unique(query * len(chosen) + place[which.reshape(-1)], return_inverse=True)
        once = seen[chosen[pairs % len(chosen)]]
        distances: Floats = self._scored(rows, pairs // len(chosen), once)[inverse.reshape(-1)]
        return distances

    def _scored(self, rows: Floats, query: Ints, row: Ints) -> Floats:
        """Distance of queries[query[i]] to rows[row[i]], copied out a block at a time."""
        out = np.empty(len(query), np.float32)
        for at in range(0, len(query), PAIR_BLOCK):
            q, r = query[at : at + PAIR_BLOCK], row[at : at + PAIR_BLOCK]
            out[at : at + PAIR_BLOCK] = pair_distances(self._metric, self.queries[q], rows[r])
        return out


def may_be_near(keys: Floats, wide: Floats, width: int) -> Ints:
    """Which rows may be among the `width` nearest. wide: (n,) or (1,) how far two such keys may be out of order. Each
    row's own counts: one that is a million times longer than the rest would otherwise leave none out."""
    if len(keys) <= width:
        return np.arange(len(keys))
    if len(wide) == 1:
        return np.flatnonzero(~(keys > np.partition(keys, width - 1)[width - 1] + wide))
    error = np.float32(0.5) * wide
    bound = np.partition(keys + error, width - 1)[width - 1]
    return np.flatnonzero(~(keys - error > bound))  # "not greater" keeps NaN


def _unit_rows(form: VectorForm, rows: StoredRows, places: Ints) -> Floats:
    return form.scored(rows[places])


def with_ties(found: list[Candidates], queries: int, k: int) -> Candidates:
    """Of each query the k nearest and what is as near as the k-th, TIES_MAX of that at most, sorted by (query,
    distance, ordinal)."""
    if not found:
        return Candidates(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    query, ordinal, distance = found[0]
    if len(found) > 1:
        query, ordinal, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    if queries == 1:
        return _of_one(query, ordinal, distance, k)
    order = np.lexsort((ordinal, distance, query))
    query, ordinal, distance = query[order], ordinal[order], distance[order]
    first = np.searchsorted(query, np.arange(queries))
    rank = np.arange(len(query)) - first[query]
    kth = np.minimum(first + k - 1, len(query) - 1)[query]
    keep = (rank < k) | ((rank < k + TIES_MAX) & (query[kth] == query) & (distance == distance[kth]))
    return Candidates(query[keep], ordinal[keep], distance[keep])


def _of_one(query: Ints, ordinal: Ints, distance: Floats, k: int) -> Candidates:
    """`with_ties` of one query."""
    order = np.lexsort((ordinal, distance))
    distance = distance[order]
    count = min(k, len(order))
    if k < len(order):
        tied = int(np.searchsorted(distance, distance[k - 1], side="right"))
        count = k if np.isnan(distance[k - 1]) else min(tied, k + TIES_MAX)  # NaN is as near as nothing
    order = order[:count]
    return Candidates(query[order], ordinal[order], distance[:count])


def top_k(found: list[Candidates], queries: int, k: int) -> tuple[Ints, Floats]:
    """The k nearest of each query, by (distance, ordinal): ordinals (queries, k) int64 with -1 for none, distances
    (queries, k) float32 with inf for none."""
    ordinals = np.full((queries, k), -1, np.int64)
    distances = np.full((queries, k), np.inf, np.float32)
    query, ordinal, distance = with_ties(found, queries, k)
    if queries == 1:
        count = min(k, len(ordinal))
        ordinals[0, :count], distances[0, :count] = ordinal[:count], distance[:count]
        return ordinals, distances
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    keep = rank < k
    ordinals[query[keep], rank[keep]] = ordinal[keep]
    distances[query[keep], rank[keep]] = distance[keep]
    return ordinals, distances
