"""What field indexes know about a filter: which documents match for sure, and which are undecided.

Pure. An index that lacks documents, or is not worth a look, leaves them undecided; it never decides wrongly. It must
not know where indexes come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, assert_never

from pyroaring import BitMap

from needle.base.filters.nodes import And, Compare, Node, Not, Or
from needle.base.instants import Instant
from needle.shard.fields.field_index import LOOK_AT_ALL, MATCHERS, FieldState, Known, Path, all_of, any_of, negated
from needle.shard.fields.value_columns import Match

READ_COST: Final = 64
"""To read a document costs about as much as to look at so many different values of an index."""

Key = tuple[Path, bool]
"""A field, and whether its texts are indexed as instants."""


def keys_of(node: Compare) -> list[Key]:
    """The indexes that a comparison needs: of the values, of the instants, or both."""
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
        case Compare():
            return _compared(node, asked)
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
    covered = min(states[key].end for key in keys)
    if not covered:
        return Match(BitMap(), universe)
    inside = universe if covered >= end else universe & BitMap(range(covered))
    values, instants = (states.get((node.path, kind)) if (node.path, kind) in keys else None for kind in (False, True))
    found = MATCHERS[node.op](Known(values, instants, inside), node.value)
    sure = found.sure & inside
    maybe = (found.maybe & inside) - sure
    return Match(sure, maybe if covered >= end else maybe | (universe - inside))


def compares(node: Node) -> Iterator[Compare]:
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
