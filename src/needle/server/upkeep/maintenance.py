"""Taking a node out of service for a while: it gives leadership away and takes none, and its eventual reads drain.

The catalog says which nodes are; so a node that is restarted still is. Who leaves is out at once, before the catalog
has heard of it: it may be the only node that can lead the catalog. It still replicates and votes. It must not know the
wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from needle.base.errors import DeadlineExceeded, NeedleError, Unavailable
from needle.base.events import MAINTENANCE, tell
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.catalog.machine import CatalogMachine
from needle.multiraft.host import Host
from needle.protocol.catalog_commands import MaintainNode
from needle.routing.topology import Topology
from needle.server.ports import Catalog
from needle.server.replica import HostedReplica

log = logging.getLogger("needle.server")

LOOK_SECONDS = 0.01


class MaintainedNode(Protocol):
    """The node."""

    node_id: NodeId
    host: Host
    groups: dict[GroupId, HostedReplica]
    catalog: CatalogMachine | None
    topology: Topology

    @property
    def shards(self) -> Catalog: ...
    def now(self) -> float: ...
    def reading(self) -> int:
        """How many reads run."""
        ...

    async def wait_topology(self, version: int, timeout: float) -> bool: ...


class Maintenance:
    """See the module."""

    def __init__(self, node: MaintainedNode) -> None:
        self._node = node
        self._stopping = False
        self._left = 0
        """The maintenance (its index in the catalog) that this node was told to leave."""

    def follow(self) -> None:
        """Be in maintenance if the catalog says so, as far as this node knows; offer leadership to nobody who is."""
        node, since = self._node, self._since()
        node.host.heirs.resting = frozenset(info.id for info in node.topology.nodes if info.maintenance)
        wanted = self._stopping or since not in (0, self._left)
        if wanted != node.host.maintenance:
            node.host.set_maintenance(wanted)
            if not self._stopping:
                tell(MAINTENANCE, node_name=node.node_id, state="in" if wanted else "no more in")

    def _since(self) -> int:
        me = self._node.topology.node(self._node.node_id)
        return me.maintenance if me is not None else 0

    async def give_away(self, timeout: float) -> bool:
        """The node stops: give leadership away, and take none any more. Whether others lead in time."""
        self._stopping = True
        self.follow()
        return await self.led_elsewhere(timeout)

    async def set(self, on: bool, timeout: float) -> None:
        """On: give leadership away and take none, drain eventual reads; returns when both are done. Off: returns when
        this node has caught up. Raises DeadlineExceeded, and what the catalog answers; what it has written down
        stays."""
        node, deadline = self._node, self._node.now() + timeout
        self._left = 0 if on else self._since()
        self.follow()
        decided = await node.shards.command(MaintainNode(node.node_id, on), timeout)

        def left() -> float:
            return max(0.001, deadline - node.now())

        if not await node.wait_topology(decided.version, left()):
            raise DeadlineExceeded(f"node {node.node_id} has not heard from the catalog within {timeout:g} s")
        if on:
            if not await self.led_elsewhere(left()):
                raise DeadlineExceeded(
                    f"node {node.node_id} still leads after {timeout:g} s: nobody else can take over"
                )
            if not await self.until(lambda: node.reading() == 0, left()):
                raise DeadlineExceeded(f"reads did not drain from node {node.node_id} within {timeout:g} s")
            return
        for group, hosted in list(node.groups.items()):
            try:
                if node.groups.get(group) is hosted:
                    await node.host.wait_applied(group, await self._leader_index(hosted, left()), left())
            except NeedleError:
                if node.groups.get(group) is hosted:
                    raise  # else it was given to other nodes meanwhile

    async def _leader_index(self, hosted: HostedReplica, timeout: float) -> int:
        """Asked again while leadership is on its way, as it is when a node comes back that may lead."""
        node, deadline = self._node, self._node.now() + timeout
        while True:
            await self.until(lambda: node.host.leader(hosted.group) is not None, deadline - node.now())
            try:
                return await hosted.leader_index(max(0.001, deadline - node.now()))
            except Unavailable:
                here = node.groups.get(hosted.group) is hosted and not node.host.stopped
                if not here or node.now() >= deadline:
                    raise
            await asyncio.sleep(LOOK_SECONDS)

    async def led_elsewhere(self, timeout: float) -> bool:
        """Whether other nodes lead every group that has another voter, the catalog's too."""
        node = self._node

        def elsewhere() -> bool:
            groups = [*node.groups, *([CATALOG_GROUP] if node.catalog is not None else [])]
            return not any(node.host.is_leader(group) and len(node.host.status(group).voters) > 1 for group in groups)

        return await self.until(elsewhere, timeout)

    async def until(self, holds: Callable[[], bool], timeout: float) -> bool:
        """Wait until `holds()`; False if it does not within `timeout` seconds."""
        deadline = self._node.now() + timeout
        while not holds():
            if self._node.now() >= deadline or self._node.host.stopped:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True
