"""The change feeds that are open at one node.

Invariants: each has one place, from before it is found out where it begins until its request ends, however that ends.
What all of them hold for their readers is counted, and bounded, as a part of what requests hold (memory.py). It must
not know what a feed tells.
"""

from __future__ import annotations

from typing import Final

from needle.base.errors import Overloaded
from needle.server.http.memory import SMALL_BYTES, Memory, Share
from needle.server.http.problems import HttpError

FEEDS_MAX: Final = 256
"""That may be open at one node."""
BYTES_MAX: Final = 256 * 1024 * 1024
"""That they hold. Who needs more has to come back; a feed that holds little goes on."""


class Feeds:
    """See the module. open: how many there are. held: bytes."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.open = self.held = 0

    def begin(self) -> Place:
        """One more. Raises HttpError."""
        if self.open >= FEEDS_MAX:
            raise HttpError(429, "overloaded", f"{FEEDS_MAX} change feeds are open at this node already")
        return Place(self)


class Place:
    """Of one feed."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds, self._open, self._share = feeds, True, Share(feeds.memory)
        feeds.open += 1

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
