"""Where a chaos run takes place: processes, a link for each directed pair of them, small disks, and the clients.

A run knows only this; what kind of cluster stands there is its subclasses' business. Invariant: what `open` started or
mounted is gone after `close`, however far `open` came. It must not know the schedule of faults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

import needle
from needle.base.errors import NeedleError
from needle.base.ids import shard_group
from needle.base.model import ReadMode
from needle.base.parts import Body, Payload
from needle.client.changes import DEFAULT_COLLECTION
from needle.local.process_cluster import ProcessCluster
from needle.protocol import calls
from needle.protocol.calls import DigestAnswer, DocumentBatch, Freshness, GetCall
from needle.protocol.peer_calls import ShardAnswer
from needle.rpc.transport import RpcClient
from needle.system import SystemClock
from proof.chaos.disks import SmallDisk, may_mount
from proof.chaos.history_file import Recorder, Replica
from proof.chaos.injector import Injector, Injured
from proof.chaos.spec import ChaosSpec
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.workload import Client, Workload

CLUSTER_ID = "needle"
START_SECONDS = 60.0
FINAL_SECONDS = 60.0
READ_SECONDS = 5.0


class Site(ABC):
    """See the module. clients: the load, made by `prepare`. groups: Raft groups that serve documents, by number."""

    cluster: ProcessCluster
    injector: Injector
    operator: needle.Client
    clients: list[Client]
    groups: list[int]

    def __init__(self, spec: ChaosSpec, profile: Profile, directory: Path) -> None:
        self.spec, self.profile, self._directory = spec, profile, directory
        self.names = [f"node-{n + 1}" for n in range(spec.nodes)]
        self.rng = stream(spec.seed, "chaos", "choices")
        self.disks: dict[str, SmallDisk] = {}
        self._callers: list[RpcClient] = []
        self._started: ProcessCluster | None = None

    # --- life --------------------------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Start everything; returns once it serves."""
        self._mount()
        self.cluster = self._started = self.make_cluster()
        await self.cluster.launch()
        await self.found()

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

    async def digest(self, node: str, shard: int) -> DigestAnswer:
        """Of the node's replica of a shard."""
        call = calls.GroupCall(shard_group(shard), READ_SECONDS)
        return calls.decode(await self.call(node, calls.DIGEST, call), DigestAnswer)

    async def replica(self, node: str, shard: int, keys: list[str]) -> Replica:
        """What this node itself holds of a shard."""
        topology = self.operator.topology()
        collection = topology.collection(DEFAULT_COLLECTION)
        if collection is None or topology.map is None:
            raise AssertionError("the catalog has lost the collection")
        fresh = Freshness(ReadMode.EVENTUAL, 0, 0.0, READ_SECONDS)
        inner = GetCall(shard_group(shard), collection.stored_name, keys, False, fresh, topology.map.epoch)
        answer = await self.digest(node, shard)
        data = await self.call(node, calls.GET, inner)
        found = calls.decode(calls.decode(data, ShardAnswer).body, DocumentBatch)
        documents = dict(zip(found.ids, found.versions, strict=True))
        return Replica(node, answer.applied_index, answer.digest, documents, shard)

    async def call(self, node: str, method: str, call: object) -> Payload:
        """Ask this very node."""
        address = self.cluster.nodes[node].address
        try:
            return await self.operator._caller.call(address, method, calls.encode(call), READ_SECONDS)
        except NeedleError as error:
            raise type(error)(f"{node}: {error.message}") from error

    # --- what kind of cluster ----------------------------------------------------------------------------------------
    @abstractmethod
    def make_cluster(self) -> ProcessCluster:
        """The processes and their links, not started."""

    @abstractmethod
    async def found(self) -> None:
        """The processes run: make a cluster of them, wait until it serves, make the injector."""

    def recorder(self, file: IO[str], **facts: Any) -> Recorder:
        """What writes the history down."""
        return Recorder(file, **facts)

    @abstractmethod
    def prepare(self, work: Workload) -> None:
        """Make the clients and probes."""

    @abstractmethod
    async def leading(self) -> dict[str, str]:
        """Which nodes lead now, and what: "" where there is one group only."""

    @abstractmethod
    async def terms(self) -> dict[int, int]:
        """The highest known term of each group: its growth counts elections."""

    @abstractmethod
    def serving(self, hurt: list[Injured]) -> list[int]:
        """The groups that have a quorum under these faults."""

    @abstractmethod
    async def measure(self, since: float, seen: int, groups: list[int]) -> float:
        """Seconds from `since` until each of `groups` has acknowledged a write begun after it. Raises Violation."""

    @abstractmethod
    async def finish(self) -> None:
        """Wait for probes without an answer yet."""

    @abstractmethod
    async def final(self, history: Recorder) -> None:
        """All replicas equal; every key read once more by a strong read; each replica's own documents noted.
        Raises TimeoutError or AssertionError."""


class OneAddress:
    """A network on which there is one node."""

    def __init__(self, caller: RpcClient, address: str) -> None:
        self._caller, self._address = caller, address

    async def call(self, address: str, method: str, body: Body, timeout: float) -> Payload:
        return await self._caller.call(self._address, method, body, timeout)

    def connected(self, address: str) -> bool:
        return self._caller.connected(self._address)

    async def connect(self, address: str, timeout: float) -> None:
        await self._caller.connect(self._address, timeout)

    async def close(self) -> None:
        await self._caller.close()
