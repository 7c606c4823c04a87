"""One incarnation of a simulated operating-system process: what it has ready to run, and whether it still exists.

Invariant: once `alive` is False nothing of this incarnation changes the world again. The loop drops its callbacks, and
every simulated port calls `fence` before it has an effect; so `finally` blocks of a killed process are harmless.
It must not know what runs inside.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from contextvars import ContextVar
from typing import Any

CURRENT: ContextVar[Process | None] = ContextVar("needle_sim_process", default=None)


class Killed(BaseException):
    """Raised inside a process that no longer exists. Not an Exception: product code must not be able to handle it."""


class Process:
    """A process of machine `name`. Callbacks belong to the process whose context they were scheduled in."""

    __slots__ = ("alive", "context", "incarnation", "is_node", "name", "paused", "ready", "tasks", "tasks_checked_at")

    def __init__(self, name: str, incarnation: int, *, is_node: bool = False) -> None:
        self.name = name
        self.is_node = is_node
        self.incarnation = incarnation
        self.alive = True
        self.paused = False
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.tasks_checked_at = 0
        self.context = contextvars.Context()
        self.context.run(CURRENT.set, self)

    def fence(self) -> None:
        """Refuse an effect of a dead incarnation. Raises Killed."""
        if not self.alive:
            raise Killed(f"{self.name}/{self.incarnation}")

    def __repr__(self) -> str:
        state = "dead" if not self.alive else "paused" if self.paused else "alive"
        return f"<Process {self.name}/{self.incarnation} {state}>"
