"""Filters as the documents of Qdrant, Chroma and LangChain write them match what they match there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from needle import translate
from needle.base.errors import InvalidArgument
from needle.base.filters.builder import Filter

CITIES = [  # of Qdrant's documentation, "Filtering", with their ids
    {"id": 1, "city": "London", "color": "green"},
    {"id": 2, "city": "London", "color": "red"},
    {"id": 3, "city": "London", "color": "blue"},
    {"id": 4, "city": "Berlin", "color": "red"},
    {"id": 5, "city": "Moscow", "color": "green"},
    {"id": 6, "city": "Moscow", "color": "blue"},
]
LONDON, RED = {"key": "city", "match": {"value": "London"}}, {"key": "color", "match": {"value": "red"}}


def found(one: Filter, documents: list[dict[str, Any]]) -> list[int]:
    return [document["id"] for document in documents if one.matches(document)]


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ({"must": [LONDON, RED]}, [2]),
        ({"should": [LONDON, RED]}, [1, 2, 3, 4]),
        ({"must_not": [LONDON, RED]}, [5, 6]),
        ({"must": [LONDON], "must_not": [RED]}, [1, 3]),
        ({"must_not": [{"must": [LONDON, RED]}]}, [1, 3, 4, 5, 6]),
        ({"must": LONDON}, [1, 2, 3]),
        ({"must": [{"key": "color", "match": {"any": ["green", "blue"]}}], "should": None}, [1, 3, 5, 6]),
        ({"min_should": {"conditions": [LONDON, RED], "min_count": 2}}, [2]),
        ({"min_should": {"conditions": [LONDON, RED], "min_count": 1}}, [1, 2, 3, 4]),
        ({"must": [{"key": "id", "range": {"gt": None, "gte": 2, "lt": None, "lte": 4}}]}, [2, 3, 4]),
        ({"must": [{"key": "id", "range": {"gt": 4}}]}, [5, 6]),
        ({}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_qdrants_clauses(said: dict[str, Any], ids: list[int]) -> None:
    assert found(translate.qdrant(said), CITIES) == ids


def test_qdrants_ranges_nulls_and_nested_keys() -> None:
    after = translate.qdrant({"must": [{"key": "date", "range": {"gt": "2023-02-08T10:49:00Z"}}]})
    assert after.matches({"date": "2023-02-08T12:00:00+01:00"}) and not after.matches({"date": "2023-02-08T10:48:00Z"})
    within = translate.qdrant({"must": [{"key": "sizes", "range": {"gte": 4, "lte": 6}}]})
    assert within.matches({"sizes": [1, 5]}) and not within.matches({"sizes": [1, 10]})
    null = translate.qdrant({"must": [{"is_null": {"key": "reports"}}]})
    assert null.matches({"reports": None}) and not null.matches({}) and not null.matches({"reports": 1})
    nested = translate.qdrant({"should": [{"key": "country.name", "match": {"value": "Germany"}}]})
    assert nested.matches({"country": {"name": "Germany"}}) and not nested.matches({"country": {"name": "Japan"}})


DIETS = [  # of the same page, "Nested object filter"
    {"id": 1, "diet": [{"food": "leaves", "likes": False}, {"food": "meat", "likes": True}]},
    {"id": 2, "diet": [{"food": "leaves", "likes": True}, {"food": "meat", "likes": False}]},
]
MEAT = {"must": [{"key": "food", "match": {"value": "meat"}}, {"key": "likes", "match": {"value": True}}]}


def test_qdrants_nested_objects_ids_and_counts() -> None:
    assert found(translate.qdrant({"must": [{"nested": {"key": "diet", "filter": MEAT}}]}), DIETS) == [1]
    named = translate.qdrant({"must": [{"has_id": [1, "a-b"]}], "must_not": [{"has_id": ["a-b"]}]})
    assert named.matches({}, "1") and not named.matches({}, "a-b") and not named.matches({}, "2")
    above = translate.qdrant({"must": [{"key": "n", "range": {"gt": 1, "lt": 5}}]})
    assert above.matches({"n": [0, 4]}) and above.matches({"n": 4}) and not above.matches({"n": [1, 5]})
    many, one = ({"must": [{"key": "c", "values_count": count}]} for count in ({"gt": 2}, {"gte": 1, "lte": 1}))
    assert translate.qdrant(many).matches({"c": [1, 2, 3]}) and not translate.qdrant(many).matches({"c": [1, 2]})
    for value in ("x", ["x"], {"x": 1}):
        assert translate.qdrant(one).matches({"c": value})
    for document in ({"c": None}, {}, {"c": []}, {"c": [1, 2]}):
        assert not translate.qdrant(one).matches(document)
    empty = translate.qdrant({"must": [{"is_empty": {"key": "c"}}]})
    assert all(map(empty.matches, ({}, {"c": None}, {"c": []})))
    assert not any(map(empty.matches, ({"c": [None]}, {"c": 0})))


PAGES = [{"id": n, "page": n, "author": name} for n, name in enumerate(("Rowling", "Fitzgerald", "Herbert"))] + [
    {"id": 9}
]


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ({"author": "Rowling"}, [0]),
        ({"author": {"$eq": "Rowling"}}, [0]),
        ({"author": {"$in": ["Rowling", "Fitzgerald", "Herbert"]}}, [0, 1, 2]),
        ({"$and": [{"page": {"$gte": 1}}, {"page": {"$lte": 2}}]}, [1, 2]),
        ({"$or": [{"page": {"$lt": 1}}, {"author": {"$eq": "Herbert"}}]}, [0, 2]),
        ({"author": {"$nin": ["Rowling"]}}, [1, 2, 9]),
        ({"author": {"$ne": "Rowling"}}, [1, 2, 9]),
        ({}, [0, 1, 2, 9]),
    ],
)
def test_chromas_where(said: dict[str, Any], ids: list[int]) -> None:
    assert found(translate.chroma(said), PAGES) == ids


def test_chromas_arrays() -> None:
    has = translate.chroma({"genres": {"$contains": "action"}})
    assert has.matches({"genres": ["action", "drama"]}) and not has.matches({"genres": ["drama"]})
    assert translate.chroma({"genres": {"$not_contains": "action"}}).matches({"genres": ["drama"]})


POND = [
    {"id": 1, "location": "pond", "topic": "animals"},
    {"id": 2, "location": "pond", "topic": "animals"},
    {"id": 3, "location": "market", "topic": "food"},
    {"id": 5, "location": "library", "topic": "events"},
    {"id": 9},
]


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ({"id": {"$in": [1, 5, 2, 9]}}, [1, 2, 5, 9]),
        ({"id": {"$in": [1, 5, 2, 9]}, "location": {"$in": ["pond", "market"]}}, [1, 2]),
        ({"$and": [{"id": {"$in": [1, 5, 2, 9]}}, {"location": {"$in": ["pond", "market"]}}]}, [1, 2]),
        ({"location": {"$ne": "pond"}}, [3, 5]),
        ({"location": {"$nin": ["pond"]}}, [3, 5]),
        ({"$not": {"location": {"$eq": "pond"}}}, [3, 5, 9]),
        ({"$not": {"location": {"$in": ["pond"]}}}, [3, 5]),
        ({"$not": {"location": {"$nin": ["pond"]}}}, [1, 2]),
        ({"$not": {"topic": {"$like": "an%"}}}, [3, 5]),
        ({"$not": {"location": {"$in": ["pond"]}, "id": {"$eq": 9}}}, [1, 2, 3, 5]),
        ({"$not": {"location": {"$in": ["pond"]}, "id": {"$eq": 1}}}, [2, 3, 5, 9]),
        ({"$not": {"$or": [{"location": {"$in": ["pond"]}}, {"id": {"$eq": 3}}]}}, [5]),
        ({"$not": {"$not": {"location": "pond"}}}, [1, 2]),
        ({"$not": {}}, []),
        ({"id": {"$between": [2, 5]}}, [2, 3, 5]),
        ({"topic": {"$like": "an%"}}, [1, 2]),
        ({"topic": {"$like": "%ent%"}}, [5]),
        ({"topic": {"$like": "food"}}, [3]),
        ({"topic": {"$exists": False}}, [9]),
        ({}, [1, 2, 3, 5, 9]),
    ],
)
def test_langchains_filter(said: dict[str, Any], ids: list[int]) -> None:
    assert found(translate.langchain(said), POND) == ids


@pytest.mark.parametrize(
    ("translator", "said", "names"),
    [
        (translate.qdrant, {"musty": []}, "musty"),
        (translate.qdrant, {"must": [{"has_id": [1.5]}]}, "has_id"),
        (translate.qdrant, {"must": [{"nested": {"key": "a", "filter": {"must": [{"has_id": [1]}]}}}]}, r"\$ids"),
        (translate.qdrant, {"must": [{"key": "a", "values_count": {"lt": 3}}]}, "is_empty"),
        (translate.qdrant, {"must": [{"key": "a", "geo_radius": {}}]}, "geo_radius"),
        (translate.qdrant, {"must": [{"key": "a", "match": {"text": "x"}}]}, "text"),
        (translate.qdrant, {"must": [{"key": "a", "match": {"except": ["x"]}}]}, "must_not"),
        (translate.qdrant, {"must": [{"key": "a[].b", "match": {"value": 1}}]}, "array"),
        (translate.qdrant, {"must": [{"key": "a", "range": {}}]}, "bound"),
        (translate.qdrant, {"must": [{"key": "a"}]}, "match"),
        (translate.qdrant, {"min_should": {"conditions": [LONDON, RED, LONDON], "min_count": 2}}, "min_count"),
        (translate.qdrant, [], "dict"),
        (translate.chroma, {"a": 1, "b": 2}, r"\$and"),
        (translate.chroma, {"a": {"$gt": 1, "$lt": 3}}, r"\$and"),
        (translate.chroma, {"a": {"$regex": "x"}}, r"\$regex"),
        (translate.chroma, {"$and": {"a": 1}}, "list"),
        (translate.langchain, {"a": {"$ilike": "x"}}, r"\$ilike"),
        (translate.langchain, {"a": {"$like": "x_y%"}}, r"\$like"),
        (translate.langchain, {"a": {"$like": "%"}}, r"\$like"),
        (translate.langchain, {"a": {"$gt": 1, "$lt": 3}}, "one operator"),
        (translate.langchain, {"$nor": []}, "nor"),
        (translate.langchain, {"$or": []}, "non-empty"),
        (translate.langchain, {"a.b": 1}, "a name without a dot"),
        (translate.chroma, {"a.b": {"$eq": 1}}, "a name without a dot"),
        (translate.qdrant, {"must": [{"is_null": {"key": "a", "match": {"value": 1}}}]}, "match"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(
    translator: Callable[[Mapping[str, Any]], Filter], said: Any, names: str
) -> None:
    with pytest.raises(InvalidArgument, match=names):
        translator(said)


def test_the_examples_of_the_page_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "filters.md").read_text(encoding="utf-8")
    part = page.split("## Filters of other databases", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]
    exec(part, {})


@pytest.mark.parametrize(
    ("translator", "around"),
    [
        (translate.qdrant, lambda inner: {"must": [inner]}),
        (translate.chroma, lambda inner: {"$and": [inner]}),
        (translate.langchain, lambda inner: {"$not": inner}),
    ],
)
def test_what_is_nested_without_end_is_refused(
    translator: Callable[[Mapping[str, Any]], Filter], around: Callable[[Any], dict[str, Any]]
) -> None:
    said: dict[str, Any] = {}
    for _ in range(5000):
        said = around(said)
    with pytest.raises(InvalidArgument, match="too deep"):
        translator(said)
