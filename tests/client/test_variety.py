"""Hits that are unlike each other, against the definition read plainly."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.base.model import HitBatch, Metric
from needle.client.router.merge import merged_hits
from needle.client.router.variety import varied
from needle.client.searches import POOL_MAX, Narrow, search_request
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
        merged = merged_hits(answers, request).merged
        assert merged.vectors == b"" and [b"12?45"["abcde".index(name) :][:1] for name in merged.ids] == merged.metadata
        return merged.ids

    assert ids(diversify=0) == ["a", "b", "d"]
    assert ids(diversify=0.9) == ["a", "e", "b"]
    assert ids(diversify=0.9, offset=1) == ["e", "b", "d"]
    assert ids(diversify=0.9, max_distance=0.5) == ["a", "b", "d"]
    whole = search_request([1, 0], 2, None, "c", True, True, False, 0, narrow=Narrow(diversify=1))
    assert merged_hits(answers, whole).merged.vectors == np.array([near, other], "<f4").tobytes()
    liked = search_request(None, 2, None, "c", True, True, False, 0, narrow=Narrow(diversify=1, like="a"))
    assert merged_hits(answers, liked).merged.ids == ["b", "e"]
    assert merged_hits({0: encode(HitBatch([], [], [], [], b"", 5))}, whole).merged.ids == []


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
    ],
)
def test_what_cannot_be_meant_is_refused(k: int, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        search_request([1, 0], k, None, "c", True, False, False, 0, narrow=Narrow(**options))
