"""A node of a sharded cluster: hosts the catalog if it is one of its nodes, and the shards that the catalog gives it.

It follows the catalog: from its own replica, or by asking the catalog's nodes and waiting for changes. Every newer
topology is written down, then acted on: addresses, groups opened and closed, collections, leaders. Invariant: a group
is bootstrapped only by the nodes that the catalog names as its founders, on the data directory it knows (incarnation).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from needle.base.config import RaftConfig, parse_node
from needle.base.errors import ConfigError, Internal, InvalidArgument, NeedleError
from needle.base.file_errors import SHORTAGES
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.base.model import RaftStatus, WriteResult
from needle.base.runtime import Rng
from needle.catalog.machine import CatalogMachine
from needle.client.directory import Caller
from needle.client.router.router import Router
from needle.multiraft.background import Background
from needle.protocol import calls
from needle.protocol.peer_calls import (
    SHARD_LEADER,
    TOPOLOGY,
    FoundCall,
    TopologyAnswer,
    TopologyCall,
    WhoAnswer,
    check_fresh,
)
from needle.routing.loading import load_routers
from needle.routing.strategy import router_names
from needle.routing.topology import NodeInfo, NodeState, Ownership, Topology
from needle.server.adapters import CatalogAdapter
from needle.server.catalog.collections import Reconciler
from needle.server.catalog.follower import CatalogFollower
from needle.server.catalog.node_shards import NodeShards
from needle.server.catalog.registration import Registration
from needle.server.catalog.settings_founding import SettingsFounding, cluster_uid, seeds_of, settings_of
from needle.server.cluster_files import (
    ClusterFile,
    catalog_directory,
    check_founding,
    check_unused,
    load_cluster,
    load_topology,
    save_cluster,
    save_topology,
)
from needle.server.local_caller import LocalCaller
from needle.server.node import Node
from needle.server.ports import NodePorts
from needle.server.service.sharded import ClusterService
from needle.server.upkeep.coordinator import Coordinator
from needle.server.upkeep.health import HealthWatch
from needle.server.upkeep.lasting import SHORTAGE_SECONDS, lasting
from needle.server.upkeep.leaders import LeaderSpread
from needle.server.upkeep.mover import Mover
from needle.server.upkeep.replicas import Replicas

log = logging.getLogger("needle.server")

STRANGERS_MAX = 16


class ClusterNode(Node):
    """See the module."""

    leader_method = SHARD_LEADER

    def __init__(
        self, config: RaftConfig, ports: NodePorts, clients: Callable[[], Caller], *, move_rows: int = 256
    ) -> None:
        """clients: makes this node's own client to others' addresses. move_rows: documents that a move of key ranges
        looks at, or deletes, in one step. Raises ConfigError or InvalidArgument for shards that cannot be."""
        if config.founders:
            settings_of(config)
        super().__init__(config, ports)
        self.topology = Topology()
        self.ownership: Ownership | None = None
        self.catalog: CatalogMachine | None = None
        self.router: Router
        self.shards: NodeShards
        self._clients = clients
        self._changed = asyncio.Event()
        self._background = Background(self._background_failed)
        self.reconciler = Reconciler(self)
        self._adopting = asyncio.Lock()
        self._belonging = asyncio.Lock()
        self._unsaved = False
        self._unopened = False
        self._mover = Mover(self, move_rows)
        self._replicas = Replicas(self)
        self.coordinator = Coordinator(self)
        self._said_empty = False
        self.strangers: set[NodeId] = set()
        """Nodes that spoke Raft to this one before it belonged to a cluster; the first few."""
        self.caller: Caller

    # --- life --------------------------------------------------------------------------------------------------------
    async def _open_groups(self) -> None:
        load_routers(self.config.sharding.router_modules, "sharding.router_modules")
        directory = self.config.data_dir
        self.cluster = load_cluster(directory, self.ports.rng.getrandbits(63))
        caller = LocalCaller(self, self.config.address, self._clients())
        self._undo.append(caller.close)
        self.caller = caller
        self.shards = NodeShards(self, caller)
        self.router = Router(self.shards, monotonic=self.now, blocking=self.blocking)
        self._undo.append(self._close_catalog)
        known = load_topology(directory)
        # The book holds what nodes said later.
        for older in (known.addresses(), self.cluster.voters, self.config.founders):
            self.book.learn_missing(older)
        if self.node_id in (known.catalog if known.settings is not None else self.cluster.voters):
            self._open_catalog(known)
        begun = self.catalog.topology.settings is not None if self.catalog is not None else self.cluster.uid != 0
        if known.settings is None and not begun:  # nobody has announced anything yet: the list may have been put right
            self.book.learn(self.config.founders)
        await self.adopt(known, save=False)

    def _make_service(self) -> ClusterService:
        return ClusterService(self)

    def _configured_addresses(self) -> dict[NodeId, str]:
        """What others announce counts, but for those that this node reaches in a way of its own."""
        return {**dict(parse_node(text, "reach") for text in self.config.reach), self.node_id: self.config.announced}

    def _first_collection(self) -> None:
        """The catalog says which collections there are."""

    def _open_catalog(self, known: Topology) -> None:
        if self.catalog is None:
            machine = CatalogMachine(catalog_directory(self.config.data_dir))
            # Others wait until the group contacts them, and so do all once it may have other members.
            founds = self.node_id in self.cluster.voters and not known.catalog_assigned
            try:
                watched = self.ports.catalog(CATALOG_GROUP, CatalogAdapter(machine))
                self.host.open_group(CATALOG_GROUP, watched, voters=sorted(self.cluster.voters) if founds else [])
            except BaseException:
                machine.close()
                raise
            self.catalog = machine

    def _close_catalog(self) -> None:
        if self.catalog is not None:
            self.catalog.close()

    async def start(self) -> None:
        """See Node.start; then follow the catalog."""
        await super().start()
        spread = LeaderSpread(self)
        works = (CatalogFollower(self).run, Registration(self).run, spread.run, self._mover.run, self._replicas.run)
        for work in (*works, self.coordinator.run, self.reconciler.run, self._retry_shortages):
            self._background.spawn(lasting(work))
        if self.config.founders:
            self._background.spawn(lasting(SettingsFounding(self).run))
        self._undo.append(self._background.end)

    def watch_health(self) -> HealthWatch:
        """Ask all replicas how they are, from now on until the node stops."""
        watch = HealthWatch(self.caller, self.shards.topology)
        self._background.spawn(watch.run())
        return watch

    def _background_failed(self, error: BaseException) -> None:
        if not self.host.stopped and not self._stopping:
            log.error("background work of node %s failed", self.node_id, exc_info=error)
            self._fatal(error if isinstance(error, NeedleError) else Internal(f"background work failed: {error!r}"))

    @property
    def rng(self) -> Rng:
        return self.ports.rng

    # --- the topology ------------------------------------------------------------------------------------------------
    async def wait_topology(self, version: int, timeout: float) -> bool:
        """Wait for a topology of at least `version`; False if it does not come in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self.topology.version < version:
            left = deadline - loop.time()
            if left <= 0 or self.host.stopped:
                return False
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:
                return False
        return True

    async def adopt(self, topology: Topology, *, save: bool = True) -> None:
        """Act on a newer topology."""
        async with self._adopting:
            check_founding(self.node_id, self.topology, topology)
            if topology.version <= self.topology.version:
                return
            self._check_router(topology)
            if save:
                self._learn_news(self.topology.addresses(), topology.addresses())
                self._unsaved = True
            self._unopened = True
            await self._save_topology(topology)
            self.topology = topology
            if topology.map is not None and (self.ownership is None or self.ownership.map != topology.map):
                self.ownership = Ownership(topology.map, {info.shard: info.since for info in topology.shards})
            await self._open_what_is_due()
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _save_topology(self, topology: Topology) -> None:
        """Without room for it, it is acted on all the same: the file is a cache, for a start without the catalog."""
        if self._unsaved:
            try:
                await self.ports.file_pool.run(save_topology, self.config.data_dir, topology)
                self._unsaved = False
            except SHORTAGES as error:
                log.error("version %d of the topology is not written down now: %s", topology.version, error)

    async def _open_what_is_due(self) -> None:
        if self._unopened:
            try:
                await self._open_and_close(self.topology)
                self._unopened = False
            except SHORTAGES as error:
                log.error("node %s does not open all its shards now: %s", self.node_id, error)

    async def _retry_shortages(self) -> None:
        """What was left undone for want of room, or of file handles."""
        while not self.host.stopped:
            await asyncio.sleep(SHORTAGE_SECONDS)
            if self._unsaved or self._unopened:
                async with self._adopting:
                    await self._save_topology(self.topology)
                    await self._open_what_is_due()

    def _learn_news(self, before: dict[NodeId, str], now: dict[NodeId, str]) -> None:
        """Only what changed: of a node that moved and is not registered yet, what it said itself is newer."""
        others = {node: at for node, at in now.items() if node != self.node_id}
        self.book.learn({node: at for node, at in others.items() if before.get(node) != at})
        self.book.learn_missing(others)

    def _check_router(self, topology: Topology) -> None:
        """A node that cannot tell who owns a document must not serve: writes to the shards it leads would all fail."""
        name = topology.map.strategy.router if topology.map is not None else ""
        if name and name not in router_names():
            raise ConfigError(
                f"documents of this cluster are routed by {name!r}, which node {self.node_id} does not know: start it "
                "with --routers, or router_modules in [sharding]",
                field="sharding.router_modules",
            )

    async def _open_and_close(self, topology: Topology) -> None:
        me = topology.node(self.node_id)
        if me is None or me.incarnation != self.cluster.incarnation:
            return
        await self._hold_catalog(topology)
        mine = {shard_group(info.shard): info for info in topology.hosted_by(self.node_id)}
        if not mine and not self._said_empty and me.state is not NodeState.REMOVED:
            self._said_empty = True
            log.warning(
                "node %s belongs to the cluster and holds no replica: it stores nothing until some are placed on it",
                self.node_id,
            )
        for group, info in mine.items():
            if group not in self.groups:
                founds = self.node_id in info.founders
                hosted = await self._open_shard(info.shard, sorted(info.founders) if founds else [])
                if self._running:
                    hosted.start()
                log.info("node %s opens shard %d", self.node_id, info.shard)
        for group in [group for group in self.groups if group not in mine]:
            hosted = self.groups.pop(group)
            await hosted.stop()
            await self.host.close_group(group)
            hosted.replica.close()
            log.info("node %s closes shard %d", self.node_id, group - 1)

    async def _hold_catalog(self, topology: Topology) -> None:
        wanted = self.node_id in topology.catalog
        if wanted and self.catalog is None:
            self._open_catalog(topology)
            log.info("node %s opens a replica of the catalog", self.node_id)
        elif not wanted and self.catalog is not None:
            catalog, self.catalog = self.catalog, None
            await self.host.close_group(CATALOG_GROUP)
            catalog.close()
            log.info("node %s closes its replica of the catalog", self.node_id)

    async def belong_to(self, uid: int) -> None:
        """Write down which cluster this node joins. Raises InvalidArgument if its directory holds data of another."""
        async with self._belonging:
            if self.cluster.uid == 0:
                check_unused(self.node_id, self.config.data_dir)
                await self._become(msgspec.structs.replace(self.cluster, uid=uid))

    async def _become(self, cluster: ClusterFile) -> None:
        """Written down first: a node that only believed to belong would be a stranger after a restart."""
        await self.ports.file_pool.run(save_cluster, self.config.data_dir, cluster)
        self.cluster = cluster

    async def found(self, call: FoundCall) -> None:
        """Belong to the cluster that is being created. Raises InvalidArgument if this node belongs to another one, or
        its name does; LostState if it does not go on."""
        async with self._belonging:
            strangers = set() if self.cluster.uid else self.strangers - call.voters.keys()
            check_fresh(self.node_id, self.host.lost, strangers)
            if self.cluster.uid not in (0, call.uid):
                raise InvalidArgument(
                    f"node {self.node_id} belongs to another cluster; give it an empty data directory to use it here",
                    field="node",
                )
            if self.cluster.uid == 0:
                check_unused(self.node_id, self.config.data_dir)
                await self._become(msgspec.structs.replace(self.cluster, uid=call.uid, voters=dict(call.voters)))
        self.book.learn({node: at for node, at in call.voters.items() if node != self.node_id})
        if self.node_id in self.cluster.voters and not self.topology.catalog_assigned:
            self._open_catalog(self.topology)

    def who(self) -> WhoAnswer:
        """This node, for the catalog."""
        return WhoAnswer(
            self.node_id,
            self.config.announced,
            self.cluster.incarnation,
            self.config.placement.zone,
            self.config.placement.weight,
            self.cluster.uid,
            self.topology.version,
            router_names(),
            self.host.lost,
            [] if self.cluster.uid else sorted(self.strangers),
            cluster_uid(self.config) if self.config.founders else 0,
            self.space.room(),
        )

    def heard_from(self, node: NodeId) -> None:
        """See Node.heard_from; before this node belongs to a cluster, nobody but those it is founded with has anything
        to say to it: who does knew another directory under its name."""
        if self.cluster.uid == 0 and len(self.strangers) < STRANGERS_MAX:
            self.strangers.add(node)
        super().heard_from(node)

    def info(self) -> NodeInfo:
        """This node, as the catalog should know it."""
        return NodeInfo(
            id=self.node_id,
            address=self.config.announced,
            incarnation=self.cluster.incarnation,
            zone=self.config.placement.zone,
            weight=self.config.placement.weight,
        )

    # --- the catalog -------------------------------------------------------------------------------------------------
    async def confirmed(self, timeout: float) -> Topology:
        """At least as new as everything committed before the call."""
        catalog = self.catalog
        if catalog is not None and self.host.is_leader(CATALOG_GROUP):
            await self.host.read_index(CATALOG_GROUP, timeout)
            return catalog.topology
        body = calls.encode(TopologyCall(0, 0.0, True))
        data = await self.shards.group(-1).ask_leader(TOPOLOGY, lambda _: body, timeout)
        found = calls.decode(data, TopologyAnswer).topology
        return found if found is not None else Topology()

    async def execute(self, command: bytes, timeout: float) -> WriteResult:
        """Propose an encoded command to the catalog; this node leads it."""
        result: WriteResult = await self.host.propose(CATALOG_GROUP, command, timeout)
        if self.catalog is not None:
            await self.adopt(self.catalog.topology)
        return result

    # --- state -------------------------------------------------------------------------------------------------------
    def status(self, group: GroupId, digest: bool = False) -> RaftStatus:
        """See Node.status; of the catalog too."""
        if group != CATALOG_GROUP:
            found = super().status(group, digest)
            unknown, held = self.reconciler.unknown.get(group, []), self._mover.held(group)
            waits_for, copied = self._replicas.why(group), self._mover.copied(group)
            return msgspec.structs.replace(
                found, unknown_collections=unknown, held_moves=held, waits_for=waits_for, copied=copied
            )
        status = self.host.status(group)
        peers = [msgspec.structs.replace(peer, address=self.book.get(peer.id) or "") for peer in status.peers]
        return msgspec.structs.replace(status, peers=peers, waits_for=self._replicas.why(group))

    def addresses(self) -> dict[NodeId, str]:
        """What the topology says, and of nodes that it does not know yet, what this node was told."""
        known = {**self.told(), **self.topology.addresses()}
        return dict(sorted(known.items()))

    async def _catch_up_on_addresses(self) -> None:
        """Registration does that."""

    def _to_tell(self) -> dict[NodeId, str]:
        """Of its own address this node is sure."""
        return {self.node_id: self.config.announced}

    def told(self) -> dict[NodeId, str]:
        """Where nodes say that they are, this one included, removed ones left out."""
        gone = {info.id for info in self.topology.nodes if info.state is NodeState.REMOVED}
        return {node: at for node, at in self.book.all().items() if node not in gone}

    def address_of(self, node: NodeId) -> str | None:
        return self.addresses().get(node)

    def seeds(self) -> list[str]:
        """Addresses of nodes of the cluster to join, or to found; see `seeds_of`."""
        return seeds_of(self.config, self.book.get, founded=self.topology.settings is not None)

    def reach(self, node: NodeId) -> str | None:
        """The address by which this node reaches another one."""
        return self.book.get(node)

    def not_ready(self) -> str:
        """See Node.not_ready."""
        if self.alive() and not self.host.lost:
            if self.topology.settings is None:
                return "belongs to no cluster yet"
            for info in self.topology.hosted_by(self.node_id):
                if shard_group(info.shard) not in self.groups:
                    return f"shard {info.shard} is not open here yet"
        return super().not_ready()
