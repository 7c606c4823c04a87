"""Qdrant's filters (qdrant.tech/documentation, "Filtering"), as its REST API has them, as Filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from needle.base.filters.builder import Filter
from needle.translate.refusing import bounded, mapping, members, only, refused

_CLAUSES: Final = ("must", "should", "must_not", "min_should")
_OF_KEYS: Final = ("match", "range", "values_count")
_RANGE: Final = ("gt", "gte", "lt", "lte")
_INSTEAD: Final = {
    "text": "Filter.contains, which looks for the text as it is (there it depends on the field's index)",
    "phrase": "Filter.contains, which looks for the text as it is (there it depends on the field's index)",
    "except": "must_not of match any (there an array matches if one of its elements is another value)",
}


@bounded
def qdrant(filter: Mapping[str, Any]) -> Filter:
    """A filter as JSON has it (of the Python client: `filter.model_dump(exclude_none=True)`). {} matches all. Ids that
    are numbers are meant as their digits. Raises InvalidArgument naming what is not understood, as geo."""
    said = {name: clause for name, clause in mapping("filter", filter).items() if clause is not None}
    only("filter", said, _CLAUSES)
    parts = [_condition(one) for one in _many("must", said)]
    if should := [_condition(one) for one in _many("should", said)]:
        parts.append(should[0] if len(should) == 1 else Filter.any_(should))
    parts.extend(Filter.not_(_condition(one)) for one in _many("must_not", said))
    if "min_should" in said:
        parts.append(_min_should(mapping("min_should", said["min_should"])))
    return parts[0] if len(parts) == 1 else Filter.all(parts) if parts else Filter.parse({})


def _many(name: str, said: Mapping[str, Any]) -> list[Any]:
    """A clause may be one condition, or a list of them."""
    clause = said.get(name, [])
    return [clause] if isinstance(clause, Mapping) else list(members(name, clause))


def _min_should(said: Mapping[str, Any]) -> Filter:
    only("min_should", said, ("conditions", "min_count"))
    parts = [_condition(one) for one in members("conditions", said.get("conditions"))]
    count = said.get("min_count")
    if parts and count == 1 and count is not True:
        return Filter.any_(parts)
    if parts and count == len(parts):
        return Filter.all(parts)
    raise refused("min_count", count, f"1, or as many as there are conditions ({len(parts)})")


def _condition(condition: object) -> Filter:
    said = {name: value for name, value in mapping("condition", condition).items() if value is not None}
    if said.keys() & set(_CLAUSES):
        return qdrant(said)
    for name, translated in _ALONE.items():
        if name in said:
            only("condition", said, (name,))
            return translated(said[name])
    only("condition", said, ("key", *_OF_KEYS))
    key = _key(said.get("key"))
    kinds = said.keys() - {"key"}
    if len(kinds) != 1:
        raise refused(f"condition of {key}", sorted(kinds), f"one of {', '.join(_OF_KEYS)}")
    if "values_count" in said:
        return _values_count(key, said["values_count"])
    return _match(key, said["match"]) if "match" in said else _range(key, said["range"])


def _is_null(said: object) -> Filter:
    key = _key_alone("is_null", said)
    return Filter.exists(key) & Filter.eq(key, None)


def _is_empty(said: object) -> Filter:
    """Missing, null or []."""
    key = _key_alone("is_empty", said)
    return Filter.size(key, 0) | Filter.eq(key, None) & _no_array(key)


def _has_id(said: object) -> Filter:
    ids = members("has_id", said)
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int | str):
            raise refused("has_id", one, "numbers and texts")
    return Filter.ids([str(one) for one in ids])


def _nested(said: object) -> Filter:
    nested = mapping("nested", said)
    only("nested", nested, ("key", "filter"))
    return Filter.elem_match(_key(nested.get("key")), qdrant(mapping("filter", nested.get("filter"))))


_ALONE: Final[dict[str, Callable[[object], Filter]]] = {
    "is_null": _is_null,
    "is_empty": _is_empty,
    "has_id": _has_id,
    "nested": _nested,
}


def _no_array(key: str) -> Filter:
    return Filter.not_(Filter.size(key, {"$gte": 0}))


def _values_count(key: str, count: object) -> Filter:
    """What is no array counts as one value, and null as none."""
    said = {name: bound for name, bound in mapping(f"values_count of {key}", count).items() if bound is not None}
    only(f"values_count of {key}", said, _RANGE)
    bounds = {f"${name}": bound for name, bound in said.items()}
    many = Filter.size(key, bounds)
    none, one = (Filter.size("n", bounds).matches({"n": [0] * count}) for count in (0, 1))
    if none:
        raise refused(f"values_count of {key}", said, "at least one value: is_empty, or must_not of what has more")
    if not one:
        return many
    return many | Filter.all(Filter.exists(key), _no_array(key), Filter.ne(key, None))


def _key_alone(name: str, said: object) -> str:
    told = mapping(name, said)
    only(name, told, ("key",))
    return _key(told.get("key"))


def _key(key: object) -> str:
    if not isinstance(key, str) or "[" in key or '"' in key:
        raise refused("key", key, 'a path such as "country.name"; an array on the way stands for each of its objects')
    return key


def _match(key: str, match: object) -> Filter:
    said = {name: value for name, value in mapping(f"match of {key}", match).items() if value is not None}
    for name, instead in _INSTEAD.items():
        if name in said:
            raise refused(f"match of {key}", name, instead)
    only(f"match of {key}", said, ("value", "any"))
    if len(said) != 1:
        raise refused(f"match of {key}", sorted(said), "one of value and any")
    return Filter.eq(key, said["value"]) if "value" in said else Filter.in_(key, members("any", said["any"]))


def _range(key: str, range_: object) -> Filter:
    """Of numbers, or of date-times, which are texts there. One element of an array has to be within both bounds."""
    said = {name: value for name, value in mapping(f"range of {key}", range_).items() if value is not None}
    only(f"range of {key}", said, _RANGE)
    bounds = {name: {"$date": bound} if isinstance(bound, str) else bound for name, bound in said.items()}
    if said.keys() == {"gte", "lte"}:
        return Filter.parse({key: {"$between": [bounds["gte"], bounds["lte"]]}})
    if not bounds:
        raise refused(f"range of {key}", "{}", f"bounds: {', '.join(_RANGE)}")
    both = {f"${name}": bound for name, bound in bounds.items()}
    if len(both) == 1:
        return Filter.parse({key: both})
    return Filter.elem_match(key, both) | Filter.parse({key: both}) & _no_array(key)
