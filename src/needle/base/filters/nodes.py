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
- `$size` and `$elemMatch` are about an array at the end of a path (of any, if an array is on the way), and hold for
  nothing else. `$elemMatch` asks a filter of each element that is an object, as if that were the metadata; or
  comparisons of each element that is neither object nor array.
- `$geo_radius` and `$geo_box` are about places (base/geo.py) at the end of a path, or in an array there.
- `$ids` is about the document's id. It stands where a field would, and not inside `$elemMatch`.
- Everything at one level of a dict is ANDed: fields, operators of a field, `$and`, `$or`, `$not`. {} matches all.

Pure: it knows neither the dict form (builder.py), nor bitmaps, nor SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, assert_never

import msgspec

from needle.base.filters.operators import OPERATORS, Of, Scalar, gathered

IDS: Final = "$ids"


class Compare(msgspec.Struct, frozen=True):
    """field <op> value. path: the field's segments; () for the id, and for an element of an array itself. op: a name of
    OPERATORS. value: a scalar or an Instant; a tuple of them for $in, $nin, $all, $between; a Length for $size, an
    Element for $elemMatch, a Circle for $geo_radius, a Box for $geo_box, Names for $ids."""

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


class Element(msgspec.Struct, frozen=True):
    """What an element of an array has to match. of_objects: those that are objects, by their fields; otherwise those
    that are neither objects nor arrays, by Compares of themselves."""

    node: Node
    of_objects: bool

    def matches(self, item: object) -> bool:
        """Whether one does."""
        fits = isinstance(item, dict) if self.of_objects else not isinstance(item, dict | list)
        return fits and evaluate(self.node, item, None)


def ends(metadata: object, path: Sequence[str]) -> list[object]:
    """The values at the end of a path, as they are; none if nothing is there. See the module docstring."""
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
            return below
        level = below
    return level


def lookup(metadata: object, path: Sequence[str]) -> tuple[bool, list[Scalar]]:
    """What a path finds: (is anything there, the scalars it stands for). See the module docstring."""
    level = ends(metadata, path)
    found: list[Scalar] = []
    for value in level:
        if isinstance(value, list):
            found.extend(item for item in value if not isinstance(item, dict | list))
        elif not isinstance(value, dict):
            found.append(value)  # type: ignore[arg-type]  # JSON has no other types
    return bool(level), found


def evaluate(node: Node, metadata: object, id_: object) -> bool:
    """Whether a document of decoded JSON metadata matches: the definition of filters. What each operator means is in
    its table. id_: the document's, or what stands for it in the operands of `$ids` (see `placed`)."""
    return _holds(node, metadata, id_, None if type(node) is Compare else {})


def _holds(
    node: Node, metadata: object, id_: object, seen: dict[tuple[str, ...], tuple[bool, list[Scalar]]] | None
) -> bool:
    """seen: what paths found already, for conditions of one field."""
    match node:
        case And(children):
            return all(_holds(child, metadata, id_, seen) for child in children)
        case Or(children):
            return any(_holds(child, metadata, id_, seen) for child in children)
        case Not(child):
            return not _holds(child, metadata, id_, seen)
        case Compare():
            operator = OPERATORS[node.op]
            if operator.of is Of.SCALARS:
                there = None if seen is None else seen.get(node.path)
                if there is None:
                    present, found = lookup(metadata, node.path)
                    there = present, found if seen is None else gathered(found)
                    if seen is not None:
                        seen[node.path] = there
                return operator.holds(*there, node.value)
            ends_ = [id_] if operator.of is Of.ID else ends(metadata, node.path)
            return operator.holds(bool(ends_), ends_, node.value)
        case _:
            assert_never(node)


def compares(node: Node) -> Iterator[Compare]:
    """Every comparison of a filter, but for those inside of an `$elemMatch`."""
    match node:
        case Compare():
            yield node
        case Not(child):
            yield from compares(child)
        case And(children) | Or(children):
            for child in children:
                yield from compares(child)
        case _:
            assert_never(node)


def since(node: Node) -> int:
    """The version that brought the newest of a filter's operators (docs/versions.md)."""
    newest = 0
    for one in compares(node):
        inner = since(one.value.node) if isinstance(one.value, Element) else 0
        newest = max(newest, OPERATORS[one.op].since, inner)
    return newest


def named(node: Node) -> Sequence[str] | None:
    """Ids of which every document that matches has one; None if a filter does not say."""
    match node:
        case Compare():
            return node.value if node.op == IDS else None
        case And(children):
            return min((ids for child in children if (ids := named(child)) is not None), key=len, default=None)
        case Or(children):
            found: dict[str, None] = {}
            for child in children:
                if (ids := named(child)) is None:
                    return None
                found.update(dict.fromkeys(ids))
            return list(found)
        case Not():
            return None
        case _:
            assert_never(node)
