"""What a node is built on, as one bundle: the real system's here, the simulator's in `proof.sim`.

Invariant: a node reaches clocks, randomness, threads, network and disk through its `NodePorts` only.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from needle.base.access import Identity
from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.base.exposure import check_exposed
from needle.base.ids import GroupId, NodeId
from needle.base.model import WriteResult
from needle.base.parts import Body, Payload
from needle.base.runtime import Clock, Pool, Repeating, Rng
from needle.base.versions import KNOWN
from needle.multiraft.failpoints import Failpoint, no_failpoint
from needle.multiraft.files import Files
from needle.multiraft.log.wal_store import WalStore, segment_bytes
from needle.multiraft.ports import KeyValueStore, StateMachine, Transport
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.probe_calls import Facts
from needle.rpc.connection import RpcLimits
from needle.rpc.peer_transport import PeerTransport
from needle.rpc.server import RpcServer
from needle.rpc.transport import RpcClient
from needle.server.adapters import ReplicaMachine
from needle.server.audit import Audit
from needle.server.certificates import Certificates
from needle.server.files import claim
from needle.server.history import History
from needle.server.machine.computer import SystemComputer, process_memory
from needle.server.machine.descriptors import connections_max
from needle.server.machine.disk_space import Directory, Endless, Volume
from needle.server.machine.memory_space import MemoryUse, endless
from needle.shard.disk import ReplicaDisk
from needle.shard.fields.index_budget import USUAL_ROWS, IndexRows
from needle.shard.segments.builder import TRIM_BYTES, give_back
from needle.shard.state_machine import Replica
from needle.shard.upkeep import PURGE_ROWS
from needle.system import SystemClock, ThreadPool, thread_seconds, usable_cores

BACKGROUND_NICE = 10
"""Index builds and file checks get a tenth of a busy core: acknowledged writes, searches and heartbeats go first."""

AddressOf = Callable[[NodeId], str | None]


LOCAL = "local"
"""The `remote` of a caller in the node's own process."""


class PeerLike(Protocol):
    """Who asks: `rpc.handler.Peer`. node_id: "" for clients. within: of the client in another node's process, which
    writes down itself who asked it. knows: the version of commands and formats up to which it can read them."""

    node_id: str
    within: str
    knows: int
    remote: str
    identity: Identity


class Handler(Protocol):
    """What a listener serves (rpc.handler.Handler)."""

    def admit(self, node_id: str, key: str, proven: bool, remote: str) -> Identity: ...
    def on_oneway(self, peer: Any, body: Payload) -> None: ...
    def on_request(self, peer: Any, method: str, body: Any) -> Body | Awaitable[Body]: ...
    def is_droppable(self, method: str) -> bool: ...
    def on_gone(self, peer: Any) -> None: ...


class Observe(Protocol):
    """Is told of calls that were answered: how many, and how long each took."""

    def __call__(self, method: str, seconds: float, error: NeedleError | None, count: int = 1) -> None: ...


class Listener(Protocol):
    """Accepts connections and hands requests to a handler."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def more(self) -> bool:
        """Whether requests that were read wait for a turn of the event loop."""
        ...

    def refuse_older(self, version: int) -> None:
        """From now on refuse nodes that do not know commands and formats of `version`."""
        ...

    def of_founding(self, founding: int) -> None:
        """This node belongs to the cluster of that founding."""
        ...

    @property
    def address(self) -> str: ...


class Peers(Transport, Protocol):
    """The way to other nodes, by name."""

    def update(self) -> None:
        """The address book changed."""
        ...

    def refuse_older(self, version: int) -> None:
        """As Listener.refuse_older."""
        ...

    def dropped_frames(self) -> int:
        """One-way frames not sent since the start."""
        ...

    async def close(self) -> None: ...


class Catalog(Protocol):
    """The way to the catalog (client.shards.ClusterShards)."""

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult: ...


class Computer(Protocol):
    """The machine that the node runs on."""

    def facts(self, brief: bool = False) -> Facts:
        """What its system says. brief: not what takes long with many files and maps, nor what never changes.
        Blocking."""
        ...

    async def fsyncs(self, directory: str, count: int, seconds: float) -> list[float]:
        """Seconds of small durable writes there, up to `count` of them, ascending. Raises OSError."""
        ...


class Exposition(Protocol):
    """The metrics, as text."""

    content_type: str
    history: History
    """Of the last hour."""

    async def read(self) -> Callable[[], bytes]:
        """Read everything, on the event loop; what it returns writes it down, and may be called in a thread."""
        ...


@dataclass(frozen=True, kw_only=True)
class NodePorts:
    """Everything a node needs from outside.

    log_pool: Raft log transactions, one thread. apply_pool: state machines; load_pool: their bulk loads (minutes), one
    at a time. search_pool: searches and gets. spent: the processor time of the calling thread, in seconds. build_pool:
    index builds (minutes). file_pool: segment files and checkpoints' reads. watch_pool: looks at the room that is left.
    claim: takes a data directory for this node or raises; returns what releases it. machine, catalog: let an observer
    stand between Raft and a replica, or the catalog. volume: the file system of a data directory. memory: what the
    process takes of how much. trim: gives the system what was freed; blocking. knows: the version of commands and
    formats up to which this node can read them; listen and peers say the same. certificates: of TLS, where it is
    spoken. audit: the log of who did what, where it is kept. computer: what is probed; None where nothing is real.
    index_rows: from how many documents on field indexes are made and saved. purge_rows_min: see Replica.
    """

    clock: Clock
    rng: Rng
    log_pool: Pool
    apply_pool: Pool
    load_pool: Pool
    search_pool: Pool
    build_pool: Pool
    file_pool: Pool
    watch_pool: Repeating
    listen: Callable[[Handler], Listener]
    peers: Callable[[AddressOf], Peers]
    open_store: Callable[[str], KeyValueStore]
    disk: ReplicaDisk
    files: Files
    claim: Callable[[str, NodeId, str], Callable[[], None]]
    failpoint: Failpoint = no_failpoint
    machine: Callable[[GroupId, Replica], StateMachine] = lambda _, replica: ReplicaMachine(replica)
    catalog: Callable[[GroupId, StateMachine], StateMachine] = lambda _, machine: machine
    search_threads: int = 2
    spent: Callable[[], float] = lambda: 0.0
    volume: Callable[[str], Volume] = lambda _: Endless()
    memory: Callable[[], MemoryUse] = endless
    trim: Callable[[], None] = lambda: give_back(TRIM_BYTES)
    knows: int = KNOWN
    certificates: Certificates | None = None
    audit: Audit | None = None
    computer: Computer | None = None
    index_rows: IndexRows = USUAL_ROWS
    purge_rows_min: int = PURGE_ROWS

    def close_pools(self) -> None:
        """Wait for what runs in the pools, then stop them."""
        applying = (self.log_pool, self.apply_pool, self.load_pool)
        for pool in (*applying, self.search_pool, self.build_pool, self.file_pool, self.watch_pool):
            pool.close()


class SystemPeers(PeerTransport):
    """Peers over TCP, with the client they alone use."""

    def dropped_frames(self) -> int:
        """One-way frames not sent since the start."""
        return self.client.stats.dropped_frames

    async def close(self) -> None:
        """Close the connections to all peers."""
        await self.client.close()


def _claimed(config: RaftConfig, directory: str, node_id: NodeId, cluster_id: str) -> Callable[[], None]:
    check_exposed(config)  # before anything is made on the disk
    return claim(directory, node_id, cluster_id)


def _limits(config: RaftConfig) -> RpcLimits:
    return RpcLimits(frame_bytes_max=config.limits.frame_bytes_max, connections_max=connections_max())


def system_ports(config: RaftConfig, *, failpoint: Failpoint = no_failpoint, knows: int = KNOWN) -> NodePorts:
    """The real clock, threads, sockets and disk for a node of `config`."""
    rng, clock = random.Random(int.from_bytes(os.urandom(16), "little")), SystemClock()
    incarnation, limits = rng.getrandbits(63), _limits(config)
    certificates = Certificates(config.tls, config.node_id, clock.wall) if config.tls.on else None
    segment, threads = segment_bytes(config.log_bytes_max), max(2, min(usable_cores(), 16))  # one may make an index

    def listen(handler: Handler) -> Listener:
        return RpcServer(
            config.address,
            handler,
            cluster_id=config.cluster_id,
            node_id=config.node_id,
            incarnation=incarnation,
            limits=limits,
            secrets=config.secrets,
            knows=knows,
            door=certificates.door() if certificates is not None else None,
        )

    def peers(address_of: AddressOf) -> Peers:
        client = RpcClient(
            cluster_id=config.cluster_id,
            node_id=config.node_id,
            rng=rng,
            clock=clock,
            incarnation=incarnation,
            limits=limits,
            secrets=config.secrets,
            knows=knows,
            dial=certificates.dial() if certificates is not None else None,
        )
        return SystemPeers(client, address_of)

    return NodePorts(
        clock=clock,
        rng=rng,
        log_pool=ThreadPool("log"),
        apply_pool=ThreadPool("apply", 2),
        load_pool=ThreadPool("load"),
        search_pool=ThreadPool("search", threads),
        build_pool=ThreadPool("build", nice=BACKGROUND_NICE),
        file_pool=ThreadPool("files", nice=BACKGROUND_NICE),
        watch_pool=ThreadPool("watch"),
        listen=listen,
        peers=peers,
        open_store=lambda at: WalStore(at, salt=lambda: rng.getrandbits(64), segment_bytes=segment),
        disk=ReplicaDisk(),
        files=Files(),
        claim=partial(_claimed, config),
        failpoint=failpoint,
        search_threads=threads,
        spent=thread_seconds,
        volume=Directory,
        memory=process_memory(),
        knows=knows,
        certificates=certificates,
        computer=SystemComputer(),
        audit=Audit(config.audit, config.data_dir, config.node_id, clock) if config.audit.file else None,
    )
