"""A sharded cluster under chaos: real sharded nodes, shard-aware clients and clients of proxying nodes."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import count
from typing import IO, Any, TypeVar

from needle.base.model import ReadMode
from needle.client.changes import DEFAULT_COLLECTION
from needle.connecting import cluster_client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.strategy import routing_key
from needle.routing.topology import Topology
from proof.chaos import check
from proof.chaos.history_file import Recorder
from proof.chaos.injector import Injured, has_quorum
from proof.chaos.recovery import Probes
from proof.chaos.sharded_clients import Balancer, PlainSession, ShardAwareSession, ShardRecorder, Through
from proof.chaos.sharded_injector import CATALOG, ShardedInjector
from proof.chaos.site import FINAL_SECONDS, START_SECONDS, Site
from proof.chaos.spec import HASTY_SECONDS, settings
from proof.sim.machine import stream
from proof.sim.workload import Client, Workload

ROUTER = "c0"
"""The client whose links can be cut."""
AWARE, PLAIN, PROBES = ("c0", "c1", "c2"), ("n0", "n1", "n2"), 3
HASTY = AWARE[0], PLAIN[0]
"""Clients with short timeouts."""
S = TypeVar("S", ShardAwareSession, PlainSession)


class ShardedSite(Site):
    """See the module. first: the topology of the beginning, with which every session starts."""

    first: Topology
    injector: ShardedInjector
    _history: ShardRecorder

    def recorder(self, file: IO[str], **facts: Any) -> Recorder:
        self._history = ShardRecorder(file, **facts)
        self._history.owner = self.owner
        return self._history

    def make_cluster(self) -> ProcessCluster:
        with_all = settings(self.spec, self.profile)
        return ProcessCluster(
            self._directory, self.spec.nodes, linked=True, outsiders=(ROUTER,), sharding={}, **with_all
        )

    async def found(self) -> None:
        spec, cluster = self.spec, self.cluster
        self._seeds = list(cluster.addresses.values())
        self.first = await cluster.create(spec.shards, spec.replication_factor, rng=self.rng, timeout=START_SECONDS)
        self.operator = cluster_client(self.caller("operator"), self._seeds, self.first)
        await self.operator.create_collection(
            DEFAULT_COLLECTION, dimensions=self.profile.dimensions, metric=self.profile.metric, timeout=START_SECONDS
        )
        if self.first.map is not None:
            ends = [*(start.hex() for start in self.first.map.starts[1:]), None]
            ranges = zip(self.first.map.owners, (start.hex() for start in self.first.map.starts), ends, strict=True)
            self._history.note("map", ranges=[list(one) for one in ranges])
        await cluster.ready(deadline=START_SECONDS)
        self.groups = [info.shard for info in self.first.shards]
        self._terms = dict.fromkeys(self.groups, 0)
        self.injector = ShardedInjector(cluster, self.disks, self.operator, self.rng, spec.election_timeout)
        self.injector.routers = (ROUTER,)

    def owner(self, key: str) -> int:
        """The shard of a document: no range moves during a run."""
        found = self.first.map
        if found is None:
            raise RuntimeError("there is no cluster yet")
        return found.owner(routing_key(found.strategy, found.shard_count, key))

    # --- clients -----------------------------------------------------------------------------------------------------
    def prepare(self, work: Workload) -> None:
        plain = [self._plain(name, work, self.names) for name in PLAIN]
        self.clients = [*(self._aware(name, work) for name in AWARE), *plain]
        self._through_each = [self._plain(f"through {node}", work, [node]) for node in self.names]
        self._reader = self._aware(check.FINAL, work)
        self._probes = {shard: self._probe(shard, work) for shard in self.groups}

    def _probe(self, shard: int, work: Workload) -> Probes:
        def key(seen: int) -> str:
            return next(key for n in count() if self.owner(key := f"probe.{seen}.{n}") == shard)

        clients = [self._aware(f"p{shard}.{n}", work) for n in range(PROBES)]
        return Probes(clients, work.history, key, lambda op: op.details["shard"] == shard)

    def _aware(self, name: str, work: Workload) -> Client:
        rpc, rng = self.caller(name), stream(self.spec.seed, "session", name)
        partials = stream(self.spec.seed, "partial", name)
        caller = Through(rpc, self._over_links) if name == ROUTER else rpc

        def connect() -> ShardAwareSession:
            return self._begin(name, ShardAwareSession(caller, self._seeds, self.first, rng, partials))

        return Client(name, connect, work)

    def _over_links(self, address: str) -> str:
        names = {node.address: name for name, node in self.cluster.nodes.items()}
        return self.cluster.through[ROUTER, names[address]] if address in names else address

    def _plain(self, name: str, work: Workload, nodes: list[str]) -> Client:
        rpc, rng = self.caller(name), stream(self.spec.seed, "session", name)

        def addresses() -> dict[str, str]:
            return {node: self.cluster.nodes[node].address for node in nodes}

        def connect() -> PlainSession:
            return self._begin(name, PlainSession(Balancer(rpc, addresses, rng), rng, self._history.latest_of))

        return Client(name, connect, work)

    def _begin(self, name: str, session: S) -> S:
        self._history.sessions[name] = session
        session.timeout = HASTY_SECONDS if name in HASTY else session.timeout
        return session

    # --- groups ------------------------------------------------------------------------------------------------------
    async def leading(self) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for shard, node in (await self.injector.leaders()).items():
            found.setdefault(node, []).append("catalog" if shard == CATALOG else str(shard))
        return {node: " ".join(what) for node, what in found.items()}

    async def terms(self) -> dict[int, int]:
        for replica in await self.operator.cluster_status(timeout=0.5):
            if replica.status is not None:
                self._terms[replica.shard] = max(self._terms[replica.shard], replica.status.current_term)
        return dict(self._terms)

    def serving(self, hurt: list[Injured]) -> list[int]:
        return [info.shard for info in self.first.shards if has_quorum(info.replicas, hurt)]

    async def measure(self, since: float, seen: int, groups: list[int]) -> float:
        return max(await asyncio.gather(*(self._probes[group].measure(since, seen) for group in groups)))

    async def finish(self) -> None:
        for probes in self._probes.values():
            await probes.finish()

    # --- the end -----------------------------------------------------------------------------------------------------
    async def final(self, history: Recorder) -> None:
        await wait_for(self._one_topology, FINAL_SECONDS, "one topology on all nodes")
        for client in self._through_each:
            key = f"final.{client.name}"
            await wait_for(partial(client.put, key), FINAL_SECONDS, f"a write {client.name}")
            await wait_for(partial(client.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read {client.name}")
        keys, reader = sorted(history.by_key()), self._reader
        while True:
            digests = await wait_for(self._digests, FINAL_SECONDS, "one applied index on all replicas of each shard")
            for key in keys:
                await wait_for(partial(reader.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read of {key}")
            replicas = [
                await self.replica(node, info.shard, [key for key in keys if self.owner(key) == info.shard])
                for info in self.first.shards
                for node in info.replicas
            ]
            if all(replica.digest == digests[replica.shard] for replica in replicas):
                break  # nothing moved meanwhile
        for replica in replicas:
            history.replica(replica)

    async def _one_topology(self) -> bool:
        """Whether all nodes know the same."""
        answers = [await self.call(node, TOPOLOGY, TopologyCall(0)) for node in self.names]
        found = {calls.encode(calls.decode(answer, TopologyAnswer).topology) for answer in answers}
        return len(found) == 1

    async def _digests(self) -> dict[int, str] | None:
        """By shard, once its replicas are at one index. Raises AssertionError if they differ there."""
        found: dict[int, set[tuple[int, str]]] = {}
        for info in self.first.shards:
            for node in info.replicas:
                answer = await self.digest(node, info.shard)
                found.setdefault(info.shard, set()).add((answer.applied_index, answer.digest))
        if any(len({index for index, _ in seen}) > 1 for seen in found.values()):
            return None
        different = {shard: seen for shard, seen in found.items() if len(seen) > 1}
        if different:
            raise AssertionError(f"digests differ at one applied index: {different}")
        return {shard: digest for shard, seen in found.items() for _, digest in seen}
