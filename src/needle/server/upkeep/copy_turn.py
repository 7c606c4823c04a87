"""Whose turn it is to copy or to clean up on a node: one batch of one move at a time, slow enough for callers.

A batch costs all replicas of the target work that calls wait for. So while the node's shards are called, there is a
rest after each that is twice as long as it took: at most a third of the time is copied, by batches that take no longer
than a second. Without calls nothing rests. It must not know what a batch is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

BUSY_CALLS: Final = 1.0
"""Writes, reads and searches a second from which on callers are there."""
REST_SHARE: Final = 2.0
"""Of the time a batch took. With 1.0 the slowest hundredth of all calls takes 2.1 times as long on busy cores, with
this 1.3 to 1.5 times (docs/benchmarks.md)."""
REST_SECONDS_MAX: Final = 2.0
"""Who waited long for somebody else says nothing about what copying costs. Batches of slow machines take up to a second
by their own work."""


class CopyTurn:
    """See the module."""

    def __init__(self, calls: Callable[[], float]) -> None:
        """calls: of the node's shards, a second."""
        self._calls = calls
        self._lock = asyncio.Lock()
        self._again = 0.0
        """By the loop's time."""

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Around each batch. The rest is before the next one, whichever move that is of."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if (rest := self._again - loop.time()) > 0:
                await asyncio.sleep(rest)
            began = loop.time()
            try:
                yield
            finally:
                took = loop.time() - began if self._calls() >= BUSY_CALLS else 0.0
                self._again = loop.time() + min(REST_SHARE * took, REST_SECONDS_MAX)
