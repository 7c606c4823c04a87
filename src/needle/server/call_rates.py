"""How often a shard is called lately, and for which keys, as one node sees it. What it knows decides nothing.

Bounded: a few counters a shard, and SAMPLES keys of at most KEY_BYTES. All calls are counted; a key is looked at ten
times a second at most, and stands for the calls since the last one, so that a call costs a microsecond. It must not
know the wire, nor read a clock: who calls says when it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from needle.protocol import commands
from needle.protocol.calls import QUERIES_MAX
from needle.routing.key_space import KeySpace
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.strategy import routing_key

SLOT_SECONDS, SLOTS = 5, 6
"""Rates are of the last 25 to 30 s."""
SAMPLES = 256
SAMPLE_SECONDS = 0.1
KEY_BYTES = 64
GOLDEN = 0.618034
HOT_MAX = 16
PART_MIN, DEPTH_MAX = 8, 6
"""A range is halved while it has more than this part of the samples, so many times at most."""

Hot = tuple[bytes, bytes | None, float, float]
"""A range of keys, and the writes and searches a second of it."""


class Rate:
    """Calls a second."""

    __slots__ = ("_at", "_counts", "_last", "_since", "_until")

    def __init__(self) -> None:
        self._counts = [0] * SLOTS
        self._last = self._at = 0
        self._until = float("-inf")
        """The end of the slot in which the last call was, whose count is at `_at`."""
        self._since: float | None = None

    def note(self, now: float, count: int) -> None:
        if now >= self._until:
            self._begin(now)
        self._counts[self._at] += count

    def _begin(self, now: float) -> None:
        slot = int(now // SLOT_SECONDS)
        if self._since is None:
            self._since, self._last = now, slot
        if slot != self._last:
            self._forget(slot)
        self._at, self._until = slot % SLOTS, (slot + 1) * SLOT_SECONDS

    def per_second(self, now: float) -> float:
        """Of the time that is counted, at least one second."""
        if self._since is None:
            return 0.0
        slot = int(now // SLOT_SECONDS)
        self._forget(slot)
        return sum(self._counts) / max(1.0, now - max(self._since, (slot - SLOTS + 1) * SLOT_SECONDS))

    def _forget(self, slot: int) -> None:
        for passed in range(self._last + 1, min(slot, self._last + SLOTS) + 1):
            self._counts[passed % SLOTS] = 0
        self._last = max(self._last, slot)


class _Sample(NamedTuple):
    """calls: that it stands for."""

    at: float
    key: bytes
    calls: int


class _Kind:
    """Calls of one kind."""

    def __init__(self) -> None:
        self.rate = Rate()
        self.samples: deque[_Sample] = deque(maxlen=SAMPLES // 2)
        self._since = self._turn = 0
        self._next = 0.0

    def note(self, now: float, count: int, shard_map: ShardMap, names: Sequence[str]) -> None:
        self.rate.note(now, count)
        if not names:
            return
        self._since += count
        if now < self._next or shard_map.strategy.kind == "custom":  # there an id does not tell the key
            return
        self._turn += 1
        key = routing_key(shard_map.strategy, shard_map.shard_count, names[self._turn % len(names)])
        self.samples.append(_Sample(now, key[:KEY_BYTES], self._since))
        # Uneven pauses, or calls that follow each other in a pattern would be sampled in step with it.
        self._since, self._next = 0, now + SAMPLE_SECONDS * (0.5 + self._turn * GOLDEN % 1)

    def lately(self, now: float) -> list[_Sample]:
        return sorted((one for one in self.samples if now - one.at <= SLOT_SECONDS * SLOTS), key=lambda one: one.key)


class CallRates:
    """Of one shard."""

    def __init__(self) -> None:
        self._writes, self._reads = _Kind(), _Kind()
        self._searches = Rate()

    def wrote(self, now: float, shard_map: ShardMap, command: commands.Command) -> None:
        """A write of documents was taken."""
        names: Sequence[str] = command.ids if commands.is_by_id(command) else ()
        self._writes.note(now, 1, shard_map, names)

    def read(self, now: float, shard_map: ShardMap, names: Sequence[str]) -> None:
        """Documents were read by their ids."""
        self._reads.note(now, 1, shard_map, names)

    def searched(self, now: float, count: int = 1) -> None:
        """All of the shard was searched, counted or scanned. count: searches of one call, as its caller says."""
        self._searches.note(now, 1 if count == 1 else min(max(1, count), QUERIES_MAX))

    def writes(self, now: float) -> float:
        """A second."""
        return self._writes.rate.per_second(now)

    def searches(self, now: float) -> float:
        """And reads, a second."""
        return self._searches.per_second(now) + self._reads.rate.per_second(now)

    def sampled(self, now: float) -> Sampled:
        """What is known at this moment."""
        kinds = [(kind.lately(now), kind.rate.per_second(now)) for kind in (self._writes, self._reads)]
        return Sampled(kinds, self._searches.per_second(now))


class Sampled(NamedTuple):
    """Writes and reads, as samples in the order of their keys with calls a second, and searches a second."""

    kinds: list[tuple[list[_Sample], float]]
    searches: float

    def hot(self, shard_map: ShardMap, owned: Sequence[KeyRange]) -> list[Hot]:
        """The ranges of `owned` with the most calls a second, HOT_MAX at most, ascending by their keys; a search counts
        in proportion to the keys. It takes some 7 us a range, and there are thousands: not for the event loop."""
        kinds, everywhere, space = self.kinds, self.searches, KeySpace(shard_map)
        keys = [[one.key for one in samples] for samples, _ in kinds]
        weigh = [rate / max(1, sum(one.calls for one in samples)) for samples, rate in kinds]
        size = sum(map(space.length, owned)) if space.even else len(owned)
        found: list[Hot] = []

        def bounds(span: KeyRange) -> list[tuple[int, int]]:
            start, end = span
            return [(bisect_left(ones, start), len(ones) if end is None else bisect_left(ones, end)) for ones in keys]

        def look(span: KeyRange, depth: int, share: float) -> None:
            inside = bounds(span)
            count, total = sum(high - low for low, high in inside), sum(map(len, keys))
            low, high = space.position(span[0]), space.position(span[1])
            middle = space.key((low + high) // 2)
            if depth < DEPTH_MAX and count * PART_MIN > total and span[0] < middle and high - low > 1:
                look((span[0], middle), depth + 1, share / 2)
                look((middle, span[1]), depth + 1, share / 2)
                return
            writes, reads = (
                per * sum(one.calls for one in samples[first:last])
                for (samples, _), per, (first, last) in zip(kinds, weigh, inside, strict=True)
            )
            found.append((span[0], span[1], writes, reads + everywhere * share))

        for span in owned:
            look(span, 0, (space.length(span) if space.even else 1) / size if size else 0.0)
        hottest = sorted(found, key=lambda one: (-one[2] - one[3], one[0]))[:HOT_MAX]
        return sorted((one for one in hottest if one[2] + one[3] > 0), key=lambda one: one[0])
