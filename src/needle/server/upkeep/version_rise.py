"""Once every node knows newer commands and formats, the catalog's leader has the cluster use them (docs/adr/0042).

Invariants: the version that the cluster is at is at most what each node that was not removed knows, by what it said
last; a node that never said it knows the first version only. The catalog refuses anything else, so it
does no harm that what is seen here may have changed meanwhile. Nodes are only asked while the catalog does not keep
what they know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Protocol

from needle.base.errors import NeedleError
from needle.base.events import VERSION_RAISED, tell
from needle.base.ids import CATALOG_GROUP, NodeId
from needle.base.model import WriteResult
from needle.base.versions import FIRST, SAID
from needle.catalog.machine import CatalogMachine
from needle.multiraft.host import Host
from needle.protocol import calls, catalog_commands
from needle.protocol.catalog_commands import RaiseVersion
from needle.protocol.peer_calls import WHO, WhoAnswer, WhoCall
from needle.routing.topology import NodeInfo, NodeState, Topology
from needle.server.beats import Beats
from needle.server.ports import NodePorts, Peers

log = logging.getLogger("needle.server")

LOOK_SECONDS: Final = 1.0
ASK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 10.0


class RisingNode(Protocol):
    """The node, which leads the catalog at times."""

    node_id: NodeId
    host: Host
    peers: Peers
    ports: NodePorts
    catalog: CatalogMachine | None
    beats: Beats

    def now(self) -> float: ...
    async def execute(self, command: bytes, timeout: float) -> WriteResult: ...


class VersionRise:
    """See the module."""

    def __init__(self, node: RisingNode) -> None:
        self._node = node
        self._waits_for = ""

    async def run(self) -> None:
        """Until the node stops."""
        node = self._node
        while not node.host.stopped:
            await node.beats.next(LOOK_SECONDS, lambda: node.catalog is None or not node.host.is_leader(CATALOG_GROUP))
            if node.catalog is None:
                continue
            try:
                await self.look(node.catalog.topology)
            except NeedleError as error:
                log.debug("node %s does not raise the cluster's version now: %s", node.node_id, error)

    async def look(self, now: Topology) -> None:
        """One look, on the catalog's leader."""
        node = self._node
        if now.settings is None or now.cluster_version >= node.ports.knows:
            return
        said = await self._ask(now) if now.cluster_version < SAID else {}
        version = min(node.ports.knows, all_know(now, said))
        if version > now.cluster_version:
            command = RaiseVersion(version, sorted(said.items()))
            await node.execute(catalog_commands.entry(command, now), STEP_SECONDS)
            tell(VERSION_RAISED, version=version)
        self._tell(now, said)

    def _tell(self, now: Topology, said: Mapping[NodeId, int]) -> None:
        knows, at = self._node.ports.knows, now.cluster_version
        waits_for = ", ".join(info.id for info in now.older_than(knows) if said.get(info.id, FIRST) < knows)
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            if waits_for:
                log.info("the cluster stays at version %d, and not %d, until %s can read it", at, knows, waits_for)

    async def _ask(self, now: Topology) -> dict[NodeId, int]:
        """What nodes that answer know; of the directories that the cluster counts on."""
        there = [info for info in now.nodes if info.state is not NodeState.REMOVED]
        answers = await asyncio.gather(*map(self._one, there))
        return {info.id: knows for info, knows in zip(there, answers, strict=True) if knows > FIRST}

    async def _one(self, info: NodeInfo) -> int:
        node = self._node
        if info.id == node.node_id:
            return node.ports.knows
        try:
            data = await node.peers.call(info.id, WHO, calls.encode(WhoCall()), ASK_SECONDS)
            told = calls.decode(data, WhoAnswer)
        except NeedleError as error:
            log.debug("node %s does not say what it knows: %s", info.id, error)
            return FIRST
        return told.knows if info.incarnation in (0, told.incarnation) else FIRST


def all_know(now: Topology, said: Mapping[NodeId, int]) -> int:
    """The version that every node knows which was not removed, by the catalog or its own word."""
    there = (info for info in now.nodes if info.state is not NodeState.REMOVED)
    return min((max(info.knows, said.get(info.id, FIRST)) for info in there), default=FIRST)
