"""A node keeps its topology as new as the catalog: from its own replica, or by asking other nodes and waiting.

Invariant: no node is the only source. A replica of the catalog may be cut off by what it does not know (its leader has
moved, and its answers go to the old address), and a node that follows that replica with it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from needle.base.config import RaftConfig
from needle.base.errors import (
    DeadlineExceeded,
    LostState,
    NeedleError,
    TlsFailed,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
    WrongCluster,
)
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.news import FOR_EVER, News
from needle.catalog.machine import CatalogMachine
from needle.client.directory import Caller
from needle.client.hearing import Hearing
from needle.multiraft.host import Host
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY, WHO, WhoAnswer, WhoCall
from needle.routing.topology import Topology
from needle.server.cluster_files import ClusterFile

log = logging.getLogger("needle.server")

POLL_SECONDS = 1.0
PAUSE_SECONDS = 0.2


class FollowingNode(Protocol):
    """The node that follows."""

    node_id: NodeId
    config: RaftConfig
    host: Host
    topology: Topology
    cluster: ClusterFile
    catalog: CatalogMachine | None
    caller: Caller

    async def adopt(self, topology: Topology) -> None: ...
    async def belong_to(self, uid: int) -> None: ...
    def seeds(self) -> list[str]: ...
    def reach(self, node: NodeId) -> str | None: ...


class CatalogFollower:
    """See the module."""

    def __init__(self, node: FollowingNode) -> None:
        self._node = node
        self._turn = 0
        self._hearing = Hearing()
        self._fixed = News(FOR_EVER)
        """Addresses of nodes that know no catalog, or do not talk about it, told of once."""

    async def run(self) -> None:
        """Until the node stops."""
        node = self._node
        while not node.host.stopped:
            if node.catalog is not None:
                await self._follow_own(node.catalog)
            elif not await self._follow_others():
                await asyncio.sleep(PAUSE_SECONDS)

    async def _follow_own(self, catalog: CatalogMachine) -> None:
        host = self._node.host
        await self._node.adopt(catalog.topology)
        try:
            await host.wait_applied(CATALOG_GROUP, host.applied_index(CATALOG_GROUP) + 1, POLL_SECONDS)
        except LostState:
            # Refused at once, and for good: without a pause this would take the whole event loop.
            if not await self._follow_others():
                await asyncio.sleep(PAUSE_SECONDS)
        except DeadlineExceeded:
            for address in self._sources()[:1]:  # nothing new within the second, or it does not reach this replica
                await self._ask(address, 0.0)
        except Unavailable as error:
            log.debug("node %s does not follow its own replica of the catalog now: %s", self._node.node_id, error)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _follow_others(self) -> bool:
        """Ask one node after the other; whether one answered."""
        for address in self._sources():
            if await self._ask(address, POLL_SECONDS):
                return True
        return False

    def _sources(self) -> list[str]:
        """The nodes to ask, another one first each time; those that hold the catalog, as far as this node knows, before
        the others: it may have gone elsewhere while this node was away."""
        node, self._turn = self._node, self._turn + 1
        holders = dict.fromkeys([*node.topology.catalog, *node.cluster.voters])
        others = [one for one in node.topology.addresses() if one not in holders]
        turned = [*self._turned(list(holders)), *self._turned(others)]
        addresses = [at for one in turned if one != node.node_id and (at := node.reach(one)) is not None]
        seeds = self._turned(list(dict.fromkeys(node.seeds())))  # the first may know as little as this node, forever
        return [at for at in [*addresses, *seeds] if at not in (node.config.address, node.config.announced)]

    def _turned(self, nodes: list[NodeId]) -> list[NodeId]:
        at = self._turn % max(1, len(nodes))
        return nodes[at:] + nodes[:at]

    async def _ask(self, address: str, wait: float) -> bool:
        """Whether the node at `address` answered; what it knows is adopted."""
        node = self._node
        try:
            newer = await self._hearing.ask(
                lambda body: node.caller.call(address, TOPOLOGY, body, 2 * POLL_SECONDS), node.topology, wait
            )
            if node.cluster.uid == 0 and newer is not None and newer.settings is not None:
                await self._belong_to(address)
        except UnknownMethod:
            self._say_once(address, "cannot join the cluster", "it is of an earlier release, without a catalog")
            return False
        except Unauthenticated as error:
            why = f"it needs the cluster_secret of that cluster: {error}"
            self._say_once(address, "does not hear of the catalog", why)
            return False
        except TlsFailed as error:
            self._say_once(address, "does not hear of the catalog", str(error))
            return False
        except NeedleError as error:
            log.debug("node %s does not get the topology from %s: %s", node.node_id, address, error)
            return False
        if newer is not None:
            try:
                await node.adopt(newer)
            except WrongCluster as error:
                log.error("node %s does not follow the catalog at %s: %s", node.node_id, address, error)
                return False
        return True

    def _say_once(self, address: str, what: str, why: str) -> None:
        """What only an operator can mend."""
        if self._fixed.is_news(address):
            log.error("node %s %s at %s: %s", self._node.node_id, what, address, why)

    async def _belong_to(self, address: str) -> None:
        data = await self._node.caller.call(address, WHO, calls.encode(WhoCall()), POLL_SECONDS)
        told = calls.decode(data, WhoAnswer)
        if told.uid:
            await self._node.belong_to(told.uid)
