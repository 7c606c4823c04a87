"""An operator who puts nodes into maintenance without `--force`, most of all while others are down, and takes them out
again.

Invariant checked: who is let in is not needed. A replica that has been down for so long that its leader knows it counts
for nothing: without the node that is let in, the rest must have a majority of each of its groups, if one is down at
all, and somebody who may lead. What changed while the operator waited is not judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from needle.base.errors import DiskFull, InvalidArgument, NeedleError, OutcomeUnknown, StorageError, Unavailable
from needle.base.ids import GroupId
from needle.client.client import Client
from proof.checkers.violation import Violation
from proof.sim.machine import stream
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

NAME: Final = "careful"
RULE: Final = "maintenance costs no majority"
CALL_SECONDS: Final = 5.0
KNOWN_SECONDS: Final = 3.0
"""After so long a leader knows that a node is down: two election timeouts, and what clocks differ."""
LOOK_SECONDS, REST_SECONDS, IN_SECONDS = 0.5, 8.0, 2.0
ANYWAY_SHARE: Final = 0.1
"""Of the looks that find nobody down, after which somebody goes into maintenance all the same."""


class Needed(NamedTuple):
    """Why a group cannot do without a node: who else holds it, who of them is down, who is in maintenance."""

    group: GroupId
    voters: tuple[str, ...]
    down: tuple[str, ...]
    resting: tuple[str, ...]


class Careful:
    """See the module. broken: the violation it found. let_in, refused: how often."""

    def __init__(self, stage: Stage, client: Client, truth: Truth) -> None:
        self._stage, self._client, self._truth = stage, client, truth
        self._rng = stream(stage.spec.seed, NAME)
        self.let_in = self.refused = 0
        self.stopping = False
        self.broken: Violation | None = None

    async def run(self) -> None:
        """Until `stopping`; what it put into maintenance is out of it then, or the node hears of it no more."""
        while not self.stopping:
            await asyncio.sleep(LOOK_SECONDS)
            down = self._down(self._stage.loop.time() - KNOWN_SECONDS)
            if down or self._rng.random() < ANYWAY_SHARE:
                await self._try(down)
                await asyncio.sleep(self._rng.expovariate(1 / REST_SECONDS))
        self._stage.trace.tell(f"maintenance without force: {self.let_in} let in, {self.refused} refused")

    async def _try(self, down: set[str]) -> None:
        now = self._truth.now
        near = {
            node for group in self._truth.groups() for node in self._truth.nodes_of(group)
            if not down or down & {*self._truth.nodes_of(group)}
        }  # fmt: skip
        nodes = [info.id for info in now.nodes if info.id in near - down and not info.maintenance]
        if not nodes:
            return
        name = self._rng.choice(nodes)
        known = self._stage.loop.time() - KNOWN_SECONDS
        before = self.needed(name, known)
        if await self._done(self._client.enter_maintenance_mode(name, timeout=CALL_SECONDS)):
            self.let_in += 1
            if wrong := sorted(before & self.needed(name, known)):
                self.broken = self.broken or Violation(RULE, f"{name} was let in, and is needed: {wrong[0]}")
            await asyncio.sleep(self._rng.expovariate(1 / IN_SECONDS))
        await self._out(name)

    async def _out(self, name: str) -> None:
        """Also if nobody knows whether it was let in. Who has stopped leaves that to the other operator."""
        leave: Callable[[], Awaitable[None]] = lambda: self._client.exit_maintenance_mode(name, timeout=CALL_SECONDS)  # noqa: E731
        while not self.stopping and (info := self._truth.now.node(name)) is not None and info.maintenance:
            if not await self._done(leave()):
                await asyncio.sleep(LOOK_SECONDS)

    async def _done(self, work: Awaitable[None]) -> bool:
        try:
            await work
        except InvalidArgument as error:
            self._stage.trace.note(f"careful: {error.message}")
            self.refused += 1
            return False
        except NeedleError as error:
            self._stage.trace.note(f"careful: {error.code}: {error.message}")
            if not isinstance(error, Unavailable | OutcomeUnknown | StorageError | DiskFull):
                self.broken = self.broken or Violation("expected errors", f"{NAME}: {error!r}: {error}")
            return False
        return True

    # --- what is so ---------------------------------------------------------------------------------------------------
    def _down(self, since: float) -> set[str]:
        """Nodes that have not run since then."""
        return {name for name, at in self._stage.fleet.down_since.items() if at <= since}

    def needed(self, name: str, since: float) -> set[Needed]:
        """Which groups cannot do without a node, by who has been down since then and who is in maintenance."""
        found: set[Needed] = set()
        resting = {info.id for info in self._truth.now.nodes if info.maintenance} - {name}
        down = self._down(since)
        for group in self._truth.groups():
            leader = self._stage.fleet.leader(group)
            conf = self._stage.fleet.nodes[leader].groups()[group].raft.conf if leader is not None else None
            if conf is None or conf.voters_outgoing or name not in conf.voters or len(conf.voters) == 1:
                continue
            voters = {*conf.voters} - {name}
            able = voters - down
            if (voters & down and 2 * len(able) <= len(conf.voters)) or not able - resting:
                parts = (voters, voters & down, able & resting if not able - resting else set())
                found.add(Needed(group, *(tuple(sorted(one)) for one in parts)))
        return found
