"""The operator has nodes take the place of others, takes nodes away, and restarts all one after the other.

Each is what the command of that name does, by the same methods of the client, repeated while it may be repeated, with
every other fault going on. Invariants: at most one node is on its way out at a time; none begins while a disk has lost
what it promised and nobody has noticed; when `end` returned, nothing of it is under way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from needle.base.errors import DiskFull, InvalidArgument, OutcomeUnknown, StorageError, Unavailable
from needle.client.client import Client
from needle.routing.jobs import JobState
from needle.routing.topology import NodeState
from proof.checkers.violation import Violation
from proof.sim.assigning import Holders
from proof.sim.faults import Controls
from proof.sim.shards.truth import Truth
from proof.sim.stage import Stage

ADMIN_SECONDS = 5.0
REPLACE_SECONDS, RESTART_SECONDS = 15.0, 20.0
"""So long one call takes at most; for a restart: each node."""
MORE_NODES_MAX = 3
"""Above what the run began with."""
KNOWN_TRIES, TRIES, IDLE_TRIES = 40, 6, 30
DEAD_SHARE = 0.4
DOWN_SECONDS = 2.0
NO_OTHER_NODE = "replica of the catalog: no other node can take it"
"""What a rebalance that failed says of it."""


class Turnover:
    """See the module. controls: what the operator knows."""

    def __init__(self, stage: Stage, truth: Truth, holders: Holders, controls: Controls, rng: random.Random) -> None:
        self._stage = stage
        self._fleet = stage.fleet
        self._truth = truth
        self._holders = holders
        self._controls = controls
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()
        self._going = ""
        self._draining = ""
        self.ending = False
        self.restarted = 0
        """How many nodes were restarted by rolling restarts that came to their end."""
        self.emptied = 0
        """How many nodes were drained to the end."""
        self.gone = 0
        """How many nodes were replaced or removed."""

    async def run(self, client: Client, name: str, what: str) -> None:
        """One command, to its end. Raises what says that it cannot be now."""
        task = asyncio.current_task()
        if self.ending or task is None:
            return
        self._tasks.add(task)
        try:
            await {"replace-node": self._replace, "remove-node": self._remove, "rolling-restart": self._restart}[what](
                client, name
            )
        finally:
            self._tasks.discard(task)

    async def end(self, client: Client) -> None:
        """Stop all of it, and use a node again that was to go."""
        self.ending = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.sweep()
        if self._draining in self._holders.members:
            await client.undrain_node(self._draining, timeout=ADMIN_SECONDS)
        self._draining = ""

    def ended(self) -> bool:
        """Whether that is so."""
        return not self._tasks and not self._draining

    # --- who is there -------------------------------------------------------------------------------------------------
    def joined(self, name: str) -> None:
        """A node that came by itself may hold what others hold, from now on."""
        if name not in self._holders.members:
            self._holders.members = sorted([*self._holders.members, name])

    async def _fresh(self) -> str | None:
        """A machine more, once the cluster knows it."""
        if len(self._fleet.machines) >= self._stage.spec.nodes + MORE_NODES_MAX:
            return None
        fresh = self._fleet.add()
        self._fleet.start(fresh)
        for _ in range(KNOWN_TRIES):
            if self._truth.now.node(fresh) is not None:
                self.joined(fresh)
                return fresh
            await asyncio.sleep(0.5)
        self._fleet.retired.add(fresh)
        self._fleet.crash(fresh, power_cut=False, why="nobody lets it in")
        return None

    def sweep(self) -> None:
        """Switch off the nodes that the cluster has forgotten."""
        for name in list(self._holders.members):
            info = self._truth.now.node(name)
            if info is None or info.state is not NodeState.REMOVED:
                continue
            if held := [group for group in self._truth.groups() if name in self._truth.nodes_of(group)]:
                self._stage.guard(lambda: _holds(name, held))  # noqa: B023 - called at once
            self._holders.members = [node for node in self._holders.members if node != name]
            self._fleet.retired.add(name)
            self._fleet.crash(name, power_cut=False, why="the cluster has forgotten it")
            self._stage.trace.tell(f"{name} is no node of the cluster any more")
            self.gone += 1

    def _may_begin(self) -> bool:
        fleet = self._fleet
        unnoticed = (fleet.forgetful | fleet.observer.rotten | fleet.spoilt) - fleet.retired
        return not self._going and not unnoticed

    # --- commands -----------------------------------------------------------------------------------------------------
    async def _replace(self, client: Client, name: str) -> None:
        """`needle node replace`, of a node that runs or has died."""
        holders, fleet = self._holders, self._fleet
        if not self._may_begin() or name not in holders.members or name in fleet.retired:
            return
        self._going = name
        try:
            fresh = await self._fresh()
            if fresh is None:
                return
            bad = fleet.forgetful | fleet.observer.rotten | fleet.spoilt
            if self._rng.random() < DEAD_SHARE and not bad and self._controls.may_lose(name):
                fleet.retired.add(name)
                fleet.crash(name, power_cut=True, why="dead, and to be replaced")
            self._stage.trace.tell(f"{fresh} is to take the place of {name}")
            await self._until_idle()
            await self._repeated(lambda: client.replace_node(name, fresh, timeout=REPLACE_SECONDS))
        finally:
            self._going = ""
            self.sweep()

    async def _remove(self, client: Client, name: str) -> None:
        """`needle node drain`, then `needle node remove`."""
        if not self._may_begin() or name not in self._holders.members or name in self._fleet.retired:
            return
        self._going = name
        try:
            await self._until_idle()
            self._draining = name
            id_ = await client.drain_node(name, timeout=ADMIN_SECONDS)
            if await self._done(id_):
                self.emptied += 1
                await self._repeated(lambda: client.remove_node(name, timeout=ADMIN_SECONDS))
            else:
                await client.undrain_node(name, timeout=ADMIN_SECONDS)
            self._draining = ""
        finally:
            self._going = ""
            self.sweep()

    async def _done(self, id_: int) -> bool:
        """Wait until a rebalance is over: whether it did what was wished."""
        while True:
            job = self._truth.now.rebalance
            if job is not None and job.id >= id_ and job.over:
                if job.id == id_ and job.state is JobState.FAILED:
                    self._check_refusal(self._draining, job.why)
                return job.id == id_ and job.state is JobState.DONE
            await asyncio.sleep(0.25)

    def _check_refusal(self, name: str, why: str) -> None:
        """The catalog keeps no node for want of another one as long as enough stay for it to shrink to."""
        now = self._truth.now
        there = [info.id for info in now.nodes if info.state is NodeState.ACTIVE]
        least = min((len(info.wanted) for info in now.serving), default=1)
        spare = [node for node in there if node not in now.catalog]
        if NO_OTHER_NODE in why and name in now.catalog and not spare and len(there) >= max(least, 1):
            self._stage.guard(lambda: _kept(name, there, why))

    async def _restart(self, client: Client, name: str) -> None:
        """`needle rolling-restart`. If it is given up, the node that is in maintenance is taken out of it."""
        began: list[str] = []

        async def restart(node: str, address: str) -> None:
            began.append(node)
            self._fleet.crash(node, power_cut=False, why="rolling restart")
            self._fleet.hold(node)
            try:
                await asyncio.sleep(DOWN_SECONDS * self._rng.random())
            finally:
                self._fleet.release(node)

        try:
            done = await client.rolling_restart(restart, told=self._stage.trace.note, timeout=RESTART_SECONDS)
        except (Unavailable, InvalidArgument, OutcomeUnknown, DiskFull) as error:
            self._stage.trace.tell(f"rolling restart ends after {', '.join(began) or 'no node'}: {error}")
            if began and not self.ending:
                await self._repeated(lambda: client.exit_maintenance_mode(began[-1], timeout=ADMIN_SECONDS))
            return
        self.restarted += len(done)
        if [one.node for one in done] != began:
            self._stage.guard(lambda: _wrong(began, [one.node for one in done]))

    async def _until_idle(self) -> None:
        """Wait a while for the end of the rebalance that is under way."""
        for _ in range(IDLE_TRIES):
            if not self._controls.is_moving():
                return
            await asyncio.sleep(0.5)

    async def _repeated(self, ask: Callable[[], object]) -> None:
        """Repeat what may be repeated. Raises what it was refused with."""
        for tries in range(TRIES):
            try:
                await ask()  # type: ignore[misc]
            except (Unavailable, OutcomeUnknown, StorageError, DiskFull, InvalidArgument) as error:
                other = isinstance(error, InvalidArgument) and error.details.get("field") != "rebalance"
                if other or tries == TRIES - 1:
                    raise
                self._stage.trace.note(f"once more: {error}")
                await asyncio.sleep(2.0)
            else:
                return


def _kept(name: str, there: list[str], why: str) -> None:
    raise Violation("the catalog follows its nodes", f"it cannot leave {name}, with {there} to stay: {why}")


def _holds(name: str, groups: list[int]) -> None:
    raise Violation("removed nodes hold nothing", f"{name} was removed and holds groups {groups}")


def _wrong(began: list[str], done: list[str]) -> None:
    raise Violation("rolling restart", f"says that it restarted {done}; it restarted {began}")
