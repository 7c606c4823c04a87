"""The one table of filter operators: each operator's builder, operand, meaning and words for users.

Everything that has to know every operator is made from this table or checked against it, so that an operator which one
of them lacks fails the build and is never half there: the parsers and the builder (operands.py, builder.py), the
evaluation (nodes.py), the field index (shard/fields/field_index.py), docs/filters.md, and the generators of the tests.

Pure: it knows neither nodes, nor the dict form, nor bitmaps.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from needle.base.geo import place_of
from needle.base.instants import Instant, InstantKey, instant_key
from needle.base.versions import FIRST

Scalar = str | int | float | bool | None
FEW: Final = 16
"""So many scalars are compared one by one."""


class Operand(enum.Enum):
    """What an operator compares with."""

    VALUE = "any scalar, or an instant"
    ORDERED = "a number, a string, or an instant"
    TEXT = "a string"
    FLAG = "true or false"
    VALUES = "a list of scalars and instants"
    PAIR = "[low, high]: two numbers, two strings, or two instants"
    LENGTH = "a whole number, or bounds of one"
    ELEMENT = "a filter on an element that is an object, or comparisons with one that is not"
    IDS = "a list of ids"
    CIRCLE = "a place, and metres"
    BOX = "two latitudes and two longitudes"


class Of(enum.Enum):
    """What an operator looks at."""

    SCALARS = "the scalars that a field stands for"
    ENDS = "the values at the end of a field's path, as they are"
    ID = "the id of the document"


Holds = Callable[[bool, Sequence[Any], Any], bool]
"""holds(present, found, operand): whether the comparison holds for a field that is there or not, and `found`, which is
what the operator looks at."""


class Operator(msgspec.Struct, frozen=True):
    """name: in the dict form. builder: Filter's method. means: for users, docs/filters.md. since: the version that
    brought it (docs/versions.md): a filter that has it gets into no log that older nodes apply."""

    name: str
    builder: str
    operand: Operand
    holds: Holds
    means: str
    of: Of = Of.SCALARS
    since: int = FIRST


def kind(value: object) -> str:
    """The type class that decides what a value compares with: null, bool, number, string, instant or none of them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "instant" if isinstance(value, Instant) else "none"


def same(item: Scalar, value: Any) -> bool:
    """Whether a stored scalar equals an operand: true is not 1, 1 is 1.0, an instant equals every text of it."""
    if isinstance(value, Instant):
        return isinstance(item, str) and instant_key(item) == value.key
    return item == value and isinstance(item, bool) == isinstance(value, bool)


class Values(tuple[Any, ...]):
    """Scalars and instants, of which there may be thousands: what equals one of them is looked up, not compared with
    each."""

    _sets: tuple[set[tuple[bool, Any]], set[InstantKey]] | None = None

    @property
    def sets(self) -> tuple[set[tuple[bool, Any]], set[InstantKey]]:
        """The scalars (`mark` of each), and the keys of the instants. Made when they are first asked for: a search by
        an index needs none."""
        held = self._sets
        if held is None:
            scalars = {mark(value) for value in self if not isinstance(value, Instant)}
            held = self._sets = scalars, {value.key for value in self if isinstance(value, Instant)}
        return held


def mark(value: Scalar) -> tuple[bool, Scalar]:
    """Equal, and of one hash, for what is `same`."""
    return isinstance(value, bool), value


_NULL: Final = mark(None)


class Many(list[Any]):
    """Scalars that a field stands for, so many that they are looked up, not compared with each operand: a filter of a
    thousand conditions on an array of thousands would else take seconds for one document. What is made of them is kept
    while one document is judged."""

    _marks: frozenset[tuple[bool, Any]] | None = None
    _keys: list[InstantKey] | None = None
    _numbers: list[Any] | None = None
    _texts: list[Any] | None = None

    @property
    def marks(self) -> frozenset[tuple[bool, Any]]:
        """Each by `mark`."""
        if self._marks is None:
            self._marks = frozenset(map(mark, self))
        return self._marks

    def ascending(self, wanted: str) -> list[Any]:
        """The numbers, the strings, or what strings are as instants."""
        if wanted == "instant":
            if self._keys is None:
                self._keys = sorted(key for text in self.ascending("string") if (key := instant_key(text)) is not None)
            return self._keys
        if wanted == "string":
            if self._texts is None:
                self._texts = sorted(item for item in self if isinstance(item, str))
            return self._texts
        if self._numbers is None:
            self._numbers = sorted(item for item in self if kind(item) == "number")
        return self._numbers

    def holds(self, key: InstantKey) -> bool:
        """Whether one is this instant."""
        keys = self.ascending("instant")
        at = bisect_left(keys, key)
        return at < len(keys) and keys[at] == key

    def first(self, low: Any) -> Any:
        """The least that compares with `low` and is not less; None if there is none."""
        those = self.ascending(kind(low))
        low = low.key if isinstance(low, Instant) else low
        at = bisect_left(those, low)
        return those[at] if at < len(those) else None


def gathered(found: list[Any]) -> list[Any]:
    """What a path finds, as the comparisons take it."""
    return Many(found) if len(found) > FEW else found


class Names(tuple[str, ...]):
    """Ids, of which there may be thousands: one is looked up, not compared with each."""

    _set: frozenset[str] | None = None

    def __contains__(self, id_: object) -> bool:
        if self._set is None:
            self._set = frozenset(self)
        return id_ in self._set


class Length(msgspec.Struct, frozen=True):
    """Of an array: `least` elements at least, and `most` at most, None for any number."""

    least: int
    most: int | None

    def holds(self, count: int) -> bool:
        return count >= self.least and (self.most is None or count <= self.most)


def _equal(present: bool, found: Sequence[Scalar], value: Any) -> bool:
    if isinstance(found, Many):
        return found.holds(value.key) if isinstance(value, Instant) else mark(value) in found.marks
    return any(same(item, value) for item in found) or (value is None and not present)


def _not_equal(present: bool, found: Sequence[Scalar], value: Any) -> bool:
    return not _equal(present, found, value)


def _in(present: bool, found: Sequence[Scalar], values: Any) -> bool:
    scalars, instants = values.sets
    if isinstance(found, Many):
        return not scalars.isdisjoint(found.marks) or any(found.holds(key) for key in instants)
    if any(mark(item) in scalars for item in found) or (not present and _NULL in scalars):
        return True
    return bool(instants) and any(isinstance(item, str) and instant_key(item) in instants for item in found)


def _not_in(present: bool, found: Sequence[Scalar], values: Any) -> bool:
    return not _in(present, found, values)


def _all(present: bool, found: Sequence[Scalar], values: Any) -> bool:
    scalars, instants = values.sets
    if isinstance(found, Many):
        return bool(values) and scalars <= found.marks and all(found.holds(key) for key in instants)
    there = set(map(mark, found)) if present else {_NULL}
    if not values or not scalars <= there:
        return False
    return not instants or instants <= {instant_key(item) for item in found if isinstance(item, str)}


def _ordered(test: Callable[[Any, Any], bool]) -> Holds:
    """Any of the found scalars that compare with the bound passes the test."""

    def holds(present: bool, found: Sequence[Scalar], bound: Any) -> bool:
        wanted = kind(bound)
        if isinstance(found, Many):  # if it holds for any of them, then for the least or the greatest
            those, limit = found.ascending(wanted), bound.key if wanted == "instant" else bound
            return bool(those) and (test(those[0], limit) or test(those[-1], limit))
        if wanted == "instant":
            keys = [instant_key(item) for item in found if isinstance(item, str)]
            return any(key is not None and test(key, bound.key) for key in keys)
        return any(kind(item) == wanted and test(item, bound) for item in found)

    return holds


def _between(present: bool, found: Sequence[Scalar], bounds: Any) -> bool:
    low, high = bounds
    if isinstance(found, Many):
        least = found.first(low)
        return least is not None and bool(least <= (high.key if isinstance(high, Instant) else high))
    at_least, at_most = OPERATORS["$gte"].holds, OPERATORS["$lte"].holds
    return any(at_least(True, [item], low) and at_most(True, [item], high) for item in found)


def _contains(present: bool, found: Sequence[Scalar], text: Any) -> bool:
    return any(isinstance(item, str) and text in item for item in found)


def _starts_with(present: bool, found: Sequence[Scalar], text: Any) -> bool:
    if isinstance(found, Many):
        least = found.first(text)
        return least is not None and bool(least.startswith(text))
    return any(isinstance(item, str) and item.startswith(text) for item in found)


def _exists(present: bool, found: Sequence[Scalar], wanted: Any) -> bool:
    return present is wanted


def _size(present: bool, found: Sequence[Any], length: Any) -> bool:
    return any(isinstance(end, list) and length.holds(len(end)) for end in found)


def _element(present: bool, found: Sequence[Any], test: Any) -> bool:
    return any(isinstance(end, list) and any(map(test.matches, end)) for end in found)


def _lies_within(present: bool, found: Sequence[Any], shape: Any) -> bool:
    for end in found:
        for item in end if isinstance(end, list) else [end]:
            place = place_of(item)
            if place is not None and shape.holds(place):
                return True
    return False


def _named(present: bool, found: Sequence[Any], ids: Any) -> bool:
    return found[0] in ids


_ORDER = "the same type (numbers, strings or instants) and"

OPERATORS: Final[dict[str, Operator]] = {
    one.name: one
    for one in (
        Operator("$eq", "eq", Operand.VALUE, _equal, "the field equals v; `{f: v}` says the same"),
        Operator("$ne", "ne", Operand.VALUE, _not_equal, "not `$eq`; so also when the field is missing"),
        Operator("$gt", "gt", Operand.ORDERED, _ordered(lambda item, v: bool(item > v)), f"{_ORDER} greater than v"),
        Operator("$gte", "gte", Operand.ORDERED, _ordered(lambda item, v: bool(item >= v)), f"{_ORDER} at least v"),
        Operator("$lt", "lt", Operand.ORDERED, _ordered(lambda item, v: bool(item < v)), f"{_ORDER} less than v"),
        Operator("$lte", "lte", Operand.ORDERED, _ordered(lambda item, v: bool(item <= v)), f"{_ORDER} at most v"),
        Operator("$between", "between", Operand.PAIR, _between, "low <= field <= high"),
        Operator("$in", "in_", Operand.VALUES, _in, "equals any of the values; `[]` matches nothing"),
        Operator("$nin", "not_in", Operand.VALUES, _not_in, "not `$in`"),
        Operator("$all", "all", Operand.VALUES, _all, "equals (has, if an array) every value; `[]` matches nothing"),
        Operator("$contains", "contains", Operand.TEXT, _contains, "the string, or one of the array, has v in it"),
        Operator(
            "$starts_with", "starts_with", Operand.TEXT, _starts_with, "the string, or one of the array, starts so"
        ),
        Operator("$exists", "exists", Operand.FLAG, _exists, "true: the field is there, be it null, {} or []"),
        Operator("$size", "size", Operand.LENGTH, _size, "the field is an array of so many elements", Of.ENDS, 4),
        Operator(
            "$elemMatch",
            "elem_match",
            Operand.ELEMENT,
            _element,
            "the field is an array, and one of its elements matches by itself",
            Of.ENDS,
            4,
        ),
        Operator(
            "$geo_radius",
            "geo_radius",
            Operand.CIRCLE,
            _lies_within,
            "the place, or one of the array, is no farther from the centre",
            Of.ENDS,
            4,
        ),
        Operator(
            "$geo_box",
            "geo_box",
            Operand.BOX,
            _lies_within,
            "the place, or one of the array, is in the box",
            Of.ENDS,
            4,
        ),
        Operator("$ids", "ids", Operand.IDS, _named, "the document has one of these ids", Of.ID, 4),
    )
}
