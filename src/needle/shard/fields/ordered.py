"""A field's index walked in the order of its values: sets of ordinals, one behind the other.

Each set is of a range of keys, and holds at least every document with a key in it; who has more than one value is in
several, and who has a value that no column can hold, or came after the index, is in all: the documents decide. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pyroaring import BitMap

from needle.base.filters.ordering import FLAGS, LAST, NUMBERS, TEXTS, Key
from needle.shard.fields.field_index import COLUMNS, FALSE, TRUE, FieldState

_NAMES: Final = {NUMBERS: ("integers", "large", "floats"), TEXTS: ("texts",)}
STEP_MAX: Final = 1 << 20


class Part(NamedTuple):
    """after: the keys of the range are greater than it, None for any. upto: and not greater than this; below: nor this
    one; single: all are this one."""

    after: tuple[float, Any] | None
    upto: tuple[float, Any]
    ordinals: BitMap
    single: bool
    below: bool = False

    def holds(self, key: Key) -> bool:
        """Whether a document with this key belongs to it."""
        if self.single:
            return key == self.upto
        return (self.after is None or key > self.after) and (key < self.upto if self.below else key <= self.upto)


def parts(state: FieldState, start: Key, universe: BitMap, wanted: int, most: int) -> Iterator[Part]:
    """The documents of a universe from a key on, ascending. Each part has about `wanted` documents, unless they are few
    or have one key, and `most` at most, unless they have one key or no column can hold their values."""
    odd = BitMap.union(BitMap(), *(run.odd for run in state.runs))
    always = (odd | universe - BitMap(range(state.end))) & universe
    for rank in (NUMBERS, TEXTS):
        if start[0] <= rank:
            value = start[1] if start[0] == rank else None
            yield from _of_columns(state, rank, value, universe, always, wanted, most)
    for value, mark in ((0, FALSE), (1, TRUE)):
        if start <= (FLAGS, value):
            yield Part(None, (FLAGS, value), (state.marked(mark) | always) & universe, True)
    columns = [run.columns[name] for run in state.runs for name in COLUMNS if name in run.columns]
    ranked = BitMap.union(
        state.marked(TRUE), state.marked(FALSE), *(one.of_slices([(0, len(one.keys))]) for one in columns)
    )
    yield Part(None, LAST, (universe - ranked) | always, True)


def _of_columns(
    state: FieldState, rank: int, value: Any, universe: BitMap, always: BitMap, wanted: int, most: int
) -> Iterator[Part]:
    columns = [run.columns[name] for run in state.runs for name in _NAMES[rank] if name in run.columns]
    at = [0 if value is None else one.first(value) for one in columns]
    before: tuple[float, Any] | None = (rank - 0.5, None) if value is None else None
    step = wanted
    while left := [(one, place) for one, place in zip(columns, at, strict=True) if place < len(one.keys)]:
        bound = min(one.head(min(place + step, len(one.keys)) - 1) for one, place in left)
        ends = [one.behind(bound) for one in columns]
        slices = [one.of_slices([(place, end)]) for one, place, end in zip(columns, at, ends, strict=True)]
        found = BitMap.union(always, *slices) & universe
        if len(found) > most and step > 1:
            step = max(1, step // 16)
            continue
        if step == 1 and always:  # they may have keys between those of the columns
            yield Part(before, (rank, bound), always, False, True)
        yield Part(before, (rank, bound), found, step == 1)
        before, at = (rank, bound), ends
        step = min(2 * step, STEP_MAX) if len(found) < wanted else step
    if always:
        yield Part(before, (rank + 0.5, None), always, False)
