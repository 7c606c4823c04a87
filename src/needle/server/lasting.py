"""Background work: it outlives a shortage (a full disk, or too many open files, passes by itself and ends no node),
and what looks at the same pace looks at the same moment, so that an idle node sleeps in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from needle.base.file_errors import SHORTAGES

log = logging.getLogger("needle.server")

SHORTAGE_SECONDS = 1.0


async def lasting(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do `work`; from its beginning again, after a pause, whenever it ends for want of room or of file handles."""
    while True:
        try:
            await work()
            return
        except SHORTAGES as error:
            log.error("background work waits: %s", error)
            await asyncio.sleep(SHORTAGE_SECONDS)


async def next_beat(now: float, every: float) -> None:
    """Sleep until the node's monotonic clock, which shows `now`, shows a multiple of `every` seconds; half of them at
    least. All that wait for the same beat wake the event loop once."""
    rest = every - now % every
    await asyncio.sleep(rest if rest >= every / 2 else rest + every)
