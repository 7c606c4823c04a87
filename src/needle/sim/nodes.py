"""How a simulated process becomes a node: the ports that the simulation implements, handed to the product.

It must not know faults, clients or checkers.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Protocol, cast

from needle.base import protocol
from needle.base.config import RaftConfig, SegmentConfig
from needle.base.errors import NeedleError
from needle.base.ids import GroupId, shard_group
from needle.base.model import HitBatch, ReadMode, WriteResult
from needle.base.protocol import DocumentBatch
from needle.client.client import Client as RealClient
from needle.client.directory import Caller
from needle.rpc.peer_transport import PeerTransport
from needle.rpc.transport import RpcClient
from needle.server.node import Node
from needle.server.ports import NodePorts
from needle.sim.disk import SimStore
from needle.sim.event_loop import SimLoop
from needle.sim.machine import SimPool, stream
from needle.sim.machines import SimFiles, SimMachine, SimReplicaDisk
from needle.sim.network import SimEndpoint, SimNetwork
from needle.sim.observer import ObservedMachine, Observer
from needle.sim.process import Process
from needle.sim.spec import Profile, Spec

DATA_GROUP: GroupId = shard_group(0)
ELECTION_TIMEOUT = 1.0
HEARTBEAT_INTERVAL = 0.3
CALL_TIMEOUT = 5.0


class Surroundings(Protocol):
    """The world, as a node's factory sees it."""

    spec: Spec
    profile: Profile
    loop: SimLoop
    machines: dict[str, SimMachine]
    founders: list[str]
    network: SimNetwork
    observer: Observer

    def fatal(self, name: str, process: Process, error: NeedleError) -> None: ...
    def failpoint(self, name: str, process: Process, place: str) -> None: ...


class SimNode:
    """One incarnation of a node: the real composition root on simulated ports."""

    def __init__(self, world: Surroundings, machine: SimMachine, process: Process) -> None:
        self._world = world
        self._machine = machine
        self.process = process
        self._node: Node | None = None

    async def start(self) -> None:
        """Build the node and start it. Raises NeedleError when it refuses."""
        world, machine, process = self._world, self._machine, self.process
        node = self._node = Node(self._config(), self._ports())

        def ended(failed: asyncio.Future[NeedleError]) -> None:
            world.fatal(machine.name, process, failed.result())

        node.failed.add_done_callback(ended)
        await node.start()

    def _config(self) -> RaftConfig:
        world, profile = self._world, self._world.profile
        name = self._machine.name
        founders = list(world.founders)
        return RaftConfig(
            node_id=name,
            cluster_nodes=[f"{node}={world.machines[node].address}" for node in dict.fromkeys([*founders, name])],
            join=name not in founders,
            data_dir=self._machine.data_dir,
            cluster_id="sim",
            election_timeout=ELECTION_TIMEOUT,
            heartbeat_interval=HEARTBEAT_INTERVAL,
            snapshot_threshold=profile.snapshot_threshold,
            dimensions=profile.dimensions,
            metric=profile.metric,
            segments=SegmentConfig(seal_rows=profile.seal_rows, rows_max=profile.rows_max, ship_timeout=3.0),
        )

    def _ports(self) -> NodePorts:
        world, machine, process = self._world, self._machine, self.process
        loop, name = world.loop, machine.name
        endpoint = world.network.endpoint(name, process, name)
        return NodePorts(
            clock=machine.clock,
            rng=stream(world.spec.seed, "node", name, process.incarnation),
            log_pool=SimPool(loop, process, machine.device),
            apply_pool=SimPool(loop, process),
            search_pool=SimPool(loop, process),
            build_pool=SimPool(loop, process),
            file_pool=SimPool(loop, process),
            listen=self._listen,
            peers=lambda address_of: _Peers(cast("RpcClient", endpoint), address_of),
            open_store=lambda directory: SimStore(machine.log_disk, process),
            disk=SimReplicaDisk(machine, process),
            files=SimFiles(process),
            claim=lambda directory, node_id, cluster_id: lambda: None,
            failpoint=lambda place: world.failpoint(name, process, place),
            machine=lambda group, replica: ObservedMachine(replica, world.observer, group, name, process.incarnation),
        )

    def _listen(self, handler: Any) -> _Listener:
        """The node is about to serve: from now on its confirmed reads are watched."""
        host: Any = self._node.host if self._node is not None else None
        for how in ("read_index", "read_leased"):
            setattr(host, how, self._world.observer.watched_read(self._machine.name, how, getattr(host, how)))
        return _Listener(self._world.network, self._machine, self.process, handler)

    def groups(self) -> dict[GroupId, Any]:
        """The running replicas, with their Raft core, log and state machine."""
        host = getattr(self._node, "host", None)
        return host._groups if host is not None else {}

    def discard(self) -> None:
        """Close the files of a dead incarnation, so that a long run does not collect them."""
        for hosted in self._node.groups.values() if self._node is not None else ():
            hosted.replica.close()


class _Listener:
    """The server side of one process."""

    def __init__(self, network: SimNetwork, machine: SimMachine, process: Process, handler: Any) -> None:
        self._network = network
        self._machine = machine
        self._process = process
        self._handler = handler

    async def start(self) -> None:
        self._process.fence()
        self._network.listen(self._machine.address, self._machine.name, self._process, self._handler)

    async def stop(self) -> None:
        self._network.unlisten(self._machine.address, self._process)

    @property
    def address(self) -> str:
        return self._machine.address


class _Peers(PeerTransport):
    """The real peer transport over a simulated client."""

    def dropped_frames(self) -> int:
        return 0

    async def close(self) -> None:
        await self.client.close()


class _Recorder:
    """Notes the applied index that answers carry, which the real client keeps to itself."""

    def __init__(self, endpoint: Caller) -> None:
        self._endpoint = endpoint
        self.batch: HitBatch | None = None
        self.applied_index = 0

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        answer = await self._endpoint.call(address, method, body, timeout)
        if method == protocol.SEARCH:
            self.batch = protocol.decode(answer, HitBatch)
        elif method == protocol.GET:
            self.applied_index = protocol.decode(answer, DocumentBatch).applied_index
        return answer

    def connected(self, address: str) -> bool:
        return self._endpoint.connected(address)

    async def connect(self, address: str, timeout: float) -> None:
        await self._endpoint.connect(address, timeout)

    async def close(self) -> None:
        await self._endpoint.close()


class RealDatabase:
    """The real client, in the shape the workload uses."""

    def __init__(self, recorder: _Recorder, client: RealClient) -> None:
        self._recorder = recorder
        self._client = client

    async def put(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.insert(key, vector, metadata, timeout=CALL_TIMEOUT)

    async def insert_if_absent(self, key: str, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.insert_if_absent(key, vector, metadata, timeout=CALL_TIMEOUT)

    async def compare_and_set(self, key: str, expected: int, vector: Any, metadata: Any) -> WriteResult:
        return await self._client.compare_and_set(key, expected, vector, metadata, timeout=CALL_TIMEOUT)

    async def delete(self, key: str) -> WriteResult:
        return await self._client.delete(key, timeout=CALL_TIMEOUT)

    async def get(self, key: str, mode: ReadMode) -> tuple[int, Any, int]:
        session = mode is ReadMode.EVENTUAL
        found = await self._client.get(key, mode=mode, with_vectors=False, session=session, timeout=CALL_TIMEOUT)
        applied = self._recorder.applied_index
        return (found.version, found.metadata, applied) if found is not None else (0, None, applied)

    async def search(self, vector: Any, k: int, filter: Any, mode: ReadMode, exact: bool) -> HitBatch:
        session = mode is ReadMode.EVENTUAL
        await self._client.search(vector, k, filter, mode=mode, exact=exact, session=session, timeout=CALL_TIMEOUT)
        if self._recorder.batch is None:
            raise RuntimeError("the client answered a search that no node did")
        return self._recorder.batch

    def token(self) -> int:
        return self._client._data().last_index


def connect(endpoint: Caller, addresses: list[str], rng: random.Random) -> RealDatabase:
    """A new client session."""
    recorder = _Recorder(endpoint)
    return RealDatabase(recorder, RealClient(recorder, addresses, rng=rng))


def administrate(endpoint: SimEndpoint, addresses: list[str], rng: random.Random) -> RealClient:
    """An operator's client."""
    return RealClient(endpoint, addresses, rng=rng)
