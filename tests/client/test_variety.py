"""Hits that are unlike each other, against the definition read plainly."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import ClusterTooOld, InvalidArgument
from needle.base.model import HitBatch, Metric
from needle.client.narrowed import POOL_MAX, Narrow, search_request
from needle.client.router.fan_out import Answers
from needle.client.router.merge import merged_hits
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
    wanted = [0] if rows else []
    while len(wanted) < min(take, len(rows)):
        left = [at for at in range(len(rows)) if at not in wanted]
        worth = {
            at: weight * min(apart(rows[at], rows[one], metric) for one in wanted) - (1 - weight) * far[at]
            for at in left
        }
        best = max(worth.values())
        wanted.append(next(at for at in left if worth[at] > best - 1e-12))
    found = varied(np.array(rows, np.float32).reshape(-1, 3), far, metric, weight, take)
    assert found == wanted
    if weight == 0:
        assert found == list(range(min(take, len(rows))))


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
