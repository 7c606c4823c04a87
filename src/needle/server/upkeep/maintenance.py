"""Taking a node out of service for a while: it gives leadership away and takes none, and its eventual reads drain.

It still replicates and votes. It must not know the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from needle.base.errors import DeadlineExceeded
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.catalog.machine import CatalogMachine
from needle.multiraft.host import Host
from needle.server.replica import HostedReplica

LOOK_SECONDS = 0.01


class MaintainedNode(Protocol):
    """The node."""

    node_id: NodeId
    host: Host
    groups: dict[GroupId, HostedReplica]
    catalog: CatalogMachine | None

    def now(self) -> float: ...
    def reading(self) -> int:
        """How many reads run."""
        ...


class Maintenance:
    """See the module."""

    def __init__(self, node: MaintainedNode) -> None:
        self._node = node

    async def set(self, on: bool, timeout: float) -> None:
        """On: give leadership away and take none, drain eventual reads; returns when both are done. Off: returns when
        this node has caught up. Raises DeadlineExceeded; the mode stays as it was set."""
        self._node.host.set_maintenance(on)
        if on:
            if not await self.led_elsewhere(timeout):
                raise DeadlineExceeded(
                    f"node {self._node.node_id} still leads after {timeout:g} s: nobody else can take over"
                )
            if not await self.until(lambda: self._node.reading() == 0, timeout):
                raise DeadlineExceeded(f"reads did not drain from node {self._node.node_id} within {timeout:g} s")
            return
        for group, hosted in list(self._node.groups.items()):
            if self._node.groups.get(group) is hosted:  # it may be given to other nodes meanwhile
                await self._node.host.wait_applied(group, await self._leader_index(hosted, timeout), timeout)

    async def _leader_index(self, hosted: HostedReplica, timeout: float) -> int:
        await self.until(lambda: self._node.host.leader(hosted.group) is not None, timeout)
        return await hosted.leader_index(timeout)

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
