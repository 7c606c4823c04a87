"""Growing rows: exact results, and chunks that never change under a reader."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.dtypes import VectorForm
from needle.base.errors import Internal
from needle.base.model import METRICS_OF_NUMBERS, Metric
from needle.shard.segments.growing import CHUNK_ROWS_MAX, CHUNK_ROWS_MIN, PAGES_BYTES, GrowingSegment
from needle.shard.segments.scoring import Scan, top_k
from shard.vectors_util import check_against_brute, clustered


def search(growing: GrowingSegment, metric: Metric, queries: np.ndarray, k: int, allowed: np.ndarray | None = None):
    scan = Scan(metric, queries, k, growing.norm_max)
    growing.scan(scan, allowed)
    return top_k(scan.found, len(queries), k)


def filled(data: np.ndarray, step: int) -> GrowingSegment:
    growing = GrowingSegment(VectorForm(data.shape[1]))
    for at in range(0, len(data), step):
        part = data[at : at + step]
        growing = growing.appended(np.arange(at, at + len(part)), part)
    return growing


@settings(deadline=None)
@given(
    st.sampled_from(METRICS_OF_NUMBERS),
    st.integers(1, 600),
    st.integers(1, 200),
    st.integers(1, 25),
    st.lists(st.integers(0, 599), max_size=80),
    st.one_of(st.none(), st.lists(st.integers(0, 700), max_size=300)),
)
def test_search_equals_brute_force(
    metric: Metric, rows: int, step: int, k: int, dead: list[int], allow: list[int] | None
) -> None:
    data = clustered(rows, 12, rows, normalise=metric == Metric.COSINE)
    growing = filled(data, step).without(np.unique(np.array(dead, np.int64)))
    live = np.setdiff1d(np.arange(rows), dead)
    assert len(growing) == len(live)
    allowed = None if allow is None else np.unique(np.array(allow, np.int64))
    counted = live if allowed is None else np.intersect1d(live, allowed)
    queries = clustered(3, 12, 7, normalise=metric == Metric.COSINE)
    check_against_brute(metric, search(growing, metric, queries, k, allowed), data, counted, queries, k)


@settings(deadline=None)
@given(st.integers(2, 500), st.integers(1, 90), st.data())
def test_removed_range_is_gone_and_the_rest_stays(rows: int, step: int, draw: st.DataObject) -> None:
    data = clustered(rows, 4, 3)
    first = draw.draw(st.integers(0, rows - 1))
    last = draw.draw(st.integers(first, rows - 1))
    dead = np.unique(np.array(draw.draw(st.lists(st.integers(0, rows - 1), max_size=20)), np.int64))
    growing = filled(data, step).without(dead).removed(first, last)
    growing = growing.appended(np.arange(rows, rows + 5), data[:2].repeat(3, axis=0)[:5])
    kept = [o for o in range(rows) if not first <= o <= last and o not in set(dead.tolist())] + list(
        range(rows, rows + 5)
    )
    assert [o for ordinals, _ in growing.blocks(0, rows + 5) for o in ordinals.tolist()] == kept
    assert growing.live_between(0, rows - 1) == len(kept) - 5
    for ordinals, vectors in growing.blocks(0, rows - 1):
        assert vectors.tobytes() == data[ordinals].tobytes()


def test_a_reader_is_not_touched_by_later_changes() -> None:
    data = clustered(300, 8, 1)
    old = filled(data[:100], 100)
    before = [(ordinals.tolist(), vectors.tobytes()) for ordinals, vectors in old.blocks(0, 1000)]
    new = old.appended(np.arange(100, 300), data[100:]).without(np.arange(50, 150)).removed(0, 20)
    assert [(ordinals.tolist(), vectors.tobytes()) for ordinals, vectors in old.blocks(0, 1000)] == before
    assert len(old) == 100 and len(new) == 300 - 21 - 100
    once = old.without(np.array([5]))
    twice = once.without(np.array([6]))
    assert (len(old), len(once), len(twice)) == (100, 99, 98)


def test_chunks_start_small_and_grow_to_a_bound() -> None:
    growing = filled(np.zeros((CHUNK_ROWS_MAX * 3, 512), np.float32), 1000)
    sizes = [len(chunk.vectors) for chunk in growing.chunks]
    assert sizes[0] * 512 * 4 == PAGES_BYTES and max(sizes) == CHUNK_ROWS_MAX
    assert growing.bytes_held() <= (CHUNK_ROWS_MAX * 3 + CHUNK_ROWS_MAX) * 512 * 4
    long = filled(np.zeros((CHUNK_ROWS_MIN + 1, 10_000), np.float32), 10)
    assert [chunk.rows for chunk in long.chunks] == [CHUNK_ROWS_MIN, 1]


def test_what_few_batches_of_small_vectors_bring_is_one_chunk() -> None:
    """A scan takes as long for a chunk of a hundred rows as for one of a thousand."""
    assert [chunk.rows for chunk in filled(clustered(1000, 64, 1), 125).chunks] == [1000]


def test_a_small_chunk_that_is_mostly_dead_does_not_grow() -> None:
    growing, data = GrowingSegment(VectorForm(8)), clustered(10, 8, 1)
    for first in range(0, 100_000, 10):  # ten documents, again and again; nobody calls `compacted`
        growing = growing.appended(np.arange(first, first + 10), data).without(np.arange(first - 10, first))
        assert growing.bytes_held() <= 8 * 10 * 8 * 4
    assert len(growing) == 10 and len(growing.chunks) == 1


def test_matrix_products_stay_float32() -> None:
    growing = filled(clustered(200, 8, 1), 50)
    ordinals, distances = search(growing, Metric.COSINE, clustered(2, 8, 2), 5)
    assert ordinals.dtype == np.int64 and distances.dtype == np.float32
    assert all(chunk.vectors.dtype == chunk.norms.dtype == np.float32 for chunk in growing.chunks)


def test_ordinals_must_grow() -> None:
    growing = filled(clustered(10, 4, 1), 10)
    with pytest.raises(Internal, match="9"):
        growing.appended(np.array([9]), clustered(1, 4, 1))


def test_rows_come_back_between_others_but_never_twice() -> None:
    data = clustered(90, 4, 1)
    growing = filled(data, 90).removed(30, 59)
    back = GrowingSegment(VectorForm(4)).appended(np.arange(30, 60), data[30:60])
    assert [o for ordinals, _ in growing.inserted(back).blocks(0, 89) for o in ordinals.tolist()] == list(range(90))
    with pytest.raises(Internal, match="overlap"):
        growing.inserted(back).inserted(back)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 90), st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 400))
def test_compacting_changes_nothing_but_the_memory(rows: int, step: int, shares: list[float], first: int) -> None:
    data = clustered(rows, 4, 3)
    growing, rng, live = filled(data, step), np.random.default_rng(rows), np.arange(rows)
    for share in shares:
        dead = live[rng.random(len(live)) < share]
        live = np.setdiff1d(live, dead)
        growing = growing.without(dead).compacted(first)
        blocks = [*growing.blocks(0, rows)]
        assert np.concatenate([np.empty(0), *(ordinals for ordinals, _ in blocks)]).tolist() == live.tolist()
        assert b"".join(vectors.tobytes() for _, vectors in blocks) == data[live].tobytes()
        for chunk in growing.chunks[:-1]:
            assert chunk.first < first or 2 * chunk.live_rows() >= chunk.rows
    growing = growing.appended(np.arange(rows, rows + 3), data[:1].repeat(3, axis=0))
    assert len(growing) == len(live) + 3


def test_overwriting_for_ever_fills_no_memory() -> None:
    growing = GrowingSegment(VectorForm(8))
    keys, data = 1000, clustered(100, 8, 1)
    for first in range(0, 200_000, 100):
        growing = growing.appended(np.arange(first, first + 100), data)
        if first >= keys:
            growing = growing.without(np.arange(first - keys, first - keys + 100)).compacted(0)
    assert len(growing) == keys
    assert growing.bytes_held() <= 2 * CHUNK_ROWS_MAX * 8 * 4 + 2 * keys * 8 * 4
    assert len(growing.chunks) <= 3


def test_compacting_keeps_out_of_the_ranges_of_segments() -> None:
    data = clustered(400, PAGES_BYTES // 4 // CHUNK_ROWS_MIN, 1)
    dead = np.concatenate((np.arange(64, 190), np.arange(200, 390)))
    growing = filled(data, 100).closed().without(dead)
    kept = growing.compacted(192)
    below = [chunk for chunk in growing.chunks if chunk.first < 192]
    assert len(below) == 2 and list(kept.chunks[:2]) == below
    assert kept.bytes_held() < growing.bytes_held()


def test_few_rows_take_little_memory_and_readers_keep_what_they_saw() -> None:
    data = clustered(70, 384, 5)
    growing = GrowingSegment(VectorForm(384)).appended(np.arange(5), data[:5])
    assert growing.bytes_held() == 5 * 384 * 4
    seen = growing.without(np.array([2]))
    before = [block.tobytes() for _, block in seen.blocks(0, 4)]
    later = seen
    for at in range(5, 70):
        later = later.appended(np.array([at]), data[at : at + 1])
        assert later.bytes_held() <= 3 * (at + 1) * 384 * 4
    assert len(later) == 69 and [block.tobytes() for _, block in seen.blocks(0, 4)] == before
    assert [o for ordinals, _ in later.blocks(0, 69) for o in ordinals.tolist()] == [0, 1, *range(3, 70)]
    closed = growing.closed().appended(np.array([5]), data[5:6])
    assert [chunk.rows for chunk in closed.chunks] == [5, 1], "a closed chunk takes no more rows"
