"""Turns of large writes, so that searches and small writes beside them are not held up (adr/0097).

While others call, large writes are executed one at a time, in the order in which they came, with a rest after each
(shares.py). While nobody else calls they run side by side.

Invariant: none waits longer than `WAIT_SECONDS_MAX`, nor than half of its time; then it is executed at once. So no
number of calls keeps large writes from being executed, and none fails because it was held back. What waits holds no
more memory than the calls have anyway. It must not know what is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from needle.base.request import Stopwatch
from needle.server.service.shares import Shares, Work

WAIT_SECONDS_MAX: Final = 1.0
PART = "turn"
"""How slow requests call the time that they waited here."""


class BulkTurns:
    """Of one node, on its event loop."""

    def __init__(self, now: Callable[[], float]) -> None:
        """now: seconds, for durations."""
        self._now = now
        self._shares = Shares()
        self._lock = asyncio.Lock()

    def called(self, work: Work) -> None:
        """A search or a small write came."""
        self._shares.last[work] = self._now()

    @asynccontextmanager
    async def turn(self, left: float) -> AsyncIterator[None]:
        """Around the execution of a large write. left: seconds that its caller still waits."""
        stopwatch = Stopwatch(self._now)
        held = await self._wait(min(left / 2, WAIT_SECONDS_MAX))
        stopwatch.stop(PART)
        began = self._now()
        try:
            yield
        finally:
            self._shares.ended(Work.BULK, began, self._now())
            if held:
                self._lock.release()

    async def _wait(self, seconds: float) -> bool:
        """Until it is this write's turn, or for so long; whether the lock is held."""
        now = self._now()
        if not self._shares.others(Work.BULK, now):
            return False
        until = now + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._lock.acquire()
        except TimeoutError:
            return False
        try:
            now = self._now()
            rest = min(self._shares.rest(Work.BULK, now), until - now)
            if rest > 0:
                await asyncio.sleep(rest)
        except BaseException:
            self._lock.release()
            raise
        return True
