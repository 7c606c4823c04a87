"""Background work outlives a shortage: a full disk, or too many open files, passes by itself and ends no node."""

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
