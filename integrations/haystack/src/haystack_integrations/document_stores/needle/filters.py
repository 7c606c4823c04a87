"""Haystack's filters (docs.haystack.deepset.ai, "Metadata Filtering") as Filters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from haystack.errors import FilterError
from haystack_integrations.document_stores.needle.records import instant_of

from needle import Filter

OWN_FIELDS: Final = frozenset({"content", "meta"})
NO_FIELDS: Final = frozenset({"blob", "embedding", "score", "sparse_embedding"})
"""Parts of a Document that no filter asks for here; under `meta.` there may be some of these names."""
_NOTHING: Final = Filter.in_("meta", [])


def filter_of(filters: Mapping[str, Any] | None) -> Filter:
    """What `filter_documents` and retrievers take; None and {} find all. Raises FilterError for what is none."""
    if not filters:
        return Filter.parse({})
    if not isinstance(filters, Mapping):
        raise FilterError(f"a filter is a dictionary, not a {type(filters).__name__}")
    if "field" in filters:
        return _comparison(filters)
    return _logic(filters)


def _logic(condition: Mapping[str, Any]) -> Filter:
    operator = _said(condition, "operator")
    conditions = _said(condition, "conditions")
    if not isinstance(conditions, list) or not conditions:
        raise FilterError(f"conditions = {conditions!r:.80} is not allowed: a list of conditions")
    parts = [
        _comparison(one) if isinstance(one, Mapping) and "conditions" not in one else filter_of(one)
        for one in conditions
    ]
    if operator == "AND":
        return Filter.all(*parts)
    if operator == "OR":
        return Filter.any_(*parts)
    if operator == "NOT":
        return ~Filter.all(*parts)
    raise FilterError(f"operator = {operator!r:.80} is not allowed: AND, OR or NOT")


def _comparison(condition: Mapping[str, Any]) -> Filter:
    field, operator, value = (_said(condition, name) for name in ("field", "operator", "value"))
    if not isinstance(field, str) or not field:
        raise FilterError(f"field = {field!r:.80} is not allowed: the name of a field, as 'meta.year'")
    if operator not in _COMPARISONS:
        raise FilterError(f"operator = {operator!r:.80} is not allowed: one of {', '.join(_COMPARISONS)}")
    if field == "id":
        return _of_ids(operator, value)
    if field in NO_FIELDS:
        raise FilterError(f"field = {field!r} is not allowed: id, content, or meta and a name, as 'meta.{field}'")
    path = field if field.partition(".")[0] in OWN_FIELDS else f"meta.{field}"
    return _COMPARISONS[operator](path, value)


def _of_ids(operator: str, value: Any) -> Filter:
    """A document's own id, which is not in its metadata."""
    if operator in ("==", "!="):
        wanted = [] if value is None else [value]
    elif operator in ("in", "not in") and isinstance(value, list):
        wanted = value
    else:
        raise FilterError(f"operator = {operator!r} of id is not allowed: == or != one, in or not in a list")
    if not all(isinstance(one, str) for one in wanted):
        raise FilterError(f"value = {value!r:.80} of id is not allowed: ids are texts")
    found = Filter.ids(wanted) if wanted else _NOTHING
    return found if operator in ("==", "in") else ~found


def _said(condition: Mapping[str, Any], name: str) -> Any:
    if name not in condition:
        raise FilterError(f"{name!r} is missing in the condition {dict(condition)!s:.200}")
    return condition[name]


def _ordered(make: Callable[[str, Any], Filter]) -> Callable[[str, Any], Filter]:
    """Numbers and dates have an order; None compares with nothing."""

    def comparison(field: str, value: Any) -> Filter:
        if value is None:
            return _NOTHING
        if isinstance(value, bool) or not isinstance(value, int | float | str | datetime):
            raise FilterError(f"value = {value!r:.80} of {field} has no order: a number, or a date in ISO format")
        if isinstance(value, int | float):
            return make(field, value)
        if (instant := instant_of(value)) is None:
            raise FilterError(f"value = {value!r:.80} of {field} has no order: a number, or a date in ISO format")
        return make(f"dates.{field.removeprefix('meta.')}", instant)

    return comparison


def _listed(make: Callable[[str, Any], Filter]) -> Callable[[str, Any], Filter]:
    def comparison(field: str, value: Any) -> Filter:
        if not isinstance(value, list):
            raise FilterError(f"value = {value!r:.80} of {field} is not allowed: a list")
        return make(field, value)

    return comparison


_COMPARISONS: Final[dict[str, Callable[[str, Any], Filter]]] = {
    "==": Filter.eq,
    "!=": Filter.ne,
    ">": _ordered(Filter.gt),
    ">=": _ordered(Filter.gte),
    "<": _ordered(Filter.lt),
    "<=": _ordered(Filter.lte),
    "in": _listed(Filter.in_),
    "not in": _listed(Filter.not_in),
}
