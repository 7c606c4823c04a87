"""What an index finds when many documents have one vector, or vectors of very different length."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.model import METRICS_OF_NUMBERS, Metric
from needle.shard.segments.builder import build_segment
from needle.shard.segments.graph import BAND_RATIO, BAND_ROWS_MIN, ROUNDING, bands_of
from needle.shard.segments.scoring import TIES_MAX, Scan, top_k
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.shared_nodes import SharedNodes
from shard.vectors_util import check_against_brute, clustered, new_vectors, publish, seal, spec_of


def sealed(directory: Path, data: np.ndarray, metric: Metric) -> SealedSegment:
    spec = spec_of(metric, data.shape[1])
    segment, path = build_segment(str(directory), 3, 0, len(data) - 1, [(np.arange(len(data)), data)], spec)
    return SealedSegment(path, segment, spec)


def recall(segment: SealedSegment, queries: np.ndarray, k: int, mask: np.ndarray | None = None, ef: int = 64) -> float:
    scan = Scan(segment.metric, queries, k, segment.norm_max)
    segment.scan(scan, mask)
    exact, _ = top_k(scan.found, len(queries), k)
    found, _ = top_k(segment.search(queries, k, ef, mask), len(queries), k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, found, strict=True)]))


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2])
def test_copies_of_one_vector_hide_no_other_document(tmp_path: Path, metric: Metric) -> None:
    """Half of the documents have the vector of an empty text, and came last."""
    data = clustered(8000, 32, 1)
    data[4000:] = clustered(1, 32, 7)
    segment = sealed(tmp_path, data, metric)
    assert recall(segment, clustered(100, 32, 2), 10) >= 0.99
    sample = np.arange(0, 4000, 40)
    themselves, _ = top_k(segment.search(data[sample], 1, 64, None), len(sample), 1)
    assert np.mean(themselves[:, 0] == sample) >= 0.99
    near, _ = top_k(segment.search(data[4000:4001], 20, 64, None), 1, 20)
    assert near[0].tolist() == list(range(4000, 4020)), "of the copies, those of the lowest ordinals"
    assert segment.size < 1_300_000, "a copy costs neither a vector nor links in the file (2.2 MB with them)"
    np.testing.assert_array_equal(segment.vectors(np.arange(3990, 4010)), data[3990:4010])


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("k", [10, 100])
def test_inner_product_finds_vectors_of_any_length(tmp_path: Path, spread: float, k: int) -> None:
    """Lengths as exp(spread * normal): from nearly even to e^3 and more between the short and the long ones."""
    rng = np.random.default_rng(4)
    data = clustered(12_000, 32, 1, normalise=False) * np.exp(spread * rng.standard_normal((12_000, 1)))
    segment = sealed(tmp_path, data.astype(np.float32), Metric.DOT)
    assert len(segment.bands) > 1
    queries = clustered(60, 32, 2, normalise=False)
    assert recall(segment, queries, k) >= 0.95
    mask = rng.random(12_000) < 0.3
    assert recall(segment, queries, k, mask) >= 0.95


def test_even_lengths_have_one_graph(tmp_path: Path) -> None:
    segment = sealed(tmp_path, clustered(6000, 16, 1), Metric.DOT)
    assert segment.bands == () and segment.node_of is None


@settings(max_examples=100, deadline=None)
@example([0.0, 1.0, 1.0, 1.0, 1.0], 4097)
@given(st.lists(st.sampled_from([0.0, 1.0, 1.05, 2.0, 50.0, 1e6]), min_size=1, max_size=5), st.integers(1, 9000))
def test_bands_cover_all_nodes_in_order(kinds: list[float], rows: int) -> None:
    lengths = np.sort(np.resize(np.array(kinds, np.float32), rows))[::-1]
    bands = bands_of(lengths)
    if not bands:
        assert lengths[-1] >= lengths[0] / np.float32(BAND_RATIO) * 0.999
        return
    assert bands[0].first == 0 and bands[-1].first + bands[-1].nodes == rows
    assert all(a.first + a.nodes == b.first for a, b in pairwise(bands))
    assert all(band.nodes >= BAND_ROWS_MIN // 2 for band in bands[:-1]) or len(bands) == 1
    for band in bands:
        part = lengths[band.first : band.first + band.nodes]
        assert part.max() <= band.longest <= part.max() * ROUNDING * 1.001 + 1e-6
        assert not band.even or part.min() >= part.max() / np.float32(BAND_RATIO) * 0.999
        assert band.even or band.nodes <= 2 * BAND_ROWS_MIN, "uneven bands are scored exactly: they are small"


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
def test_files_with_copies_and_bands_grow_and_answer_like_brute_force(tmp_path: Path, metric: Metric) -> None:
    """Built, extended, with dead rows and filters: exact answers are those of brute force in every state."""
    rng = np.random.default_rng(5)
    data = clustered(6000, 8, 1, normalise=metric == Metric.COSINE)
    if metric == Metric.DOT:
        data *= np.exp(rng.standard_normal((6000, 1))).astype(np.float32)
    data[rng.integers(0, 6000, 3000)] = data[0]
    queries = np.concatenate([data[:1], clustered(3, 8, 2, normalise=metric == Metric.COSINE)])
    vectors = new_vectors(tmp_path, metric, dimensions=8)
    dead = np.unique(rng.integers(0, 6000, 700))
    allowed = np.setdiff1d(np.flatnonzero(rng.random(6000) < 0.4), dead)
    vectors.append(0, data[:4000])
    publish(vectors, *seal(vectors, 0, 3999))
    vectors.append(4000, data[4000:])
    vectors.tombstone(dead.tolist())
    for grown in (False, True):
        if grown:
            publish(vectors, *seal(vectors, 0, 5999, base=True))
        for live in (np.setdiff1d(np.arange(6000), dead), allowed):
            allow = None if live is not allowed else BitMap(allowed.tolist())
            found = vectors.search(queries, 25, allow=allow, exact=True)
            check_against_brute(metric, found, data, live, queries, 25)
            through_index = vectors.search(queries, 25, allow=allow)
            assert np.isin(through_index[0], live).all()
            assert all(len(set(row.tolist())) == 25 for row in through_index[0])
    sealed_here = vectors.attached()[0]
    np.testing.assert_array_equal(sealed_here.vectors(slice(0, 6000)), data[sealed_here.all_ordinals()])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_rows_of_nodes_are_those_of_a_dictionary(kinds: list[int], data: st.DataObject) -> None:
    _, node_of = np.unique(np.array(kinds), return_inverse=True)
    nodes = int(node_of.max()) + 1
    shared = SharedNodes(node_of.astype(np.int64), nodes)
    for mask in (None, np.array(data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds))))):
        counting = [r for r in range(len(kinds)) if mask is None or mask[r]]
        first = shared.representatives(mask)
        assert first.tolist() == [next((r for r in counting if node_of[r] == n), -1) for n in range(nodes)]
        asked = first[first >= 0]
        asked = np.concatenate([asked, asked[: data.draw(st.integers(0, 3))]])  # of several queries
        pair, rows = shared.rows_of(asked, mask, 3)
        expected = [(p, r) for p, a in enumerate(asked) for r in [c for c in counting if node_of[c] == node_of[a]][:3]]
        assert list(zip(pair.tolist(), rows.tolist(), strict=True)) == expected


def test_the_many_rows_of_a_node_are_not_looked_at_once_for_each_query() -> None:
    """A batch of searches near the vector of 100,000 documents, one of which was deleted."""
    shared = SharedNodes(np.zeros(100_000, np.int64), 1)
    mask = np.ones(100_000, np.bool_)
    mask[0] = False
    first = shared.representatives(mask)
    tracemalloc.start()
    try:
        _, rows = shared.rows_of(np.repeat(first, 64), mask, 10)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert rows.tolist() == list(range(1, 11)) * 64


def test_ties_are_given_up_to_a_bound_the_lowest_ordinals_first(tmp_path: Path) -> None:
    """A query at which everything ties: the same answer from growing rows and from files, in bounded memory."""
    data = clustered(5000, 8, 1, normalise=False)
    vectors = new_vectors(tmp_path, Metric.DOT, dimensions=8)
    vectors.append(0, data)
    query = np.zeros((3, 8), np.float32)
    before = vectors.view().nearest(query, 5, exact=True)
    publish(vectors, *seal(vectors, 0, 4999))
    after = vectors.view().nearest(query, 5, exact=True)
    assert before == after
    assert before[0][0] == list(range(5 + TIES_MAX)) and set(before[0][1]) == {0.0}
