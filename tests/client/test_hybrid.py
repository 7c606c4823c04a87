"""Fusion of two lists of hits, in memory; hybrid searches of processes are in tests/cluster/test_text_search.py."""

from __future__ import annotations

from typing import Any

import pytest

from needle.base.errors import InvalidArgument
from needle.base.model import HitBatch, Metric
from needle.base.text import Statistics, added, weights_of
from needle.client.hybrid import RRF, candidates, check_fusion, fused


def batch(*ids: str, **more: Any) -> HitBatch:
    metadata = [f'"{name}"'.encode() for name in ids]
    return HitBatch(list(ids), [float(n) for n in range(len(ids))], [7] * len(ids), metadata, b"", 3, **more)


def test_the_score_is_the_sum_of_weights_by_ranks_and_ties_are_by_id() -> None:
    near, words = batch("a", "b", "c"), batch("c", "d", "a", metric=Metric.DOT)
    found = fused([near, words], RRF(), 10, 0)
    assert found.batch.ids == ["a", "c", "b", "d"], "a and c have the ranks 1 and 3, b and d rank 2 in one list"
    assert found.ranks == [(1, 3), (3, 1), (2, None), (None, 2)]
    assert found.batch.distances == [-(1 / 61 + 1 / 63), -(1 / 63 + 1 / 61), -1 / 62, -1 / 62]
    assert found.batch.metric is Metric.DOT and found.batch.metadata == [b'"a"', b'"c"', b'"b"', b'"d"']


def test_weights_k_and_offset() -> None:
    near, words = batch("a", "b", "c"), batch("c", "d", "a")
    assert fused([near, words], RRF(weights=(1, 0)), 3, 0).batch.ids == ["a", "b", "c"]
    assert fused([near, words], RRF(weights=(0, 1)), 3, 0).batch.ids == ["c", "d", "a"]
    assert fused([near, words], RRF(k=0, weights=(1, 3)), 2, 1).batch.ids == ["a", "d"]
    assert fused([batch(), words], RRF(), 2, 0).batch.ids == ["c", "d"]
    assert fused([near, batch()], RRF(), 5, 2).batch.ids == ["c"]
    assert fused([batch(), batch()], RRF(), 5, 0).batch.ids == []


def test_three_lists() -> None:
    lists = [batch("a", "b"), batch("c"), batch("b", "c", "a")]
    found = fused(lists, RRF(k=1), 10, 0)
    scores = {"a": 1 / 2 + 1 / 4, "b": 1 / 3 + 1 / 2, "c": 1 / 2 + 1 / 3}
    assert found.batch.ids == ["b", "c", "a"] and found.batch.distances == [-scores[name] for name in "bca"]
    assert found.ranks == [(2, None, 1), (None, 1, 2), (1, None, 3)]
    assert fused(lists, RRF(weights=(0, 1, 0)), 1, 0).batch.ids == ["c"]
    assert check_fusion(RRF(), 3).weights == (1.0, 1.0, 1.0)
    with pytest.raises(InvalidArgument, match="3 numbers"):
        check_fusion(RRF(weights=(1, 1)), 3)


def test_the_document_that_hits_are_to_be_like_has_no_rank() -> None:
    near, words = batch("b", "c"), batch("a", "c", "d", "b")
    found = fused([near, words], RRF(), 10, 0, "a", 2)
    assert found.batch.ids == ["c", "b", "d"] and found.ranks == [(2, 1), (1, None), (None, 2)]
    assert found.batch.metadata == [b'"c"', b'"b"', b'"d"']


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ("rrf", "fusion"),
        (RRF(k=-1), "fusion.k"),
        (RRF(k=float("nan")), "fusion.k"),
        (RRF(weights=(1,)), "fusion.weights"),
        (RRF(weights=(0, 0)), "fusion.weights"),
        (RRF(weights=(1, -1)), "fusion.weights"),
        (RRF(weights=(1, float("inf"))), "fusion.weights"),
        (RRF(weights=(1, 10**400)), "fusion.weights"),
        (RRF(weights="ab"), "fusion.weights"),
        (RRF(weights=(1, float("nan"))), "fusion.weights"),
        (RRF(weights=(1, 10**400)), "fusion.weights"),
        (RRF(k=10**400), "fusion.k"),
        (RRF(weights=(1e308, 1e308)), "fusion.weights"),
        (RRF(weights=(1e-320, 0)), "fusion.weights"),
    ],
)
def test_what_cannot_be_fused_by_is_refused(wrong: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_fusion(wrong, 2)
    assert refused.value.details["field"] == field


def test_how_many_candidates_there_are() -> None:
    assert candidates(10, 0, None) == (10, 0, 100) and candidates(100, 50, None) == (100, 50, 600)
    assert candidates(10, 5, 15) == (10, 5, 15)
    for k, offset, pool in ((1001, 0, None), (1000, 1, None), (10, 5, 14), (10, 0, 1001), (0, 0, None)):
        with pytest.raises(InvalidArgument):
            candidates(k, offset, pool)


def test_statistics_of_shards_are_added() -> None:
    parts = [Statistics(4, 20, [2, 0, 1]), Statistics(0, 0, [0, 0, 0]), Statistics(6, 10, [1, 0, 6])]
    assert added(parts) == Statistics(10, 30, [3, 0, 7])
    weights, average = weights_of(added(parts))
    assert average == 3.0 and weights[1] == 0.0 and weights[0] > weights[2] > 0
    assert weights_of(Statistics(0, 0, [0])) == ([0.0], 0.0)
    with pytest.raises(ValueError, match="different words"):
        added([Statistics(1, 1, [1]), Statistics(1, 1, [1, 1])])
