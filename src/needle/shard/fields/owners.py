"""Which documents have each of many values of a field: all looked up at once, and given one after the other.

Invariant: exact, whatever the field's index knows. What it does not know is read once for all values, not once for
each; where more is found than may be held, once for each half of them, and so on.

Threads: any. It must not know SQLite, vectors or the log.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pyroaring import BitMap

from needle.base.filters.values import Mark, Value, has_any, marked, values_of
from needle.shard.fields.builders import Builders
from needle.shard.fields.field_index import Path, each_equal
from needle.shard.fields.payload_index import PayloadIndex

READ_MAX: Final = 1 << 20
"""Pairs of a value and a document that was read, which are held together: 4 bytes each."""


def owners(
    index: PayloadIndex,
    path: Path,
    values: Sequence[Value],
    end: int,
    among: BitMap,
    builders: Builders | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> Iterator[BitMap]:
    """For each of the values, which are different, the ordinals of `among`, all below `end`, that have it. builders,
    go_on: as of PayloadIndex.within."""
    any_of = index.within(has_any(path, values), end, among, builders, go_on)
    if len(values) == 1:
        yield any_of
        return
    state = index.state(path)
    odd = BitMap.union(BitMap(range(state.end, max(end, state.end))), *(run.odd for run in state.runs))
    read = _read(index, path, values, any_of & odd, go_on)
    known = any_of - odd
    if read is None:
        half = len(values) // 2
        for some in (values[:half], values[half:]):
            yield from owners(index, path, some, end, any_of, builders, go_on)
        return
    for value, found in zip(values, each_equal(state, values), strict=True):
        yield (found & known) | BitMap(read.get(marked(value), ()))


def _read(
    index: PayloadIndex, path: Path, values: Sequence[Value], wanted: BitMap, go_on: Callable[[], None]
) -> dict[Mark, array[int]] | None:
    """By value the ordinals of `wanted` that have it; None where the pairs are too many to be held."""
    found = {marked(value): array("I") for value in values}
    left = READ_MAX
    for ordinal, metadata in index.documents(wanted, path, go_on):
        for mark in values_of(metadata, path).keys() & found.keys():
            found[mark].append(ordinal)
            left -= 1
        if left < 0:
            return None
    return found
