"""A node makes itself known to the catalog: when it joins, and when it comes back with another address.

Until the catalog has the new address the node tells it to the others itself: they may need its vote before there is a
leader of the catalog to register with. Invariant: it speaks of its own address only, never of what it heard of others.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

import msgspec

from needle.base import catalog_commands, protocol
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.ids import NodeId
from needle.base.protocol import AddressBook
from needle.base.routing.topology import NodeInfo, Topology
from needle.client.shards import ClusterShards
from needle.multiraft.host import Host
from needle.server.ports import Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS = 30.0
RETRY_SECONDS = 1.0
COMMAND_SECONDS = 5.0
ANNOUNCE_SECONDS = 1.0


class RegisteringNode(Protocol):
    """The node that registers."""

    node_id: NodeId
    host: Host
    peers: Peers
    topology: Topology

    @property
    def shards(self) -> ClusterShards: ...
    def info(self) -> NodeInfo: ...
    def now(self) -> float: ...
    def _fatal(self, error: NeedleError) -> None: ...
    async def wait_topology(self, version: int, timeout: float) -> bool: ...


class Registration:
    """See the module."""

    def __init__(self, node: RegisteringNode) -> None:
        self._node = node
        self._announced = float("-inf")

    async def run(self) -> None:
        """Register whenever the catalog knows something else of this node. Ends when the catalog refuses it."""
        node = self._node
        while not node.host.stopped:
            if node.topology.settings is None:
                await node.wait_topology(1, RETRY_SECONDS)
                continue
            try:
                await self._register()
                pause = LOOK_SECONDS
            except InvalidArgument as error:
                node._fatal(error)
                return
            except NeedleError as error:
                log.warning("node %s is not registered yet: %s", node.node_id, error)
                pause = RETRY_SECONDS
            await node.wait_topology(node.topology.version + 1, pause)

    async def _register(self) -> None:
        node = self._node
        known, mine = node.topology.node(node.node_id), node.info()
        moved = known is not None and known.address != mine.address
        if moved or node.now() >= self._announced + LOOK_SECONDS:
            # Now and then also without having moved: a node that was away while all others moved can ask nobody.
            self._announced = node.now()
            await self._announce(mine.address)
        if known is None or msgspec.structs.replace(mine, state=known.state) != known:
            await node.shards.command(catalog_commands.RegisterNode(mine), COMMAND_SECONDS)

    async def _announce(self, address: str) -> None:
        node = self._node
        body = protocol.encode(AddressBook({node.node_id: address}))
        others = [other for other in node.topology.addresses() if other != node.node_id]
        calls = (node.peers.call(other, protocol.ADDRESSES, body, ANNOUNCE_SECONDS) for other in others)
        for other, answer in zip(others, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, NeedleError):
                log.debug("%s was not told where %s is: %s", other, node.node_id, answer)
            elif isinstance(answer, BaseException):
                raise answer
