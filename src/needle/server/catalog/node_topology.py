"""What a node knows of its cluster, for its own way to the shards: its own topology instead of one that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from needle.base.config import RaftConfig
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.catalog.machine import CatalogMachine
from needle.client.group import GroupClient
from needle.client.known_topology import Turn
from needle.multiraft.host import Host
from needle.routing.topology import Topology
from needle.server.address_book import AddressBook


class RoutingNode(Protocol):
    """The node from which shards are reached."""

    node_id: NodeId
    config: RaftConfig
    book: AddressBook
    topology: Topology
    host: Host
    catalog: CatalogMachine | None

    async def wait_topology(self, version: int, timeout: float) -> bool: ...
    async def confirmed(self, timeout: float) -> Topology: ...


class NodeTopology:
    """`client.known_topology.KnownTopology` of a node: what it follows the catalog to, with the addresses by which it
    reaches the others."""

    def __init__(self, node: RoutingNode) -> None:
        self._node = node
        self._turn = Turn([node.config.address])
        self._of = self._reached = Topology()
        self._told = -1

    def topology(self) -> Topology:
        """The newest known here."""
        now, book = self._node.topology, self._node.book
        if now is not self._of or book.version != self._told:
            nodes = (msgspec.structs.replace(info, address=book.get(info.id) or info.address) for info in now.nodes)
            self._of, self._told = now, book.version
            self._reached = msgspec.structs.replace(now, nodes=tuple(nodes))
        return self._reached

    def in_turn(self) -> list[str]:
        """See KnownTopology. Who leads the catalog is first, if that is known here, or else those that hold it: another
        one would only hand a command on, and writes wait for some (docs/adr/0117)."""
        now, node = self.topology(), self._node
        found, at = self._turn.of(now), now.addresses()
        leader = node.host.leader(CATALOG_GROUP) if node.catalog is not None else None
        first = {at.get(one) for one in ([leader] if leader is not None else now.catalog)}
        return sorted(found, key=lambda address: address not in first)

    async def refresh(self, version: int, timeout: float) -> Topology:
        """See KnownTopology."""
        await self._node.wait_topology(version, timeout)
        return self.topology()

    def look(self) -> None:
        """The node follows the catalog anyway."""

    def close(self) -> None:
        """The node has it, not its client."""

    async def confirmed(self, timeout: float, catalog: Callable[[], GroupClient]) -> Topology:
        """The node asks the catalog in its own way."""
        del catalog
        if self._node.topology.settings is None:
            raise Unavailable(f"node {self._node.node_id} belongs to no cluster yet")
        version = (await self._node.confirmed(timeout)).version
        if not await self._node.wait_topology(version, timeout):
            raise DeadlineExceeded(f"version {version} of the catalog did not come within {timeout:g} s")
        return self.topology()
