"""A cluster with one shard under chaos, on all nodes, that founds itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from needle.base.model import ReadMode
from needle.client.finding import find_cluster
from needle.connecting import cluster_client
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.chaos import check
from proof.chaos.history_file import Recorder
from proof.chaos.injector import Injector, Injured, has_quorum
from proof.chaos.recovery import Probes
from proof.chaos.site import FINAL_SECONDS, START_SECONDS, Site
from proof.chaos.spec import HASTY_SECONDS, ChaosSpec, settings
from proof.sim.databases import ShardAware
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.workload import Client, Workload

CLIENTS, PROBES = 4, 5


class ReplicatedSite(Site):
    """See the module."""

    def __init__(self, spec: ChaosSpec, profile: Profile, directory: Path) -> None:
        super().__init__(spec, profile, directory)
        self.groups = [0]

    def make_cluster(self) -> ProcessCluster:
        return ProcessCluster(
            self._directory,
            self.spec.nodes,
            linked=True,
            dimensions=self.profile.dimensions,
            metric=self.profile.metric,
            **settings(self.spec, self.profile),
        )

    async def found(self) -> None:
        await self.cluster.ready(deadline=START_SECONDS)
        self._addresses = list(self.cluster.addresses.values())
        caller = self.caller("operator")
        self._first = await find_cluster(caller, self._addresses, START_SECONDS)
        self.operator = cluster_client(caller, self._addresses, self._first)
        self.injector = Injector(self.cluster, self.disks, self.operator, self.rng, self.spec.election_timeout)

    def prepare(self, work: Workload) -> None:
        self.clients = [self._client(f"c{n}", work, hasty=n % 2 == 1) for n in range(CLIENTS)]
        self._reader = self._client(check.FINAL, work)
        probes = [self._client(f"p{n}", work) for n in range(PROBES)]
        self._probes = Probes(probes, work.history)

    def _client(self, name: str, work: Workload, *, hasty: bool = False) -> Client:
        caller, rng = self.caller(name), stream(self.spec.seed, "session", name)

        def begin() -> ShardAware:
            session = ShardAware(caller, self._addresses, self._first, rng)
            session.timeout = HASTY_SECONDS if hasty else session.timeout
            return session

        return Client(name, begin, work)

    async def leading(self) -> dict[str, str]:
        leader = await self.injector.leader()
        return {leader: ""} if leader is not None else {}

    async def terms(self) -> dict[int, int]:
        return {self.groups[0]: max(await self.injector.terms(self.names))}

    def serving(self, hurt: list[Injured]) -> list[int]:
        return self.groups if has_quorum(self.names, hurt) else []

    async def measure(self, since: float, seen: int, groups: list[int]) -> float:
        return await self._probes.measure(since, seen)

    async def finish(self) -> None:
        await self._probes.finish()

    async def final(self, history: Recorder) -> None:
        cluster, keys, reader = self.cluster, sorted(history.by_key()), self._reader
        while True:
            digest = await cluster.equal_digests(FINAL_SECONDS)
            for key in keys:
                await wait_for(partial(reader.get, key, ReadMode.STRONG), FINAL_SECONDS, f"a read of {key}")
            replicas = [await self.replica(name, 0, keys) for name in self.names]
            if {replica.digest for replica in replicas} == {digest}:
                break  # nothing moved meanwhile
        for replica in replicas:
            history.replica(replica)
