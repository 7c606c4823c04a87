"""Distances are the same bits whatever the batch, and candidate selection never loses a row to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.dtypes import DType, VectorForm
from needle.base.model import METRICS_OF_NUMBERS, Metric
from needle.shard.segments.scoring import (
    Candidates,
    Scan,
    pair_distances,
    square_norms,
    top_k,
    with_ties,
)

METRICS = METRICS_OF_NUMBERS


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


@settings(deadline=None)
@given(
    st.sampled_from([DType.FLOAT16, DType.INT8]),
    st.integers(1, 300),
    st.integers(1, 20),
    st.integers(1, 5),
    st.floats(0, 1),
    st.sampled_from([3, 64]),
    st.integers(0, 2**32 - 1),
)
def test_stored_rows_are_found_as_what_is_scored_would_be(
    dtype: DType, rows: int, k: int, blocks: int, live_share: float, dimensions: int, seed: int
) -> None:
    """Many of them point the same way, or nearly; their lengths differ; some queries point nowhere."""
    rng = np.random.default_rng(seed)
    form = VectorForm(dimensions, dtype, unit=True)
    data = rng.integers(-2, 3, (rows, dimensions)) * rng.integers(1, 60, (rows, 1))
    data[::3] = data[0] + (rng.integers(0, 200, (len(data[::3]), dimensions)) == 0)
    stored = form.stored(data.astype(np.float32) * np.float32(1 if dtype is DType.INT8 else 0.37))
    scored = form.scored(stored)
    asked_for = rng.standard_normal((2, dimensions))
    asked_for /= np.linalg.norm(asked_for, axis=1, keepdims=True)  # as searches are: distances of longer ones are cut
    queries = np.concatenate((scored[:1], asked_for, np.zeros((1, dimensions)))).astype(np.float32)
    mask = rng.random(rows) < live_share
    lengths = np.sqrt(square_norms(form.widened(stored)))
    for asked in (queries, queries[:1], queries[2:]):
        scans = [Scan(Metric.COSINE, asked, k, 1.001) for _ in range(3)]
        for part in np.array_split(np.arange(rows), blocks):
            scans[0].add(scored[part], part, mask[part])
            scans[1].add_stored(form, stored[part], part, mask[part])
            scans[2].add_stored(form, stored[part], part, mask[part], lengths[part])
        wanted, *others = (top_k(scan.found, len(asked), k) for scan in scans)
        for found in others:
            assert found[0].tolist() == wanted[0].tolist() and found[1].tobytes() == wanted[1].tobytes()


def test_only_what_may_be_near_is_made_a_unit_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all rows that takes ten times as long as the scores."""
    form, made = VectorForm(32, DType.INT8, unit=True), []
    stored = np.random.default_rng(1).integers(-128, 128, (5000, 32)).astype(np.int8)
    scored = VectorForm.scored
    monkeypatch.setattr(VectorForm, "scored", lambda form, rows: made.append(len(rows)) or scored(form, rows))
    scan = Scan(Metric.COSINE, scored(form, stored[:2]), 10, 1.001)
    for at in range(0, 5000, 1000):
        scan.add_stored(form, stored[at : at + 1000], np.arange(at, at + 1000))
    assert 10 <= sum(made) < 300


def test_top_k_orders_by_distance_then_ordinal() -> None:
    found = [
        Candidates(np.array([0, 1]), np.array([9, 4]), np.array([1, 3], np.float32)),
        Candidates(np.array([0, 0]), np.array([2, 7]), np.array([1, 0.5], np.float32)),
    ]
    ordinals, distances = top_k(found, 3, 2)
    assert ordinals.tolist() == [[7, 2], [4, -1], [-1, -1]]
    assert distances[0].tolist() == [0.5, 1.0] and distances[1, 0] == 3.0


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("inf"), float("nan")]), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_one_query_is_answered_as_one_of_several(distances: list[float], k: int) -> None:
    names = np.random.default_rng(1).permutation(len(distances))
    told = np.array(distances, np.float32)
    one = Candidates(np.zeros(len(told), np.int64), names, told)
    both = [one, Candidates(np.ones(1, np.int64), np.zeros(1, np.int64), np.zeros(1, np.float32))]
    alone, among = with_ties([one], 1, k), with_ties(both, 2, k)
    first = among.query == 0
    assert alone.ordinal.tolist() == among.ordinal[first].tolist()
    assert alone.distance.tobytes() == among.distance[first].tobytes()
    for mine, others in zip(top_k([one], 1, k), top_k(both, 2, k), strict=True):
        assert mine[0].tobytes() == others[0].tobytes()
