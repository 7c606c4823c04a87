"""A field's index walked in the order of its values: sets of ordinals, one behind the other.

Each set is of a range of keys, and holds every document with a key in it that a column can hold; nobody is in two sets,
for the least value counts, descending the greatest. What the columns cannot tell is `undecided`: those documents
decide. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from pyroaring import BitMap

from needle.base.filters.ordering import FLAGS, LAST, NUMBERS, REST, TEXTS, Turned, turned, turned_back
from needle.shard.fields.field_index import FALSE, TRUE, FieldState
from needle.shard.fields.value_columns import Column

_NAMES: Final = {NUMBERS: ("integers", "large", "floats"), TEXTS: ("texts",), FLAGS: ()}
STEP_MAX: Final = 1 << 20


class Part(NamedTuple):
    """after: the keys of the range are greater than it, None for any. upto: and not greater than this; single: all are
    this one."""

    after: tuple[float, Any] | None
    upto: tuple[float, Any]
    ordinals: BitMap
    single: bool

    def holds(self, key: Turned) -> bool:
        """Whether a document with this key belongs to it."""
        if self.single:
            return key == self.upto
        return (self.after is None or key > self.after) and key <= self.upto


def undecided(state: FieldState, universe: BitMap) -> BitMap:
    """Those of a universe that may have any key: who has a value that no column can hold, or came after the index."""
    odd = BitMap.union(BitMap(), *(run.odd for run in state.runs))
    return (odd | universe - BitMap(range(state.end))) & universe


def parts(
    state: FieldState, start: Turned, universe: BitMap, wanted: int, most: int, *, descending: bool = False
) -> Iterator[Part]:
    """The documents of a universe, without `undecided` ones, from a key on, ascending; descending: from the greatest
    value on, all keys, `start` too, being turned. Each part has about `wanted` documents, unless they are few or have
    one key, and `most` at most, unless they have one key."""
    left = universe - _before(state, start, descending)
    for rank in range(max(start[0], 0), REST):
        value = start[1] if start[0] == rank else None
        yield from _of_columns(_columns(state, rank, descending), rank, value, left, wanted, most)
        for key, found in _flags(state, rank, descending):
            if start <= key:
                yield Part(None, key, _taken(found, left), True)
    yield Part(None, LAST, left - _ranked(state), True)


def _before(state: FieldState, start: Turned, descending: bool) -> BitMap:
    """Who has a value before a key beside others, and so does not stand at a later one. To pass over them again at each
    of their values would cost a page as much as all values behind it."""
    found = BitMap()
    if not any(run.several() - run.odd for run in state.runs):
        return found
    for rank in range(min(start[0] + 1, REST)):
        for one in _columns(state, rank, descending):
            found |= one.of_slices([(0, one.first(start[1]) if rank == start[0] else len(one.keys))])
        for key, ordinals in _flags(state, rank, descending):
            if key < start:
                found |= ordinals
    return found


def _taken(found: BitMap, left: BitMap) -> BitMap:
    """Those of `found` that are left, which then they are not any more."""
    found = found & left
    left.difference_update(found)
    return found


def _ranked(state: FieldState) -> BitMap:
    columns = [one for rank in range(REST) for one in _columns(state, rank, False)]
    return BitMap.union(
        state.marked(TRUE), state.marked(FALSE), *(one.of_slices([(0, len(one.keys))]) for one in columns)
    )


def _columns(state: FieldState, rank: int, descending: bool) -> Sequence[Column | _FromGreatest]:
    names = _NAMES[REST - 1 - rank if descending else rank]
    found = [run.columns[name] for run in state.runs for name in names if name in run.columns]
    return [_FromGreatest(one, rank) for one in found] if descending else found


def _flags(state: FieldState, rank: int, descending: bool) -> list[tuple[Turned, BitMap]]:
    if rank != (REST - 1 - FLAGS if descending else FLAGS):
        return []
    marks = (TRUE, FALSE) if descending else (FALSE, TRUE)
    return [((rank, value), state.marked(mark)) for value, mark in enumerate(marks)]


class _FromGreatest:
    """A column as one whose keys are turned, and ascend."""

    def __init__(self, column: Column, rank: int) -> None:
        """rank: of the turned keys."""
        self._column, self._rank, self._count = column, rank, len(column.keys)
        self.keys = column.keys[::-1]  # counted only

    def first(self, head: Any) -> int:
        return self._count - self._column.behind(turned_back((self._rank, head))[1])

    def behind(self, head: Any) -> int:
        return self._count - self._column.first(turned_back((self._rank, head))[1])

    def head(self, at: int) -> Any:
        return turned((REST - 1 - self._rank, self._column.head(self._count - 1 - at)))[1]

    def of_slices(self, slices: Iterable[tuple[int, int]]) -> BitMap:
        return self._column.of_slices([(self._count - end, self._count - first) for first, end in slices])


def _of_columns(
    columns: Sequence[Column | _FromGreatest], rank: int, value: Any, left: BitMap, wanted: int, most: int
) -> Iterator[Part]:
    at = [0 if value is None else one.first(value) for one in columns]
    before: tuple[float, Any] | None = (rank - 0.5, None) if value is None else None
    step = wanted
    while more := [(one, place) for one, place in zip(columns, at, strict=True) if place < len(one.keys)]:
        bound = min(one.head(min(place + step, len(one.keys)) - 1) for one, place in more)
        ends = [one.behind(bound) for one in columns]
        slices = [one.of_slices([(place, end)]) for one, place, end in zip(columns, at, ends, strict=True)]
        found = BitMap.union(BitMap(), *slices) & left
        if len(found) > most and step > 1:
            step = max(1, step // 16)
            continue
        yield Part(before, (rank, bound), _taken(found, left), step == 1)
        before, at = (rank, bound), ends
        step = min(2 * step, STEP_MAX) if len(found) < wanted else step
