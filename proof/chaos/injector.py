"""Does to real processes what a schedule says, and undoes it.

Each kind of fault is a pair: begin hurts some nodes and returns which of them cannot take part in a quorum meanwhile;
end heals them and returns once their processes run. Invariant: a node is down only while it stands in `down`; a process
that ends otherwise is a violation. It must not know the workload.

kill-catalog: the catalog's leader, while a collection is made. lose-shard: a majority of one shard's replicas, so that
only the other shards go on. cut-router: the links between one router (a client that knows the map, or a node for its
plain clients) and all replicas of one shard. move: a node comes back with another address.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from needle.base.errors import NeedleError
from needle.client import Client
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.topology import Topology
from proof.chaos.disks import SmallDisk
from proof.chaos.schedule import Fault
from proof.checkers.violation import Violation

READY_SECONDS = 60.0
ADMIN_SECONDS = 3.0
ASK_SECONDS = 0.5
CATALOG = -1
"""Stands for the catalog among the numbers of shards."""
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
    apart = {frozenset(link) for one in hurt for link in one.apart}  # in one direction is as bad as in both
    well = [name for name in everyone if name not in without]
    reach = (sum(1 for peer in well if frozenset((name, peer)) not in apart) for name in well)
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
        routers: Sequence[str] = (),
    ) -> None:
        """disks: empty if nodes have none of their own. timeout: election timeout, seconds. routers: clients with links
        of their own, by name."""
        self.cluster, self.links, self.disks = cluster, cluster.links, disks
        self.operator, self.timeout = operator, timeout
        self._rng, self._routers = rng, routers
        self._collections = 0
        self.down: set[str] = set()
        self.full_disks_met = 0
        self.lived_at = 0.0
        """When the processes that were last started again had opened their files and listened; loop time."""

    # --- which node --------------------------------------------------------------------------------------------------
    @property
    def topology(self) -> Topology:
        """As the operator knows it."""
        return self.operator.topology()

    async def leaders(self) -> dict[int, str]:
        """Who leads each shard, and the catalog (CATALOG), as far as the operator can find out now."""
        found: dict[int, tuple[int, str]] = {}
        for replica in await self.operator.cluster_status(timeout=ASK_SECONDS):
            status = replica.status
            if status is not None and status.state == "Leader":
                found[replica.shard] = max(found.get(replica.shard, (0, "")), (status.current_term, replica.node))
        leaders = {shard: node for shard, (_, node) in sorted(found.items())}
        with suppress(NeedleError):
            if (catalog := await self.operator.catalog_leader()) is not None:
                return {CATALOG: catalog, **leaders}
        return leaders

    async def target(self, fault: Fault) -> str:
        """The node (or router) that a fault means."""
        names, leaders = list(self.cluster.nodes), await self.leaders()
        if fault.kind == "kill-catalog":
            return leaders.get(CATALOG, self.topology.catalog[0])
        if fault.kind == "cut-router":
            return self._rng.choice([*self._routers, *names])
        leading = sorted(set(leaders.values()))
        others = [name for name in names if name not in leading]
        if fault.target == "leader" and leading:
            return self._rng.choice(leading)
        return self._rng.choice(others if fault.target == "follower" and others else names)

    # --- faults ------------------------------------------------------------------------------------------------------
    async def begin(self, fault: Fault, name: str) -> Injured:
        """Hurt `name`."""
        kind = fault.kind
        if kind == "kill-catalog":
            return await self._kill_catalog(name)
        if kind.startswith("kill"):
            return self._kill(fault, name)
        if kind == "lose-shard":
            return self._lose_shard(fault)
        if kind == "cut-router":
            return self._cut_router(fault, name)
        if kind == "move":
            return self._move(name)
        if kind == "pause":
            return self._pause(name)
        if kind in ("isolate", "silence", "one-way", "cut-link", "slow-link"):
            return self._links(fault, name)
        if kind == "disk-full":
            return await self._fill(name)
        return await self._operate(kind, name)

    def _kill(self, fault: Fault, name: str) -> Injured:
        names = [name]
        if fault.kind == "kill-minority":
            names = self.minority(name)
        elif fault.kind == "kill-all":
            names = list(self.cluster.nodes)
        dead = [one for one in names if one not in self.down]
        return Injured(set(dead), self._end(*dead), ", ".join(dead))

    def _end(self, *names: str) -> Heal:
        """kill -9; heal starts them again."""
        dead = [name for name in names if name not in self.down]
        self.down |= set(dead)
        self.cluster.kill(*dead)

        async def heal() -> None:
            await self.restart(*dead)

        return heal

    def minority(self, name: str) -> list[str]:
        """One node of each group of nodes that holds a shard or the catalog, `name` first."""
        down, topology = [name], self.topology
        names = [other for other in self.cluster.nodes if other != name]
        self._rng.shuffle(names)
        groups = [set(topology.catalog), *(set(info.replicas) for info in topology.shards)]
        for other in names:
            if all(len(group & {*down, other}) <= (len(group) - 1) // 2 for group in groups):
                down.append(other)
        return down

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
        if kind == "maintenance":
            return await self._maintain(name)
        try:
            if kind == "step-down":
                shard = self._rng.randrange(len(self.topology.shards))
                after = await self.operator.step_down(shard=shard, timeout=ADMIN_SECONDS)
                return Injured(set(), _nothing, f"shard {shard} to {after}")
            shard = self._rng.choice([info.shard for info in self.topology.hosted_by(name)])
            await self.operator.force_new_election(name, shard=shard, timeout=ADMIN_SECONDS)
        except NeedleError as error:
            return Injured(set(), _nothing, f"refused: {error.code}")
        return Injured(set(), _nothing, f"{name} campaigns for shard {shard}")

    async def _maintain(self, name: str) -> Injured:
        said = name
        try:
            await self.operator.enter_maintenance_mode(name, force=True, timeout=ADMIN_SECONDS)
        except NeedleError as error:
            said = f"refused: {error.code}"
        return Injured(set(), lambda: self._leave(name), said)

    async def _leave(self, name: str) -> None:
        async def left() -> bool:
            await self.operator.exit_maintenance_mode(name, timeout=ADMIN_SECONDS)
            return True

        await wait_for(left, READY_SECONDS, f"{name} leaving maintenance")

    # --- shards and the catalog --------------------------------------------------------------------------------------
    async def _kill_catalog(self, name: str) -> Injured:
        restart = self._end(name)
        self._collections += 1
        extra, loop = f"extra-{self._collections}", asyncio.get_running_loop()
        since = loop.time()
        await self.operator.create_collection(extra, dimensions=2, timeout=READY_SECONDS)
        took = loop.time() - since

        async def heal() -> None:
            await restart()
            await self.operator.drop_collection(extra, timeout=READY_SECONDS)

        return Injured({name}, heal, f"{name} killed, a collection made in {took:.2f} s")

    def _lose_shard(self, fault: Fault) -> Injured:
        shards = self.topology.shards
        info = shards[int(fault.amount * len(shards)) % len(shards)]
        lost = self._rng.sample(info.replicas, len(info.replicas) // 2 + 1)
        return Injured(set(lost), self._end(*lost), f"shard {info.shard} without {' '.join(lost)}")

    def _cut_router(self, fault: Fault, name: str) -> Injured:
        shards = self.topology.shards
        whole = [info for info in shards if name not in info.replicas] or list(shards)
        info = whole[int(fault.amount * len(whole)) % len(whole)]
        hurt = {(name, node): self.links[name, node] for node in info.replicas if node != name}
        for number, proxy in enumerate(hurt.values()):
            if number % 2:
                proxy.silence()
            else:
                proxy.cut()

        async def heal() -> None:
            for proxy in hurt.values():
                proxy.heal()

        return Injured(set(), heal, f"{name} does not reach shard {info.shard}", hurt)

    def _move(self, name: str) -> Injured:
        restart, node = self._end(name), self.cluster.nodes[name]

        async def heal() -> None:
            address = node.settings["listen"] = f"127.0.0.1:{free_ports(1)[0]}"
            entries = [entry for entry in node.settings["cluster_nodes"] if not entry.startswith(f"{name}=")]
            node.settings["cluster_nodes"] = [*entries, f"{name}={address}"]
            for (_, to), proxy in self.links.items():
                if to == name:
                    proxy.retarget(address)
            await restart()
            await wait_for(lambda: self._knows(name, address), READY_SECONDS, f"the new address of {name}")

        return Injured({name}, heal, f"{name} comes back elsewhere")

    async def _knows(self, name: str, address: str) -> bool:
        await self.operator.refresh_topology(self.topology.version + 1, timeout=ASK_SECONDS)
        return self.topology.address_of(name) == address

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
