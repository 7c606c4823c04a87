"""The one timer of the event loop that wakes the engine when a group's deadline passes.

It must not know which deadlines there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_NEVER = float("inf")


class Alarm:
    """Rings at the earliest time that it was set to. The callback calls `rang` first."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._at = _NEVER

    def set(self, loop: asyncio.AbstractEventLoop | None, now: float, fire: float) -> None:
        """Ring at `fire`, unless it rings earlier anyway. Seconds of the node's monotonic clock. loop: None before the
        engine runs: then nothing is set."""
        if loop is None or (self._handle is not None and fire >= self._at):
            return
        if self._handle is not None:
            self._handle.cancel()
        self._at = fire
        self._handle = loop.call_later(max(0.0, fire - now), self._callback)

    def rang(self) -> None:
        """It has to be set again."""
        self._handle = None

    def cancel(self) -> None:
        """It does not ring any more."""
        if self._handle is not None:
            self._handle.cancel()
