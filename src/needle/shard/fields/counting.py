"""How many documents have each value of a field: from the field's index what it knows, the rest from the documents.

Invariants: the counts are exact; of values that are different no more are held than VALUES_MAX, and their texts take no
more than VALUES_BYTES_MAX: a field with more is refused. A document with several values counts for each of them, once.

Threads: any. It must not know SQLite, vectors or the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.errors import StorageError, invalid
from needle.base.filters.nodes import lookup
from needle.base.filters.values import Mark, Value, has_value, marked, values_of
from needle.shard.fields.builders import Builders
from needle.shard.fields.field_index import FALSE, TRUE, Path, Run
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.fields.value_columns import Column, Texts

VALUES_MAX: Final = 20_000
VALUES_BYTES_MAX: Final = 2 << 20
"""Of one shard: what its answer holds, and who puts answers together."""


class Counts(NamedTuple):
    """values and how many documents have each, in no order. documents: that match; without: of these, those that have
    no value."""

    values: list[Value]
    counts: list[int]
    documents: int
    without: int


def value_counts(
    index: PayloadIndex,
    path: Path,
    end: int,
    among: BitMap,
    builders: Builders | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Counts:
    """Of the documents `among`, all below `end`. builders, go_on: as of PayloadIndex.within. Raises InvalidArgument for
    more values than an answer may have."""
    there = index.within(has_value(path), end, among, builders, go_on)
    state, tally = index.state(path), _Tally(path)
    for run in state.runs:
        known = there & BitMap(range(run.first, run.end)) - run.odd
        if known:
            _count_run(run, known, index, tally, go_on)
            there -= known
    for _, metadata in index.documents(there, path, go_on):
        tally.add_all(values_of(metadata, path))
    without = len(among) - tally.documents
    return Counts(list(tally.values.values()), [tally.counts[mark] for mark in tally.values], len(among), without)


class _Tally:
    """documents: with a value, of those that were added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = self.documents = 0
        self.values: dict[Mark, Value] = {}
        self.counts: dict[Mark, int] = {}

    def add_all(self, values: dict[Mark, Value]) -> None:
        """Those of one document."""
        self.documents += bool(values)
        for value in values.values():
            self.add(value, 1)

    def add(self, value: Value, count: int) -> None:
        """So many documents more have a value."""
        mark = marked(value)
        if mark not in self.values:
            self._bytes += len(value.encode()) if isinstance(value, str) else 0
            self.check(len(self.values) + 1)
            self.values[mark], self.counts[mark] = value, 0
        self.counts[mark] += count

    def check(self, values: int) -> None:
        """Raises InvalidArgument if there are too many."""
        if values > VALUES_MAX or self._bytes > VALUES_BYTES_MAX:
            raise invalid(
                "field",
                ".".join(self.path),
                f"a field that has at most {VALUES_MAX} different values, of {VALUES_BYTES_MAX >> 20} MiB, in the "
                "documents of a shard that match; a filter may leave fewer",
            )


def _count_run(run: Run, known: BitMap, index: PayloadIndex, tally: _Tally, go_on: Callable[[], None]) -> None:
    """known: ordinals in the run of which its columns have all values."""
    mask = np.zeros(run.end - run.first, np.int64)
    mask[np.array(known.to_array(), np.int64) - run.first] = 1
    tally.documents += len(known)
    for mark, value in ((TRUE, True), (FALSE, False)):
        if count := run.marks[mark].intersection_cardinality(known):
            tally.add(value, count)
    for column in run.columns.values():
        go_on()
        inside = mask[column.ordinals.astype(np.int64) - run.first]
        counts = np.add.reduceat(inside, column.starts[:-1])
        had = np.flatnonzero(counts)
        tally.check(len(had))
        pairs = list(zip(column.keys[had].tolist(), counts[had].tolist(), strict=True))
        if not isinstance(column, Texts):
            for value, count in pairs:
                tally.add(value, count)
            continue
        for key, count in pairs:
            if not Texts.is_digest(key):
                tally.add(key.decode(), count)
        long = [(at, pair) for at, pair in zip(had.tolist(), pairs, strict=True) if Texts.is_digest(pair[0])]
        ones = [_one_of(column, at, inside) for at, _ in long]
        _count_long(dict(pair for _, pair in long), index.documents(BitMap(ones), tally.path, go_on), tally)


def _one_of(column: Column, at: int, inside: npt.NDArray[np.int64]) -> int:
    """An ordinal that has a key and counts."""
    start, end = column.starts[at], column.starts[at + 1]
    return int(column.ordinals[start + inside[start:end].argmax()])


def _count_long(counts: dict[bytes, int], documents: Iterable[tuple[int, Any]], tally: _Tally) -> None:
    """Texts of which a column has digests only: each is in one of the documents at least."""
    for _, metadata in documents:
        for text in lookup(metadata, tally.path)[1]:
            if isinstance(text, str) and (count := counts.pop(Texts.key(text.encode()).rstrip(b"\0"), 0)):
                tally.add(text, count)
    if counts:
        raise StorageError(f"the index of field {'.'.join(tally.path)!r} has texts that its documents do not have")
