"""How fast a snapshot is fetched: behind each part that has come, its share of the rest that the whole of it takes.

Invariant: parts that come side by side rest one after the other, so the rest is the same however they are cut. It must
not know why a group's snapshot is to come slowly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from needle.base.ids import GroupId

Pace = Callable[[GroupId], float]
"""Seconds that a node rests in all while it fetches a snapshot of a group; asked anew whenever it rests."""


def at_once(group: GroupId) -> float:
    """Without rest."""
    return 0.0


class Pacing:
    """Of one fetch."""

    def __init__(self, rest: Callable[[], float], total: int, look_seconds: float) -> None:
        """rest: seconds for all of it; what it says counts from then on. total: bytes of the snapshot. look_seconds: a
        longer rest is interrupted so often, to ask anew and to tell the sender that somebody still reads."""
        self._rest = rest
        self._total = total
        self._look_seconds = look_seconds
        self._resting = asyncio.Lock()

    async def after(self, size: int, still_here: Callable[[], Awaitable[Any]]) -> None:
        """Rest for `size` bytes that have come. still_here: tells the sender. Raises what that raises."""
        if not self._total or self._rest() <= 0:
            return
        async with self._resting:
            rested = 0.0
            while (left := self._rest() * size / self._total - rested) > 0:
                part = min(left, self._look_seconds)
                await asyncio.sleep(part)
                rested += part
                if part < left:
                    await still_here()
