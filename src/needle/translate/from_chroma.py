"""Chroma's `where` (docs.trychroma.com, "Metadata Filtering") as a Filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from needle.base.filters.builder import Filter
from needle.translate.refusing import bounded, flat, mapping, members, refused

_BY_NAME: Final[dict[str, Callable[[str, Any], Filter]]] = {
    "$eq": Filter.eq,
    "$ne": Filter.ne,
    "$gt": Filter.gt,
    "$gte": Filter.gte,
    "$lt": Filter.lt,
    "$lte": Filter.lte,
    "$in": Filter.in_,
    "$nin": Filter.not_in,
    "$contains": Filter.eq,
    "$not_contains": Filter.ne,
}
"""`$contains` there: an array of metadata has the value."""


@bounded
def chroma(where: Mapping[str, Any]) -> Filter:
    """`where` of a query, get or delete. {} matches all. `where_document` is no filter on metadata: keep the text in a
    field, and say `Filter.contains`. Raises InvalidArgument naming what is not understood."""
    return _condition(where) if where else Filter.parse({})


def _condition(where: object) -> Filter:
    said = mapping("where", where)
    if len(said) != 1:
        raise refused("where", dict(said), "a dict with one key; join several by $and, as Chroma asks for")
    ((key, value),) = said.items()
    if key in ("$and", "$or"):
        parts = [_condition(one) for one in members(key, value)]
        return Filter.all(parts) if key == "$and" else Filter.any_(parts)
    flat("key of where", key)
    if not isinstance(value, Mapping):
        return Filter.eq(key, value)
    if len(value) != 1:
        raise refused(f"where {key}", dict(value), "a dict with one operator; join several by $and")
    ((name, operand),) = value.items()
    if name not in _BY_NAME:
        raise refused(f"operator of {key}", name, f"one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name](key, operand)
