"""Faults of a sharded cluster: those of any cluster, and what only shards can suffer.

kill-catalog: the catalog's leader, while a collection is made. lose-shard: a majority of one shard's replicas, so that
only the other shards go on. cut-router: the links between one router (a shard-aware client, or a node for its plain
clients) and all replicas of one shard. move: a node comes back with another address.
"""

from __future__ import annotations

import asyncio

from needle.base.errors import NeedleError
from needle.base.ids import shard_group
from needle.client.client import Client
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import GroupCall
from needle.routing.topology import Topology
from proof.chaos.injector import ADMIN_SECONDS, READY_SECONDS, Heal, Injector, Injured
from proof.chaos.schedule import Fault

CATALOG = -1
ASK_SECONDS = 0.5


class ShardedInjector(Injector):
    """See the module. routers: clients with links of their own, by name."""

    operator: Client
    routers: tuple[str, ...] = ()
    _collections = 0

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
        catalog = await self.leader()
        return leaders if catalog is None else {CATALOG: catalog, **leaders}

    async def target(self, fault: Fault) -> str:
        names, leaders = list(self.cluster.nodes), await self.leaders()
        if fault.kind == "kill-catalog":
            return leaders.get(CATALOG, self.topology.catalog[0])
        if fault.kind == "cut-router":
            return self._rng.choice([*self.routers, *names])
        leading = sorted(set(leaders.values()))
        others = [name for name in names if name not in leading]
        if fault.target == "leader" and leading:
            return self._rng.choice(leading)
        return self._rng.choice(others if fault.target == "follower" and others else names)

    def minority(self, name: str) -> list[str]:
        """One node of each group of nodes that holds a shard or the catalog."""
        down, topology = [name], self.topology
        names = [other for other in self.cluster.nodes if other != name]
        self._rng.shuffle(names)
        groups = [set(topology.catalog), *(set(info.replicas) for info in topology.shards)]
        for other in names:
            if all(len(group & {*down, other}) <= (len(group) - 1) // 2 for group in groups):
                down.append(other)
        return down

    async def begin(self, fault: Fault, name: str) -> Injured:
        if fault.kind == "kill-catalog":
            return await self._kill_catalog(name)
        if fault.kind == "lose-shard":
            return self._lose_shard(fault)
        if fault.kind == "cut-router":
            return self._cut_router(fault, name)
        if fault.kind == "move":
            return self._move(name)
        return await super().begin(fault, name)

    def _end(self, *names: str) -> Heal:
        """kill -9; heal starts them again."""
        dead = [name for name in names if name not in self.down]
        self.down |= set(dead)
        self.cluster.kill(*dead)

        async def heal() -> None:
            await self.restart(*dead)

        return heal

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
            for (_, to), proxy in self.links.items():
                if to == name:
                    proxy.retarget(address)
            await restart()
            await wait_for(lambda: self._knows(name, address), READY_SECONDS, f"the new address of {name}")

        return Injured({name}, heal, f"{name} comes back elsewhere")

    async def _knows(self, name: str, address: str) -> bool:
        await self.operator.refresh_topology(self.topology.version + 1, timeout=ASK_SECONDS)
        return self.topology.address_of(name) == address

    async def _operate(self, kind: str, name: str) -> Injured:
        if kind == "maintenance":
            return await super()._operate(kind, name)
        try:
            if kind == "step-down":
                shard = self._rng.randrange(len(self.topology.shards))
                after = await self.operator.step_down(shard=shard, timeout=ADMIN_SECONDS)
                return Injured(set(), _nothing, f"shard {shard} to {after}")
            held = [info.shard for info in self.topology.hosted_by(name)]
            shard = self._rng.choice(held)
            body = calls.encode(GroupCall(shard_group(shard), ADMIN_SECONDS))
            address = self.cluster.nodes[name].address
            await self.operator._caller.call(address, calls.FORCE_ELECTION, body, ADMIN_SECONDS)
        except NeedleError as error:
            return Injured(set(), _nothing, f"refused: {error.code}")
        return Injured(set(), _nothing, f"{name} campaigns for shard {shard}")


async def _nothing() -> None:
    """A fault that passes by itself."""
