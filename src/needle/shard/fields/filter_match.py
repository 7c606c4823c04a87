"""What field indexes know about a filter: which documents match for sure, and which are undecided.

Pure. An index that lacks documents, or is not worth a look, leaves them undecided; it never decides wrongly. It must
not know where indexes come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, assert_never

from pyroaring import BitMap

from needle.base.filters import nodes
from needle.base.filters.nodes import IDS, And, Compare, Element, Node, Not, Or
from needle.base.geo import Circle
from needle.base.instants import Instant
from needle.shard.fields.field_index import (
    IMPLIED,
    LOOK_AT_ALL,
    MATCHERS,
    OF_ANY,
    FieldState,
    Known,
    Path,
    all_of,
    any_of,
    negated,
)
from needle.shard.fields.value_columns import Match

READ_COST: Final = 64
"""To read a document costs about as much as to look at so many different values of an index."""

Key = tuple[Path, bool | str]
"""A field, and what of it is indexed: False: its values; True: its texts as instants; a name: the words of its
texts, by the analyzer of this name (run_making.analyzer_of), or sparse vectors (base.sparse)."""


def keys_of(node: Compare) -> Sequence[Key]:
    """The indexes that a comparison needs: of the values, of the instants, or both; none for ids."""
    if node.op == IDS:
        return []
    operands = node.value if isinstance(node.value, tuple) else (node.value,)
    instants = [isinstance(value, Instant) for value in operands]
    return [(node.path, kind) for kind in (False, True) if kind in instants or not (kind or instants)]


class Asked(NamedTuple):
    """states: of the field indexes. universe: the ordinals in question, all below `end`. go_on: called before each
    comparison; raises when nobody waits for the answer any more."""

    states: dict[Key, FieldState]
    end: int
    universe: BitMap
    go_on: Callable[[], None]


def judge(node: Node, asked: Asked) -> Match:
    """What the indexes know about a filter, within the universe."""
    universe = asked.universe
    match node:
        case And(children):
            if not children:
                return Match(universe, BitMap())
            costly = [one for one in children if isinstance(one, Compare) and one.op in LOOK_AT_ALL]
            parts = [judge(child, asked) for child in children if child not in costly]
            return _with_costly(all_of(parts) if parts else Match(universe, BitMap()), costly, asked)
        case Or(children):
            return any_of([judge(child, asked) for child in children])
        case Not(child):
            return negated(universe, judge(child, asked))
        case Compare() if node.op in IMPLIED:
            found = judge(implied(node), asked)
            return Match(BitMap(), found.sure | found.maybe)
        case Compare():
            return _compared(node, asked)
        case _:
            assert_never(node)


def implied(node: Compare) -> Node:
    """What holds of every document for which a comparison of IMPLIED holds: what indexes can tell."""
    if isinstance(node.value, Element):
        there = Compare(node.field, node.path, "$exists", True)
        return And((there, _implied(node.path, node.value.node)))
    box = node.value.around() if isinstance(node.value, Circle) else node.value
    lat, lon = ((*node.path, name) for name in ("lat", "lon"))
    places = [_between(lon, *span) for span in box.spans()]
    places += [_between(lat, pole, pole) for pole in (box.south, box.north) if abs(pole) == 90]
    return And((_between(lat, box.south, box.north), Or(tuple(places))))


def _between(path: Path, low: float, high: float) -> Node:
    return Compare(".".join(path), path, "$between", (low, high))


def _implied(path: Path, node: Node) -> Node:
    match node:
        case And(children):
            return And(tuple(_implied(path, child) for child in children))
        case Or(children):
            return Or(tuple(_implied(path, child) for child in children))
        case Compare() if node.op in OF_ANY and not _of_missing(node):
            whole = (*path, *node.path)
            return Compare(".".join(whole), whole, node.op, node.value)
        case _:
            return And(())


def _of_missing(node: Compare) -> bool:
    """Whether it may hold where the field is missing: then it may hold of one element, and not of all together."""
    missing = node.value is None or (isinstance(node.value, tuple) and None in node.value)
    return missing or (node.op == "$exists" and not node.value)


def placed(node: Node, place: Callable[[Sequence[str]], BitMap]) -> Node:
    """A filter that asks for ordinals in place of ids. place: the ordinals of the documents that have them."""
    match node:
        case And(children) | Or(children):
            return type(node)(tuple(placed(child, place) for child in children))
        case Not(child):
            return Not(placed(child, place))
        case Compare():
            return Compare(node.field, node.path, node.op, place(node.value)) if node.op == IDS else node
        case _:
            assert_never(node)


def _with_costly(found: Match, costly: Sequence[Compare], asked: Asked) -> Match:
    """And these comparisons. Where the others leave few documents, it costs less to read them."""
    for one in costly:
        left = len(found.sure | found.maybe)
        undecided = left * READ_COST < asked.states[(one.path, False)].rows
        part = Match(BitMap(), asked.universe) if undecided else _compared(one, asked)
        found = all_of([found, part])
    return found


def _compared(node: Compare, asked: Asked) -> Match:
    asked.go_on()
    states, end, universe, _ = asked
    keys = keys_of(node)
    covered = min((states[key].end for key in keys), default=end)
    if not covered:
        return Match(BitMap(), universe)
    inside = universe if covered >= end else universe & BitMap(range(covered))
    values, instants = (states.get((node.path, kind)) if (node.path, kind) in keys else None for kind in (False, True))
    found = MATCHERS[node.op](Known(values, instants, inside), node.value)
    sure = found.sure & inside
    maybe = (found.maybe & inside) - sure
    return Match(sure, maybe if covered >= end else maybe | (universe - inside))


def compares(node: Node) -> Iterator[Compare]:
    """The comparisons of fields that indexes are asked for."""
    for one in nodes.compares(node):
        if one.op in IMPLIED:
            yield from compares(implied(one))
        elif one.op != IDS:
            yield one
