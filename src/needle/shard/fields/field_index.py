"""One indexed field: runs of documents with sorted columns of the field's values, and what operators make of them.

The answer never depends on the index: base.filters.operators is the definition, and what the columns cannot tell is
reported as `maybe`, for the documents to decide. MATCHERS has every operator, or this module cannot be imported.

Invariants: runs are immutable and consecutive; a state covers every stored ordinal below `end`; a reader works on one
`FieldState`, which is swapped whole. It must not know how documents are stored, views, or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.errors import Internal
from needle.base.filters.operators import OPERATORS, kind
from needle.base.instants import Instant
from needle.shard.fields.value_columns import (
    Bounds,
    Column,
    Floats,
    Integers,
    LargeIntegers,
    Match,
    Texts,
    Times,
    Words,
    bitmap,
)
from needle.shard.fields.weight_columns import Weights

Path = tuple[str, ...]

RUN_BYTES: Final = 1000
"""What an empty run takes."""

COLUMNS: Final[dict[str, type[Column]]] = {
    "integers": Integers,
    "large": LargeIntegers,
    "floats": Floats,
    "texts": Texts,
    "times": Times,
    "words": Words,
    "sparse": Weights,
}


class Run:
    """The field in the documents with ordinals in [first, end). rows: how many those are. odd: ordinals with a value
    that no column can hold."""

    def __init__(
        self, first: int, end: int, rows: int, marks: Sequence[BitMap], odd: BitMap, columns: dict[str, Column]
    ) -> None:
        self.first, self.end, self.rows = first, end, rows
        self.marks = tuple(marks)
        self.odd = odd
        self.columns = columns
        self._several: BitMap | None = None
        self._lengths: npt.NDArray[np.int32] | None = None
        sets = sum(_set_bytes(found) for found in (*marks, odd))
        lengths = 4 * (end - first) if "words" in columns else 0
        self.nbytes = RUN_BYTES + sets + lengths + sum(column.nbytes for column in columns.values())

    @property
    def size(self) -> int:
        """What merging it costs: postings and rows."""
        return max(self.rows, *(len(column.ordinals) for column in self.columns.values()), 1)

    def several(self) -> BitMap:
        """The ordinals that may have more than one value."""
        if self._several is None:
            marks = [np.array(self.marks[mark].to_array(), np.uint32) for mark in (TRUE, FALSE)]
            owners = np.concatenate([*marks, *(column.ordinals for column in self.columns.values())])
            owners.sort()
            self._several = bitmap(owners[1:][owners[1:] == owners[:-1]], ascending=True) | self.odd
        return self._several

    @property
    def words(self) -> int:
        """Of all its documents, each as often as it is there."""
        column = self.columns.get("words")
        return 0 if column is None else len(column.ordinals)

    def lengths(self) -> npt.NDArray[np.int32]:
        """How many words each document has, by its ordinal's place in the run."""
        if self._lengths is None:
            found, column = np.zeros(self.end - self.first, np.int32), self.columns.get("words")
            if column is not None:
                counts = np.bincount(column.ordinals - np.uint32(self.first))
                found[: len(counts)] = counts
            self._lengths = found
        return self._lengths


PRESENT, NULL, TRUE, FALSE = range(4)


def _set_bytes(found: BitMap) -> int:
    """At most: a container of 65,536 takes 8 KiB, or 2 bytes for each of its members."""
    return min(2 * len(found), 8192 * (1 + (found.max() - found.min()) // 65_536)) if found else 0


def merged(runs: Sequence[Run]) -> Run:
    """One run of consecutive ones. Its work is numpy's, without the GIL."""
    columns = {}
    for name in COLUMNS:
        parts = [run.columns[name] for run in runs if name in run.columns]
        if parts:
            columns[name] = type(parts[0]).merged(parts)
    marks = [BitMap.union(*(run.marks[at] for run in runs)) for at in range(4)]
    odd = BitMap.union(*(run.odd for run in runs))
    return Run(runs[0].first, runs[-1].end, sum(run.rows for run in runs), marks, odd, columns)


class FieldState(NamedTuple):
    """runs, consecutive from ordinal 0 to `end`."""

    runs: tuple[Run, ...] = ()
    end: int = 0

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self.runs)

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    @property
    def found(self) -> bool:
        """Whether any document has the field."""
        return any(run.marks[PRESENT] for run in self.runs)

    def with_run(self, run: Run, merge_max: int) -> FieldState:
        """Followed by a run, and merged as far as no merge costs more than `merge_max`."""
        if run.first != self.end:
            raise Internal(f"a run that begins at ordinal {run.first} cannot follow one that ends at {self.end}")
        state = FieldState((*self.runs, run), run.end)
        while (pair := state.due()) is not None and pair[0].size + pair[1].size <= merge_max:
            state = state.with_merged(pair, merged(pair))
        return state

    def due(self) -> tuple[Run, Run] | None:
        """Two neighbours that should be one, the newest first: each is larger than all that follow it, so there are
        few, and each document is merged seldom."""
        for at in range(len(self.runs) - 1, 0, -1):
            if self.runs[at - 1].size < 2 * self.runs[at].size:
                return self.runs[at - 1], self.runs[at]
        return None

    def with_merged(self, pair: tuple[Run, Run], run: Run) -> FieldState:
        """With `run` in place of the pair, if it is still there."""
        for at in range(len(self.runs) - 1):
            if self.runs[at] is pair[0] and self.runs[at + 1] is pair[1]:
                return FieldState((*self.runs[:at], run, *self.runs[at + 2 :]), self.end)
        return self

    # --- what the columns say, of all ordinals below `end` -----------------------------------------------------------
    def marked(self, mark: int) -> BitMap:
        """The ordinals where the field is there (PRESENT), or has a null, true or false."""
        return BitMap.union(BitMap(), *(run.marks[mark] for run in self.runs))

    def match(self, ask: Callable[[Run], Iterable[Match]]) -> Match:
        """The union of what each run's columns answer; odd values may match."""
        sure, maybe = [], []
        for run in self.runs:
            maybe.append(run.odd)
            for found in ask(run):
                sure.append(found.sure)
                maybe.append(found.maybe)
        return Match(BitMap.union(BitMap(), *sure), BitMap.union(BitMap(), *maybe))


# --- operators -------------------------------------------------------------------------------------------------------
class Known(NamedTuple):
    """What is known of one field: its values, its texts as instants, and the ordinals that both cover, dead ones left
    out. An index that is not there is None, and then nothing that needs it may be asked."""

    values: FieldState | None
    instants: FieldState | None
    universe: BitMap

    def state(self, value: Any) -> FieldState:
        """Where to look for an operand."""
        state = self.instants if isinstance(value, Instant) else self.values
        if state is None:
            raise Internal(f"a field is asked for {value!r} without the index for it")
        return state


_NUMBERS: Final = ("integers", "large", "floats")
_OF_KIND: Final = {"number": _NUMBERS, "string": ("texts",), "instant": ("times",)}


def _key(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return value.key if isinstance(value, Instant) else value


def _equal(known: Known, value: Any) -> Match:
    return _any_equal(known, (value,))


def _any_equal(known: Known, values: Sequence[Any]) -> Match:
    """Equal to one of the values, which are asked for together: a list may have thousands."""
    by_kind: dict[str, list[Any]] = {}
    for value in values:
        by_kind.setdefault(kind(value), []).append(value)
    parts = [_ANY_OF_KIND[name](known, same_kind) for name, same_kind in by_kind.items()]
    return any_of(parts)


def each_equal(state: FieldState, values: Sequence[bool | int | float | str]) -> Iterator[BitMap]:
    """For each of the values, one after the other, the ordinals that have it, as far as the columns can tell. All are
    looked up at once."""
    by_kind: dict[str, list[int]] = {}
    for at, value in enumerate(values):
        by_kind.setdefault(kind(value), []).append(at)
    where: dict[int, list[tuple[Column, int]]] = {}
    for name, of_kind in by_kind.items():
        keys = [_key(values[at]) for at in of_kind]
        for run in state.runs:
            for column in (run.columns[one] for one in _OF_KIND.get(name, ()) if one in run.columns):
                for at, place in zip(of_kind, column.places(keys), strict=True):
                    if place >= 0:
                        where.setdefault(at, []).append((column, place))
    for at, value in enumerate(values):
        if isinstance(value, bool):
            yield state.marked(TRUE if value else FALSE)
        else:
            yield BitMap.union(BitMap(), *(column.owners(place) for column, place in where.pop(at, ())))


def _all_equal(known: Known, values: Sequence[Any]) -> Match:
    """Equal to each of the values: one after the other, for each may be had by all documents, and most often few are
    left by the first ones."""
    found = Match(BitMap(), BitMap())
    for at, value in enumerate({(kind(value), value): value for value in values}.values()):
        part = _equal(known, value)
        found = all_of([found, part]) if at else part
        if not found.sure and not found.maybe:
            break
    return found


def _null(known: Known, _: Sequence[Any]) -> Match:
    state = known.state(None)
    return Match(state.marked(NULL) | (known.universe - state.marked(PRESENT)), BitMap())


def _bools(known: Known, values: Sequence[Any]) -> Match:
    state = known.state(True)
    return Match(BitMap.union(BitMap(), *(state.marked(TRUE if v else FALSE) for v in set(values))), BitMap())


def _keyed(known: Known, values: Sequence[Any]) -> Match:
    names, keys = _OF_KIND[kind(values[0])], [_key(value) for value in values]
    return known.state(values[0]).match(
        lambda run: [Match(run.columns[name].equal(keys), BitMap()) for name in names if name in run.columns]
    )


_ANY_OF_KIND: Final[dict[str, Callable[[Known, Sequence[Any]], Match]]] = {
    "null": _null,
    "bool": _bools,
    "number": _keyed,
    "string": _keyed,
    "instant": _keyed,
}


def _within(known: Known, low: Any, low_in: bool, high: Any, high_in: bool) -> Match:
    given = high if low is None else low
    bounds = Bounds(None if low is None else _key(low), low_in, None if high is None else _key(high), high_in)
    names = _OF_KIND[kind(given)]
    return known.state(given).match(
        lambda run: [run.columns[name].between(bounds) for name in names if name in run.columns]
    )


def _texts(known: Known, ask: Callable[[Texts], Match]) -> Match:
    def of(run: Run) -> list[Match]:
        column = run.columns.get("texts")
        return [ask(column)] if isinstance(column, Texts) else []

    return known.state("").match(of)


def _exists(known: Known, wanted: Any) -> Match:
    there = known.state(None).marked(PRESENT)
    return Match(there if wanted else known.universe - there, BitMap())


def negated(universe: BitMap, found: Match) -> Match:
    """What does not match, of a universe."""
    maybe = found.maybe - found.sure
    return Match(universe - found.sure - maybe, maybe & universe)


def all_of(parts: Sequence[Match]) -> Match:
    """What matches every part, of which there is at least one."""
    sure = BitMap.intersection(*(part.sure for part in parts))
    return Match(sure, BitMap.intersection(*(part.sure | part.maybe for part in parts)) - sure)


def any_of(parts: Sequence[Match]) -> Match:
    """What matches at least one part."""
    sure = BitMap.union(BitMap(), *(part.sure for part in parts))
    return Match(sure, BitMap.union(BitMap(), *(part.maybe for part in parts)) - sure)


MATCHERS: Final[dict[str, Callable[[Known, Any], Match]]] = {
    "$eq": _equal,
    "$ne": lambda known, value: negated(known.universe, _equal(known, value)),
    "$gt": lambda known, value: _within(known, value, False, None, False),
    "$gte": lambda known, value: _within(known, value, True, None, False),
    "$lt": lambda known, value: _within(known, None, False, value, False),
    "$lte": lambda known, value: _within(known, None, False, value, True),
    "$between": lambda known, value: _within(known, value[0], True, value[1], True),
    "$in": _any_equal,
    "$nin": lambda known, values: negated(known.universe, _any_equal(known, values)),
    "$all": _all_equal,
    "$contains": lambda known, text: _texts(known, lambda column: column.containing(text.encode())),
    "$starts_with": lambda known, text: _texts(known, lambda column: column.starting(text.encode())),
    "$exists": _exists,
    "$size": lambda known, _: Match(BitMap(), known.state(None).marked(PRESENT)),
    "$ids": lambda known, ordinals: Match(ordinals & known.universe, BitMap()),
}
"""matcher(known, operand): may say something of ordinals outside of `known.universe`, must not err inside. `$ids` is
asked with ordinals in place of ids."""

IMPLIED: Final = frozenset(["$elemMatch", "$geo_radius", "$geo_box"])
"""Operators about objects: indexes are asked for what they imply of the fields of these (filter_match.implied)."""

OF_ANY: Final = frozenset(MATCHERS.keys() | IMPLIED) - {"$ne", "$nin", "$ids"}
"""Operators that hold if they hold of any of the values that a field stands for. (`$exists` false is not of values.)"""

LOOK_AT_ALL: Final = frozenset(["$contains"])
"""Operators whose matchers look at every different value."""

if MATCHERS.keys() | IMPLIED != OPERATORS.keys():
    raise Internal(f"the field index lacks, or has too many, operators: {(MATCHERS.keys() | IMPLIED) ^ set(OPERATORS)}")
