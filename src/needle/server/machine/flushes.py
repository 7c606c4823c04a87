"""Watches the durable writes of a node's Raft log: how many were slow lately, and since when one is under way.

Invariant: a write is known of from the moment it begins, so that one that never ends is told, too. It must not decide
what follows: a leader whose disk stalls leaves office by `raft/leadership.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from needle.base.runtime import Clock
from needle.client.alerts import FSYNC_SECONDS
from needle.multiraft.ports import KeyValueStore, KeyValueTxn
from needle.protocol.peer_calls import FlushLevels

WINDOW_SECONDS: Final = 10.0
WINDOWS: Final = 12
"""Writes of the last two minutes count, as in the alert's rule."""


class FlushWatch:
    """Of one node. observe: told the seconds of each durable write, in the thread that wrote."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self._windows: list[tuple[int, int, int]] = [(-WINDOWS, 0, 0)] * WINDOWS
        """Number of the window, writes, slow ones. One thread writes at a time, and each is replaced as a whole."""
        self.observe: Callable[[float], None] = lambda _: None

    def watched(self, store: KeyValueStore) -> KeyValueStore:
        """The same store, with its durable commits watched."""
        return WatchedStore(store, self)

    def begin(self) -> None:
        """A durable write begins."""
        self._since = self._clock.monotonic()

    def end(self) -> None:
        """It ended, well or not."""
        began, self._since = self._since, None
        if began is None:
            return
        now = self._clock.monotonic()
        window = int(now // WINDOW_SECONDS)
        number, writes, slow = self._windows[window % WINDOWS]
        if number != window:
            writes = slow = 0
        took = now - began
        self._windows[window % WINDOWS] = (window, writes + 1, slow + (took > FSYNC_SECONDS))
        self.observe(took)

    def under_way(self) -> float:
        """For how many seconds a write has waited for the disk; 0.0 for none."""
        since = self._since
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    def levels(self) -> FlushLevels:
        """What clients are told."""
        first = int(self._clock.monotonic() // WINDOW_SECONDS) - WINDOWS
        late = [one for one in self._windows if one[0] > first]
        return FlushLevels(sum(one[1] for one in late), sum(one[2] for one in late), self.under_way())


class WatchedStore:
    """A key-value store whose durable commits are watched."""

    def __init__(self, store: KeyValueStore, watch: FlushWatch) -> None:
        self.get = store.get
        self.scan = store.scan
        self.close = store.close
        self.bytes_used = store.bytes_used
        self._commit = store.commit
        self._watch = watch

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        """See KeyValueStore."""
        if not sync:
            self._commit(fill, sync)
            return
        self._watch.begin()
        try:
            self._commit(fill, sync)
        finally:
            self._watch.end()
