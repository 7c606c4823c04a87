"""Whether a node is where somebody says that it is: another cluster may have nodes of the same names.

Invariant: no other address is taken for a node that the catalog knows than one at which that node's own directory
answers. Knows no connections: the caller has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from needle.base.errors import InvalidArgument, NeedleError, Overloaded, Unavailable, invalid
from needle.base.ids import NodeId
from needle.client.directory import Caller
from needle.protocol import calls
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.topology import NodeInfo, Topology
from needle.server.address_book import AddressBook

ASK_SECONDS = 0.8
"""Less than who announces itself waits."""
CHECKS_MAX = 4
"""Announcements that are looked into at a time: whoever sends them says whom this node connects to."""


class AnnouncedTo(Protocol):
    """The node that is told."""

    topology: Topology
    book: AddressBook
    caller: Caller


class Announced:
    """See the module."""

    def __init__(self, node: AnnouncedTo) -> None:
        self._node = node
        self._under_way = 0

    async def check(self, addresses: Mapping[NodeId, str]) -> None:
        """Raises InvalidArgument if another directory than that of the catalog's node answers there, or if several
        nodes are said to have moved: a node announces itself alone; Unavailable if nobody answers."""
        node, moved = self._node, []
        for name, address in addresses.items():
            known = node.topology.node(name)
            if known is not None and known.incarnation and address not in (node.book.get(name), known.address):
                moved.append((known, address))
        if not moved:
            return
        if len(moved) > 1:
            raise invalid("addresses", f"{len(moved)} nodes that moved", "one of them in an announcement")
        if self._under_way >= CHECKS_MAX:
            raise Overloaded(f"{CHECKS_MAX} announcements are being looked into already")
        self._under_way += 1
        try:
            await _check(node.caller, *moved[0])
        finally:
            self._under_way -= 1


async def _check(caller: Caller, known: NodeInfo, address: str) -> None:
    try:
        who = calls.decode(await caller.call(address, WHO, calls.encode(WhoCall()), ASK_SECONDS), WhoAnswer)
    except NeedleError as error:
        raise Unavailable(f"node {known.id} is said to be at {address}, and does not answer there: {error}") from error
    if (who.node_id, who.incarnation) != (known.id, known.incarnation):
        raise InvalidArgument(
            f"node {known.id} of this cluster has another data directory than node {who.node_id} at {address}: that is "
            "a node of another cluster, or lost its directory. Correct the addresses in its configuration, and give "
            "each cluster a `cluster_id` of its own",
            field="addresses",
        )
