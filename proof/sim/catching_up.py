"""The promise that a member which is up and connected catches up within a bound, while writes go on.

A member is down for a while and comes back behind slow links, so that a snapshot takes longer on its way than the
writes take to fill the log. Invariant: no fault but the slow links is there while the bound runs. It must not know how
the member catches up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from needle.base.ids import GroupId
from proof.checkers.violation import Violation
from proof.sim.faults import both
from proof.sim.machine import stream
from proof.sim.stage import Stage

WRITERS = 3
AWAY_SECONDS = 6.0
BOUND_SECONDS = 25.0
LAG_SECONDS = 2.0
"""Who has applied what the leader had applied so long ago has caught up."""
LINK_SECONDS = 0.25
"""One way, to and from the member: well below the election timeout."""
PAUSE_SECONDS = 0.16
"""Between two writes of a writer: some 18 entries a second, a third of what a link takes one entry at a time."""
KEY_WRITES = 10


class Writer(Protocol):
    """A client of the workload."""

    name: str

    async def put(self, key: str) -> bool: ...


class CatchingUp:
    """See the module. Use `run` once, when no fault is left."""

    def __init__(self, stage: Stage, members: Sequence[str], group: GroupId, writers: Sequence[Writer]) -> None:
        self._stage = stage
        self._members = members
        self._group = group
        self._writers = writers
        self._over = False

    async def run(self, seed: int) -> None:
        """Raises Violation if the member does not catch up in time."""
        stage, fleet = self._stage, self._stage.fleet
        leader = fleet.leader(self._group)
        able = [m for m in self._members if m not in fleet.retired and m not in stage.observer.rotten and m != leader]
        if leader is None or len(able) < 2:
            return
        name = stream(seed, "who catches up").choice(able)
        links = both(name, [other for other in fleet.machines if other != name])
        writing = [stage.ask(writer.name, self._write(writer)) for writer in self._writers]
        fleet.hold(name)
        fleet.crash(name, power_cut=True, why="to catch up later")
        await asyncio.sleep(AWAY_SECONDS)
        for link in links:
            stage.network.slow(*link, LINK_SECONDS / stage.profile.delay)
        fleet.release(name)
        await self._watch(name)
        for link in links:
            stage.network.slow(*link, 1.0)
        self._over = True
        await asyncio.gather(*writing)

    async def _write(self, writer: Writer) -> None:
        count = 0
        while not self._over:
            await writer.put(f"{writer.name}.{count // KEY_WRITES}")
            count += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, name: str) -> None:
        """Until the member has caught up. Its own state counts, not what a leader believes of it."""
        stage = self._stage
        began = stage.loop.time()
        seen: list[tuple[float, int]] = []
        while True:
            now = stage.loop.time()
            seen.append((now, stage.observer.committed.last(self._group)))
            replica = stage.fleet.replicas().get(self._group, {}).get(name)
            applied = replica.raft.applied if replica is not None else 0
            wanted = max((index for at, index in seen if at <= now - LAG_SECONDS), default=0)
            if wanted and applied >= wanted:
                stage.trace.tell(f"{name} has caught up at {applied}, after {now - began:.1f} s")
                return
            if now - began > BOUND_SECONDS:
                raise Violation(
                    "catching up", f"{name}, up and connected for {BOUND_SECONDS:g} s, is at {applied} of {wanted}"
                )
            await asyncio.sleep(0.25)
