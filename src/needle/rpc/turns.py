"""How much the connections of a server take of one turn of the event loop, all together.

Invariant: requests are begun for about `TURN_SECONDS` of a turn; what then waits is served in the next turns, a portion
of each connection after the other. A single connection may use the whole time: its requests begin together, and what
writes share (one append of the log, one flush) is not divided. Does not know frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

TURN_SECONDS = 0.006
"""Of what may hold the event loop at a time, 10 ms (docs/architecture.md): requests are not all that runs in a turn."""
PORTION = 32
"""So many requests of a connection that waited, before the next one has its turn."""


class Waiting(Protocol):
    """A connection that has more to serve."""

    def go_on(self, portion: int) -> bool:
        """Serve so many requests, fewer where the turn is over; whether more wait that could be served."""
        ...


class Turns:
    """computed: seconds that the event loop's thread has computed, not those that passed: while other threads or
    processes have the processor nothing is held, and requests that came together would be cut apart (adr/0048).
    passed: the time, which costs a seventh to ask; no thread computes more of it than passes."""

    def __init__(self, computed: Callable[[], float], passed: Callable[[], float]) -> None:
        self._computed, self._passed = computed, passed
        self._sure: float | None = None
        self._until: float | None = None
        self._waiting: dict[Waiting, None] = {}

    def are_over(self) -> bool:
        """Whether this turn's time is used up. The first to ask begins the turn. Half of it is over by the time that
        passed, whoever had the processor; of the rest counts what is computed."""
        now = self._passed()
        if self._sure is None:
            self._sure = now + TURN_SECONDS / 2
            asyncio.get_running_loop().call_soon(self._next)
        if now < self._sure:
            return False
        computed = self._computed()
        if self._until is None:
            self._until = computed + TURN_SECONDS / 2
        return computed >= self._until

    def more(self) -> bool:
        """Whether requests that were read wait for the next turn."""
        return bool(self._waiting)

    def wait(self, connection: Waiting) -> None:
        """Serve more of it in the next turn, after those that wait already."""
        self._waiting.setdefault(connection)
        self.are_over()

    def _next(self) -> None:
        self._sure = self._until = None
        while self._waiting and not self.are_over():
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            if connection.go_on(PORTION):
                self.wait(connection)
