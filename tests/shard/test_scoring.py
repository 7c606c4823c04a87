"""Distances are the same bits whatever the batch, and candidate selection never loses a row to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.model import Metric
from needle.shard.segments.scoring import Candidates, Scan, pair_distances, top_k

METRICS = list(Metric)


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 40), st.sampled_from(METRICS), st.integers(0, 2**32 - 1))
def test_distance_does_not_depend_on_the_batch(dimensions: int, rows: int, metric: Metric, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((rows, dimensions)).astype(np.float32)
    query = rng.standard_normal((1, dimensions)).astype(np.float32)
    together = pair_distances(metric, np.repeat(query, rows, axis=0), data)
    alone = np.concatenate([pair_distances(metric, query, data[i : i + 1]) for i in range(rows)])
    assert together.dtype == np.float32
    assert together.tobytes() == alone.tobytes()


def test_known_distances() -> None:
    query, row = np.array([[3.0, 4.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    assert pair_distances(Metric.L2, query, row)[0] == pytest.approx(4.0)
    assert pair_distances(Metric.DOT, query, row)[0] == pytest.approx(-5.0)
    assert pair_distances(Metric.COSINE, row, row)[0] == pytest.approx(0.0, abs=1e-6)
    assert pair_distances(Metric.COSINE, row, -row)[0] == pytest.approx(2.0)
    assert pair_distances(Metric.COSINE, query, row)[0] == 0.0  # clipped, never negative


@settings(deadline=None)
@given(
    st.sampled_from(METRICS),
    st.integers(1, 300),
    st.integers(1, 20),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_scan_finds_the_k_smallest_pair_distances(
    metric: Metric, rows: int, k: int, blocks: int, live_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values make many exact ties; a far offset makes the matrix product's rounding large for l2.
    data = (rng.integers(-1, 2, (rows, 6)) + 50 * (seed % 2)).astype(np.float32)
    queries = (rng.integers(-1, 2, (3, 6)) + 50 * (seed % 2)).astype(np.float32)
    if metric == Metric.COSINE:
        data /= np.maximum(np.linalg.norm(data, axis=1, keepdims=True), 1)
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1)
    mask = rng.random(rows) < live_share
    norms = np.sqrt((data**2).sum(axis=1))
    scan = Scan(metric, queries, k, float(norms.max()) * 1.001)
    for part in np.array_split(np.arange(rows), blocks):
        scan.add(data[part], part, mask[part])
    ordinals, distances = top_k(scan.found, len(queries), k)
    live = np.flatnonzero(mask)
    for row, query in enumerate(queries):
        exact = pair_distances(metric, np.repeat(query[None], len(live), axis=0), data[live])
        order = np.lexsort((live, exact))[:k]
        count = len(order)
        assert ordinals[row, :count].tolist() == live[order].tolist()
        assert distances[row, :count].tobytes() == exact[order].tobytes()
        assert np.all(ordinals[row, count:] == -1) and np.all(np.isinf(distances[row, count:]))


def test_near_ties_that_a_matrix_product_cannot_tell_apart_are_ordered_by_the_exact_distance() -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal(384).astype(np.float32) * 10
    data = np.repeat(base[None], 500, axis=0) + rng.standard_normal((500, 384)).astype(np.float32) * 1e-5
    scan = Scan(Metric.L2, base[None], 10, float(np.linalg.norm(data, axis=1).max()) * 1.001)
    scan.add(data, np.arange(500))
    ordinals, _ = top_k(scan.found, 1, 10)
    exact = pair_distances(Metric.L2, np.repeat(base[None], 500, axis=0), data)
    assert ordinals[0].tolist() == np.lexsort((np.arange(500), exact))[:10].tolist()


def test_top_k_orders_by_distance_then_ordinal() -> None:
    found = [
        Candidates(np.array([0, 1]), np.array([9, 4]), np.array([1, 3], np.float32)),
        Candidates(np.array([0, 0]), np.array([2, 7]), np.array([1, 0.5], np.float32)),
    ]
    ordinals, distances = top_k(found, 3, 2)
    assert ordinals.tolist() == [[7, 2], [4, -1], [-1, -1]]
    assert distances[0].tolist() == [0.5, 1.0] and distances[1, 0] == 3.0
