"""When the engine's next turn runs: at once, or behind requests of callers that were read and wait to be begun.

A node begins requests for a few milliseconds in one turn of its event loop (rpc/turns.py). The writes among those that
wait are for the same append: cut into several, each costs every replica a frame, a write of the log, an answer and an
apply of its own. Invariant: a turn waits for LOOP_TURNS_MAX turns of the event loop at most, whoever keeps asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

LOOP_TURNS_MAX: Final = 8
"""Of the few milliseconds for which requests are begun in one."""


class Gathering:
    """Of one engine. more: whether requests that were read wait to be begun; set by who has callers."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self._waited = 0
        self.more: Callable[[], bool] = lambda: False

    def due(self, loop: asyncio.AbstractEventLoop) -> None:
        """A turn is due: run it, or come back in the next turn of the event loop."""
        if self._waited < LOOP_TURNS_MAX and self.more():
            self._waited += 1
            loop.call_soon(self.due, loop)
        else:
            self._waited = 0
            self._run()
