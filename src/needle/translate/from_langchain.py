"""The filters of LangChain's PGVector (python.langchain.com, "PGVector", "Filtering Support") as Filters.

There a comparison with a field that is missing holds never, `$ne` and `$nin` included; that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from needle.base.filters.builder import Filter
from needle.translate.refusing import mapping, members, refused


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


def langchain(filter: Mapping[str, Any]) -> Filter:
    """`filter` of a similarity search. Several fields hold together. Raises InvalidArgument
    naming what is not understood; `$ilike` is not, for nothing here passes over upper case."""
    said = mapping("filter", filter)
    parts = [_part(key, value) for key, value in said.items()]
    return parts[0] if len(parts) == 1 else Filter.all(parts) if parts else Filter.parse({})


def _part(key: str, value: Any) -> Filter:
    if key in ("$and", "$or"):
        parts = [langchain(one) for one in members(key, value)]
        return Filter.all(parts) if key == "$and" else Filter.any_(parts)
    if key == "$not":
        return Filter.not_(langchain(mapping(key, value)))
    if not isinstance(value, Mapping):
        return Filter.eq(key, value)
    if len(value) != 1:
        raise refused(f"filter {key}", dict(value), "a value, or a dict with one operator; join several by $and")
    ((name, operand),) = value.items()
    if name not in _BY_NAME:
        raise refused(f"operator of {key}", name, f"one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name](key, operand)
