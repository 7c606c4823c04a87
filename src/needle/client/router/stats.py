"""What the reads of a router did, counted. It knows no shards."""

from __future__ import annotations

from collections.abc import Callable


class FanOutStats:
    """What the fan-outs of a router did, for metrics. on_search: told of every search that was answered: how many
    shards it asked, and the seconds that making one answer of theirs took."""

    __slots__ = ("fanout", "merge_seconds", "on_search", "searches")

    def __init__(self) -> None:
        self.fanout = self.searches = 0
        self.merge_seconds = 0.0
        self.on_search: Callable[[int, float], None] | None = None

    def searched(self, shards: int, merge_seconds: float) -> None:
        """One search was answered."""
        self.searches += 1
        self.fanout += shards
        self.merge_seconds += merge_seconds
        if self.on_search is not None:
            self.on_search(shards, merge_seconds)
