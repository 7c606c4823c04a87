"""LlamaIndex's MetadataFilters as Filters, over nodes as records.py stores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from needle import Filter

_ALL: Final = Filter.parse({})


def where(
    filters: MetadataFilters | None, *, node_ids: Sequence[str] | None = None, doc_ids: Sequence[str] | None = None
) -> Filter:
    """Nodes that match, of these ids, of these documents; what is None does not count. Raises ValueError for what is
    not understood."""
    parts = []
    if filters is not None:
        parts.append(filter_of(filters))
    if node_ids is not None:
        parts.append(Filter.ids(list(node_ids)))
    if doc_ids is not None:
        parts.append(Filter.in_("ref_doc_id", list(doc_ids)))
    return Filter.all(*parts) if parts else _ALL


def of_query(query: VectorStoreQuery) -> Filter:
    """All that a query says of which nodes are meant. An index over a store that keeps the text says `[]` for all."""
    return where(query.filters, node_ids=query.node_ids or None, doc_ids=query.doc_ids or None)


def filter_of(filters: MetadataFilters) -> Filter:
    """The conditions of one level, and those below."""
    parts = [filter_of(one) if isinstance(one, MetadataFilters) else _leaf(one) for one in filters.filters]
    if not parts:
        return _ALL
    if filters.condition in (None, FilterCondition.AND):
        return Filter.all(*parts)
    return Filter.any_(*parts) if filters.condition == FilterCondition.OR else ~Filter.any_(*parts)


def _leaf(one: MetadataFilter) -> Filter:
    make = _OPERATORS.get(one.operator)
    if make is None:
        known = ", ".join(operator.value for operator in _OPERATORS)
        raise ValueError(f"operator = {one.operator.value!r} of {one.key} is not allowed: one of {known}")
    return make(f"metadata.{one.key}", one.value)


def _empty(field: str, value: Any) -> Filter:
    del value  # the operator says all
    return Filter.any_(Filter.eq(field, None), Filter.eq(field, ""), Filter.size(field, 0))


_OPERATORS: Final[dict[FilterOperator, Callable[[str, Any], Filter]]] = {
    FilterOperator.EQ: Filter.eq,
    FilterOperator.NE: Filter.ne,
    FilterOperator.GT: Filter.gt,
    FilterOperator.GTE: Filter.gte,
    FilterOperator.LT: Filter.lt,
    FilterOperator.LTE: Filter.lte,
    FilterOperator.IN: Filter.in_,
    FilterOperator.NIN: Filter.not_in,
    FilterOperator.ANY: Filter.in_,
    FilterOperator.ALL: Filter.all,
    FilterOperator.CONTAINS: Filter.eq,  # an array has the value if one of its elements equals it
    FilterOperator.TEXT_MATCH: Filter.contains,
    FilterOperator.IS_EMPTY: _empty,
}
