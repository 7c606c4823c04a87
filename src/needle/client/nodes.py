"""The client's methods for a node: what it says of itself, and taking it out of leadership for work on it.

A part of `Client`.
"""

from __future__ import annotations

import asyncio

from needle.base.errors import ConnectionLost, InvalidArgument, Unavailable, invalid
from needle.base.ids import NodeId
from needle.client import values
from needle.client.directory import Caller
from needle.client.doing_without import costs, held_by, leaders_say
from needle.client.feeds import TIMEOUT
from needle.client.shards import ClusterShards, OverShards
from needle.client.values import Seconds
from needle.protocol import calls
from needle.protocol.calls import MaintenanceCall
from needle.protocol.catalog_commands import MaintainNode
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.leadable import check_led
from needle.routing.topology import NodeState

STATUS_SECONDS = 2.0
LOOK_SECONDS = 0.2
SPARED_SECONDS = 4.0
"""So long who is to go into maintenance waits for others: an election may be under way."""


class NodeMethods(OverShards):
    """See the module."""

    async def describe_node(self, node: str, *, timeout: Seconds = STATUS_SECONDS) -> WhoAnswer:
        """What a node says of itself: its id, its cluster, its failure domain. node: its id or its address."""
        seconds = values.check_timeout(timeout)
        return await self._shards.describe(await address_of(self._shards, node), seconds)

    async def enter_maintenance_mode(self, node: str, *, force: bool = False, timeout: Seconds = TIMEOUT) -> None:
        """Move leadership off `node` and keep it off, also after its restart, until `exit_maintenance_mode`; its reads
        drain. It still replicates and votes. force: also if a shard or the catalog needs this node, because others do
        not answer, lack a part of the log or are in maintenance; without it that is refused (InvalidArgument), after
        some waiting, and nothing is changed; so it is in any case if all others that hold one of its shards are in
        maintenance. Raises Unavailable if the node does not answer: it will be in maintenance all the same."""
        seconds = values.check_timeout(timeout)
        if not force:
            begun = asyncio.get_running_loop().time()
            await self._spared(node, seconds)
            seconds = max(0.001, seconds - (asyncio.get_running_loop().time() - begun))
        await maintain(self._caller, self._shards, node, True, seconds)

    async def check_maintenance(self, node: NodeId, *, force: bool = False, timeout: Seconds = TIMEOUT) -> None:
        """Raise what `enter_maintenance_mode` would be refused with, and change nothing: InvalidArgument if the cluster
        has no such node, or if all others that hold one of its shards are in maintenance; without `force` also if the
        cluster needs it now."""
        seconds = values.check_timeout(timeout)
        now = await self._shards.confirmed(seconds)
        known = now.node(values.check_id(node, "node"))
        if known is None or known.state is NodeState.REMOVED:
            raise invalid("node", node, f"a node of this cluster: {', '.join(now.addresses())}")
        if not known.maintenance:
            check_led(now, node)
            if not force:
                await self._spared(node, seconds)

    async def _spared(self, node: str, seconds: float) -> None:
        """Wait a little until the cluster can do without a node, as after a leader has changed. Raises
        InvalidArgument. Who is no node of the cluster, or in maintenance already, is none of its business."""
        loop = asyncio.get_running_loop()
        until = loop.time() + min(seconds / 2, SPARED_SECONDS)
        while True:
            now = await self._shards.confirmed(seconds)
            known = next((info for info in now.nodes if node in (info.id, info.address)), None)
            if known is None or known.state is NodeState.REMOVED or known.maintenance:
                return
            held = held_by(now, [known.id])
            left = max(min(seconds, STATUS_SECONDS), until - loop.time())  # the last look decides: it has time, too
            told = costs(known.id, await leaders_say(self._shards, held, left), now)
            if not told:
                return
            if loop.time() >= until:
                break
            await asyncio.sleep(LOOK_SECONDS)
        raise InvalidArgument(
            f"{known.id} is not put into maintenance, for the cluster needs it: {', '.join(told)}. Bring the others "
            "back first, or say `force` (`--force`), which costs that",
            field="node",
        )

    async def exit_maintenance_mode(self, node: str, *, timeout: Seconds = TIMEOUT) -> None:
        """End maintenance; returns once the node has caught up. Raises Unavailable if the node does not answer: it will
        be out of maintenance all the same."""
        await maintain(self._caller, self._shards, node, False, values.check_timeout(timeout))


async def maintain(caller: Caller, shards: ClusterShards, node: str, on: bool, seconds: float) -> int:
    """Begin or end a node's maintenance. Returns the catalog's index of the one that this began, as `NodeInfo` has it;
    0 if it did not, for another command had. Raises Unavailable, after it is noted, if the node does not answer."""
    begun = 0
    address, known = await address_of(shards, node), node in shards.topology().addresses()
    if on and known:  # also if the node does not answer
        done = await shards.command(MaintainNode(node, True), seconds)
        begun = done.index if done.version == done.index else 0
    try:
        await caller.call(address, calls.MAINTENANCE, calls.encode(MaintenanceCall(on, seconds)), seconds)
    except ConnectionLost as error:
        if not known:
            raise
        if not on:
            await shards.command(MaintainNode(node, False), seconds)
        state = "in maintenance" if on else "no more in maintenance"
        raise Unavailable(f"{node} is {state} by the catalog, and does not answer: {error.message}") from error
    return begun


async def address_of(shards: ClusterShards, node: str) -> str:
    """The address of a node given by id or address. Raises Unavailable, InvalidArgument."""
    if ":" in node:
        return node
    # Asked first who it is: what concerns one node must not reach another that has its address now.
    for again in (False, True):
        if again:
            await shards.refresh(shards.topology().version + 1, 1.0)
        address = shards.topology().addresses().get(node)
        if address is not None and await shards.node_at(address) in (node, None):
            return address  # one that is silent now will fail the call that follows
    if address is not None:
        raise Unavailable(f"node {node} is not at {address}, and no node says where else", node=node)
    raise invalid(
        "node",
        node,
        f"one of {', '.join(shards.topology().addresses()) or 'the nodes that answer (none does)'}",
    )
