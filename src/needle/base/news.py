"""What need not be said again: the log must not be filled by what tries again all the time and brings nothing new.

Invariant: of each thing a line is news once in a while, and no more things are remembered than a bound; the one that
was told of longest ago is forgotten first. Pure: the clock is handed in.
"""

from __future__ import annotations

from collections.abc import Hashable

SAID_SECONDS = 60.0
"""So long the same is usually not said again."""
FOR_EVER = float("inf")


class News:
    """What was said lately. seconds: so long it is no news; FOR_EVER for as long as it is remembered. keys_max: so many
    things are remembered; with 1, whatever is not the same as the last time is news."""

    def __init__(self, seconds: float = SAID_SECONDS, keys_max: int = 1024) -> None:
        self._seconds = seconds
        self._keys_max = keys_max
        self._said: dict[Hashable, float] = {}

    def is_news(self, key: Hashable, now: float = 0.0) -> bool:
        """Whether `key` is to be said; it counts as said then. now: seconds of any clock that does not go back."""
        if now < self._said.get(key, -FOR_EVER) + self._seconds:
            return False
        self._said.pop(key, None)
        if len(self._said) >= self._keys_max:
            del self._said[next(iter(self._said))]
        self._said[key] = now
        return True
