"""How a simulated process becomes a node: the ports that the simulation implements, handed to the product.

It must not know faults, clients or checkers.
"""

from __future__ import annotations

import contextlib
import os
import random
from typing import Any, Protocol

from needle.base import protocol
from needle.base.commands import CreateCollection, decode, encode
from needle.base.config import Limits, SegmentConfig
from needle.base.errors import NeedleError
from needle.base.ids import GroupId, shard_group
from needle.base.model import CollectionSpec, HitBatch, Metric, ReadMode, WriteResult
from needle.base.protocol import DocumentBatch, GetCall, LeaderAnswer, SearchCall, WriteCall
from needle.client.client import Client as RealClient
from needle.multiraft.config import HostConfig
from needle.multiraft.host import Host
from needle.multiraft.log_store import LogStore
from needle.shard.state_machine import Replica
from needle.sim.disk import SimStore
from needle.sim.event_loop import SimLoop
from needle.sim.machine import SimPool, stream
from needle.sim.machines import SimFiles, SimMachine, SimReplicaDisk
from needle.sim.network import SimEndpoint
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
    network: Any
    observer: Observer

    def fatal(self, name: str, process: Process, error: NeedleError) -> None: ...
    def failpoint(self, name: str, process: Process, place: str) -> None: ...


class SimNode:
    """One incarnation of a node."""

    def __init__(self, world: Surroundings, machine: SimMachine, process: Process) -> None:
        self._world = world
        self._machine = machine
        self.process = process
        self._host: Host | None = None
        self._replica: Replica | None = None
        self._groups: dict[GroupId, Any] = {}

    async def start(self) -> None:
        world, machine, process, profile = self._world, self._machine, self.process, self._world.profile
        name, loop = machine.name, world.loop

        def failpoint(place: str) -> None:
            world.failpoint(name, process, place)

        disk = SimReplicaDisk(machine, process)
        store = LogStore(SimStore(machine.log_disk, process), node_id=name, cluster_id="sim", failpoint=failpoint)
        endpoint = world.network.endpoint(name, process, name)
        self._replica = Replica.open(
            os.path.join(machine.data_dir, "shard-0"),
            limits=Limits(),
            segments=SegmentConfig(seal_rows=profile.seal_rows, rows_max=profile.rows_max, ship_timeout=3.0),
            disk=disk,
        )
        observed = ObservedMachine(self._replica, world.observer, DATA_GROUP, name, process.incarnation)
        self._host = Host(
            name,
            HostConfig(
                election_timeout=ELECTION_TIMEOUT,
                heartbeat_interval=HEARTBEAT_INTERVAL,
                snapshot_threshold=profile.snapshot_threshold,
                snapshot_keep=5.0,
            ),
            transport=_Transport(world, endpoint),
            store=store,
            log_pool=SimPool(loop, process, machine.device),
            apply_pool=SimPool(loop, process),
            clock=machine.clock,
            rng=stream(world.spec.seed, "node", name, process.incarnation),
            on_fatal=lambda error: world.fatal(name, process, error),
            snapshot_dir=os.path.join(machine.data_dir, "snapshots"),
            files=SimFiles(process),
            failpoint=failpoint,
        )
        self._host.open_group(DATA_GROUP, observed, voters=sorted(world.machines))
        await self._host.start()
        world.network.listen(machine.address, name, process, _Service(self._host, self._replica, world))
        self._groups = self._host._groups

    def groups(self) -> dict[GroupId, Any]:
        return self._groups

    async def admin(self, what: str) -> None:
        host = self._host
        if host is None:
            return
        with contextlib.suppress(NeedleError):
            if what == "step-down":
                await host.transfer(DATA_GROUP, None, 5.0)
            elif what == "force-election":
                host.force_election(DATA_GROUP)
            else:
                host.set_maintenance(what == "maintenance")

    def discard(self) -> None:
        if self._replica is not None:
            self._replica.close()


class _Transport:
    def __init__(self, world: Surroundings, endpoint: SimEndpoint) -> None:
        self._world = world
        self._endpoint = endpoint

    def send(self, to: str, body: bytes) -> bool:
        return self._endpoint.send(self._world.machines[to].address, body)

    async def call(self, to: str, method: str, body: bytes, timeout: float) -> bytes:
        return await self._endpoint.call(self._world.machines[to].address, method, body, timeout)


class _Service:
    def __init__(self, host: Host, replica: Replica, world: Surroundings) -> None:
        self._host = host
        self._replica = replica
        self._addresses = {name: machine.address for name, machine in world.machines.items()}

    def on_oneway(self, peer: Any, body: bytes) -> None:
        self._host.on_raft(peer.node_id, body)

    async def on_request(self, peer: Any, method: str, body: Any) -> bytes:
        host, replica = self._host, self._replica
        if method == protocol.LEADER:
            status = host.status(DATA_GROUP)
            return protocol.encode(
                LeaderAnswer(host.node_id, status.leader or None, status.current_term, self._addresses)
            )
        if method == protocol.WRITE:
            write = protocol.decode(body, WriteCall)
            command = replica.validate(decode(write.command))
            return protocol.encode(await host.propose(write.group, encode(command), write.timeout))
        if method == protocol.SEARCH:
            search = protocol.decode(body, SearchCall)
            await self._fresh(search.freshness)
            return protocol.encode(replica.search(search.request))
        if method == protocol.GET:
            get = protocol.decode(body, GetCall)
            await self._fresh(get.freshness)
            docs = replica.get(get.collection, get.ids, False)
            return protocol.encode(
                DocumentBatch(
                    [d.id for d in docs],
                    [d.version for d in docs],
                    [d.metadata for d in docs],
                    b"",
                    replica.applied_index(),
                )
            )
        return await host.on_call(peer.node_id, method, bytes(body))

    async def _fresh(self, freshness: Any) -> None:
        if freshness.mode is ReadMode.STRONG:
            await self._host.read_index(DATA_GROUP, freshness.timeout)
        elif freshness.mode is ReadMode.LEASED:
            await self._host.read_leased(DATA_GROUP, freshness.timeout)
        elif freshness.min_index:
            await self._host.wait_applied(DATA_GROUP, freshness.min_index, freshness.timeout)


class _Recorder:
    """Notes the applied index that answers carry, which the real client keeps to itself."""

    def __init__(self, endpoint: SimEndpoint) -> None:
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

    async def create(self, dimensions: int, metric: str) -> None:
        """Create the collection, unless it is there."""
        spec = CollectionSpec(name="default", dimensions=dimensions, metric=Metric(metric))
        await self._client._data().write(lambda session: CreateCollection(spec, True, session), CALL_TIMEOUT)

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


async def connect(endpoint: SimEndpoint, addresses: dict[str, str], rng: random.Random) -> RealDatabase:
    """A client session on its own machine."""
    recorder = _Recorder(endpoint)
    return RealDatabase(recorder, RealClient(recorder, list(addresses.values()), rng=rng))
