"""Sets of routing keys as lists of ranges: union, difference, membership. Pure.

Invariant: results are normal: ascending, disjoint, and no two of them touch. A shard's list of a `ShardMap` is normal
too, so equal sets have equal lists, and equal fingerprints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec
import xxhash

from needle.base.errors import invalid
from needle.routing.shard_map import KeyRange


def check_ranges(field: str, ranges: Sequence[KeyRange]) -> None:
    """Raises InvalidArgument unless there is one at least, and all are normal."""
    whole = bool(ranges) and all(end is None or start < end for start, end in ranges)
    if not whole or list(ranges) != union(ranges):
        raise invalid(field, list(ranges), "one or more ranges [start, end), ascending, that do not touch")


def union(*lists: Iterable[KeyRange]) -> list[KeyRange]:
    """The keys that are in any of the lists, which need not be normal."""
    merged: list[KeyRange] = []
    for start, end in sorted((span for spans in lists for span in spans), key=lambda span: span[0]):
        if merged and (merged[-1][1] is None or start <= merged[-1][1]):
            before, reached = merged[-1]
            merged[-1] = (before, None if reached is None or end is None else max(reached, end))
        else:
            merged.append((start, end))
    return merged


def difference(ranges: Sequence[KeyRange], taken: Sequence[KeyRange]) -> list[KeyRange]:
    """The keys of `ranges` that are not in `taken`; both are normal."""
    left: list[KeyRange] = []
    first = 0
    for start, end in ranges:
        while first < len(taken) and (over := taken[first][1]) is not None and over <= start:
            first += 1
        at: bytes | None = start
        for i in range(first, len(taken)):
            low, high = taken[i]
            if at is None or (end is not None and low >= end):
                break
            if high is not None and high <= at:
                continue
            if low > at:
                left.append((at, low))
            at = high
        if at is not None and (end is None or at < end):
            left.append((at, end))
    return left


def intersection(one: Sequence[KeyRange], other: Sequence[KeyRange]) -> list[KeyRange]:
    """The keys that are in both; both are normal."""
    return difference(one, difference(one, other))


def contains(ranges: Sequence[KeyRange], parts: Sequence[KeyRange]) -> bool:
    """Whether every key of `parts` is in `ranges`; both are normal."""
    return not difference(parts, ranges)


def overlap(one: Sequence[KeyRange], other: Sequence[KeyRange]) -> bool:
    """Whether some key is in both; both are normal."""
    return difference(one, other) != list(one)


def fingerprint(ranges: Sequence[KeyRange]) -> int:
    """Tells lists of ranges apart: XXH3-64 of their encoding."""
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(list(ranges)))


class KeySet:
    """Ranges, ready for many questions about single keys."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Sequence[KeyRange]) -> None:
        """ranges: normal."""
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._starts, key) - 1
        return at >= 0 and ((end := self._ends[at]) is None or key < end)
