"""Requests that end before they are answered. It must not know what is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.server.http.message import Scope


class Ending:
    """What a request is that ends before it is answered. drops: with its connection, for nobody reads the answer, and
    nothing depends on it; a write goes on."""

    def __init__(self, scope: Scope, drops: bool) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task, self.drops, self.left = task, drops, False
        self._leaving: set[Callable[[], None]] = scope.get("needle.leaving", set())
        if drops:
            self._leaving.add(self._leave)

    def _leave(self) -> None:
        self.left = True
        self.task.cancel()

    def close(self) -> None:
        """It has ended."""
        self._leaving.discard(self._leave)
