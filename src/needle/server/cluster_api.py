"""The guide's sharded API: `ShardManager`, `ShardRouter` and `DistributedCluster` over running nodes.

    cluster = DistributedCluster(ClusterConfig(shard_count=4, replication_factor=3, dimensions=256))
    await cluster.add_node("node-1", "host1:5000")     # a running `needle serve` without cluster_nodes
    ...
    async with cluster:                                 # creates the cluster, or finds the one that is there
        await cluster.insert("doc-1", vector, {"lang": "en"})
        hits = await cluster.search(query, 10)

Invariant: nothing here decides anything about data; the catalog does. The cluster is made of the nodes added before the
first use, in their order; later ones join it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec

from needle.base.config import (
    SETTINGS,
    PlacementConfig,
    RaftConfig,
    check_node_id,
    default_collection,
    parse_address,
    refuse,
)
from needle.base.errors import ConfigError, NeedleError, Unavailable, invalid
from needle.base.ids import NodeId
from needle.base.model import CollectionSpec, Hit, IndexParams, Metric, ReadMode
from needle.base.sharding_config import SHARDS, VIRTUAL_NODES
from needle.base.versions import FIRST, SAID
from needle.client.client import Client
from needle.client.document_calls import DocumentCalls
from needle.client.documents import DocumentMethods
from needle.client.embedding import Embedder, check_embedder
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT, FilterLike
from needle.client.finding import find_topology
from needle.client.health import ClusterHealth
from needle.client.values import Seconds, check_index, check_timeout
from needle.connecting import Credentials, Tls, check_key, check_tls, cluster_client, system_caller
from needle.protocol import calls
from needle.protocol.catalog_commands import RegisterNode
from needle.protocol.peer_calls import FOUND, FoundCall
from needle.routing.shard_map import ShardMap, initial_map
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import ClusterSettings, Topology
from needle.server.catalog.founding import ASK_SECONDS, ask_who, create_cluster, node_info
from needle.server.node import Node
from needle.server.ports import system_ports
from needle.server.system_node import system_node

REPLICAS = 3
_SETTINGS = {
    "shard_count": "sharding.shards",
    "replication_factor": "sharding.replicas",
    "virtual_nodes_per_shard": "sharding.virtual_nodes",
    "dimensions": "dimensions",
    "metric": "metric",
    "cluster_id": "cluster_id",
}
"""By the fields of a ShardConfig, the settings of nodes that say the same of a cluster that these found: there stands
what is allowed."""


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a cluster is sharded. replication_factor: None is 3, or one on each node where there are fewer. boundaries:
    for ShardStrategy.RANGE, the first id of every shard but the first. dimensions, metric, index: of the collection
    `default`, made with the cluster; dimensions=None makes none. api_key: as for
    `needle.connect`, as is tls. cluster_secret: that of the nodes, instead of a key, such as before there are any."""

    shard_count: int = SHARDS
    replication_factor: int | None = None
    virtual_nodes_per_shard: int = VIRTUAL_NODES
    strategy: ShardStrategy = ShardStrategy.CONSISTENT_HASH
    boundaries: Sequence[str] = ()
    dimensions: int | None = None
    metric: str = Metric.COSINE
    index: IndexParams | str | None = None
    cluster_id: str = "needle"
    api_key: str | None = field(default=None, repr=False)
    cluster_secret: str = field(default="", repr=False)
    tls: Tls = None

    def __post_init__(self) -> None:
        for name, path in _SETTINGS.items():
            value, left_out = getattr(self, name), getattr(ShardConfig, name)
            if value is None and left_out is not None:  # a node's settings need not say it
                raise refuse(name, value, SETTINGS[path].allowed)
            object.__setattr__(self, name, SETTINGS[path].check(value, name))  # as a frozen dataclass sets its fields
        if not isinstance(self.strategy, ShardStrategy):
            raise refuse("strategy", self.strategy, "a ShardStrategy, such as ShardStrategy.CONSISTENT_HASH")
        check_index(self.index)
        self.first_map()

    def settings_with(self, replicas: int) -> ClusterSettings:
        """What the catalog keeps of it. replicas: of each shard, where `replication_factor` does not say."""
        return ClusterSettings(
            shard_count=self.shard_count,
            replication_factor=replicas if self.replication_factor is None else self.replication_factor,
            virtual_nodes_per_shard=self.virtual_nodes_per_shard,
            strategy=self.strategy,
        )

    @property
    def first_collection(self) -> CollectionSpec | None:
        """The collection `default`, if `dimensions` says that there is to be one."""
        return default_collection(self.dimensions, self.metric, check_index(self.index))

    @property
    def shown(self) -> Credentials:
        """What is shown to nodes, and how."""
        shown = Credentials(secrets=(self.cluster_secret,)) if self.cluster_secret else check_key(self.api_key)
        return shown._replace(dial=check_tls(self.tls))

    def first_map(self) -> ShardMap:
        """Who owns which keys when the cluster is made."""
        return initial_map(self.strategy, self.shard_count, self.virtual_nodes_per_shard, self.boundaries)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(ShardConfig):
    """ShardConfig of a cluster whose shards are replicated. raft_enabled: False means one replica a shard."""

    raft_enabled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.raft_enabled:
            return
        if self.replication_factor is None:
            object.__setattr__(self, "replication_factor", 1)  # as a frozen dataclass sets its fields
        elif self.replication_factor != 1:
            raise refuse("replication_factor", self.replication_factor, "1 with raft_enabled=False")


class ShardManager:
    """The nodes and shards of one cluster. Use as an async context manager, or `await start()` and `await stop()`."""

    def __init__(self, config: ShardConfig, *, embedder: Embedder | None = None) -> None:
        """embedder: as for `needle.connect`, also for the routers over this manager."""
        self.config = config
        self.embedder = check_embedder(embedder)
        self._added: dict[NodeId, str] = {}
        self._rng = random.Random(int.from_bytes(os.urandom(16), "little"))
        self._caller = system_caller(config.cluster_id, config.shown)
        self._client: Client | None = None
        self._local: list[Node] = []
        self._map: ShardMap | None = None

    # --- nodes -------------------------------------------------------------------------------------------------------
    async def add_node(self, name: str, address: str) -> None:
        """Add a running node of that name at `address` ("host:port"). Once the cluster is made, the node joins it: it
        is there for shards that are placed later. Raises InvalidArgument if another node answers there."""
        check_node_id("name", name)
        parse_address("address", address)
        who = await ask_who(self._caller, name, address)
        if self._client is None:
            self._added[name] = address
            return
        topology = self._client.topology()
        voters = {node: at for node in topology.catalog if (at := topology.address_of(node)) is not None}
        uid = await self._uid_by(voters)
        await self._caller.call(address, FOUND, calls.encode(FoundCall(uid, voters)), ASK_SECONDS)
        knows = who.knows if topology.cluster_version >= SAID else FIRST
        info = msgspec.structs.replace(node_info(name, address, who), knows=knows)
        await self._client.change_catalog(RegisterNode(info), timeout=TIMEOUT)

    async def _uid_by(self, voters: dict[NodeId, str]) -> int:
        """The cluster's uid, as the first of these nodes that answers tells it."""
        silent: NeedleError | None = None
        for node, address in voters.items():
            try:
                return (await ask_who(self._caller, node, address)).uid
            except NeedleError as error:  # a node may be down while another is added
                silent = error
        raise silent or Unavailable("the cluster has no node whose address is known")

    async def add_local_node(self, name: str, address: str, data_dir: str, *, zone: str = "") -> None:
        """Run a node in this process and add it. It ends with `stop`."""
        config = RaftConfig(
            node_id=name,
            listen=address,
            data_dir=data_dir,
            cluster_id=self.config.cluster_id,
            cluster_secret=self.config.cluster_secret,
            placement=PlacementConfig(zone=zone),
        )
        node = system_node(config, system_ports(config))
        await node.start()
        self._local.append(node)
        await self.add_node(name, address)

    def local_nodes(self) -> list[Node]:
        """The nodes that run in this process, in the order in which they were added."""
        return list(self._local)

    async def remove_node(self, name: str) -> None:
        """Forget a node. Raises InvalidArgument while it holds replicas. Its name is never used again."""
        if self._client is not None:
            await self._client.remove_node(name)
        elif self._added.pop(name, None) is None:
            raise invalid("name", name, f"one of {', '.join(self._added) or 'the nodes added (none is)'}")

    def nodes(self) -> dict[NodeId, str]:
        """The nodes and their addresses."""
        return dict(self._added) if self._client is None else self._client.nodes()

    def shard_for(self, id: str, metadata: Any = None) -> int:
        """The shard that owns a document: the same on every platform and in every release. metadata: for custom
        strategies. Before `start`, by the map that the cluster will be made with."""
        found = self._client.topology().map if self._client is not None else None
        if found is None:
            found = self._map = self._map or self.config.first_map()
        return found.owner(routing_key(found.strategy, found.shard_count, id, metadata))

    # --- life --------------------------------------------------------------------------------------------------------
    async def start(self, timeout: Seconds = 60.0) -> None:
        """Make the cluster out of the nodes added, or find the one that they belong to. Raises ConfigError if that has
        other settings. Returns when every shard has a leader."""
        seconds = check_timeout(timeout)
        if self._client is not None:
            return
        if not self._added:
            raise Unavailable("no node was added; call add_node first")
        config, addresses, first = self.config, list(self._added.values()), self.config.first_collection
        topology: Topology | None = await find_topology(self._caller, addresses)
        if topology is None:
            topology = await create_cluster(
                self._caller,
                config.settings_with(min(REPLICAS, len(self._added))),
                self._added,
                rng=self._rng,
                boundaries=config.boundaries,
                first=first,
                timeout=seconds,
            )
        there = topology.settings
        if there is None or there != config.settings_with(there.replication_factor):
            other = "none" if there is None else there.in_words()
            raise ConfigError(f"these nodes belong to a cluster with other settings: {other}")
        client = cluster_client(self._caller, addresses, topology, embedder=self.embedder)
        held = topology.collection(DEFAULT_COLLECTION)
        if first is not None and (held is None or not held.is_made_as(first)):  # it was made before, by other settings
            await client.create_collection(
                first.name,
                dimensions=first.dimensions,
                metric=first.metric,
                index=first.index,
                if_absent=True,
                timeout=timeout,
            )
        self._client = client

    async def client(self) -> Client:
        """The client behind router and cluster; starts the cluster at the first use."""
        await self.start()
        if self._client is None:
            raise Unavailable("the cluster is stopped")
        return self._client

    async def stop(self) -> None:
        """Close the connections, and the nodes that run in this process. Other nodes go on. Idempotent."""
        self._client = None
        await self._caller.close()
        while self._local:
            await self._local.pop().stop()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def health_check(self, *, timeout: Seconds = 2.0) -> ClusterHealth:
        """Whether every shard has a leader and all its replicas, and what is not redundant."""
        return await (await self.client()).health_check(timeout=timeout)


class RoutedMethods(DocumentMethods):
    """`DocumentMethods` under the names of the guide, which has batches report the outcome of each id."""

    insert_batch = DocumentMethods.insert_each

    async def search_filtered(
        self,
        query: Any,
        k: int,
        filter: FilterLike,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_metadata: bool = True,
        exact: bool = False,
        timeout: Seconds = TIMEOUT,
    ) -> list[Hit]:
        """`search` that must have a filter. `search` has more options."""
        return await self.search(
            query,
            k,
            filter,
            mode=mode,
            collection=collection,
            with_metadata=with_metadata,
            exact=exact,
            timeout=timeout,
        )


class ShardRouter(RoutedMethods):
    """Documents and searches over all shards of a manager's cluster."""

    def __init__(self, manager: ShardManager) -> None:
        self._manager = manager
        self.embedder = manager.embedder

    async def _documents(self) -> DocumentCalls:
        return (await self._manager.client()).documents


class DistributedCluster(ShardManager, RoutedMethods):
    """A sharded and replicated cluster: its nodes, its health, its documents."""

    config: ClusterConfig

    def __init__(self, config: ClusterConfig, *, embedder: Embedder | None = None) -> None:
        super().__init__(config, embedder=embedder)

    async def _documents(self) -> DocumentCalls:
        return (await self.client()).documents
