"""The router's way to shards from inside a node: by the node's own topology instead of one that it asks for."""

from __future__ import annotations

from typing import Protocol

import msgspec

from needle.base.config import RaftConfig
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.ids import NodeId
from needle.client.directory import Caller
from needle.client.shards import ClusterShards
from needle.routing.topology import Topology
from needle.server.address_book import AddressBook
from needle.server.ports import NodePorts


class RoutingNode(Protocol):
    """The node from which shards are reached."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    book: AddressBook
    topology: Topology

    async def wait_topology(self, version: int, timeout: float) -> bool: ...
    async def confirmed(self, timeout: float) -> Topology: ...


class NodeShards(ClusterShards):
    """The router's way to shards from inside a node: the node's own topology, which follows the catalog, with the
    addresses by which this node reaches the others."""

    def __init__(self, node: RoutingNode, caller: Caller) -> None:
        super().__init__(caller, [node.config.address], Topology(), rng=node.ports.rng, prefer=node.config.address)
        self._node = node
        self._of = self._reached = Topology()
        self._told = -1

    def topology(self) -> Topology:
        now, book = self._node.topology, self._node.book
        if now is not self._of or book.version != self._told:
            nodes = (msgspec.structs.replace(info, address=book.get(info.id) or info.address) for info in now.nodes)
            self._of, self._told = now, book.version
            self._reached = msgspec.structs.replace(now, nodes=tuple(nodes))
        return self._reached

    async def refresh(self, version: int, timeout: float) -> Topology:
        await self._node.wait_topology(version, timeout)
        return self.topology()

    def look(self) -> None:
        """The node follows the catalog anyway."""

    async def confirmed(self, timeout: float) -> Topology:
        if self._node.topology.settings is None:
            raise Unavailable(f"node {self._node.node_id} belongs to no cluster yet")
        version = (await self._node.confirmed(timeout)).version
        if not await self._node.wait_topology(version, timeout):
            raise DeadlineExceeded(f"version {version} of the catalog did not come within {timeout:g} s")
        return self.topology()
