"""Does to real processes what a schedule says, and undoes it.

Each kind of fault is a pair: begin hurts some nodes and returns which of them cannot take part in a quorum meanwhile;
end heals them and returns once their processes run. Invariant: a node is down only while it stands in `down`; a process
that ends otherwise is a violation. It must not know the workload.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from needle.base.errors import NeedleError
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.chaos.disks import SmallDisk
from proof.chaos.schedule import Fault
from proof.sim.violation import Violation

READY_SECONDS = 60.0
ADMIN_SECONDS = 3.0
SLOW_SECONDS_MAX = 0.2
SLOW_TIMEOUTS_MAX = 1 / 8
"""Over a link that delays by more than this part of an election timeout a quorum cannot be expected: an election takes
two round trips, and what queues behind a delayed message waits twice."""
Heal = Callable[[], Awaitable[None]]


class Injured:
    """One fault under way. without: nodes that a quorum has to do without; apart: links (from, to) that are cut, or too
    slow for an election, while both ends may be well. note: what came of it. since: when it took effect (loop time), if
    not at once."""

    def __init__(self, without: set[str], heal: Heal, note: str = "", apart: Iterable[tuple[str, str]] = ()) -> None:
        self.without = without
        self.apart = set(apart)
        self.heal = heal
        self.note = note
        self.since = 0.0


def has_quorum(names: Iterable[str], hurt: Iterable[Injured]) -> bool:
    """Whether some node can talk to a majority, itself included."""
    everyone = list(names)
    without = {name for one in hurt for name in one.without}
    apart = {link for one in hurt for link in one.apart}
    well = [name for name in everyone if name not in without]
    reach = (sum(1 for peer in well if (name, peer) not in apart) for name in well)
    return any(count > len(everyone) // 2 for count in reach)


class Injector:
    """The faults of one run."""

    def __init__(
        self,
        cluster: ProcessCluster,
        disks: dict[str, SmallDisk],
        operator: Client,
        rng: random.Random,
        timeout: float,
    ) -> None:
        """disks: empty if nodes have none of their own. timeout: election timeout, seconds."""
        self.cluster, self.links, self.disks = cluster, cluster.links, disks
        self.operator, self.timeout = operator, timeout
        self._rng = rng
        self.down: set[str] = set()
        self.full_disks_met = 0
        self.lived_at = 0.0
        """When the processes that were last started again had opened their files and listened; loop time."""

    # --- which node --------------------------------------------------------------------------------------------------
    async def leader(self) -> str | None:
        """Who leads, as far as the operator can find out now."""
        try:
            return await self.operator.leader()
        except NeedleError:
            return None

    async def terms(self, names: Iterable[str]) -> list[int]:
        """The term that each of these nodes tells of; 0 for one that does not answer."""

        async def ask(name: str) -> int:
            try:
                return (await self.operator.node_status(name, timeout=0.5)).current_term
            except NeedleError:
                return 0

        return await asyncio.gather(*(ask(name) for name in names))

    async def target(self, fault: Fault) -> str:
        """The node that a fault means."""
        names = list(self.cluster.nodes)
        leader = await self.leader()
        if fault.target == "leader" and leader is not None:
            return leader
        if fault.target == "follower" and leader is not None:
            names.remove(leader)
        return self._rng.choice(names)

    # --- faults ------------------------------------------------------------------------------------------------------
    async def begin(self, fault: Fault, name: str) -> Injured:
        """Hurt `name`."""
        kind = fault.kind
        if kind.startswith("kill"):
            return self._kill(fault, name)
        if kind == "pause":
            return self._pause(name)
        if kind in ("isolate", "silence", "one-way", "cut-link", "slow-link"):
            return self._links(fault, name)
        if kind == "disk-full":
            return await self._fill(name)
        return await self._operate(kind, name)

    def _kill(self, fault: Fault, name: str) -> Injured:
        names = list(self.cluster.nodes)
        if fault.kind == "kill-minority":
            names = self.minority(name)
        elif fault.kind == "kill":
            names = [name]
        dead = [one for one in names if one not in self.down]
        self.down |= set(dead)
        self.cluster.kill(*dead)

        async def heal() -> None:
            await self.restart(*dead)

        return Injured(set(dead), heal, ", ".join(dead))

    def minority(self, name: str) -> list[str]:
        """As many nodes as may be down at once, `name` among them."""
        others = [other for other in self.cluster.nodes if other != name]
        return [name, *self._rng.sample(others, len(others) // 2 - 1)]

    async def restart(self, *names: str) -> None:
        """Start processes again, and wait until they serve."""
        for name in names:
            self.cluster.restart(name)
            self.down.discard(name)
        for name in names:
            await wait_for(partial(self._lives, name), READY_SECONDS, f"{name} living")
        self.lived_at = asyncio.get_running_loop().time()
        if names:
            await self.cluster.ready(*names, deadline=READY_SECONDS)

    async def _lives(self, name: str) -> bool:
        return (await self.cluster.http(name, "/livez"))[0] == 200

    def _pause(self, name: str) -> Injured:
        if name in self.down:
            return Injured(set(), _nothing, "was down")
        self.cluster.pause(name)

        async def heal() -> None:
            if name not in self.down:  # the other fault of the round may have killed it
                self.cluster.resume(name)

        return Injured({name}, heal, name)

    def _links(self, fault: Fault, name: str) -> Injured:
        out = {link: proxy for link, proxy in self.links.items() if link[0] == name}
        into = {link: proxy for link, proxy in self.links.items() if link[1] == name}
        hurt = {**out, **into}
        without, apart = {name}, False
        if fault.kind == "isolate":
            for proxy in hurt.values():
                proxy.cut()
        elif fault.kind == "silence":
            for proxy in hurt.values():
                proxy.silence()
        elif fault.kind == "one-way":
            deaf = fault.amount < 0.5
            for link, proxy in hurt.items():
                proxy.silence("forward" if (link in into) == deaf else "back")
        elif fault.kind == "cut-link":
            peer = self._rng.choice([other for other in self.cluster.nodes if other != name])
            hurt = {link: proxy for link, proxy in hurt.items() if set(link) == {name, peer}}
            without, apart = set(), True
            for proxy in hurt.values():
                proxy.cut()
        else:
            delay = SLOW_SECONDS_MAX * fault.amount
            without, apart = set(), delay > self.timeout * SLOW_TIMEOUTS_MAX
            for proxy in hurt.values():
                proxy.delay = delay

        async def heal() -> None:
            for proxy in hurt.values():
                if fault.amount < 0.3 and fault.kind != "slow-link":
                    proxy.drop_held()
                proxy.heal()

        note = " ".join(f"{a}>{b}" for a, b in hurt) if fault.kind == "cut-link" else name
        return Injured(without, heal, note, hurt if apart else ())

    async def _fill(self, name: str) -> Injured:
        disk, node = self.disks.get(name), self.cluster.nodes[name]
        if disk is None:
            return Injured(set(), _nothing, "no disks of their own: not root")
        self.down.add(name)  # it may not be able to write its log, and then it does not vote
        await asyncio.to_thread(disk.fill)
        full = asyncio.get_running_loop().time()

        async def heal() -> None:
            """A node with a full disk goes on, and takes writes again by itself."""
            await asyncio.to_thread(disk.free)
            self.full_disks_met += 1
            if not node.running():
                raise Violation("a full disk ends no node", f"{name}: {node.output()[-1500:]}")
            self.down.discard(name)
            await self.cluster.ready(name, deadline=READY_SECONDS)

        injured = Injured({name}, heal, name)
        injured.since = full
        return injured

    async def _operate(self, kind: str, name: str) -> Injured:
        try:
            if kind == "step-down":
                after = await self.operator.step_down(timeout=ADMIN_SECONDS)
                return Injured(set(), _nothing, f"to {after}")
            if kind == "force-election":
                await self.operator.force_new_election(name, timeout=ADMIN_SECONDS)
                return Injured(set(), _nothing, name)
            await self.operator.enter_maintenance_mode(name, timeout=ADMIN_SECONDS)
        except NeedleError as error:
            if kind == "maintenance":
                return Injured(set(), lambda: self._leave(name), f"refused: {error.code}")
            return Injured(set(), _nothing, f"refused: {error.code}")
        return Injured(set(), lambda: self._leave(name), name)

    async def _leave(self, name: str) -> None:
        async def left() -> bool:
            await self.operator.exit_maintenance_mode(name, timeout=ADMIN_SECONDS)
            return True

        await wait_for(left, READY_SECONDS, f"{name} leaving maintenance")

    # --- always ------------------------------------------------------------------------------------------------------
    def check_processes(self) -> None:
        """Raises Violation if a process ended that nobody hurt."""
        for name, node in self.cluster.nodes.items():
            if name not in self.down and not node.running():
                raise Violation("processes live", f"{name} ended with {node.wait()}: {node.output()[-2000:]}")

    def heal_links(self) -> None:
        for proxy in self.links.values():
            proxy.heal()


async def _nothing() -> None:
    """A fault that passes by itself."""
