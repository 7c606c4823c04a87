"""The filters of LangChain's PGVector (python.langchain.com, "PGVector", "Filtering Support") as Filters.

There a comparison with a field that is missing holds never, `$ne` and `$nin` included; that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from needle.base.filters.builder import Filter
from needle.translate.refusing import bounded, flat, mapping, members, refused


def _between(field: str, value: object) -> Filter:
    pair = members(f"$between of {field}", value)
    if len(pair) != 2:
        raise refused(f"$between of {field}", value, "[low, high]")
    return Filter.between(field, pair[0], pair[1])


def _like(field: str, pattern: object) -> Filter:
    """`%` at its end, or at both: the only patterns that mean one thing here."""
    if isinstance(pattern, str) and not set("_\\") & set(pattern):
        inner = pattern.strip("%")
        if inner and "%" not in inner:
            if pattern == inner:
                return Filter.eq(field, inner)
            if pattern == f"{inner}%":
                return Filter.starts_with(field, inner)
            if pattern == f"%{inner}%":
                return Filter.contains(field, inner)
    raise refused(f"$like of {field}", pattern, "'text', 'text%' or '%text%'")


_BY_NAME: Final[dict[str, Callable[[str, Any], Filter]]] = {
    "$eq": Filter.eq,
    "$ne": lambda field, value: Filter.exists(field) & Filter.ne(field, value),
    "$gt": Filter.gt,
    "$gte": Filter.gte,
    "$lt": Filter.lt,
    "$lte": Filter.lte,
    "$in": Filter.in_,
    "$nin": lambda field, value: Filter.exists(field) & Filter.not_in(field, value),
    "$between": _between,
    "$exists": Filter.exists,
    "$like": _like,
}


_TEXT: Final = ("$in", "$nin", "$like")
"""Of a missing field these are neither true nor false there, and so is their opposite: it is not found by it."""


@bounded
def langchain(filter: Mapping[str, Any]) -> Filter:
    """`filter` of a similarity search. Several fields hold together. Raises InvalidArgument
    naming what is not understood; `$ilike` is not, for nothing here passes over upper case."""
    return _filter("filter", filter, holds=True)


def _filter(where: str, filter: object, *, holds: bool) -> Filter:
    """What finds the documents for which it is true, or for which it is false: not the same as all others."""
    parts = [_part(key, value, holds=holds) for key, value in mapping(where, filter).items()]
    if not parts:
        return Filter.parse({}) if holds else Filter.not_(Filter.parse({}))
    return _joined(parts, both=holds)


def _joined(parts: list[Filter], *, both: bool) -> Filter:
    if len(parts) == 1:
        return parts[0]
    return Filter.all(parts) if both else Filter.any_(parts)


def _part(key: str, value: Any, *, holds: bool) -> Filter:
    if key in ("$and", "$or"):
        said = members(key, value)
        if not said:
            raise refused(key, value, "a non-empty list of filters")
        return _joined([_filter(f"part of {key}", one, holds=holds) for one in said], both=(key == "$and") == holds)
    if key == "$not":
        return _filter(key, value, holds=not holds)
    flat("field of filter", key)
    name, operand = "$eq", value
    if isinstance(value, Mapping):
        if len(value) != 1:
            instead = "a value, or a dict with one operator; join several by $and"
            raise refused(f"filter {key}", dict(value), instead)
        ((name, operand),) = value.items()
        if name not in _BY_NAME:
            raise refused(f"operator of {key}", name, f"one of {', '.join(_BY_NAME)}")
    made = _BY_NAME[name](key, operand)
    if holds:
        return made
    return Filter.exists(key) & Filter.not_(made) if name in _TEXT else Filter.not_(made)
