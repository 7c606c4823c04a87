"""Where a chaos run takes place: processes, a link for each directed pair of them, small disks, and the clients.

A run knows only this; what kind of cluster stands there is its subclasses' business. Invariant: what `open` started or
mounted is gone after `close`, however far `open` came. It must not know the schedule of faults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

from needle.base.parts import Body, Payload
from needle.local.process_cluster import ProcessCluster
from needle.rpc.transport import RpcClient
from needle.system import SystemClock
from proof.chaos.disks import SmallDisk, may_mount
from proof.chaos.history_file import Recorder
from proof.chaos.injector import Injector, Injured
from proof.chaos.spec import ChaosSpec
from proof.sim.machine import stream
from proof.sim.spec import Profile
from proof.sim.workload import Client, Workload

CLUSTER_ID = "needle"
START_SECONDS = 60.0
FINAL_SECONDS = 60.0


class Site(ABC):
    """See the module. clients: the load, made by `prepare`. groups: Raft groups that serve documents, by number."""

    cluster: ProcessCluster
    injector: Injector
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
