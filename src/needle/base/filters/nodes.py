"""What filters mean: the nodes of a condition on JSON metadata, and their evaluation, which indexes must agree with.

Semantics (docs/filters.md repeats them for users):

- A field is a path: "a.b" is key b of the object under key a. An array on the way stands for each of its objects
  ("a.b" of {"a": [{"b": 1}, {"b": 2}]} has the values 1 and 2). Array positions and keys with dots have no path.
- An array at the end of a path stands for each of its elements, one level deep; a comparison holds if it holds for
  any element. Elements that are arrays or objects, and objects at the end of a path, equal nothing.
- Missing: no value at the end of the path (always so when the metadata is not an object). Comparisons do not hold for
  a missing field, except `eq(field, None)`, which holds for null and for missing. `ne`, `not_in` and `not_` are exact
  complements, so they do hold for missing fields. `exists(field)` is true for null, {} and [] too.
- Types: numbers compare with numbers (1 equals 1.0; integers are exact), strings with strings by code point, booleans
  equal booleans. Values of different types are different and never ordered; true is not 1.
- An instant (`Instant`) compares with every string that is an RFC 3339 date-time, as a point in time (instants.py), and
  with nothing else.
- `between` is inclusive, and one element of an array must satisfy both ends. `contains` and `starts_with` look into a
  string, or any string of an array. `$all`: every given value equals the field (or an element of it). An empty
  `$in` or `$all` matches nothing, an empty `$nin` everything.
- Everything at one level of a dict is ANDed: fields, operators of a field, `$and`, `$or`, `$not`. {} matches all.

Pure: it knows neither the dict form (filters.py), nor bitmaps, nor SQLite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import msgspec

from needle.base.filters.operators import OPERATORS, Scalar


class Compare(msgspec.Struct, frozen=True):
    """field <op> value. path: the field's segments. op: a name of OPERATORS. value: a scalar or an Instant; a tuple of
    them for $in, $nin, $all, $between."""

    field: str
    path: tuple[str, ...]
    op: str
    value: Any


class And(msgspec.Struct, frozen=True):
    children: tuple[Node, ...]


class Or(msgspec.Struct, frozen=True):
    children: tuple[Node, ...]


class Not(msgspec.Struct, frozen=True):
    child: Node


Node = Compare | And | Or | Not


def lookup(metadata: object, path: Sequence[str]) -> tuple[bool, list[Scalar]]:
    """What a path finds: (is anything there, the scalars it stands for). See the module docstring."""
    level: list[object] = [metadata]
    for depth, key in enumerate(path):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                if key in value:
                    below.append(value[key])
            elif isinstance(value, list) and depth > 0:
                below.extend(item[key] for item in value if isinstance(item, dict) and key in item)
        if not below:
            return False, []
        level = below
    found: list[Scalar] = []
    for value in level:
        if isinstance(value, list):
            found.extend(item for item in value if not isinstance(item, dict | list))
        elif not isinstance(value, dict):
            found.append(value)  # type: ignore[arg-type]  # JSON has no other types
    return True, found


def evaluate(node: Node, metadata: object) -> bool:
    """Whether decoded JSON metadata matches: the definition of filters. What each operator means is in its table."""
    match node:
        case And(children):
            return all(evaluate(child, metadata) for child in children)
        case Or(children):
            return any(evaluate(child, metadata) for child in children)
        case Not(child):
            return not evaluate(child, metadata)
        case Compare():
            return OPERATORS[node.op].holds(*lookup(metadata, node.path), node.value)
        case _:
            assert_never(node)
