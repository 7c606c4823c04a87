"""The guide's API: a replicated cluster whose node runs inside the caller's process, and sharded clusters.

    config = RaftConfig(node_id="node-1", cluster_nodes=[...], data_dir="data/node-1", dimensions=256)
    async with RaftCluster(config) as cluster:
        await cluster.insert("doc-1", vector, {"lang": "en"})
        hits = await cluster.search_strong(query, 10)

The node is the one that `needle serve` runs, and the calls are the client's: a call that any node may answer is
answered by the node in this process without a socket. Invariant: nothing here decides anything about data.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from needle.base.config import RaftConfig, refuse
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.filters.builder import Filter
from needle.base.ids import NodeId, shard_group
from needle.base.model import CollectionSpec, Document, Hit, IndexParams, Metric, RaftStatus, ReadMode, WriteResult
from needle.client.client import Client, FilterLike
from needle.client.collections import DEFAULT_COLLECTION
from needle.client.health import ClusterHealth, ShardHealth
from needle.client.operations import TIMEOUT
from needle.client.sharded import PartialHits
from needle.connecting import connect, connect_sync
from needle.routing.strategy import ShardStrategy
from needle.routing.strategy import register as register_router
from needle.rpc.transport import RpcClient
from needle.server.cluster_api import ClusterConfig, DistributedCluster, ShardConfig, ShardManager, ShardRouter
from needle.server.local_caller import LocalCaller
from needle.server.node import Node
from needle.server.ports import NodePorts, system_ports
from needle.server.process.config_file import load_config
from needle.server.process.http import HttpServer
from needle.server.process.metrics import NodeMetrics
from needle.system import SystemClock

__all__ = [
    "ClusterConfig",
    "ClusterHealth",
    "DistributedCluster",
    "Filter",
    "PartialHits",
    "RaftCluster",
    "RaftConfig",
    "ShardConfig",
    "ShardHealth",
    "ShardManager",
    "ShardRouter",
    "ShardStrategy",
    "connect",
    "connect_sync",
    "load_config",
    "register_router",
]


class RaftCluster:
    """One node of a replicated cluster in this process, and the calls to the cluster.

    `await start()` and `await stop()`, or `async with`. Documents and searches as in `Client`; after `start` any call
    may be made from any node of the cluster: it is forwarded to the leader where it must be. A stopped cluster can be
    made again with the same configuration, not started twice.
    """

    def __init__(self, config: RaftConfig, *, ports: NodePorts | None = None) -> None:
        """ports: for tests and simulation; the real clock, threads, network and disk by default."""
        if config.sharded:
            raise refuse("sharded", True, "false: RaftCluster is a node of a cluster with one shard")
        self.config = config
        self._ports = ports
        self._group = shard_group(0)
        self._node: Node | None = None
        self._client: Client | None = None
        self._http: HttpServer | None = None

    # --- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the data directory and take part in the cluster. Returns when this node serves; `wait_ready` tells when
        there is a leader. Raises ConfigError, StorageError, Unavailable (the address is taken)."""
        if self._node is not None:
            raise Unavailable("this cluster was started before; make a new RaftCluster to start again")
        config, metrics = self.config, NodeMetrics()
        ports = self._ports or system_ports(config)
        node = self._node = Node(config, metrics.measured(ports))
        await node.start()
        metrics.watch(node)
        try:
            if config.http_address is not None:
                http = HttpServer(config.http_address, node, metrics)
                await http.start()
                self._http = http
        except BaseException:
            await node.stop(hand_over=False)
            raise
        own = config.addresses[config.node_id]
        rng = random.Random(ports.rng.getrandbits(64))
        remote = RpcClient(cluster_id=config.cluster_id, rng=rng, clock=SystemClock())
        addresses = [own, *(address for address in config.addresses.values() if address != own)]
        self._client = Client(LocalCaller(node, own, remote), addresses, rng=rng, prefer=own)
        self._client.blocking = asyncio.to_thread

    async def wait_ready(self, timeout: float = TIMEOUT) -> None:
        """Wait until this node knows a leader and has caught up with it. Raises DeadlineExceeded that says what is
        missing."""
        node = self._running()
        if not await node.until(lambda: not node.not_ready(), timeout):
            raise DeadlineExceeded(f"not ready after {timeout:g} s: {node.not_ready()}")

    async def stop(self) -> None:
        """Hand leadership over, stop serving, close everything. Idempotent."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
        if self._node is not None:
            await self._node.stop()
        if self._http is not None:
            http, self._http = self._http, None
            await http.stop()

    async def __aenter__(self) -> RaftCluster:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def _running(self) -> Node:
        if self._node is None or self._client is None:
            raise Unavailable("the cluster is not started; use `async with` or `await start()`")
        if self._node.failed.done():
            raise self._node.failed.result()
        return self._node

    @property
    def client(self) -> Client:
        """The client behind the calls below, with everything a Client can do."""
        self._running()
        if self._client is None:
            raise Unavailable("the cluster is stopped")
        return self._client

    # --- leadership and state ----------------------------------------------------------------------------------------
    async def leader(self) -> NodeId | None:
        """Who leads, as far as this node knows; None during an election."""
        return self._running().host.leader(self._group)

    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows."""
        return self._running().host.is_leader(self._group)

    async def status(self) -> RaftStatus:
        """This node's view: state (Leader, Follower, Candidate, PreCandidate, Learner), term, indexes, peers, lease."""
        return self._running().status(self._group)

    async def step_down(self, to: NodeId | None = None, *, timeout: float = TIMEOUT) -> NodeId:
        """Transfer leadership to `to`, or to the most caught-up voter, from whoever leads; writes in flight are not
        lost. Returns who leads now."""
        return await self.client.step_down(to, timeout=timeout)

    async def force_new_election(self) -> None:
        """Make this node campaign now. Safe: others still honour a leader they hear."""
        self._running().host.force_election(self._group)

    async def enter_maintenance_mode(self, *, timeout: float = TIMEOUT) -> None:
        """Give leadership away and take none; eventual reads go to other nodes. Returns when drained."""
        await self._running().set_maintenance(True, timeout)

    async def exit_maintenance_mode(self, *, timeout: float = TIMEOUT) -> None:
        """End maintenance; returns when this node has caught up."""
        await self._running().set_maintenance(False, timeout)

    # --- documents ---------------------------------------------------------------------------------------------------
    async def insert(
        self,
        id: str,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """See Client.insert."""
        return await self.client.insert(id, vector, metadata, collection=collection, timeout=timeout)

    async def insert_batch(
        self,
        documents: Iterable[Sequence[Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        metadatas: Sequence[Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[WriteResult]:
        """See Client.insert_batch."""
        return await self.client.insert_batch(
            documents, ids=ids, vectors=vectors, metadatas=metadatas, collection=collection, timeout=timeout
        )

    async def insert_if_absent(
        self,
        id: str,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """See Client.insert_if_absent."""
        return await self.client.insert_if_absent(id, vector, metadata, collection=collection, timeout=timeout)

    async def compare_and_set(
        self,
        id: str,
        expected_version: int,
        vector: Any,
        metadata: Any = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """See Client.compare_and_set."""
        return await self.client.compare_and_set(
            id, expected_version, vector, metadata, collection=collection, timeout=timeout
        )

    async def delete(
        self, ids: str | Iterable[str], *, collection: str = DEFAULT_COLLECTION, timeout: float = TIMEOUT
    ) -> WriteResult:
        """See Client.delete."""
        return await self.client.delete(ids, collection=collection, timeout=timeout)

    async def get(
        self,
        id: str,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        timeout: float = TIMEOUT,
    ) -> Document | None:
        """See Client.get."""
        return await self.client.get(id, mode=mode, collection=collection, with_vectors=with_vectors, timeout=timeout)

    async def get_many(
        self,
        ids: Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        timeout: float = TIMEOUT,
    ) -> list[Document]:
        """See Client.get_many."""
        return await self.client.get_many(
            ids, mode=mode, collection=collection, with_vectors=with_vectors, timeout=timeout
        )

    async def count(
        self, *, collection: str = DEFAULT_COLLECTION, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT
    ) -> int:
        """See Client.count."""
        return await self.client.count(collection=collection, mode=mode, timeout=timeout)

    # --- searches ----------------------------------------------------------------------------------------------------
    async def search_strong(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """Linearizable: sees every write acknowledged before the call. See Client.search."""
        return await self.client.search_strong(
            query,
            k,
            filter,
            collection=collection,
            with_metadata=with_metadata,
            with_vectors=with_vectors,
            exact=exact,
            timeout=timeout,
        )

    async def search_leased(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """Linearizable while clocks drift less than `clock_error_max`, without a network round. See Client.search."""
        return await self.client.search_leased(
            query,
            k,
            filter,
            collection=collection,
            with_metadata=with_metadata,
            with_vectors=with_vectors,
            exact=exact,
            timeout=timeout,
        )

    async def search_eventual(
        self,
        query: Any,
        k: int = 10,
        filter: FilterLike = None,
        *,
        with_metadata: bool = True,
        with_vectors: bool = False,
        exact: bool = False,
        collection: str = DEFAULT_COLLECTION,
        session: bool = False,
        max_staleness: float | None = None,
        timeout: float = TIMEOUT,
    ) -> list[Hit]:
        """Answered by this node where it can: some prefix of the log. See Client.search."""
        return await self.client.search_eventual(
            query,
            k,
            filter,
            collection=collection,
            with_metadata=with_metadata,
            with_vectors=with_vectors,
            exact=exact,
            session=session,
            max_staleness=max_staleness,
            timeout=timeout,
        )

    # --- collections -------------------------------------------------------------------------------------------------
    async def create_collection(
        self,
        name: str,
        *,
        dimensions: int,
        metric: Metric | str = Metric.COSINE,
        index: IndexParams | None = None,
        if_absent: bool = False,
        timeout: float = TIMEOUT,
    ) -> WriteResult:
        """See Client.create_collection."""
        return await self.client.create_collection(
            name, dimensions=dimensions, metric=metric, index=index, if_absent=if_absent, timeout=timeout
        )

    async def drop_collection(self, name: str, *, timeout: float = TIMEOUT) -> WriteResult:
        """See Client.drop_collection."""
        return await self.client.drop_collection(name, timeout=timeout)

    async def collections(self, *, timeout: float = TIMEOUT) -> list[CollectionSpec]:
        """See Client.collections."""
        return await self.client.collections(timeout=timeout)

    # --- membership --------------------------------------------------------------------------------------------------
    async def change_membership(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """See Client.change_membership."""
        await self.client.change_membership(voters, learners, addresses=addresses, timeout=timeout)
