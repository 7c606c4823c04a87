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
from collections.abc import Iterable, Mapping

from needle.base.config import RaftConfig, refuse
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.filters.builder import Filter
from needle.base.ids import NodeId, shard_group
from needle.base.model import RaftStatus
from needle.client.batches import BatchMethods
from needle.client.changes import TIMEOUT
from needle.client.client import Client
from needle.client.document_calls import DocumentCalls, PartialHits
from needle.client.health import ClusterHealth, ShardHealth
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


class RaftCluster(BatchMethods):
    """One node of a replicated cluster in this process, and the calls to the cluster.

    `await start()` and `await stop()`, or `async with`. After `start` any call
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
        caller = LocalCaller(node, own, remote)
        self._client = Client(caller, addresses, rng=rng, prefer=own, blocking=asyncio.to_thread)

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

    async def _documents(self) -> DocumentCalls:
        return self.client.documents

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

    # --- membership --------------------------------------------------------------------------------------------------
    async def change_membership(
        self,
        voters: Iterable[NodeId],
        learners: Iterable[NodeId] = (),
        *,
        addresses: Mapping[NodeId, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Make exactly these nodes the voters and learners; as `Client.change_membership`."""
        await self.client.change_membership(voters, learners, addresses=addresses, timeout=timeout)
