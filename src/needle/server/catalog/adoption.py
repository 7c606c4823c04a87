"""Acting on a newer topology: it is written down, addresses are learned, groups opened and closed.

Invariants: one topology is acted on at a time, none older than the last; a group is bootstrapped only by the nodes that
the catalog names as its founders, on the data directory it knows (incarnation). What fails for want of room, or of file
handles, is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from needle.base.config import RaftConfig
from needle.base.errors import ConfigError
from needle.base.events import CLUSTER_RECOVERED, tell
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, shard_group
from needle.base.versions import check_version
from needle.catalog.machine import CatalogMachine
from needle.multiraft.host import Host
from needle.routing.strategy import router_names
from needle.routing.topology import NodeState, Ownership, Topology
from needle.routing.topology_changes import History
from needle.server.access import Access
from needle.server.address_book import AddressBook
from needle.server.beats import Beats
from needle.server.cluster_files import ClusterFile, TopologyFile, check_founding
from needle.server.hosting import Hosting
from needle.server.lasting import SHORTAGE_SECONDS
from needle.server.ports import NodePorts
from needle.server.replica import HostedReplica
from needle.server.upkeep.maintenance import Maintenance

log = logging.getLogger("needle.server")

_HOLDS_NOTHING = "belongs to the cluster and holds no replica: it stores nothing until some are placed on it"
_WAS_REMOVED = "was removed from the cluster: stop it; to come back it needs an empty directory and a new name"


class AdoptingNode(Protocol):
    """The node that acts."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    book: AddressBook
    groups: dict[GroupId, HostedReplica]
    cluster: ClusterFile
    topology: Topology
    ownership: Ownership | None
    catalog: CatalogMachine | None
    maintenance: Maintenance
    access: Access
    beats: Beats

    def now(self) -> float: ...
    def alive(self) -> bool: ...
    def refuse_others(self, topology: Topology) -> None: ...


class Adoption:
    """See the module."""

    def __init__(self, node: AdoptingNode, hosting: Hosting) -> None:
        self._node = node
        self._hosting = hosting
        self.history = History()
        self._file: TopologyFile | None = None
        self._changed = asyncio.Event()
        self._adopting = asyncio.Lock()
        self._unsaved = False
        self._unopened = False
        self._said_empty = False

    @asynccontextmanager
    async def unmoved(self) -> AsyncIterator[None]:
        """Inside it no replica is opened or closed."""
        async with self._adopting:
            yield

    async def wait(self, version: int, timeout: float) -> bool:
        """Wait for a topology of at least `version`; False if it does not come in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self._node.topology.version < version:
            left = deadline - loop.time()
            if left <= 0 or self._node.host.stopped:
                return False
            changed = self._changed
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return False
        return True

    async def adopt(self, topology: Topology, *, save: bool = True) -> None:
        """Act on a newer topology. Whoever waits for it hears of it before it is on the disk: writes to keys that moved
        wait, and the file is a cache, which a start without the catalog may find older."""
        async with self._adopting:
            check_founding(self._node.node_id, self._node.topology, topology)
            if topology.version <= self._node.topology.version:
                return
            self._node.access.follow(topology.keys)  # first: a key that is revoked must not wait for a disk
            self._check_router(topology)
            check_version(topology.cluster_version, self._node.ports.knows)
            if save:
                self._learn_news(self._node.topology.addresses(), topology.addresses())
                self._unsaved = True
            self._unopened = True
            self._tell_recoveries(topology)
            self._node.topology = topology
            for one in self._node.catalog.passed(topology.version) if self._node.catalog is not None else ():
                self.history.follow(one)
            self.history.follow(topology)
            if topology.map is not None and (self._node.ownership is None or self._node.ownership.map != topology.map):
                self._node.ownership = Ownership(topology.map, {info.shard: info.since for info in topology.shards})
            self._node.maintenance.follow()
            self._node.refuse_others(topology)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            await self._save_topology(topology)
            await self._open_what_is_due()

    def _tell_recoveries(self, topology: Topology) -> None:
        """Once in the log of each start, before anything is served."""
        if self._node.topology.recovered != topology.recovered:
            for recovery in topology.recovered:
                tell(CLUSTER_RECOVERED, why=recovery.in_words())

    async def _save_topology(self, topology: Topology) -> None:
        """Without room for it, it is acted on all the same: the file is a cache, for a start without the catalog."""
        if self._unsaved:
            self._file = self._file or TopologyFile(self._node.config.data_dir)
            try:
                await self._node.ports.file_pool.run(self._file.save, topology)
                self._unsaved = False
            except SHORTAGES as error:
                log.error("version %d of the topology is not written down now: %s", topology.version, error)

    async def _open_what_is_due(self) -> None:
        if self._unopened:
            try:
                await self._open_and_close(self._node.topology)
                self._unopened = False
            except SHORTAGES as error:
                log.error("node %s does not open all its shards now: %s", self._node.node_id, error)

    async def retry_shortages(self) -> None:
        """What was left undone for want of room, or of file handles."""
        while not self._node.host.stopped:
            await self._node.beats.next(SHORTAGE_SECONDS, lambda: not (self._unsaved or self._unopened))
            async with self._adopting:
                await self._save_topology(self._node.topology)
                await self._open_what_is_due()

    def _learn_news(self, before: dict[NodeId, str], now: dict[NodeId, str]) -> None:
        """Only what changed: of a node that moved and is not registered yet, what it said itself is newer."""
        others = {node: at for node, at in now.items() if node != self._node.node_id}
        self._node.book.learn({node: at for node, at in others.items() if before.get(node) != at})
        self._node.book.learn_missing(others)

    def _check_router(self, topology: Topology) -> None:
        """A node that cannot tell who owns a document must not serve: writes to the shards it leads would all fail."""
        name = topology.map.strategy.router if topology.map is not None else ""
        if name and name not in router_names():
            raise ConfigError(
                f"documents of this cluster are routed by {name!r}, which node {self._node.node_id} does not know: "
                "start it with --routers, or router_modules in [sharding]",
                field="sharding.router_modules",
            )

    async def _open_and_close(self, topology: Topology) -> None:
        node = self._node
        me = topology.node(node.node_id)
        if me is None or me.incarnation != node.cluster.incarnation:
            return
        await self._hold_catalog(topology)
        mine = {shard_group(info.shard): info for info in topology.hosted_by(node.node_id)}
        if not mine and not self._said_empty:
            self._said_empty = True
            removed = me.state is NodeState.REMOVED
            log.warning("node %s %s", node.node_id, _WAS_REMOVED if removed else _HOLDS_NOTHING)
        for group, info in mine.items():
            if group not in node.groups:
                founds = node.node_id in info.founders
                hosted = await self._hosting.open_shard(info.shard, sorted(info.founders) if founds else [])
                if node.alive():
                    hosted.start()
        for group in [group for group in node.groups if group not in mine]:
            await self._hosting.close_shard(group)

    async def _hold_catalog(self, topology: Topology) -> None:
        node = self._node
        wanted = node.node_id in topology.catalog
        if wanted and node.catalog is None:
            self._hosting.open_catalog(topology)
        elif not wanted and node.catalog is not None:
            await self._hosting.leave_catalog()
