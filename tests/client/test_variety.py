"""Hits that are unlike each other, against the definition read plainly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.fake_shards import FakeShards, fill, vector, virtually
from needle.base.errors import ClusterTooOld, DeadlineExceeded, InvalidArgument, NeedleError
from needle.base.model import HitBatch, Metric, ReadMode
from needle.client.narrowed import POOL_MAX, Narrow, search_request
from needle.client.router import variety
from needle.client.router.fan_out import Answers
from needle.client.router.merge import merged_hits
from needle.client.router.router import Router
from needle.client.router.routes import BESIDE_BYTES
from needle.client.router.variety import varied
from needle.protocol.calls import encode

SMALL = st.integers(-3, 3)


def apart(one: Any, other: Any, metric: Metric) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    if metric is Metric.L2:
        return math.dist(one, other)
    return -product if metric is Metric.DOT else 1 - product


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=12), st.sampled_from([Metric.L2, Metric.DOT]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(1, 14),
)  # fmt: skip
def test_each_step_takes_what_is_worth_most_and_the_nearer_of_two(
    rows: list[tuple[int, int, int]], metric: Metric, weight: float, take: int
) -> None:
    rows = sorted(rows, key=lambda row: apart(row, (1, 0, 0), metric))
    far = [apart(row, (1, 0, 0), metric) for row in rows]
    found = varied(np.array(rows, np.float32).reshape(-1, 3), far, metric, weight, take)
    assert len({*found}) == len(found) == min(take, len(rows)) and found[:1] == [0][: len(rows)]
    for step in range(1, len(found)):
        worth = {
            at: weight * min(apart(rows[at], rows[one], metric) for one in found[:step]) - (1 - weight) * far[at]
            for at in set(range(len(rows))) - {*found[:step]}
        }
        best = [at for at in sorted(worth) if worth[at] > max(worth.values()) - 1e-12]  # but for rounding
        assert found[step] in best
        if all(rows[at] == rows[best[0]] for at in best):
            assert found[step] == best[0]
    if weight == 0:
        assert found == list(range(min(take, len(rows))))


@pytest.mark.parametrize("metric", [Metric.L2, Metric.DOT, Metric.COSINE, Metric.HAMMING])
@pytest.mark.parametrize("width", [1, 40, 3000])
def test_a_row_is_as_far_from_another_in_whichever_block_it_is_worked(
    metric: Metric, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: equal ones are taken in the order in which they stand."""
    rng = np.random.default_rng(1)
    some = rng.integers(0, 256, (20, width)) if metric is Metric.HAMMING else rng.standard_normal((20, width))
    rows = np.repeat(some, 7, axis=0)[rng.permutation(140)].astype(np.float32)
    found = [varied(rows, [0.5] * 140, metric, 0.5, 140)]
    for numbers in (1, 3 * width, 50 * width):
        monkeypatch.setattr(variety, "BLOCK_NUMBERS", numbers)
        found.append(varied(rows, [0.5] * 140, metric, 0.5, 140))
    assert all(one == found[0] for one in found)
    places: dict[bytes, list[int]] = {}
    for at in found[0]:
        places.setdefault(rows[at].tobytes(), []).append(at)
    assert all(one == sorted(one) for one in places.values())


@pytest.mark.parametrize("shards", [1, 3])
async def test_nothing_is_compared_any_more_once_the_time_is_over_or_the_caller_gone(shards: int) -> None:
    """To choose a thousand of a thousand long vectors takes many seconds."""
    entered, go, over = threading.Event(), threading.Event(), list[BaseException]()

    async def blocking(work: Any, *arguments: Any) -> Any:
        def run() -> Any:
            entered.set()
            assert go.wait(30)
            try:
                return work(*arguments)
            except NeedleError as error:
                over.append(error)
                raise

        return await asyncio.to_thread(run)

    there = FakeShards(shards)
    router = Router(there, blocking=blocking)
    for n in range(300):
        await router.insert("default", f"doc-{n:03}", vector(n + 1), b"{}", None, 5)
    narrow = Narrow(diversify=0.5, pool=300)
    request = search_request([0, 0], 300, None, "default", False, False, False, 0, narrow=narrow)
    asking = asyncio.create_task(router.search(request, ReadMode.STRONG, 60))
    assert await asyncio.to_thread(entered.wait, 30)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    go.set()
    async with asyncio.timeout(30):
        while not over:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert isinstance(over[0], DeadlineExceeded)
    clock = iter([0.0] * 4 + [9.0] * 9)
    router = Router(there, blocking=blocking, monotonic=lambda: next(clock))
    with pytest.raises(DeadlineExceeded, match="put together"):
        await router.search(request, ReadMode.STRONG, 5)


def test_equal_vectors_are_taken_last_and_in_the_order_of_their_ids_from_all_shards() -> None:
    near, other = [0.6, 0.8], [0.8, -0.6]
    shards = {
        0: HitBatch(["b", "d"], [0.1, 0.1], [1, 1], [b"2", b"4"], np.array([near, near], "<f4").tobytes(), 5),
        1: HitBatch(["a", "e"], [0.1, 0.9], [1, 1], [b"1", b"5"], np.array([near, other], "<f4").tobytes(), 6),
    }
    answers = {shard: encode(batch) for shard, batch in shards.items()}

    def ids(**options: Any) -> list[str]:
        request = search_request([1, 0], 3, None, "c", True, False, False, 0, narrow=Narrow(**options))
        merged = merged_hits(Answers(answers, {}, [], 1), request).merged
        assert merged.vectors == b"" and [b"12?45"["abcde".index(name) :][:1] for name in merged.ids] == merged.metadata
        return merged.ids

    assert ids(diversify=0) == ["a", "b", "d"]
    assert ids(diversify=0.9) == ["a", "e", "b"]
    assert ids(diversify=0.9, offset=1) == ["e", "b", "d"]
    assert ids(diversify=0.9, max_distance=0.5) == ["a", "b", "d"]
    whole = search_request([1, 0], 2, None, "c", True, True, False, 0, narrow=Narrow(diversify=1))
    assert merged_hits(Answers(answers, {}, [], 1), whole).merged.vectors == np.array([near, other], "<f4").tobytes()
    liked = search_request(None, 2, None, "c", True, True, False, 0, narrow=Narrow(diversify=1, like="a"))
    assert merged_hits(Answers(answers, {}, [], 1), liked).merged.ids == ["b", "e"]
    assert merged_hits(Answers({0: encode(HitBatch([], [], [], [], b"", 5))}, {}, [], 1), whole).merged.ids == []


@pytest.mark.parametrize("metric", [Metric.L2, Metric.DOT, Metric.COSINE])
def test_equal_vectors_are_as_far_wherever_they_are_in_a_large_pool(metric: Metric) -> None:
    """Of all that are equal the nearest is taken, then one that is unlike it, and then they follow as they stand."""
    rng = np.random.default_rng(5)
    for dimensions in (3, 31, 384):
        one, other = rng.standard_normal((2, dimensions)).astype(np.float32)
        rows = np.array([one] * 400 + [other] + [one] * 99)
        assert varied(rows, [0.5] * 500, metric, 0.9, 500) == [0, 400, *range(1, 400), *range(401, 500)]


def test_of_hits_with_the_same_value_the_nearer_comes_first_however_they_were_chosen() -> None:
    rows = np.array([[0, 0], [0, 0.1], [9, 9], [0, 5]], "<f4")
    far, versions = [0.0, 0.1, 5.0, 6.0], [4, 3, 2, 1]
    batch = HitBatch(["a", "b", "c", "d"], far, versions, [], rows.tobytes(), 5, Metric.L2, order=[1, 1, 0, 1])
    answers = Answers({0: encode(batch)}, {}, [], 1)

    def ids(**options: Any) -> list[str]:
        request = search_request([0, 0], 4, None, "c", False, False, False, 0, narrow=Narrow(**options))
        return merged_hits(answers, request).merged.ids

    assert ids(diversify=1) == ["a", "c", "d", "b"]
    assert ids(order_by="n") == ids(order_by="n", diversify=1) == ["c", "a", "b", "d"]
    assert ids(order_by="n", descending=True, diversify=1) == ["a", "b", "d", "c"]


@pytest.mark.parametrize("shards", [1, 4])
def test_a_large_pool_is_compared_in_a_thread_however_few_bytes_it_has(shards: int) -> None:
    in_threads: list[Any] = []

    async def blocking(fn: Any, *arguments: Any) -> Any:
        in_threads.append(fn)
        return fn(*arguments)

    async def work() -> None:
        router = Router(fake := FakeShards(shards), blocking=blocking)
        await fill(router, 301)
        for held in fake.data.values():
            held.pop("doc-000", None)  # which has no direction
        for take, pool, expected in ((10, None, 0), (300, None, 1), (200, 300, 1), (10, 1000, 0)):
            narrow, found = Narrow(diversify=0.5, pool=pool), len(in_threads)
            request = search_request([1, 0], take, None, "default", False, False, False, 0, narrow=narrow)
            hits = await router.search(request, ReadMode.STRONG, 5)
            assert len(hits.batch.ids) == take and hits.size < BESIDE_BYTES
            assert len(in_threads) - found == expected, (take, pool)

    virtually(work())


ORDERED = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 2**60, float(2**60), "", "a", "b"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(ORDERED, max_size=6), min_size=1, max_size=3), st.booleans(), st.integers(0, 3))
def test_hits_come_in_the_order_of_a_field_and_equal_ones_as_near_as_they_are(
    shards: list[list[Any]], descending: bool, offset: int
) -> None:
    """Numbers, then texts, then false and true, or the other way round; what has no value comes last."""
    answers, rows = {}, []
    for shard, values in enumerate(shards):
        ids, far = [f"{shard}{n}" for n in range(len(values))], [n / 10 for n in range(len(values))]
        rows += [(at, name, value) for at, name, value in zip(far, ids, values, strict=True)]
        answers[shard] = encode(HitBatch(ids, far, [1] * len(ids), [], b"", 5, order=values))
    narrow = Narrow(order_by="a", descending=descending, offset=offset)
    request = search_request([1, 0], 5, None, "c", False, False, False, 0, narrow=narrow)
    nearest = sorted(rows, key=lambda row: row[:2])[offset : offset + 5]
    kinds = [(int, float), (str,), (bool,)]
    wanted = []
    for kind in reversed(kinds) if descending else kinds:
        own = [row for row in nearest if isinstance(row[2], kind) and isinstance(row[2], bool) == (kind == (bool,))]
        wanted += sorted(own, key=lambda row: row[2], reverse=descending)
    wanted += [row for row in nearest if row[2] is None]
    merged = merged_hits(Answers(answers, {}, [], 1), request).merged
    assert list(zip(merged.distances, merged.ids, strict=True)) == [row[:2] for row in wanted]
    assert merged.order == []


def test_a_node_that_knows_no_order_is_named_not_believed() -> None:
    request = search_request([1, 0], 5, None, "c", False, False, False, 0, narrow=Narrow(order_by="a"))
    with pytest.raises(ClusterTooOld, match=r"order_by .* shard 4"):
        merged_hits(Answers({4: encode(HitBatch(["x"], [0.1], [1], [], b"", 5))}, {}, [], 1), request)


def test_the_pool() -> None:
    def pool(k: int, **options: Any) -> int:
        narrow = Narrow(diversify=0.5, **options)
        return search_request([1, 0], k, None, "c", True, False, False, 0, narrow=narrow).k

    assert (pool(10), pool(50), pool(500), pool(3, pool=3), pool(3, pool=9, offset=6)) == (100, 200, POOL_MAX, 3, 9)
    plain = search_request([1, 0], 3, None, "c", True, False, False, 0)
    assert (plain.diversify, plain.bare, plain.with_vectors) == (None, False, False)
    assert "diversify" not in msgspec.to_builtins(plain)


@pytest.mark.parametrize(
    ("k", "options", "says"),
    [
        (3, {"diversify": 1.1}, "diversify = 1.1"),
        (3, {"diversify": -0.1}, "diversify"),
        (3, {"diversify": "much"}, "diversify"),
        (3, {"diversify": float("nan")}, "diversify"),
        (3, {"pool": 10}, "pool = 10"),
        (3, {"diversify": 0.5, "pool": 2}, "k and offset together \\(3\\)"),
        (3, {"diversify": 0.5, "pool": POOL_MAX + 1}, "at most 1000"),
        (3, {"diversify": 0.5, "group_by": "a"}, "group_by"),
        (POOL_MAX, {"diversify": 0.5, "offset": 1}, "k = 1001"),
        (3, {"order_by": ""}, "order_by"),
        (3, {"order_by": 5}, "order_by"),
        (3, {"order_by": "a", "descending": 1}, "descending"),
        (3, {"descending": True}, "order_by"),
        (3, {"order_by": "a", "group_by": "b"}, "left out with group_by"),
    ],
)
def test_what_cannot_be_meant_is_refused(k: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        search_request([1, 0], k, None, "c", True, False, False, 0, narrow=Narrow(**options))


@pytest.mark.parametrize("mode", [ReadMode.STRONG, ReadMode.EVENTUAL])
def test_what_the_shards_that_answer_have_is_chosen_from_though_others_took_all_the_time(mode: ReadMode) -> None:
    ticks = itertools.count()  # of time that work takes; the loop's is virtual

    async def work() -> None:
        loop = asyncio.get_running_loop()
        router = Router(fake := FakeShards(), monotonic=lambda: loop.time() + 1e-6 * next(ticks))
        await fill(router, 61)
        for held in fake.data.values():
            held.pop("doc-000", None)  # which has no direction
        fake.dead.add(1)
        narrow = Narrow(diversify=0.5)
        request = search_request([1, 0], 5, None, "default", False, False, False, 0, narrow=narrow)
        found = await router.search(request, mode, 1, partial=True)
        assert len(found.batch.ids) == 5 and list(found.missing) == [1]

    virtually(work())
