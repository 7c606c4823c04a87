"""The change feeds that are open at one node.

Invariant: each has one place, from before it is found out where it begins until its request ends, however that ends. It
must not know what a feed tells.
"""

from __future__ import annotations

from typing import Final

from needle.server.http.problems import HttpError

FEEDS_MAX: Final = 256
"""That may be open at one node."""


class Feeds:
    """See the module. open: how many there are."""

    def __init__(self) -> None:
        self.open = 0

    def begin(self) -> Place:
        """One more. Raises HttpError."""
        if self.open >= FEEDS_MAX:
            raise HttpError(429, "overloaded", f"{FEEDS_MAX} change feeds are open at this node already")
        return Place(self)


class Place:
    """Of one feed."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds, self._open = feeds, True
        feeds.open += 1

    def close(self) -> None:
        """It has ended. Idempotent."""
        if self._open:
            self._open = False
            self._feeds.open -= 1
