"""Which values a document has of a field, for what asks for values instead of comparing with them: groups of hits,
counts by value, hits in the order of a field.

A document has the values that filters find at the end of the path: an array stands for its elements. Null, objects and
what is missing are no values, nor are whole numbers of more than 64 bits, which no filter can name. Values are one if a
filter says that they are equal: 1 is 1.0, true is not 1; whole numbers are told without a fraction.

Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from needle.base.filters.nodes import Compare, Node, Or, lookup
from needle.base.filters.operators import Values, mark

Value = str | int | float | bool
Mark = tuple[bool, Value]
"""Equal for what is one value."""

WHOLE_MIN: Final = -(2**63)
WHOLE_END: Final = 2**64


def told(value: object) -> Value | None:
    """A scalar as it is told; None if it is no value."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return int(value) if WHOLE_MIN <= value < WHOLE_END and value.is_integer() else value
    return value if isinstance(value, int) and WHOLE_MIN <= value < WHOLE_END else None


def values_of(metadata: object, path: Sequence[str]) -> dict[Mark, Value]:
    """The different values of (decoded JSON) metadata, as they are told."""
    found = (told(one) for one in lookup(metadata, path)[1])
    return {marked(value): value for value in found if value is not None}


def marked(value: Value) -> Mark:
    """Of a value as it is told."""
    is_bool, same = mark(value)
    return is_bool, same if same is not None else ""


def rank(value: Value) -> tuple[int, Any]:
    """By which values are ordered: numbers, then text by code point, then false and true."""
    return (2 if isinstance(value, bool) else 1 if isinstance(value, str) else 0), value


def first(values: Iterable[Value], *, descending: bool = False) -> Value | None:
    """Of a document's values the one by which it is ordered; None without any."""
    return (max if descending else min)(values, key=rank, default=None)


def in_order(values: Sequence[Value | None], *, descending: bool = False) -> list[int]:
    """The places of these in order; those that are equal as they stand, and None at the end either way."""
    there = [(rank(value), at) for at, value in enumerate(values) if value is not None]
    there.sort(key=lambda pair: pair[0], reverse=descending)
    return [at for _, at in there] + [at for at, value in enumerate(values) if value is None]


def has_value(path: tuple[str, ...]) -> Node:
    """What matches the documents with a value; and those whose only ones are whole numbers of more than 64 bits."""
    least = (("$gte", ""), ("$gte", -sys.float_info.max), ("$in", Values((False, True))))
    return Or(tuple(Compare(".".join(path), path, op, value) for op, value in least))


def has_any(path: tuple[str, ...], values: Sequence[Value]) -> Node:
    """What matches the documents with one of these values."""
    return Compare(".".join(path), path, "$in", Values(values))
