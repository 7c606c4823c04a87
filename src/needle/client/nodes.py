"""The client's methods for a node: what it says of itself, and taking it out of leadership for work on it.

A part of `Client`.
"""

from __future__ import annotations

from needle.base.errors import ConnectionLost, Unavailable, invalid
from needle.client import values
from needle.client.changes import TIMEOUT
from needle.client.directory import Caller
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import MaintenanceCall
from needle.protocol.catalog_commands import MaintainNode
from needle.protocol.peer_calls import WhoAnswer

STATUS_SECONDS = 2.0


class NodeMethods:
    """See the module."""

    _caller: Caller
    _shards: ClusterShards

    async def describe_node(self, node: str, *, timeout: float = STATUS_SECONDS) -> WhoAnswer:
        """What a node says of itself: its id, its cluster, its failure domain. node: its id or its address."""
        seconds = values.check_timeout(timeout)
        return await self._shards.describe(await self._where(node), seconds)

    async def enter_maintenance_mode(self, node: str, *, timeout: float = TIMEOUT) -> None:
        """Move leadership off `node` and keep it off, also after its restart, until `exit_maintenance_mode`; its reads
        drain. It still replicates and votes. Raises InvalidArgument if nobody else could lead one of its shards;
        Unavailable if the node does not answer: it will be in maintenance all the same."""
        await self._maintenance(node, True, timeout)

    async def exit_maintenance_mode(self, node: str, *, timeout: float = TIMEOUT) -> None:
        """End maintenance; returns once the node has caught up. Raises Unavailable if the node does not answer: it will
        be out of maintenance all the same."""
        await self._maintenance(node, False, timeout)

    async def _maintenance(self, node: str, on: bool, timeout: float) -> bool:
        """Whether that changed what the catalog says of the node, and no other command had."""
        changed = False
        seconds = values.check_timeout(timeout)
        address, known = await self._where(node), node in self._shards.topology().addresses()
        if on and known:  # also if the node does not answer
            done = await self._shards.command(MaintainNode(node, True), seconds)
            changed = done.version == done.index
        try:
            await self._caller.call(address, calls.MAINTENANCE, calls.encode(MaintenanceCall(on, seconds)), seconds)
        except ConnectionLost as error:
            if not known:
                raise
            if not on:
                await self._shards.command(MaintainNode(node, False), seconds)
            state = "in maintenance" if on else "no more in maintenance"
            raise Unavailable(f"{node} is {state} by the catalog, and does not answer: {error.message}") from error
        return changed

    async def _where(self, node: str) -> str:
        """The address of a node given by id or address."""
        if ":" in node:
            return node
        # Asked first who it is: what concerns one node must not reach another that has its address now.
        for again in (False, True):
            if again:
                await self._shards.refresh(self._shards.topology().version + 1, 1.0)
            address = self._shards.topology().addresses().get(node)
            if address is not None and await self._shards.node_at(address) in (node, None):
                return address  # one that is silent now will fail the call that follows
        if address is not None:
            raise Unavailable(f"node {node} is not at {address}, and no node says where else", node=node)
        raise invalid(
            "node",
            node,
            f"one of {', '.join(self._shards.topology().addresses()) or 'the nodes that answer (none does)'}",
        )
