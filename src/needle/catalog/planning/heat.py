"""Calls a second by ranges of keys, whoever owns these: what the pieces of a plan are called, where calls count. Pure.

Invariant: they are of keys and not of shards. So they stay true when ranges have moved, while the shards' own rates
still tell of before: a plan that is made again by the same calls, when it was carried out, is empty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from needle.routing.key_space import KeySpace
from needle.routing.ranges import difference, intersection, union
from needle.routing.shard_map import KeyRange
from needle.routing.stats import ClusterStats, RangeStats
from needle.routing.topology import Topology

_replace = msgspec.structs.replace


def calls_of(topology: Topology, stats: ClusterStats) -> tuple[RangeStats, ...]:
    """The calls of all keys, ascending: of the ranges that were measured, and what the shards had besides these, evenly
    over the rest of their keys. stats: with the calls of shards and of their ranges. No sizes."""
    if topology.map is None:
        return ()
    space, owned, made = KeySpace(topology.map), topology.map.by_owner(), []
    for one in stats.shards:
        hot = [part for part in one.ranges if part.heat > 0]
        rest = difference(owned.get(one.shard, []), union([part.span for part in hot]))
        made += [_calls(part.span, part.writes, part.searches) for part in hot]
        writes = max(0.0, one.writes - sum(part.writes for part in hot))
        searches = max(0.0, one.searches - sum(part.searches for part in hot))
        lengths = [max(1, space.length(span)) if space.even else 1 for span in rest]
        for span, length in zip(rest, lengths, strict=True):
            share = length / sum(lengths)
            made.append(_calls(span, writes * share, searches * share))
    return tuple(sorted(made, key=lambda part: part.span[0]))


def _calls(span: KeyRange, writes: float, searches: float) -> RangeStats:
    return RangeStats(span=span, documents=0, bytes=0, writes=writes, searches=searches)


def warmed(space: KeySpace, parts: Sequence[RangeStats], calls: Sequence[RangeStats]) -> list[RangeStats]:
    """The same parts with the calls of `calls`. Where documents lie evenly over the keys, parts are cut where the calls
    of a range begin or end; elsewhere the calls of a range go to the parts in it by their documents. parts, calls:
    each ascending, not overlapping; what the parts were called before is forgotten."""
    cool = [_replace(part, writes=0.0, searches=0.0) for part in parts]
    starts = [part.span[0] for part in calls]
    if not space.even:
        return _by_documents(cool, calls)
    made: list[RangeStats] = []
    for part in cool:
        start, end = part.span
        over = calls[max(0, bisect_right(starts, start) - 1) : len(calls) if end is None else bisect_left(starts, end)]
        for small in [part] if part.whole else _cut(space, part, over):
            writes = searches = 0.0
            for one in over:
                share = _overlap(space, small.span, one.span)
                writes, searches = writes + one.writes * share, searches + one.searches * share
            made.append(_replace(small, writes=writes, searches=searches))
    return made


def _overlap(space: KeySpace, span: KeyRange, of: KeyRange) -> float:
    """The fraction of `of` that lies in `span`."""
    length = space.length(of)
    return sum(map(space.length, intersection([span], [of]))) / length if length else 0.0


def _cut(space: KeySpace, part: RangeStats, over: Iterable[RangeStats]) -> list[RangeStats]:
    """A part, cut at the edges of other ranges; documents and bytes lie evenly over it, and add up."""
    start, end = part.span
    low, high = space.position(start), space.position(end)
    edges = {edge for one in over for edge in one.span if edge is not None and low < space.position(edge) < high}
    places: list[bytes | None] = [start, *sorted(edges), end]
    size, made = high - low, []
    for first, last in pairwise(places):
        assert first is not None
        at, to = space.position(first) - low, space.position(last) - low
        documents, size_bytes = (
            amount * to // size - amount * at // size if size else 0 for amount in (part.documents, part.bytes)
        )
        made.append(_replace(part, span=(first, last), documents=documents, bytes=size_bytes))
    return made


def _by_documents(parts: Sequence[RangeStats], calls: Sequence[RangeStats]) -> list[RangeStats]:
    made, starts = list(parts), [part.span[0] for part in parts]
    for one in calls:
        start, end = one.span
        first = max(0, bisect_right(starts, start) - 1)
        last = len(parts) if end is None else bisect_left(starts, end)
        inside = [at for at in range(first, last) if intersection([parts[at].span], [one.span])]
        total = sum(parts[at].documents + 1 for at in inside)
        for at in inside:
            share = (parts[at].documents + 1) / total
            made[at] = _replace(
                made[at], writes=made[at].writes + one.writes * share, searches=made[at].searches + one.searches * share
            )
    return made
