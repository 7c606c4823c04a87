"""How many shards a cluster has, how their documents are spread, and how a node comes to it: part of the one schema of
settings (needle/base/config.py), and what is checked wherever a cluster is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final

from needle.base.schema import Settings, about

SHARDS_MAX: Final = 4096
"""Retired ones included: their numbers are not used again."""
REPLICAS_MAX: Final = 7
"""Of a shard, and of the catalog."""
VIRTUAL_NODES_MAX: Final = 10_000
"""Of one shard."""
SHARDS, VIRTUAL_NODES = 1, 100
"""Where nobody says how many."""
STRATEGY = "consistent_hash, hash, range, custom:FIELD[,FIELD...] or router:NAME"
ROUTERS = "a list of module or module:function"


class ShardingConfig(Settings, frozen=True, kw_only=True):
    """How a node comes to its cluster, and the cluster to its shards.

    shards: How many shards the cluster has that the `cluster_nodes` found; the same number on each of these nodes.
    replicas: Copies of each of these shards, each on its own node.
    strategy: How documents are spread over these shards (docs/sharding.md).
    virtual_nodes: Points of each of these shards on the ring of `consistent_hash`.
    boundaries: Under `range`, the first id of each of these shards except the first, in order; by default the first
        bytes of ids are divided evenly.
    join: Addresses of nodes of the running cluster that this node joins.
    router_modules: Custom routing functions (docs/sharding.md), which the node imports when it starts. The variable
        NEEDLE_ROUTERS names them too, and for the other commands.
    """

    table: ClassVar[str] = "sharding"

    shards: Annotated[int, about(1, SHARDS_MAX, option="--shards", shown=str(SHARDS))] | None = None
    replicas: Annotated[int, about(1, REPLICAS_MAX, option="--replicas", shown="one on every node")] | None = None
    strategy: Annotated[str, about(allowed=STRATEGY, option="--strategy", shown="consistent_hash")] | None = None
    virtual_nodes: (
        Annotated[int, about(1, VIRTUAL_NODES_MAX, option="--virtual-nodes", shown=str(VIRTUAL_NODES))] | None
    ) = None
    boundaries: Annotated[Sequence[str], about(allowed="a list of ids", option="--boundary")] = ()
    join: Annotated[Sequence[str], about(allowed="a list of host:port", option="--join")] = ()
    router_modules: Annotated[Sequence[str], about(allowed=ROUTERS, option="--routers")] = ()

    @property
    def describes_shards(self) -> bool:
        """Whether something is said of the cluster that the `cluster_nodes` found."""
        said = (self.shards, self.replicas, self.strategy, self.virtual_nodes, self.boundaries or None)
        return any(value is not None for value in said)
