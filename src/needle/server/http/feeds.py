"""The change feeds that are open at one node.

Invariants: each has one place, from before it is found out where it begins until its request ends, however that ends.
What all of them hold for their readers is counted, and bounded, as a part of what requests hold (memory.py). It must
not know what a feed tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from needle.base.errors import Overloaded
from needle.server.http.memory import SMALL_BYTES, Memory, Share
from needle.server.http.problems import HttpError
from needle.server.service.feeding import WAITING_MAX

FEEDS_MAX: Final = 256
"""That may be open at one node."""
WAITS_MAX: Final = WAITING_MAX // 2
"""Calls that the feeds of one node wait in, one for each shard. Those of other nodes wait at the same replicas, not all
equally many at each."""
BYTES_MAX: Final = 256 * 1024 * 1024
"""That they hold. Who needs more has to come back; a feed that holds little goes on."""


class Feeds:
    """See the module. open: how many there are. held: bytes."""

    def __init__(self, memory: Memory, shards: Callable[[], int] = lambda: 1) -> None:
        """shards: how many there are now."""
        self.memory, self._shards = memory, shards
        self.open = self.held = 0
        self.of_key: Counter[str] = Counter()

    def begin(self, key: str) -> Place:
        """One more. key: the name of its API key, which has half of all at most; "" without one. Raises HttpError."""
        shards = max(1, self._shards())
        most = max(1, min(FEEDS_MAX, WAITS_MAX // shards))
        share = max(1, most // 2)
        if self.open >= most:
            text = f"{self.open} change feeds are open at this node already: {most} may be, with {shards} shards"
            raise HttpError(429, "overloaded", text)
        if key and self.of_key[key] >= share:
            text = f"this API key has {self.of_key[key]} change feeds open at this node already: a key may have {share}"
            raise HttpError(429, "overloaded", text)
        return Place(self, key)


class Place:
    """Of one feed."""

    def __init__(self, feeds: Feeds, key: str) -> None:
        self._feeds, self._key, self._open, self._share = feeds, key, True, Share(feeds.memory)
        feeds.open += 1
        feeds.of_key[key] += 1

    def hold(self, count: int) -> None:
        """So many bytes more, or less. Raises Overloaded."""
        if not self._open:
            return
        mine, all_ = self._share.held + count, self._feeds.held + count
        if count > 0:
            if mine > SMALL_BYTES and all_ > BYTES_MAX:
                raise Overloaded(
                    f"the change feeds at this node hold {self._feeds.held} of {BYTES_MAX} bytes for their readers, "
                    "and this one needs more: go on behind the last event, and read on at once"
                )
            try:
                self._share.take(count)
            except HttpError as error:
                raise Overloaded(f"{error}: go on behind the last event") from None
        else:
            self._share.settle(mine)
        self._feeds.held = all_

    def close(self) -> None:
        """It has ended. Idempotent."""
        if self._open:
            self.hold(-self._share.held)
            self._open = False
            self._feeds.open -= 1
            self._feeds.of_key[self._key] -= 1
            self._feeds.of_key += Counter()  # names that have none left go
