"""Who takes part in a change of the cluster dies, or is cut off, at any of its steps or between two of them.

Invariant: what it holds down or cuts is given back when the fault is over or cancelled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection

from needle.base.ids import CATALOG_GROUP
from proof.sim.faults import both, each
from proof.sim.machine import stream
from proof.sim.shards.happenings import ALL, Happening
from proof.sim.shards.truth import Truth
from proof.sim.spec import Fault
from proof.sim.stage import Stage

WAIT_SECONDS = 10.0
"""So long a fault waits for the step that it draws, and then for any."""
SOON_SECONDS, BETWEEN_SECONDS = 0.02, 0.6
VICTIMS = (
    "coordinator",
    "coordinator",
    "source's leader",
    "target's leader",
    "all leaders",
    "source's majority",
    "target's majority",
    "coordinator and a new one",
)
CUT_SHARE, POWER_SHARE = 0.3, 0.4


class Participants:
    """Who takes part in a change, at one of its steps."""

    def __init__(self, stage: Stage, truth: Truth) -> None:
        self._fleet = stage.fleet
        self._truth = truth

    async def at_a_step(self, rng: random.Random) -> tuple[str, Happening, list[str]] | None:
        """Waits for a step that is drawn, and some time after it: whom it is about, the step, and their nodes. None if
        nothing happens for a while, or nobody is that."""
        wanted, victim = rng.choice(ALL), rng.choice(VICTIMS)
        happened = await self._next({wanted}) or await self._next(ALL)
        if happened is None:
            return None
        await asyncio.sleep(rng.random() * rng.choice([0.0, SOON_SECONDS, BETWEEN_SECONDS]))
        names = self._names(victim, happened)
        return (victim, happened, names) if names else None

    async def _next(self, what: Collection[str]) -> Happening | None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await self._truth.after(what)
        except TimeoutError:
            return None

    def _names(self, victim: str, happened: Happening) -> list[str]:
        if victim == "source's majority":
            return self._majority(happened.source)
        if victim == "target's majority":
            return self._majority(happened.target)
        if victim == "source's leader":
            return self.leaders(happened.source)
        if victim == "target's leader":
            return self.leaders(happened.target)
        if victim == "all leaders":
            return self.leaders(CATALOG_GROUP, happened.source, happened.target)
        return self.leaders(CATALOG_GROUP)

    def leaders(self, *groups: int) -> list[str]:
        """The nodes that lead these groups."""
        return sorted({name for group in groups if (name := self._fleet.leader(group)) is not None})

    def _majority(self, group: int) -> list[str]:
        """The leader of a group and others."""
        wanted, leaders = self._truth.wanted(group), self.leaders(group)
        others = [node for node in wanted if node not in leaders]
        return sorted([*leaders, *others][: len(wanted) // 2 + 1])


class PhaseFaults:
    """See the module."""

    def __init__(self, stage: Stage, truth: Truth) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._network = stage.network
        self._participants = Participants(stage, truth)

    async def at_a_step(self, fault: Fault, name: str) -> None:
        """`name`: not of interest."""
        rng = stream(self._stage.spec.seed, fault.kind, fault.number)
        found = await self._participants.at_a_step(rng)
        if found is None:
            return
        victim, happened, names = found
        cut, power_cut = rng.random() < CUT_SHARE, rng.random() < POWER_SHARE
        self._stage.trace.tell(
            f"after {happened.what} of {happened.source} and {happened.target}: {victim}, {', '.join(names)}, "
            f"{'is cut off' if cut else 'dies'}"
        )
        if cut:
            await self._cut(names, fault.seconds)
            return
        await self._down(names, fault.seconds, power_cut)
        if victim == "coordinator and a new one":
            await asyncio.sleep(rng.random() * BETWEEN_SECONDS)
            await self._down(self._participants.leaders(CATALOG_GROUP), fault.seconds, power_cut)

    async def _down(self, names: list[str], seconds: float, power_cut: bool) -> None:
        for name in names:
            self._fleet.crash(name, power_cut=power_cut, why="at a step")
            self._fleet.hold(name)
        try:
            await asyncio.sleep(seconds)
        finally:
            each(self._fleet.release, names)

    async def _cut(self, names: list[str], seconds: float) -> None:
        """They hear nobody, but go on: who led may not have noticed that others lead now."""
        others = [node for node in sorted(self._fleet.machines) if node not in names]
        links = [link for name in names for link in both(name, others)]
        each(lambda link: self._network.block(*link), links)
        try:
            await asyncio.sleep(seconds)
        finally:
            each(lambda link: self._network.unblock(*link), links)
