"""At any step of a change of the cluster, who takes part in it hears nobody or is heard by nobody, or its disk is slow,
stalled or full: it lives, so nobody notices at once, and what it does may come late.

Invariant: links and disks are as before when the fault is over or cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from proof.sim.faults import Handler
from proof.sim.machine import stream
from proof.sim.shards.happenings import Happening
from proof.sim.shards.phases import Participants
from proof.sim.shards.truth import Truth
from proof.sim.spec import Fault
from proof.sim.stage import Stage

LINKS = ("deaf", "mute", "deaf to the others' leaders", "mute to the others' leaders")
DISKS = ("slow", "slow", "stalled", "no room", "full")
"""no room: so little that the node is to refuse data. full: that, and what it writes all the same fails in part."""
STALLED_SECONDS_MAX = 3.0
FULL_SECONDS, BETWEEN_SECONDS = 0.4, 0.8
"""So long nothing can be written to a full disk at most, and then it can: somebody else's files come and go."""


class Troubles:
    """See the module."""

    def __init__(self, stage: Stage, truth: Truth) -> None:
        self._stage = stage
        self._machines = stage.fleet.machines
        self._network = stage.network
        self._participants = Participants(stage, truth)

    def handlers(self) -> Mapping[str, Handler]:
        """By kind of fault."""
        return {"links-at-a-step": self._links, "disks-at-a-step": self._disks}

    async def _links(self, fault: Fault, name: str) -> None:
        """Everything from these nodes, or to them, is lost; the other way it arrives."""
        rng = stream(self._stage.spec.seed, fault.kind, fault.number)
        found = await self._participants.at_a_step(rng)
        if found is None:
            return
        victim, happened, names = found
        how = rng.choice(LINKS)
        others = [node for node in sorted(self._machines) if node not in names]
        if "leaders" in how:
            leaders = self._participants.leaders(0, happened.source, happened.target)
            others = [node for node in leaders if node not in names] or others
        links = [(one, other) for one in names for other in others]
        if how.startswith("deaf"):
            links = [(other, one) for one, other in links]
        self._tell(happened, victim, names, how)
        for link in links:
            self._network.block(*link)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            for link in links:
                self._network.unblock(*link)

    async def _disks(self, fault: Fault, name: str) -> None:
        rng = stream(self._stage.spec.seed, fault.kind, fault.number)
        found = await self._participants.at_a_step(rng)
        if found is None:
            return
        victim, happened, names = found
        how = rng.choice(DISKS)
        self._tell(happened, victim, names, f"with a disk that is {how}" if how != "no room" else "without room")
        machines = [self._machines[one] for one in names]
        try:
            if how == "slow":
                for machine in machines:
                    machine.device.slow = 10 + 200 * fault.amount
                await asyncio.sleep(fault.seconds)
            elif how == "stalled":
                for machine in machines:
                    machine.device.stalled = True
                await asyncio.sleep(min(fault.seconds, STALLED_SECONDS_MAX))
            else:
                for machine in machines:
                    machine.volume.is_low = True
                until = self._stage.loop.time() + fault.seconds
                while (left := until - self._stage.loop.time()) > 0:
                    await asyncio.sleep(min(left, rng.random() * BETWEEN_SECONDS))
                    for machine in machines if how == "full" else []:
                        machine.log_disk.fail_commits = "ENOSPC"
                    await asyncio.sleep(min(left, rng.random() * FULL_SECONDS))
                    for machine in machines if how == "full" else []:
                        machine.log_disk.fail_commits = ""
        finally:
            for machine in machines:
                if how == "slow":
                    machine.device.slow = 1.0
                elif how == "stalled":
                    machine.device.release()
                else:
                    machine.volume.is_low, machine.log_disk.fail_commits = False, ""

    def _tell(self, happened: Happening, victim: str, names: list[str], how: str) -> None:
        self._stage.trace.tell(
            f"after {happened.what} of {happened.source} and {happened.target}: {victim}, {', '.join(names)}, {how}"
        )
