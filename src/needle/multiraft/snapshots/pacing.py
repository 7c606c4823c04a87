"""How fast snapshots are fetched: behind each part that has come, its share of the rest that the whole of it takes.

Invariant: parts that come side by side rest one after the other, of one snapshot and of several, so the rest is the
same however they are cut, and a node that fetches several gets no more at a time than of one. It must not know why a
group's snapshot is to come slowly, or not at all for now.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from needle.base.ids import GroupId

Pace = Callable[[GroupId], float]
"""Seconds that a node rests in all while it fetches a snapshot of a group, asked again whenever it rests; infinite
while no more of it is to come."""


def at_once(group: GroupId) -> float:
    """Without rest."""
    return 0.0


class Pacing:
    """Of one fetch."""

    def __init__(self, rest: Callable[[], float], total: int, look_seconds: float, resting: asyncio.Lock) -> None:
        """rest: seconds for all of it; what it says counts from then on. total: bytes of the snapshot. look_seconds: a
        longer rest is interrupted so often, to ask again and to tell the sender that somebody still reads. resting: of
        the node, for its fetches take turns."""
        self._rest = rest
        self._total = total
        self._look_seconds = look_seconds
        self._resting = resting

    async def after(self, size: int, still_here: Callable[[], Awaitable[Any]]) -> None:
        """Rest for `size` bytes that have come. still_here: tells the sender. Raises what that raises."""
        if not self._total or self._rest() <= 0:
            return
        async with self._turn(still_here):
            rested = 0.0
            while (left := self._left(size, rested)) > 0:
                part = min(left, self._look_seconds)
                await asyncio.sleep(part)
                rested += part
                if part < left:
                    await still_here()

    def _left(self, size: int, rested: float) -> float:
        rest = self._rest()
        return rest if math.isinf(rest) else rest * size / self._total - rested

    @asynccontextmanager
    async def _turn(self, still_here: Callable[[], Awaitable[Any]]) -> AsyncIterator[None]:
        """While no other part rests. Who waits for long tells its sender, which may be another node."""
        taking = asyncio.ensure_future(self._resting.acquire())
        try:
            while not (await asyncio.wait([taking], timeout=self._look_seconds))[0]:
                await still_here()
            yield
        finally:
            if taking.done() and not taking.cancelled():
                self._resting.release()
            else:
                taking.cancel()
