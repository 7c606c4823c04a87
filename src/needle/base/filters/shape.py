"""What a filter asks for without what it compares with: its fields and operators, for logs. Pure."""

from __future__ import annotations

from typing import Final

from needle.base.errors import NeedleError
from needle.base.filters.builder import Filter
from needle.base.filters.nodes import And, Compare, Node, Not, Or

SHAPE_MAX: Final = 500
"""Characters."""
PARSED_BYTES_MAX: Final = 64 * 1024
"""A larger filter is not looked into: that takes time, and somebody waits already."""


def shape(filter_json: bytes) -> str:
    """Such as `year $gte and (lang $eq or not tags $in)`; "" for no filter."""
    if not filter_json:
        return ""
    if len(filter_json) > PARSED_BYTES_MAX:
        return f"a filter of {len(filter_json)} bytes"
    try:
        node = Filter.from_json(filter_json).node
    except NeedleError as error:
        return f"no filter ({error.code})"
    text = _shape(node, inner=False) if node is not None else ""
    return text if len(text) <= SHAPE_MAX else f"{text[:SHAPE_MAX]}... ({len(text)} characters)"


def _shape(node: Node, *, inner: bool) -> str:
    if isinstance(node, Compare):
        return f"{node.field} {node.op}"
    if isinstance(node, Not):
        return f"not {_shape(node.child, inner=True)}"
    word = " and " if isinstance(node, And) else " or " if isinstance(node, Or) else " "
    parts = dict.fromkeys(_shape(child, inner=True) for child in node.children)
    text = word.join(parts) or ("everything" if isinstance(node, And) else "nothing")
    return f"({text})" if inner and len(parts) > 1 else text
