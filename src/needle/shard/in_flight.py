"""Which searches are running, so that rows they may still read are not purged under them.

Invariant: when `drain` returns, every search that entered before it was called has left. Entering never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    def __init__(self) -> None:
        self._left = threading.Condition(threading.Lock())
        self._running: dict[int, None] = {}
        self._next = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold while a view of the replica is in use."""
        with self._left:
            ticket = self._next
            self._next += 1
            self._running[ticket] = None
        try:
            yield
        finally:
            with self._left:
                del self._running[ticket]
                self._left.notify_all()

    def drain(self) -> None:
        """Wait for the searches that run now; later ones do not matter."""
        with self._left:
            end = self._next
            self._left.wait_for(lambda: all(ticket >= end for ticket in self._running))
