"""Where the ids of a shard lie, under a strategy by which keys are ids: parts of a few documents each, by their first
keys. Elsewhere documents lie evenly over the keys, and nobody has to look.

A plan may cut a shard at these ids only. One look reads the ids of all documents, in one statement of a thread; it is
made again after LOOK_SECONDS, or so many times what it took. Bounded: SAMPLES ids. It must not know plans or the wire.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, Final

from needle.routing.shard_map import KeyRange
from needle.shard.live_collection import ReplicaView
from needle.shard.state_machine import Replica

SAMPLES: Final = 512
PARTS: Final = 64
"""Of a shard, about."""
LOOK_SECONDS: Final = 5.0
LOOK_SHARE: Final = 20.0

Part = tuple[bytes, bytes | None, int]
"""A range of keys, and how many documents are in it, about."""


def parts_of(ids: Sequence[str], each: int, owned: Sequence[KeyRange]) -> list[Part]:
    """Parts of `owned`, ascending: all of each range that has documents, cut at some of the ids. ids: some of those
    that there are; each: so many documents stand behind each of them."""
    keys = sorted(name.encode() for name in ids)
    some, made = max(1, len(keys) // PARTS), list[Part]()
    for start, end in owned:
        inside = keys[bisect_left(keys, start) : len(keys) if end is None else bisect_left(keys, end)]
        if not inside:
            continue
        cuts = dict.fromkeys(key for key in inside[some::some] if key > start)
        edges: list[bytes | None] = [start, *cuts, end]
        for low, high in pairwise(edges):
            assert low is not None
            last = len(inside) if high is None else bisect_left(inside, high)
            made.append((low, high, each * (last - bisect_left(inside, low))))
    return made


def _sampled(view: ReplicaView, step: int) -> list[str]:
    return view.store.some_ids(step)


class KnownParts:
    """Of one replica. Times are a monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._each = 1
        self._next = float("-inf")

    async def of(
        self,
        replica: Replica,
        owned: Sequence[KeyRange],
        blocking: Callable[..., Awaitable[Any]],
        now: Callable[[], float],
    ) -> list[Part]:
        """Looked at now, or lately. blocking: runs a function in a thread. Raises Unavailable, StorageError."""
        began = now()
        if began >= self._next:
            self._next = began + LOOK_SECONDS  # whoever asks meanwhile is told what was known
            each = max(1, replica.count() // SAMPLES)
            self._ids, self._each = await blocking(replica.look, _sampled, each), each
            self._next = now() + max(LOOK_SECONDS, LOOK_SHARE * (now() - began))
        parts: list[Part] = await blocking(parts_of, self._ids, self._each, owned)
        return parts
