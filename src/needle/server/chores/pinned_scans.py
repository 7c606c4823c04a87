"""The ends of consistent scans: their leader ends those whose time is over, and the oldest while too much is kept.

Invariant: a pin ends by an entry of the log, so all replicas keep what it sees, or none does (docs/adr/0060). Clocks
and sizes decide only when that entry is written. While no scan is open, nothing is done but a look at an empty tuple.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from needle.base.config import Limits
from needle.base.errors import NeedleError
from needle.base.ids import GroupId, group_name
from needle.base.runtime import Clock, Pool
from needle.multiraft.host import Host
from needle.protocol import commands
from needle.routing.topology import Topology
from needle.server.chores.expiry import micros_of
from needle.server.lasting import next_beat
from needle.shard.live_collection import ReplicaView
from needle.shard.pins import Pin
from needle.shard.state_machine import Replica

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
PROPOSE_SECONDS: Final = 10.0
ROWS_MAX: Final = 4_000_000
"""So many kept versions are too many, whatever they weigh: they are counted every second while a scan is open."""


def kept_bytes(view: ReplicaView, oldest: int, rows_max: int) -> int:
    """About what the versions weigh that died after the entry `oldest` and are kept for scans; `rows_max` of them at
    most. Blocking."""
    weights = {held.record.id: held.document_bytes for held in view.named()}
    kept = view.store.kept_since(oldest, rows_max)
    return sum(count * weights.get(collection_id, 0) for collection_id, count in kept.items())


class PinnedScans:
    """Of one replica, while this node leads its group."""

    def __init__(
        self,
        group: GroupId,
        replica: Replica,
        host: Host,
        clock: Clock,
        pool: Pool,
        limits: Limits,
        low: Callable[[], bool],
        topology: Callable[[], Topology],
    ) -> None:
        """low: whether the disk has too little room. topology: the newest that the node has."""
        self._group = group
        self._replica = replica
        self._host = host
        self._clock = clock
        self._pool = pool
        self._limits = limits
        self._low = low
        self._topology = topology

    async def run(self) -> None:
        """Until the node stops."""
        while not self._host.stopped:
            if self._replica.view.pins.open and self._host.is_leader(self._group):
                try:
                    await self._look()
                except NeedleError as error:
                    if self._replica.damage is not None:
                        raise
                    log.debug("%s: consistent scans stay open for now: %s", group_name(self._group), error)
            await next_beat(self._clock.monotonic(), LOOK_SECONDS)

    async def _look(self) -> None:
        pins, now = self._replica.view.pins.open, micros_of(self._clock)
        over = [pin.index for pin in pins if pin.until <= now]
        if not over and await self._too_much(pins):
            over = [pins[0].index]
        if over:
            log.info("%s: consistent scans end: %s", group_name(self._group), over)
            command = commands.entry(commands.EndPins(over), self._topology(), now)
            await self._host.propose(self._group, command, PROPOSE_SECONDS)

    async def _too_much(self, pins: Sequence[Pin]) -> bool:
        """Counted from the oldest pin on: what was kept for those before it is given back already, or will be."""
        if self._low():
            return True
        kept: int = await self._pool.run(self._replica.look, kept_bytes, pins[0].index, ROWS_MAX)
        return kept > self._limits.pinned_scan_bytes_max
