"""What a search leaves out of the nearest documents: by distance, by score, the first ones, the document it is like."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.base.explain import ShardExplanation
from needle.base.model import HitBatch, Metric, SearchRequest, near_enough, score_of
from needle.client import answers
from needle.client.narrowed import Narrow, search_request
from needle.client.router.fan_out import Answers
from needle.client.router.merge import merged_hits, merged_searches, narrowed
from needle.protocol.calls import SearchManyAnswer, encode

DISTANCES = [0.0, 0.1, 0.1, 0.25, 0.7, 1.5]


def request(query: Any = (1.0, 2.0), k: int = 3, **options: Any) -> SearchRequest:
    narrow = Narrow(**options)
    return search_request(query, k, None, "c", True, False, False, 0, narrow=narrow)


def batch(count: int = 6, metric: Metric = Metric.COSINE) -> HitBatch:
    ids = [f"d{n}" for n in range(count)]
    metadata, vectors = [str(n).encode() for n in range(count)], b"".join(name.encode() * 2 for name in ids)
    return HitBatch(ids, DISTANCES[:count], list(range(count)), metadata, vectors, 9, metric)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), max_size=12),
    st.sampled_from(Metric),
    st.none() | st.floats(-100, 100),
    st.none() | st.floats(-100, 100),
)
def test_bounds_leave_what_is_within_both(
    distances: list[float], metric: Metric, farthest: float | None, lowest: float | None
) -> None:
    asked = SearchRequest(collection="c", vector=b"", k=3, max_distance=farthest, min_score=lowest)
    found = sorted(distances)
    kept = [
        distance
        for distance in found
        if (farthest is None or distance <= farthest) and (lowest is None or score_of(distance, metric) >= lowest)
    ]
    assert found[: near_enough(found, metric, asked)] == kept


def test_rows_stay_together() -> None:
    left = narrowed(batch(), request(k=2, offset=1, max_distance=0.3))
    assert left.ids == ["d1", "d2"] and left.distances == [0.1, 0.1] and left.versions == [1, 2]
    assert left.metadata == [b"1", b"2"] and left.vectors == b"d1d1d2d2" and left.applied_index == 9
    assert narrowed(batch(), request(k=2, offset=3, max_distance=0.3)).ids == ["d3"]
    assert narrowed(batch(), request(k=2, offset=9)).ids == []
    assert [hit.score for hit in answers.hits(narrowed(batch(), request(k=6, min_score=0.9)))] == [1.0, 0.9, 0.9]


@pytest.mark.parametrize(("like", "ids"), [("d0", ["d1", "d2"]), ("d2", ["d0", "d1"]), ("other", ["d0", "d1"])])
def test_a_document_is_not_like_itself(like: str, ids: list[str]) -> None:
    asked = request(None, k=2, like=like)
    assert asked.k == 3 and asked.vector == b""
    assert narrowed(batch(3), asked).ids == ids


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_distance": float("nan")}, "max_distance"),
        ({"max_distance": "near"}, "max_distance"),
        ({"min_score": True}, "min_score"),
        ({"offset": -1}, "offset"),
        ({"offset": 1.5}, "offset"),
        ({"fields": "title"}, "fields"),
        ({"fields": ["$title"]}, "fields"),
        ({"fields": [1]}, "fields"),
        ({"like": "d1"}, "either a query"),
        ({"query": None, "like": 7}, "like"),
        ({"query": None}, "give a vector"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=field.replace("$", "\\$")):
        request(**options)


def test_each_shard_is_named_in_what_explains_a_search() -> None:
    told = ShardExplanation(
        shard=-1, applied_index=9, documents=6, allowed=3, together=1, filter_milliseconds=1.0,
        vectors_milliseconds=2.0, documents_milliseconds=3.0, segments=[],
    )  # fmt: skip
    asked = request(k=2, explain=True)
    explaining = msgspec.structs.replace(batch(), explained=[told])
    encoded = {4: encode(explaining), 7: encode(explaining), 9: encode(batch())}
    applied, merged, _ = merged_hits(Answers(encoded, {}, [], 1), asked)
    assert merged.ids == ["d0", "d0"] and [one.shard for one in merged.explained] == [4, 7]
    assert applied == dict.fromkeys((4, 7, 9), batch().applied_index)
    many = {4: encode(SearchManyAnswer([explaining, batch()])), 7: encode(SearchManyAnswer([batch(), explaining]))}
    _, merged_many = merged_searches(Answers(many, {}, [], 1), asked, 2)
    assert [[one.shard for one in found.explained] for found in merged_many] == [[4], [7]]
    with pytest.raises(InvalidArgument, match="explain"):
        request(explain="yes")


def test_each_search_of_many_gets_its_own_hits() -> None:
    near, far = batch(2), msgspec.structs.replace(batch(2), ids=["e0", "e1"])
    answers = {shard: encode(SearchManyAnswer([near, far])) for shard in (4, 7)}
    _, merged = merged_searches(Answers(answers, {}, [], 1), request(k=4), 2)
    assert [found.ids for found in merged] == [["d0", "d0", "d1", "d1"], ["e0", "e0", "e1", "e1"]]
