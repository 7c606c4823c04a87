"""A fixed cluster as one with a single shard whose place never changes: what `ClusterShards` is for a sharded one.

Invariant: its topology is made of the nodes that are known now; there is no catalog that could change it.
"""

from __future__ import annotations

from collections.abc import Iterable

from needle.base.errors import InvalidArgument
from needle.base.ids import NodeId, shard_group
from needle.base.model import WriteResult
from needle.base.runtime import Rng
from needle.client.directory import Caller, Directory
from needle.client.group import GroupClient
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.topology import ClusterSettings, NodeInfo, ShardInfo, Topology

ONLY = shard_group(0)


class OneShard:
    """The one Raft group of a fixed cluster, which stands for its catalog's group, too."""

    has_catalog = False

    def __init__(self, caller: Caller, addresses: Iterable[str], *, rng: Rng, prefer: str | None = None) -> None:
        """addresses: of some or all nodes; the others are learned. prefer: asked first in eventual reads."""
        self.directory = Directory(caller, addresses)
        self._group = GroupClient(ONLY, self.directory, rng, prefer)

    def group(self, shard: int) -> GroupClient:
        """The calls to the group, whatever is asked for."""
        return self._group

    def topology(self) -> Topology:
        """The nodes that are known here, as replicas of one shard."""
        nodes = self.directory.nodes()
        return Topology(
            settings=ClusterSettings(shard_count=1, replication_factor=len(nodes)),
            nodes=tuple(NodeInfo(id=node, address=address, incarnation=0) for node, address in nodes.items()),
            shards=(ShardInfo(shard=0, replicas=tuple(nodes), founders=()),),
        )

    async def refresh(self, version: int, timeout: float) -> Topology:
        """Ask the nodes who they are and who leads, which tells of the others; there is no other version to wait for.
        Raises only when all refuse to talk."""
        await self._group.find_leader(timeout)
        return self.topology()

    async def confirmed(self, timeout: float) -> Topology:
        """Raises InvalidArgument: what is known of the nodes was heard from some of them."""
        raise InvalidArgument(
            "this cluster is not sharded: it has no catalog to confirm its topology; `status` tells its members as the "
            "leader sees them",
            field="confirmed",
        )

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        """Raises InvalidArgument."""
        raise InvalidArgument(f"this cluster is not sharded: it has no catalog to change by {type(command).__name__}")

    async def node_at(self, address: str) -> NodeId | None:
        """Which node answers at an address; None if none does."""
        answer = await self.directory.ask(address, ONLY)
        return None if answer is None else answer.node_id

    async def describe(self, address: str, timeout: float) -> WhoAnswer:
        """Raises InvalidArgument: only nodes of a sharded cluster describe themselves."""
        raise InvalidArgument("this cluster is not sharded: `node_status` tells what a node of it does")
