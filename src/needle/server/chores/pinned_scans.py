"""The ends of consistent scans: their leader ends those whose time is over, and the oldest while too much is kept.

Invariant: a pin ends by an entry of the log, so all replicas keep what it sees, or none does (docs/adr/0060). Clocks
and sizes decide only when that entry is written. While no scan is open, nothing is done but a look at an empty tuple.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from needle.base.config import Limits
from needle.base.runtime import micros_of
from needle.protocol import commands
from needle.server.chores.context import ChoreContext
from needle.shard.live_collection import ReplicaView
from needle.shard.pins import Pin

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
ROWS_MAX: Final = 4_000_000
"""So many kept versions are too many, whatever they weigh: they are counted every second while a scan is open."""


def kept_bytes(view: ReplicaView, oldest: int, rows_max: int) -> int:
    """About what the versions weigh that died after the entry `oldest` and are kept for scans; `rows_max` of them at
    most. Blocking."""
    weights = {held.record.id: held.document_bytes for held in view.collections.values()}
    kept = view.store.kept_since(oldest, rows_max)
    return sum(count * weights.get(collection_id, 0) for collection_id, count in kept.items())


class PinnedScans:
    """Of one replica, while this node leads its group."""

    def __init__(self, at: ChoreContext, limits: Limits, low: Callable[[], bool]) -> None:
        """low: whether the disk has too little room."""
        self._at = at
        self._limits = limits
        self._low = low

    async def run(self) -> None:
        """Until the node stops."""
        at = self._at
        while not at.host.stopped:
            if at.replica.view.pins.open and at.leads:
                await at.attempt(self._look(), "consistent scans stay open for now")
            await at.beats.next(LOOK_SECONDS, lambda: not at.replica.view.pins.open)

    async def _look(self) -> None:
        pins, now = self._at.replica.view.pins.open, micros_of(self._at.clock)
        over = [pin.index for pin in pins if pin.until <= now]
        if not over and await self._too_much(pins):
            over = [pins[0].index]
        if over:
            log.info("%s: consistent scans end: %s", self._at.name, over)
            await self._at.propose(commands.EndPins(over))

    async def _too_much(self, pins: Sequence[Pin]) -> bool:
        """Counted from the oldest pin on: what was kept for those before it is given back already, or will be."""
        if self._low():
            return True
        kept: int = await self._at.pool.run(self._at.replica.look, kept_bytes, pins[0].index, ROWS_MAX)
        return kept > self._limits.pinned_scan_bytes_max
