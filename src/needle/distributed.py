"""The guide's API: a replicated cluster whose node runs inside the caller's process, and clusters of many nodes.

    config = RaftConfig(node_id="node-1", cluster_nodes=[...], data_dir="data/node-1", dimensions=256)
    async with RaftCluster(config) as cluster:
        await cluster.insert("doc-1", vector, {"lang": "en"})
        hits = await cluster.search_strong(query, 10)

The node is the one that `needle serve` runs, and the calls are the client's: a call that any node may answer is
answered by the node in this process without a socket. Invariant: nothing here decides anything about data.
"""

from __future__ import annotations

from collections.abc import Iterable

from needle.base.config import RaftConfig
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.filters.builder import Filter
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.model import RaftStatus
from needle.client.batches import BatchMethods
from needle.client.client import Client
from needle.client.document_calls import DocumentCalls, PartialHits
from needle.client.embedding import Embedder, check_embedder
from needle.client.feeds import TIMEOUT
from needle.client.health import ClusterHealth, ShardHealth
from needle.client.values import Seconds, check_timeout
from needle.connecting import Credentials, cluster_client, connect, connect_sync, system_caller
from needle.routing.jobs import RebalanceConfig
from needle.routing.meant import shard_meant
from needle.routing.plans import ReplicaMove, ShardSplit, Wish
from needle.routing.strategy import ShardStrategy
from needle.routing.strategy import register as register_router
from needle.server.cluster_api import ClusterConfig, DistributedCluster, ShardConfig, ShardManager, ShardRouter
from needle.server.local_caller import LocalCaller
from needle.server.metrics.observed import NodeMetrics
from needle.server.node import Node
from needle.server.ports import NodePorts, system_ports
from needle.server.process.config_file import load_config
from needle.server.rebalance_api import RebalanceCoordinator, RebalanceHandle
from needle.server.system_node import Http, http_server, system_node

__all__ = [
    "ClusterConfig",
    "ClusterHealth",
    "DistributedCluster",
    "Filter",
    "PartialHits",
    "RaftCluster",
    "RaftConfig",
    "RebalanceConfig",
    "RebalanceCoordinator",
    "RebalanceHandle",
    "ReplicaMove",
    "ShardConfig",
    "ShardHealth",
    "ShardManager",
    "ShardRouter",
    "ShardSplit",
    "ShardStrategy",
    "Wish",
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

    def __init__(self, config: RaftConfig, *, ports: NodePorts | None = None, embedder: Embedder | None = None) -> None:
        """ports: for tests and simulation; the real clock, threads, network and disk by default. embedder: as for
        `needle.connect`."""
        self.config = config
        self._ports = ports
        self.embedder = check_embedder(embedder)
        self._node: Node | None = None
        self._client: Client | None = None
        self._http: Http | None = None

    # --- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the data directory and take part in the cluster. Returns when this node serves; `wait_ready` tells when
        there is a leader. Raises ConfigError, StorageError, Unavailable (the address is taken)."""
        if self._node is not None:
            raise Unavailable("this cluster was started before; make a new RaftCluster to start again")
        config, metrics = self.config, NodeMetrics()
        ports = self._ports or system_ports(config)
        node = self._node = system_node(config, ports)
        await node.start()
        metrics.watch(node)
        try:
            self._http = await http_server(node, metrics)
            if self._http is not None:
                metrics.watch_http(self._http)
        except BaseException:
            await node.stop(hand_over=False)
            raise
        own = config.announced
        dial = ports.certificates.dial() if ports.certificates is not None else None
        remote = system_caller(config.cluster_id, Credentials(secrets=config.secrets, dial=dial))
        caller = LocalCaller(node, own, remote)
        others = [address for address in (*config.founders.values(), *config.sharding.join) if address != own]
        self._client = cluster_client(caller, [own, *others], node.topology, prefer=own, embedder=self.embedder)

    async def wait_ready(self, timeout: Seconds = TIMEOUT) -> None:
        """Wait until this node knows a leader and has caught up with it. Raises DeadlineExceeded that says what is
        missing."""
        node, seconds = self._running(), check_timeout(timeout)
        if not await node.maintenance.until(lambda: not node.not_ready(), seconds):
            raise DeadlineExceeded(f"not ready after {seconds:g} s: {node.not_ready()}")

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

    # --- leadership and state: `shard` may be left out where there is only one ---------------------------------------
    def _group(self, shard: int | None) -> GroupId:
        topology = self._running().topology
        return shard_group(shard_meant(topology, shard).shard if topology.shards else 0)

    async def leader(self, shard: int | None = None) -> NodeId | None:
        """Who leads a shard, as far as this node knows; None in an election, and while the cluster is not founded."""
        node, group = self._running(), self._group(shard)
        return node.host.leader(group) if group in node.groups else await self.client.leader(shard)

    def is_leader(self, shard: int | None = None) -> bool:
        """Whether this node leads a shard, as far as it knows."""
        node, group = self._running(), self._group(shard)
        return group in node.groups and node.host.is_leader(group)

    async def status(self, shard: int | None = None) -> RaftStatus:
        """This node's view of a shard: state (Leader, Follower, Candidate, PreCandidate, Learner), term, indexes,
        peers, lease. Raises Unavailable if it holds no replica of it, or none yet."""
        node, group = self._running(), self._group(shard)
        node.hosted(group)
        return node.status(group)

    async def step_down(
        self, to: NodeId | None = None, *, shard: int | None = None, timeout: Seconds = TIMEOUT
    ) -> NodeId:
        """Transfer a shard's leadership to `to`, or to the most caught-up voter, from whoever leads; writes in flight
        are not lost. Returns who leads now. After a while the shard's preferred leader leads again."""
        return await self.client.step_down(to, shard=shard, timeout=timeout)

    async def force_new_election(self, shard: int | None = None) -> None:
        """Make this node campaign now. Safe: others still honour a leader they hear."""
        node, group = self._running(), self._group(shard)
        node.hosted(group)
        node.host.force_election(group)

    async def enter_maintenance_mode(self, *, force: bool = False, timeout: Seconds = TIMEOUT) -> None:
        """Give leadership away and take none; eventual reads go to other nodes. Returns when drained. force: as of
        `Client.enter_maintenance_mode`, which says what is refused without it."""
        node = self._running()
        await self.client.check_maintenance(node.node_id, force=force, timeout=timeout)
        await node.set_maintenance(True, check_timeout(timeout))

    async def exit_maintenance_mode(self, *, timeout: Seconds = TIMEOUT) -> None:
        """End maintenance; returns when this node has caught up."""
        await self._running().set_maintenance(False, check_timeout(timeout))

    # --- membership --------------------------------------------------------------------------------------------------
    async def change_membership(
        self, nodes: Iterable[NodeId], *, shard: int | None = None, timeout: Seconds = 60.0
    ) -> None:
        """Have exactly these nodes hold a shard, while it serves; as `Client.set_replicas`. A node that is new joins
        the cluster first: it is started with `join` in [sharding]."""
        await self.client.set_replicas(shard, nodes, timeout=timeout)
