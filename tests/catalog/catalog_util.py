"""Catalog commands for tests: a small cluster and the entries that make it."""

from __future__ import annotations

from needle.base.model import CollectionSpec
from needle.catalog.planning.placement import PlacementNode, place
from needle.catalog.state import execute
from needle.multiraft.ports import Applied
from needle.protocol.catalog_commands import CatalogCommand, CreateCluster, encode
from needle.routing.shard_map import initial_map
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy
from needle.routing.topology import ClusterSettings, NodeInfo, Topology


def node(n: int, **changes: object) -> NodeInfo:
    values = {"id": f"node-{n}", "address": f"10.0.0.{n}:5000", "incarnation": 1000 + n, **changes}
    return NodeInfo(**values)  # type: ignore[arg-type]


def create(
    shards: int = 4, factor: int = 3, nodes: int = 6, strategy: ShardStrategy = CONSISTENT_HASH
) -> CreateCluster:
    infos = [node(n) for n in range(1, nodes + 1)]
    assignment = place(shards, factor, [PlacementNode(id=info.id) for info in infos], {})
    return CreateCluster(
        ClusterSettings(shard_count=shards, replication_factor=factor, strategy=strategy),
        initial_map(strategy, shards),
        infos,
        [info.id for info in infos[:3]],
        [list(assignment[shard]) for shard in range(shards)],
    )


def topology(shards: int = 4, factor: int = 3, nodes: int = 6, strategy: ShardStrategy = CONSISTENT_HASH) -> Topology:
    return execute(Topology(), 1, create(shards, factor, nodes, strategy))[0]


def entry(index: int, command: CatalogCommand | None, conf: bytes | None = None) -> Applied:
    return Applied(index, 1, b"" if command is None else encode(command), conf)


def spec(name: str, dimensions: int = 4) -> CollectionSpec:
    return CollectionSpec(name=name, dimensions=dimensions)
