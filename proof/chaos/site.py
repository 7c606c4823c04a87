"""Where a chaos run takes place: processes, a link for each directed pair of them, small disks, clients and probes.

How many nodes and shards there are is the spec's to say; the cluster founds itself by its settings. Invariant: what
`open` started or mounted is gone after `close`, however far `open` came. It must not know the schedule of faults.
"""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import needle
from needle.base.errors import NeedleError
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.base.parts import Payload
from needle.client.feeds import DEFAULT_COLLECTION
from needle.client.finding import find_cluster
from needle.connecting import cluster_client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol import calls
from needle.protocol.calls import DigestAnswer, DocumentBatch, Freshness, GetCall
from needle.protocol.peer_calls import TOPOLOGY, ShardAnswer, TopologyAnswer, TopologyCall
from needle.routing.shard_map import ShardMap
from needle.routing.strategy import routing_key
from needle.routing.topology import Topology
from needle.rpc.transport import RpcClient
from needle.system import SystemClock
from proof.chaos import check
from proof.chaos.clients import Balanced, Balancer, ShardRecorder, Through
from proof.chaos.disks import SmallDisk, may_mount
from proof.chaos.history_file import Replica
from proof.chaos.injector import CATALOG, Injector, Injured, has_quorum
from proof.chaos.recovery import Probes
from proof.chaos.spec import HASTY_SECONDS, ChaosSpec, settings
from proof.sim.client import Client
from proof.sim.databases import ShardAware
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.workload import Workload

CLUSTER_ID = "needle"
START_SECONDS = 60.0
FINAL_SECONDS = 60.0
READ_SECONDS = 5.0
ROUTER = "c0"
"""The client whose links can be cut."""
AWARE, PLAIN, PROBES = ("c0", "c1", "c2"), ("n0", "n1", "n2"), 3
HASTY = AWARE[0], AWARE[2], PLAIN[1], "h1", "h4"
"""Clients with short timeouts."""


class Site:
    """See the module. first: the topology of the beginning, with which every session starts. clients: the load, made by
    `prepare`: `aware` ones, which know the map, and `plain` ones. groups: the shards, by number."""

    aware: tuple[str, ...] = AWARE
    plain: tuple[str, ...] = PLAIN
    cluster: ProcessCluster
    injector: Injector
    operator: needle.Client
    clients: list[Client]
    groups: list[int]
    first: Topology

    def __init__(self, spec: ChaosSpec, profile: Profile, directory: Path) -> None:
        self.spec, self.profile = spec, profile
        self._directory = directory
        self.names = [f"node-{n + 1}" for n in range(spec.nodes)]
        self.rng = stream(spec.seed, "chaos", "choices")
        self.disks: dict[str, SmallDisk] = {}
        self._callers: list[RpcClient] = []
        self._started: ProcessCluster | None = None

    # --- life --------------------------------------------------------------------------------------------------------
    async def open(self, history: ShardRecorder) -> None:
        """Start everything; returns once it serves."""
        self._mount()
        self.cluster = self._started = ProcessCluster(
            self._directory, self.spec.nodes, linked=True, outsiders=(ROUTER,), **settings(self.spec, self.profile)
        )
        await self.cluster.launch()
        await self.cluster.ready(deadline=START_SECONDS)
        seeds, caller = list(self.cluster.addresses.values()), self.caller("operator")
        self.first = await find_cluster(caller, seeds, START_SECONDS)
        self.groups = [info.shard for info in self.first.shards]
        self._terms = dict.fromkeys(self.groups, 0)
        self.operator = cluster_client(caller, seeds, self.first)
        self.injector = Injector(
            self.cluster, self.disks, self.operator, self.rng, self.spec.election_timeout, (ROUTER,)
        )
        history.owner, history.latest = self.owner, dict.fromkeys(self.groups, 0)
        starts = [start.hex() for start in self._map.starts]
        ranges = zip(self._map.owners, starts, [*starts[1:], None], strict=True)
        history.note("map", ranges=[list(one) for one in ranges])

    async def close(self) -> None:
        """End everything."""
        if self._started is not None:
            await self._started.close()
        for caller in self._callers:
            await caller.close()
        for disk in self.disks.values():
            disk.unmount()

    def _mount(self) -> None:
        self.disks = {name: SmallDisk(self._directory / name) for name in self.names} if may_mount() else {}
        if not all(disk.mount() for disk in self.disks.values()):
            for disk in self.disks.values():
                disk.unmount()
            self.disks = {}

    def caller(self, name: str) -> RpcClient:
        """A client's connections, closed with the site."""
        made = RpcClient(cluster_id=CLUSTER_ID, rng=stream(self.spec.seed, "rpc", name), clock=SystemClock())
        self._callers.append(made)
        return made

    @property
    def _map(self) -> ShardMap:
        if self.first.map is None:
            raise RuntimeError("there is no cluster yet")
        return self.first.map

    def owner(self, key: str) -> int:
        """The shard of a document: no range moves during a run."""
        return self._map.owner(routing_key(self._map.strategy, self._map.shard_count, key))

    # --- clients -----------------------------------------------------------------------------------------------------
    def prepare(self, work: Workload) -> None:
        """Make the clients and probes."""
        plain = [self._plain(name, work, self.names) for name in self.plain]
        self.clients = [*(self._aware(name, work) for name in self.aware), *plain]
        self._through_each = [self._plain(f"through {node}", work, [node]) for node in self.names]
        self._work = work
        self._probes = {shard: self._probe(shard, work) for shard in self.groups}

    def _probe(self, shard: int, work: Workload) -> Probes:
        def key(seen: int) -> str:
            return next(key for n in count() if self.owner(key := f"probe.{seen}.{n}") == shard)

        clients = [self._aware(f"p{shard}.{n}", work) for n in range(PROBES)]
        return Probes(clients, work.history, key, lambda op: op.details["shard"] == shard)

    def _aware(self, name: str, work: Workload) -> Client:
        rpc, rng = self.caller(name), stream(self.spec.seed, "session", name)
        caller = Through(rpc, self.over_links) if name == ROUTER else rpc

        def session() -> ShardAware:
            # Where the nodes are now: who asked for nothing while one after the other moved would find none of them.
            return ShardAware(caller, list(self.cluster.addresses.values()), self.first, rng)

        return Client(name, lambda: timed(name, session()), work)

    def over_links(self, address: str) -> str:
        """Where ROUTER goes to reach `address`."""
        names = {node.address: name for name, node in self.cluster.nodes.items()}
        return self.cluster.through[ROUTER, names[address]] if address in names else address

    def _plain(self, name: str, work: Workload, nodes: list[str]) -> Client:
        rpc, rng = self.caller(name), stream(self.spec.seed, "session", name)

        def addresses() -> dict[str, str]:
            return {node: self.cluster.nodes[node].address for node in nodes}

        return Client(name, lambda: timed(name, Balanced(Balancer(rpc, addresses, rng), rng)), work)

    # --- the groups --------------------------------------------------------------------------------------------------
    async def leading(self) -> dict[str, str]:
        """Which nodes lead now, and what."""
        found: dict[str, list[str]] = {}
        for shard, node in (await self.injector.leaders()).items():
            found.setdefault(node, []).append("catalog" if shard == CATALOG else str(shard))
        return {node: " ".join(what) for node, what in found.items()}

    async def terms(self) -> dict[int, int]:
        """The highest known term of each shard: its growth counts elections."""
        for replica in await self.operator.cluster_status(timeout=0.5):
            if replica.status is not None:
                self._terms[replica.shard] = max(self._terms[replica.shard], replica.status.current_term)
        return dict(self._terms)

    def serving(self, hurt: list[Injured]) -> list[int]:
        """The shards that have a quorum under these faults."""
        return [info.shard for info in self.first.shards if has_quorum(info.replicas, hurt)]

    async def measure(self, since: float, seen: int, groups: list[int]) -> float:
        """Seconds from `since` until each of `groups` has acknowledged a write begun after it. Raises Violation."""
        return max(await asyncio.gather(*(self._probes[group].measure(since, seen) for group in groups)))

    async def finish(self) -> None:
        """Wait for probes without an answer yet."""
        for probes in self._probes.values():
            await probes.finish()

    def check(self) -> None:
        """Raises what was met beside the workload."""

    def told(self) -> list[str]:
        """What the run showed beside the workload, line by line."""
        return []

    # --- the end -----------------------------------------------------------------------------------------------------
    async def final(self, history: ShardRecorder) -> None:
        """All replicas equal; every key read once more by a strong read; each replica's own documents noted.
        Raises TimeoutError or AssertionError."""
        await wait_for(self._one_topology, FINAL_SECONDS, "one topology on all nodes")
        for client in self._through_each:
            key = f"final.{client.name}"
            await wait_for(partial(client.put, key), FINAL_SECONDS, f"a write {client.name}")
            await wait_for(partial(client.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read {client.name}")
        keys, reader = sorted(history.by_key()), self._aware(check.FINAL, self._work)
        while True:
            digests = await wait_for(self._digests, FINAL_SECONDS, "one applied index on all replicas of each shard")
            for key in keys:
                await wait_for(partial(reader.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read of {key}")
            replicas = [
                await self._replica(node, info.shard, [key for key in keys if self.owner(key) == info.shard])
                for info in self.first.shards
                for node in info.replicas
            ]
            if all(replica.digest == digests[replica.shard] for replica in replicas):
                break  # nothing moved meanwhile
        for replica in replicas:
            history.replica(replica)

    async def _one_topology(self) -> bool:
        """Whether all nodes know the same."""
        answers = [await self._call(node, TOPOLOGY, TopologyCall(0)) for node in self.names]
        found = {calls.encode(calls.decode(answer, TopologyAnswer).topology) for answer in answers}
        return len(found) == 1

    async def _digests(self) -> dict[int, str] | None:
        """By shard, once its replicas are at one index. Raises AssertionError if they differ there."""
        found: dict[int, set[tuple[int, str]]] = {}
        for info in self.first.shards:
            for node in info.replicas:
                answer = await self._digest(node, info.shard)
                found.setdefault(info.shard, set()).add((answer.applied_index, answer.digest))
        if any(len({index for index, _ in seen}) > 1 for seen in found.values()):
            return None
        different = {shard: seen for shard, seen in found.items() if len(seen) > 1}
        if different:
            raise AssertionError(f"digests differ at one applied index: {different}")
        return {shard: digest for shard, seen in found.items() for _, digest in seen}

    async def _digest(self, node: str, shard: int) -> DigestAnswer:
        """Of the node's replica of a shard."""
        call = calls.GroupCall(shard_group(shard), READ_SECONDS)
        return calls.decode(await self._call(node, calls.DIGEST, call), DigestAnswer)

    async def _replica(self, node: str, shard: int, keys: list[str]) -> Replica:
        """What this node itself holds of a shard."""
        topology = self.operator.topology()
        collection = topology.collection(DEFAULT_COLLECTION)
        if collection is None or topology.map is None:
            raise AssertionError("the catalog has lost the collection")
        fresh = Freshness(ReadMode.EVENTUAL, 0, 0.0, READ_SECONDS)
        inner = GetCall(shard_group(shard), collection.stored_name, keys, False, fresh, topology.map.epoch)
        answer = await self._digest(node, shard)
        data = await self._call(node, calls.GET, inner)
        found = calls.decode(calls.decode(data, ShardAnswer).body, DocumentBatch)
        documents = dict(zip(found.ids, found.versions, strict=True))
        return Replica(node, answer.applied_index, answer.digest, documents, shard)

    async def _call(self, node: str, method: str, call: Any) -> Payload:
        """Ask this very node."""
        address = self.cluster.nodes[node].address
        try:
            return await self.operator._caller.call(address, method, calls.encode(call), READ_SECONDS)
        except NeedleError as error:
            raise type(error)(f"{node}: {error.message}") from error


def timed(name: str, session: Any) -> Any:
    """With the timeout that the client of this name has."""
    session.timeout = HASTY_SECONDS if name in HASTY else session.timeout
    return session
