"""Filters over JSON metadata: a builder, the MongoDB-style dict form, one canonical form.

What they mean is in nodes.py and operators.py, and for users in docs/filters.md. Pure: it knows neither
bitmaps nor SQLite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, assert_never

import msgspec

from needle.base.config import Limits
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import InvalidArgument, invalid
from needle.base.filters.nodes import IDS, And, Compare, Element, Node, Not, Or, compares, evaluate, since
from needle.base.filters.operands import DATE, PARSERS, Ordered, Value, plain
from needle.base.filters.operators import OPERATORS, Of, Operand
from needle.base.filters.reserved import instead
from needle.base.plain import refused

PATH_BYTES_MAX: Final = 512
_LIMITS: Final = Limits()
PER_ELEMENT: Final = 16
"""As so many a condition counts that every element of an array is asked: one document has thousands of them."""
_OF_PLACES: Final = (Operand.CIRCLE, Operand.BOX)

COMPARISONS: Final = tuple(name for name, one in OPERATORS.items() if one.of is not Of.ID)
"""Of a field."""
OF_ELEMENTS: Final = tuple(name for name, one in OPERATORS.items() if one.of is Of.SCALARS)
_JUNCTIONS: Final[dict[str, type[And] | type[Or]]] = {"$and": And, "$or": Or}
LOGIC: Final = (*_JUNCTIONS, "$not", IDS)


class Filter:
    """A condition on metadata. Build it with the static methods, combine with & | ~, or parse the dict form.

    Immutable. Every constructor raises InvalidArgument naming the field, operator or value that is wrong.
    """

    __slots__ = ("_depth", "_nodes", "node")

    def __init__(self, node: Node, depth: int, nodes: int) -> None:
        self.node, self._depth, self._nodes = node, depth, nodes

    @staticmethod
    def eq(field: str, value: Value) -> Filter:
        """The field is `value`, or an array that has it. None: it is null or missing."""
        return _leaf(field, "$eq", value)

    @staticmethod
    def ne(field: str, value: Value) -> Filter:
        """Not `eq`, so also where the field is missing."""
        return _leaf(field, "$ne", value)

    @staticmethod
    def gt(field: str, value: Ordered) -> Filter:
        """The field is greater than `value`, of the same type."""
        return _leaf(field, "$gt", value)

    @staticmethod
    def gte(field: str, value: Ordered) -> Filter:
        """The field is `value` or greater, of the same type."""
        return _leaf(field, "$gte", value)

    @staticmethod
    def lt(field: str, value: Ordered) -> Filter:
        """The field is less than `value`, of the same type."""
        return _leaf(field, "$lt", value)

    @staticmethod
    def lte(field: str, value: Ordered) -> Filter:
        """The field is `value` or less, of the same type."""
        return _leaf(field, "$lte", value)

    @staticmethod
    def in_(field: str, values: Sequence[Value]) -> Filter:
        """`eq` of any of the values."""
        return _leaf(field, "$in", values)

    @staticmethod
    def not_in(field: str, values: Sequence[Value]) -> Filter:
        """Not `in_`, so also where the field is missing."""
        return _leaf(field, "$nin", values)

    @staticmethod
    def between(field: str, low: Ordered, high: Ordered) -> Filter:
        """low <= value <= high."""
        return _leaf(field, "$between", (low, high))

    @staticmethod
    def contains(field: str, text: str) -> Filter:
        """The field, or any string of an array, has `text` in it."""
        return _leaf(field, "$contains", text)

    @staticmethod
    def starts_with(field: str, prefix: str) -> Filter:
        """The field, or any string of an array, begins with `prefix`."""
        return _leaf(field, "$starts_with", prefix)

    @staticmethod
    def exists(field: str, present: bool = True) -> Filter:
        """The field is there, null included; with present=False: it is not."""
        return _leaf(field, "$exists", present)

    @staticmethod
    def size(field: str, length: int | Mapping[str, int]) -> Filter:
        """The field is an array of so many elements. length: their number, or bounds such as {"$gte": 2, "$lt": 5}."""
        return _leaf(field, "$size", length)

    @staticmethod
    def elem_match(field: str, condition: Filter | Mapping[str, Any]) -> Filter:
        """The field is an array, and one of its elements matches: an object with fields that match a filter, or a value
        with which all of some comparisons hold, such as {"$gte": 80, "$lt": 85}."""
        return _leaf(field, "$elemMatch", condition)

    @staticmethod
    def geo_radius(field: str, centre: Mapping[str, float], metres: float) -> Filter:
        """The field is a place, or an array that has one, no farther than so many metres from `centre`. Places are
        {"lat": 52.5, "lon": 13.4}, in degrees."""
        return _leaf(field, "$geo_radius", {"centre": centre, "metres": metres})

    @staticmethod
    def geo_box(field: str, south: float, west: float, north: float, east: float) -> Filter:
        """The field is a place, or an array that has one, between these degrees. West may be greater than east: the box
        goes over the line of 180 degrees then."""
        return _leaf(field, "$geo_box", {"south": south, "west": west, "north": north, "east": east})

    @staticmethod
    def ids(ids: Sequence[str]) -> Filter:
        """The document has one of these ids, at most 10,000. They are looked up: nothing else is read for them."""
        return _named(ids)

    @staticmethod
    def all(*conditions: Any) -> Filter:
        """all(f1, f2, ...) or all([f1, f2]): every filter holds. all("tags", ["a", "b"]): the array has every value."""
        if len(conditions) == 2 and isinstance(conditions[0], str):
            return _leaf(conditions[0], "$all", conditions[1])
        return _combine("$and", And, _members("$and", conditions), _LIMITS)

    @staticmethod
    def any_(*conditions: Any) -> Filter:
        """any_(f1, f2, ...) or any_([f1, f2]): at least one filter holds."""
        return _combine("$or", Or, _members("$or", conditions), _LIMITS)

    @staticmethod
    def not_(condition: Filter | Mapping[str, Any]) -> Filter:
        """What the filter does not match."""
        return _negate(Filter.parse(condition), _LIMITS)

    def __and__(self, other: Filter) -> Filter:
        return Filter.all(self, other)

    def __or__(self, other: Filter) -> Filter:
        return Filter.any_(self, other)

    def __invert__(self) -> Filter:
        return Filter.not_(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return f"Filter({self.to_dict()!r})"

    @staticmethod
    def parse(value: Filter | Mapping[str, Any], limits: Limits | None = None) -> Filter:
        """A filter from its dict form (or a Filter, checked against the limits)."""
        limits = limits or _LIMITS
        parsed = value if isinstance(value, Filter) else _parse(value, limits, 0)
        if parsed._depth > limits.filter_depth_max or parsed._nodes > limits.filter_nodes_max:
            raise _too_large(parsed._depth, parsed._nodes, limits)
        return parsed

    @staticmethod
    def from_json(data: bytes, limits: Limits | None = None) -> Filter:
        """A filter from the JSON bytes that `to_json` makes."""
        try:
            value = msgspec.json.decode(data)
        except DECODE_ERRORS as error:
            raise invalid("filter", data[:60], f"JSON of a filter ({error})") from None
        return Filter.parse(value, limits)

    def to_dict(self) -> dict[str, Any]:
        """The canonical dict form: one field and one operator, or one of $and, $or, $not, per level."""
        return _to_dict(self.node)

    def to_json(self) -> bytes:
        """`to_dict` as JSON: equal for equal filters."""
        return msgspec.json.encode(self.to_dict())

    def matches(self, metadata: object, id: str | None = None) -> bool:
        """Whether a document with this (decoded JSON) metadata, and this id, matches. Without an id it has none that
        `ids` could name."""
        return evaluate(self.node, metadata, id)

    @property
    def since(self) -> int:
        """The version of commands and formats that it needs (docs/versions.md)."""
        return since(self.node)


def conditions(one: Filter) -> int:
    """How many a filter has, $and, $or and $not included: what it costs to judge a document grows with it."""
    return one._nodes


def _to_dict(node: Node) -> dict[str, Any]:
    match node:
        case Compare():
            value = _element_dict(node.value) if isinstance(node.value, Element) else plain(node.value)
            return {IDS: value} if node.op == IDS else {node.field: {node.op: value}}
        case Not(child):
            return {"$not": _to_dict(child)}
        case And(children):  # {}, which matches everything, has none
            return {"$and": [_to_dict(child) for child in children]} if children else {}
        case Or(children):
            return {"$or": [_to_dict(child) for child in children]}
        case _:
            assert_never(node)


def _element_dict(element: Element) -> dict[str, Any]:
    """What stands behind `$elemMatch`."""
    return (
        _to_dict(element.node) if element.of_objects else {one.op: plain(one.value) for one in compares(element.node)}
    )


def _too_large(depth: int, nodes: int, limits: Limits) -> InvalidArgument:
    if depth > limits.filter_depth_max:
        return invalid("filter depth", depth, f"at most {limits.filter_depth_max} levels of $and, $or and $not")
    return invalid("filter nodes", nodes, f"at most {limits.filter_nodes_max} conditions")


def _combine(name: str, make: type[And] | type[Or], parts: Sequence[Filter], limits: Limits) -> Filter:
    depth = 1 + max((part._depth for part in parts), default=0)
    nodes = 1 + sum(part._nodes for part in parts)
    if depth > limits.filter_depth_max or nodes > limits.filter_nodes_max:
        raise _too_large(depth, nodes, limits)
    return Filter(make(tuple(part.node for part in parts)), depth, nodes)


def _negate(part: Filter, limits: Limits) -> Filter:
    if part._depth >= limits.filter_depth_max:
        raise _too_large(part._depth + 1, part._nodes + 1, limits)
    return Filter(Not(part.node), part._depth + 1, part._nodes + 1)


def _members(name: str, conditions: Sequence[Any]) -> list[Filter]:
    if len(conditions) == 1 and isinstance(conditions[0], list | tuple):
        conditions = conditions[0]
    if not conditions:
        raise invalid(name, list(conditions), "a non-empty list of filters")
    return [Filter.parse(condition) for condition in conditions]


def _leaf(field: str, op: str, value: Any, limits: Limits = _LIMITS, depth: int = 0) -> Filter:
    path, where = field_path(field), f"filter {field} {op}"
    if OPERATORS[op].operand is Operand.ELEMENT:
        inner = _element(where, value, limits, depth + 1)
        of_objects = not any(one.path == () for one in compares(inner.node))
        made = Compare(".".join(path), path, op, Element(inner.node, of_objects))
        return Filter(made, inner._depth + 1, PER_ELEMENT * _size(inner.node) + 1)
    operand = OPERATORS[op].operand
    size = PER_ELEMENT if operand in _OF_PLACES else 1
    return Filter(Compare(".".join(path), path, op, PARSERS[operand](where, value)), 0, size)


def _size(node: Node) -> int:
    """Conditions, those inside of `$elemMatch` once each: elements of elements are as many as a document has."""
    match node:
        case Compare():
            return 1 + (_size(node.value.node) if isinstance(node.value, Element) else 0)
        case Not(child):
            return 1 + _size(child)
        case And(children) | Or(children):
            return 1 + sum(map(_size, children))
        case _:
            assert_never(node)


def _element(where: str, value: Any, limits: Limits, depth: int) -> Filter:
    """Of comparisons of an element itself, or of the fields of one that is an object."""
    itself = isinstance(value, Mapping) and [op for op in value if op in OF_ELEMENTS]
    if itself and len(itself) == len(value):
        parts = [Compare("", (), op, PARSERS[OPERATORS[op].operand](where, value[op])) for op in itself]
        return Filter(parts[0] if len(parts) == 1 else And(tuple(parts)), 0, len(parts))
    if itself or not isinstance(value, Filter | Mapping):
        allowed = "a filter on the fields of an element that is an object, or comparisons of one that is not"
        raise refused(where, value, f"{allowed}: {', '.join(OF_ELEMENTS)}")
    parsed = _parse(value, limits, depth)
    if _asks_ids(parsed.node):
        raise invalid(where, value, f"no {IDS}: an element has no id")
    return parsed


def _named(ids: Any) -> Filter:
    return Filter(Compare("", (), IDS, PARSERS[OPERATORS[IDS].operand](f"filter {IDS}", ids)), 0, 1)


def _asks_ids(node: Node) -> bool:
    return any(one.op == IDS for one in compares(node))


def field_path(field: object, where: str = "filter field") -> tuple[str, ...]:
    """The segments of a field's path. Raises InvalidArgument, which names `where`."""
    allowed = f'a path such as "a.b": no empty part, no leading $, at most {PATH_BYTES_MAX} bytes'
    if not isinstance(field, str) or not field or field.startswith("$") or len(field) > PATH_BYTES_MAX:
        hint = instead(field.removeprefix("$")) if isinstance(field, str) and where == "filter field" else ""
        raise refused(where, field, f"{allowed}{hint and f'; {hint}'}")
    field = str.__str__(field)
    path = tuple(field.split("."))
    if "" in path or not _encodes(field):
        raise refused(where, field, allowed)
    return path


def _encodes(text: str) -> bool:
    try:
        return len(text.encode()) >= 0
    except UnicodeEncodeError:  # a lone surrogate is not text
        return False


def _parse(value: object, limits: Limits, depth: int) -> Filter:
    """`depth` is counted on the way down, so that a hostile nesting is refused before it exhausts the stack."""
    if depth > limits.filter_depth_max:
        raise _too_large(depth, 0, limits)
    if isinstance(value, Filter):
        return value
    if not isinstance(value, Mapping):
        raise refused("filter", value, "a Filter or a dict such as {'field': {'$gt': 1}}")
    # More than one condition at a level is an implicit $and, one level of its own.
    inner = depth if sum(_width(item) for item in value.items()) == 1 else depth + 1
    parts = _bounded((part for item in value.items() for part in _parse_item(*item, limits, inner)), limits)
    return parts[0] if len(parts) == 1 else _combine("$and", And, parts, limits)


def _bounded(parts: Iterable[Filter], limits: Limits) -> list[Filter]:
    """All of them, made one after the other: of millions, no more than is needed to refuse them."""
    kept, nodes = list[Filter](), 0
    for part in parts:
        kept.append(part)
        nodes += part._nodes
        if nodes > limits.filter_nodes_max:
            raise _too_large(0, nodes, limits)
    return kept


def _width(item: tuple[object, object]) -> int:
    """Conditions that one key of a dict stands for."""
    key, below = item
    nested = isinstance(below, Mapping) and not (isinstance(key, str) and key.startswith("$"))
    return len(below) if nested and isinstance(below, Mapping) else 1


def _parse_logic(op: str, below: object, limits: Limits, depth: int) -> Filter:
    if op == "$not":
        return _negate(_parse(below, limits, depth + 1), limits)
    if op == IDS:
        return _named(below)
    if op not in _JUNCTIONS:
        behind = f"{op} stands behind a field: {{'field': {{{op!r}: ...}}}}" if op in COMPARISONS else ""
        hint = behind or instead(op.removeprefix("$"))
        raise invalid("filter operator", op, f"in this place, one of {', '.join(LOGIC)}{hint and f'; {hint}'}")
    if not isinstance(below, list | tuple) or not below:
        raise invalid(f"filter {op}", below, "a non-empty list of filters")
    parts = _bounded((_parse(part, limits, depth + 1) for part in below), limits)
    return _combine(op, _JUNCTIONS[op], parts, limits)


def _parse_item(field: object, below: object, limits: Limits, depth: int) -> list[Filter]:
    if isinstance(field, str) and field.startswith("$"):
        return [_parse_logic(field, below, limits, depth)]
    path = field_path(field)
    name = ".".join(path)
    if not isinstance(below, Mapping) or DATE in below:
        return [_leaf(name, "$eq", below)]
    if not below:
        raise invalid(f"filter {name}", below, f"a value or operators: {', '.join(COMPARISONS)}, $not")
    parts = []
    for op, value in below.items():
        if op == "$not":
            if depth + 1 > limits.filter_depth_max:
                raise _too_large(depth + 1, 0, limits)
            if not isinstance(value, Mapping):
                raise invalid(f"filter {name} $not", value, "operators, such as {'$gt': 1}")
            parts.append(_negate(_parse({name: value}, limits, depth + 1), limits))
        elif op in COMPARISONS:
            parts.append(_leaf(name, op, value, limits, depth))
        else:
            where = f"; {IDS} stands where a field would: {{{IDS!r}: [...]}}" if op == IDS else ""
            raise invalid(f"filter {name} operator", op, f"one of {', '.join(COMPARISONS)}, $not{where}")
    return parts
