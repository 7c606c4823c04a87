"""Filters: the documented semantics case by case, the canonical form, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle.base.config import Limits
from needle.base.errors import InvalidArgument
from needle.base.filters.builder import Filter
from needle.base.filters.reserved import instead

DOC = {
    "s": "red wine", "n": 5, "f": 2.5, "t": True, "z": None, "tags": ["a", "b"], "nums": [1, 10], "e": [],
    "at": {"lat": 52.52, "lon": 13.4, "name": "Berlin"}, "fiji": [5, {"lat": -17.8, "lon": -179.9}],
    "pole": {"lat": 90, "lon": 77}, "no": [{"lat": 91, "lon": 0}, {"lat": "1", "lon": 1}, {"lat": True, "lon": 1}],
    "o": {"p": {"q": 1}}, "list": [{"x": 1}, {"x": 2, "y": "k"}, 7], "nested": [[1, 2]], "one": 1,
}  # fmt: skip


CASES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"s": "red wine"}, True),
    ({"n": 5.0}, True),
    ({"n": "5"}, False),
    ({"t": True}, True),
    ({"t": 1}, False),
    ({"one": True}, False),
    ({"z": None}, True),
    ({"missing": None}, True),
    ({"n": None}, False),
    ({"e": None}, False),
    ({"missing": {"$ne": 1}}, True),
    ({"missing": {"$nin": [1]}}, True),
    ({"missing": {"$not": {"$gt": 1}}}, True),
    ({"missing": {"$gt": 1}}, False),
    ({"n": {"$ne": 5}}, False),
    ({"tags": {"$ne": "a"}}, False),
    ({"tags": "b"}, True),
    ({"tags": {"$all": ["a", "b"]}}, True),
    ({"tags": {"$all": ["a", "c"]}}, False),
    ({"tags": {"$all": []}}, False),
    ({"s": {"$all": ["red wine"]}}, True),
    ({"tags": {"$in": []}}, False),
    ({"tags": {"$nin": []}}, True),
    ({"tags": {"$in": ["z", "b"]}}, True),
    ({"missing": {"$in": [None]}}, True),
    ({"n": {"$gt": 4, "$lt": 6}}, True),
    ({"n": {"$gt": 5}}, False),
    ({"n": {"$gte": 5}}, True),
    ({"n": {"$lt": 5}}, False),
    ({"n": {"$lte": 5}}, True),
    ({"n": {"$gt": "a"}}, False),
    ({"s": {"$gt": 1}}, False),
    ({"t": {"$gt": 0}}, False),
    ({"s": {"$gte": "red"}}, True),
    ({"n": {"$between": [5, 5]}}, True),
    ({"nums": {"$between": [2, 9]}}, False),
    ({"nums": {"$gte": 2, "$lte": 9}}, True),
    ({"s": {"$contains": "d w"}}, True),
    ({"tags": {"$contains": "b"}}, True),
    ({"n": {"$contains": "5"}}, False),
    ({"s": {"$starts_with": "red"}}, True),
    ({"s": {"$starts_with": "wine"}}, False),
    ({"z": {"$exists": True}}, True),
    ({"e": {"$exists": True}}, True),
    ({"o": {"$exists": True}}, True),
    ({"missing": {"$exists": False}}, True),
    ({"o.p.q": 1}, True),
    ({"o.p": 1}, False),
    ({"o.p.q.r": {"$exists": True}}, False),
    ({"list.x": 2}, True),
    ({"list.y": "k"}, True),
    ({"list": 7}, True),
    ({"nested": 1}, False),
    ({"tags.0": "a"}, False),
    ({"n": 5, "$or": [{"s": "no"}, {"t": False}]}, False),
    ({"n": 5, "$or": [{"s": "no"}, {"t": True}]}, True),
    ({"n": 6, "$or": [{"t": True}]}, False),
    ({"$or": [{"t": True}], "$and": [{"n": 6}]}, False),
    ({"$not": {"n": 5}}, False),
    ({"$and": [{"n": 5}, {"$not": {"n": 6}}]}, True),
    ({"tags": {"$nin": ["z", "b"]}}, False),
    ({"tags": {"$contains": "c"}}, False),
    ({"e": {"$exists": False}}, False),
    ({"n": {"$gte": 6}}, False),
    ({"n": {"$lt": 6}}, True),
    ({"n": {"$lte": 4}}, False),
    ({"tags": {"$size": 2}}, True),
    ({"tags": {"$size": {"$gt": 2}}}, False),
    ({"s": {"$size": 1}}, False),
    ({"missing": {"$size": 0}}, False),
    ({"nums": {"$elemMatch": {"$gte": 2, "$lte": 9}}}, False),
    ({"nums": {"$elemMatch": {"$gte": 9}}}, True),
    ({"list": {"$elemMatch": {"x": 2}}}, True),
    ({"list": {"$elemMatch": {"x": 2, "y": "k"}}}, True),
    ({"list": {"$elemMatch": {"x": 1, "y": "k"}}}, False),
    ({"list": {"$elemMatch": {"$or": [{"x": 3}, {"y": {"$exists": True}}]}}}, True),
    ({"o": {"$elemMatch": {"p": {"$exists": True}}}}, False),
    ({"nested": {"$elemMatch": {"$gte": 0}}}, False),
    ({"at": {"$geo_radius": {"centre": {"lat": 52.52, "lon": 13.4}, "metres": 0}}}, True),
    ({"at": {"$geo_radius": {"centre": {"lat": 48.8566, "lon": 2.3522}, "metres": 880_000}}}, True),
    ({"at": {"$geo_radius": {"centre": {"lat": 48.8566, "lon": 2.3522}, "metres": 875_000}}}, False),
    ({"fiji": {"$geo_radius": {"centre": {"lat": -17.8, "lon": 179.9}, "metres": 22_000}}}, True),
    ({"fiji": {"$geo_radius": {"centre": {"lat": -17.8, "lon": 179.9}, "metres": 21_000}}}, False),
    ({"pole": {"$geo_radius": {"centre": {"lat": 89, "lon": -103}, "metres": 112_000}}}, True),
    ({"no": {"$geo_radius": {"centre": {"lat": 0, "lon": 0}, "metres": 20_000_000}}}, False),
    ({"missing": {"$geo_box": {"south": -90, "west": -180, "north": 90, "east": 180}}}, False),
    ({"at": {"$geo_box": {"south": 52, "west": 13, "north": 53, "east": 14}}}, True),
    ({"at": {"$geo_box": {"south": 52, "west": 14, "north": 53, "east": 13}}}, False),
    ({"fiji": {"$geo_box": {"south": -20, "west": 177, "north": -15, "east": -178}}}, True),
    ({"fiji": {"$geo_box": {"south": -20, "west": -178, "north": -15, "east": 177}}}, False),
    ({"pole": {"$geo_box": {"south": 80, "west": 0, "north": 90, "east": 1}}}, True),
    ({"o": {"$geo_box": {"south": -90, "west": -180, "north": 90, "east": 180}}}, False),
    ({"$ids": ["id", "other"]}, True),
    ({"$ids": ["other"]}, False),
    ({"$ids": []}, False),
    ({"n": 5, "$not": {"$ids": ["other"]}}, True),
]


@pytest.mark.parametrize(("condition", "expected"), CASES)
def test_documented_semantics(condition: dict[str, Any], expected: bool) -> None:
    parsed = Filter.parse(condition)
    assert parsed.matches(DOC, "id") is expected
    again = Filter.from_json(parsed.to_json())
    assert again == parsed and again.matches(DOC, "id") is expected
    assert Filter.not_(parsed).matches(DOC, "id") is not expected


@pytest.mark.parametrize("metadata", [None, 5, "text", [], [{"a": 1}]])
def test_metadata_that_is_no_object_has_no_fields(metadata: Any) -> None:
    assert Filter.exists("a", False).matches(metadata)
    assert not Filter.eq("a", 1).matches(metadata)


def test_builder_says_the_same_as_the_dict_form() -> None:
    pairs: list[tuple[Filter, dict[str, Any]]] = [
        (Filter.eq("a", 1), {"a": {"$eq": 1}}),
        (Filter.ne("a", 1), {"a": {"$ne": 1}}),
        (Filter.gt("a", 1), {"a": {"$gt": 1}}),
        (Filter.gte("a", 1), {"a": {"$gte": 1}}),
        (Filter.lt("a", 1), {"a": {"$lt": 1}}),
        (Filter.lte("a", 1), {"a": {"$lte": 1}}),
        (Filter.in_("a", [1, "x"]), {"a": {"$in": [1, "x"]}}),
        (Filter.in_("a", {"y", "x"}), {"a": {"$in": ["x", "y"]}}),
        (Filter.not_in("a", [1]), {"a": {"$nin": [1]}}),
        (Filter.between("a", 1, 2), {"a": {"$between": [1, 2]}}),
        (Filter.contains("a", "x"), {"a": {"$contains": "x"}}),
        (Filter.starts_with("a", "x"), {"a": {"$starts_with": "x"}}),
        (Filter.exists("a"), {"a": {"$exists": True}}),
        (Filter.all("a", ["x"]), {"a": {"$all": ["x"]}}),
        (Filter.size("a", 2), {"a": {"$size": 2}}),
        (Filter.size("a", {"$gt": 2}), {"a": {"$size": {"$gte": 3}}}),
        (Filter.elem_match("a", {"b": 1}), {"a": {"$elemMatch": {"b": {"$eq": 1}}}}),
        (Filter.elem_match("a", Filter.eq("b", 1)), {"a": {"$elemMatch": {"b": {"$eq": 1}}}}),
        (Filter.elem_match("a", {"$gt": 1, "$lt": 3}), {"a": {"$elemMatch": {"$gt": 1, "$lt": 3}}}),
        (Filter.ids(["x", "y"]), {"$ids": ["x", "y"]}),
        (Filter.all(Filter.eq("a", 1), Filter.eq("b", 2)), {"$and": [{"a": {"$eq": 1}}, {"b": {"$eq": 2}}]}),
        (Filter.eq("a", 1) & Filter.eq("b", 2), {"$and": [{"a": {"$eq": 1}}, {"b": {"$eq": 2}}]}),
        (Filter.eq("a", 1) | {"b": 2}, {"$or": [{"a": {"$eq": 1}}, {"b": {"$eq": 2}}]}),  # type: ignore[operator]
        (Filter.any_([Filter.eq("a", 1)]), {"$or": [{"a": {"$eq": 1}}]}),
        (~Filter.eq("a", 1), {"$not": {"a": {"$eq": 1}}}),
    ]
    for built, form in pairs:
        assert built.to_dict() == form
        assert Filter.parse(form) == built


def test_mixed_level_keeps_every_condition() -> None:
    parsed = Filter.parse({"a": {"$gt": 1, "$not": {"$gt": 5}}, "$or": [{"b": 1}, {"c": 1}], "d": "x"})
    assert parsed.to_dict() == {
        "$and": [
            {"a": {"$gt": 1}},
            {"$not": {"a": {"$gt": 5}}},
            {"$or": [{"b": {"$eq": 1}}, {"c": {"$eq": 1}}]},
            {"d": {"$eq": "x"}},
        ]
    }


BAD: list[tuple[Any, str]] = [
    (5, "filter"), ([], "filter"), ({"a": {"$gtt": 1}}, "$gtt"), ({"$nor": [{"a": 1}]}, "$nor"), ({"$gt": 1}, "$gt"),
    ({"$and": []}, "$and"), ({"$or": {"a": 1}}, "$or"), ({"$not": [1]}, "filter"), ({"a": {}}, "a"),
    ({"a": {"b": 1}}, "b"), ({"a": [1]}, "a"), ({"a": float("nan")}, "a"), ({"a": {"$lt": float("inf")}}, "$lt"),
    ({"a": {"$gt": True}}, "$gt"), ({"a": {"$gt": None}}, "$gt"), ({"a": 2**64}, "a"), ({"a": "\ud800"}, "a"),
    ({"a": {"$in": "xy"}}, "$in"), ({"a": {"$in": [[1]]}}, "$in"), ({"a": {"$in": [1] * 10_001}}, "$in"),
    ({"a": {"$between": [1]}}, "$between"), ({"a": {"$between": [1, "x"]}}, "$between"),
    ({"a": {"$contains": 5}}, "$contains"), ({"a": {"$starts_with": None}}, "$starts_with"),
    ({"a": {"$exists": 1}}, "$exists"), ({"": 1}, "field"), ({"a..b": 1}, "field"), ({".": 1}, "field"),
    ({5: 1}, "field"), ({"x" * 513: 1}, "field"), ({"a": {"$not": 5}}, "$not"),
    ({"a": {"$size": -1}}, "$size"), ({"a": {"$size": 1.5}}, "$size"), ({"a": {"$size": {}}}, "$size"),
    ({"a": {"$size": {"$gt": 3, "$lt": 4}}}, "$size"), ({"a": {"$size": {"$ne": 3}}}, "$ne"),
    ({"a": {"$elemMatch": 5}}, "$elemMatch"), ({"a": {"$elemMatch": {"b": 1, "$gt": 2}}}, "$elemMatch"),
    ({"a": {"$elemMatch": {"$ids": ["x"]}}}, "$ids"), ({"a": {"$elemMatch": {"$not": {"$ids": ["x"]}}}}, "$ids"),
    ({"a": {"$elemMatch": {"$size": 1}}}, "$size"), ({"$ids": "x"}, "$ids"), ({"$ids": [5]}, "$ids"),
    ({"$ids": [""]}, "$ids"), ({"$ids": ["x"] * 10_001}, "$ids"), ({"a": {"$ids": ["x"]}}, "$ids"),
    ({"a": {"b": {"$elemMatch": {}}}}, "b"),
    ({"a": {"$geo_radius": 5}}, "$geo_radius"), ({"a": {"$geo_radius": {"centre": [1, 2], "metres": 1}}}, "centre"),
    ({"a": {"$geo_radius": {"centre": {"lat": 91, "lon": 0}, "metres": 1}}}, "centre lat"),
    ({"a": {"$geo_radius": {"centre": {"lat": 0, "lon": "1"}, "metres": 1}}}, "centre lon"),
    ({"a": {"$geo_radius": {"centre": {"lat": 0, "lon": 0}, "metres": -1}}}, "metres"),
    ({"a": {"$geo_radius": {"centre": {"lat": 0, "lon": 0}, "metres": 3e7}}}, "metres"),
    ({"a": {"$geo_radius": {"centre": {"lat": 0, "lon": 0, "x": 1}, "metres": 1}}}, "centre"),
    ({"a": {"$geo_radius": {"center": {"lat": 0, "lon": 0}, "metres": 1}}}, "$geo_radius"),
    ({"a": {"$geo_box": {"south": 2, "west": 0, "north": 1, "east": 0}}}, "south"),
    ({"a": {"$geo_box": {"south": 0, "west": 181, "north": 1, "east": 0}}}, "west"),
    ({"a": {"$geo_box": {"south": 0, "west": float("nan"), "north": 1, "east": 0}}}, "west"),
    ({"a": {"$geo_box": {"south": 0, "north": 1}}}, "$geo_box"),
    ({"$id": "x"}, "Filter.ids"), ({"id": {"$ids": ["x"]}}, "where a field"),
    ({"$and": [{"$score": {"$gt": 1}}]}, "min_score"),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "named"), BAD)
def test_bad_filters_are_refused_by_name(condition: Any, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Filter.parse(condition)
    assert named in caught.value.message
    assert len(caught.value.message) < 1000


def test_fields_of_metadata_may_be_called_as_what_is_no_metadata() -> None:
    for name in ("id", "_id", "ids", "vector", "score", "version", "metadata"):
        assert Filter.eq(name, 1).matches({name: 1}) and not Filter.eq(name, 1).matches({}, "1")
        with pytest.raises(InvalidArgument, match=re.escape(instead(name))):
            Filter.eq(f"${name}", 1)


@pytest.mark.parametrize("condition", [{"$eq": 1}, {"a": {"$elemMatch": {"$not": {"$eq": 1}}}}])
def test_an_operator_in_a_fields_place_is_told_where_it_stands(condition: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Filter.parse(condition)
    assert "one of $and, $or, $not, $ids; $eq stands behind a field: {'field': {'$eq': ...}}" in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 5000 + b"]" * 5000, b"null", b'{"a":1e999}'])
def test_bad_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Filter.from_json(data)


def nested(kind: str, depth: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        condition = {kind: condition if kind == "$not" else [condition]}
    return condition


@pytest.mark.parametrize("kind", ["$not", "$and", "$or"])
def test_depth_32_is_accepted_and_33_refused(kind: str) -> None:
    assert (
        Filter.parse(nested(kind, 32)).to_dict() == Filter.from_json(Filter.parse(nested(kind, 32)).to_json()).to_dict()
    )
    for depth in (33, 5000):
        with pytest.raises(InvalidArgument, match="depth"):
            Filter.parse(nested(kind, depth))
    deepest = Filter.parse(nested(kind, 32))
    with pytest.raises(InvalidArgument, match="depth"):
        Filter.not_(deepest)
    with pytest.raises(InvalidArgument, match="depth"):
        Filter.parse(deepest, Limits(filter_depth_max=31))


def test_canonical_form_is_as_deep_as_what_was_parsed() -> None:
    condition: dict[str, Any] = {"a": 1, "b": 2}
    for _ in range(31):
        condition = {"$not": condition}
    assert Filter.from_json(Filter.parse(condition).to_json()).matches({}) is True
    with pytest.raises(InvalidArgument, match="depth"):
        Filter.parse({"$not": condition})


def test_too_many_conditions_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="nodes"):
        Filter.parse({"$or": [{"a": n} for n in range(1024)]})


scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "ab"]), st.floats(-2, 2))


@given(st.dictionaries(st.sampled_from(["a", "b"]), scalars | st.lists(scalars, max_size=3)), scalars)
def test_complements_are_exact(doc: dict[str, Any], value: Any) -> None:
    assert Filter.eq("a", value).matches(doc) is not Filter.ne("a", value).matches(doc)
    assert Filter.in_("a", [value]).matches(doc) is Filter.eq("a", value).matches(doc)
    assert Filter.exists("a").matches(doc) is ("a" in doc)


def test_what_every_element_is_asked_is_bounded() -> None:
    """A thousand conditions on six thousand elements took 17 s for one document."""
    few = {"a": {"$elemMatch": {"$or": [{"b": n} for n in range(60)]}}}
    assert Filter.parse(few).matches({"a": [{"b": n} for n in range(6000)]})
    many = {"a": {"$elemMatch": {"$or": [{"b": n} for n in range(64)]}}}
    both = {"$or": [few, {"c": {"$elemMatch": {"$or": [{"b": n} for n in range(4)]}}}]}
    for refused in (many, both):
        with pytest.raises(InvalidArgument, match="at most 1024 conditions"):
            Filter.parse(refused)
    circle, box = {"centre": {"lat": 50, "lon": 10}, "metres": 5}, {"south": 1, "west": 1, "north": 2, "east": 2}
    for op, shape in (("$geo_radius", circle), ("$geo_box", box)):  # a thousand took 20 s for one document of places
        assert Filter.parse({"$or": [{f"f{n}": {op: shape}} for n in range(63)]})
        with pytest.raises(InvalidArgument, match="at most 1024 conditions"):
            Filter.parse({"$or": [{f"f{n}": {op: shape}} for n in range(64)]})
    nested = {"a": {"$elemMatch": {"b": {"$elemMatch": {"c": {"$elemMatch": {"d": 1}}}}}}}
    assert Filter.parse(nested).matches({"a": [{"b": [{"c": [{"d": 1}]}]}]})


@pytest.mark.parametrize("way", ["$or", "$and", "keys", "inside", "operators"])
def test_of_millions_of_conditions_only_as_many_are_read_as_are_too_many(way: str) -> None:
    """A body of 16 MB holds two million, of which each takes some microseconds."""
    read = list[int]()

    class Read(dict[str, Any]):
        def items(self) -> Any:
            read.append(1)
            return super().items()

    def some(count: int) -> list[Read]:
        return [Read(a=1) for _ in range(count)]

    one: Any = {
        "$or": {"$or": some(5000)},
        "$and": {"$and": some(5000)},
        "keys": {f"a{n}": {"$not": Read({"$eq": 1})} for n in range(5000)},
        "inside": {"$or": [{"$and": some(1000)} for _ in range(5)]},
        "operators": {"a": {"$elemMatch": {"$or": some(5000)}}},
    }[way]
    with pytest.raises(InvalidArgument, match="at most 1024 conditions"):
        Filter.parse(one)
    # `_parse` looks at the items of each twice.
    assert len(read) <= 2 * 2 * 1025
