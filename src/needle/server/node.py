"""A node: puts log, Raft host, replicas, catalog, service and listener together, and takes them apart in order.

Start: claim the directory, open the log, open what the last known topology gives this node, run Raft, listen, follow
the catalog. Stop: hand leadership over, stop listening, end background work, stop Raft, close replicas, log, directory.
Invariant: after the first failure of the disk the node stops by itself (`failed`) and acknowledges nothing more.
Everything that touches the outside comes in as `NodePorts`. What a node does is in its parts; here is what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from needle.base.config import RaftConfig, parse_node
from needle.base.errors import Internal, NeedleError, Unavailable
from needle.base.events import NODE_FAILED, NODE_STARTED, REQUEST_REFUSED, tell
from needle.base.file_errors import SCARCITIES
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, group_name
from needle.base.model import RaftStatus, WriteResult
from needle.base.runtime import Rng
from needle.catalog.machine import CatalogMachine
from needle.client.directory import Caller
from needle.client.hearing import Hearing
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.client.traced import router_of
from needle.multiraft.background import Background
from needle.multiraft.host import Host
from needle.protocol.peer_calls import TOPOLOGY, FoundCall, WhoAnswer
from needle.routing.loading import load_routers
from needle.routing.topology import NodeInfo, NodeState, Ownership, Topology
from needle.server import files as data_dir
from needle.server.access import Access
from needle.server.address_book import AddressBook
from needle.server.asking import AddressNews
from needle.server.beats import Beats
from needle.server.catalog.adoption import Adoption
from needle.server.catalog.belonging import Belonging
from needle.server.catalog.collections import Reconciler
from needle.server.catalog.follower import CatalogFollower
from needle.server.catalog.node_topology import NodeTopology
from needle.server.catalog.registration import Registration
from needle.server.catalog.settings_founding import SettingsFounding, seeds_of, settings_of
from needle.server.chores.comparing import Comparing
from needle.server.chores.comparing_catalog import CatalogCompared
from needle.server.cluster_files import ClusterFile, load_cluster, load_topology
from needle.server.hosting import Hosting, make_engine, open_log
from needle.server.lasting import lasting
from needle.server.local_caller import LocalCaller
from needle.server.machine.space import Space, space_of
from needle.server.machine.watches import Watches
from needle.server.own_status import status_of, why_not_ready
from needle.server.ports import Listener, NodePorts, Observe, Peers
from needle.server.replica import HostedReplica
from needle.server.service.dispatch import Service
from needle.server.upkeep.coordinator import Coordinator
from needle.server.upkeep.given_up import GivenUp
from needle.server.upkeep.healing import Healing
from needle.server.upkeep.health import HealthWatch
from needle.server.upkeep.leaders import LeaderSpread
from needle.server.upkeep.maintenance import Maintenance
from needle.server.upkeep.mover import Mover
from needle.server.upkeep.replicas import Replicas
from needle.server.upkeep.roomier_leaders import RoomierLeaders
from needle.server.upkeep.saving_memory import SavingMemory
from needle.server.upkeep.version_rise import VersionRise

log = logging.getLogger("needle.server")

HAND_OVER_SECONDS = 1.0
"""A node that stops waits at most so long for another to lead in its place."""


class Node:
    """One node of a cluster. `await start()`, `await stop()`; `failed` resolves when it can no longer go on."""

    def __init__(
        self, config: RaftConfig, ports: NodePorts, clients: Callable[[], Caller], *, move_rows: int = 256
    ) -> None:
        """clients: makes this node's own client to others' addresses. move_rows: documents that a move of key ranges
        looks at, or deletes, in one step. Raises ConfigError or InvalidArgument for shards that cannot be."""
        if config.founders:
            settings_of(config)
        self.config, self.node_id = config, config.node_id
        self.ports, self.audit, self.watches = ports, ports.audit, Watches(config, ports.clock)
        self.now = ports.clock.monotonic
        self.beats = Beats(self.now, lambda: self.host.stopped)
        self.failed: asyncio.Future[NeedleError] = asyncio.get_running_loop().create_future()
        self.groups: dict[GroupId, HostedReplica] = {}
        self.host: Host
        self.catalog_compared: CatalogCompared
        self.comparing: Comparing
        self.peers: Peers
        self.service: Service
        self.listener: Listener
        self.space: Space
        self.observer: Observe | None = None
        """Called after each call: method, seconds, error. For metrics."""
        self.book = AddressBook({config.node_id: config.announced}, {}, lambda _: None)
        self.access = Access(config.require_keys)
        # --- what it knows of its cluster
        self.cluster: ClusterFile
        self.topology = Topology()
        self.ownership: Ownership | None = None
        self.catalog: CatalogMachine | None = None
        self.caller: Caller
        self.shards: ClusterShards
        self.router: Router
        # --- its parts
        self.reconciler, self.maintenance = Reconciler(self), Maintenance(self)
        self._hosting = Hosting(self, self._fatal)
        self.several = self._hosting.several
        self._adoption, self._hearing = Adoption(self, self._hosting), Hearing()
        self.history, self._news = self._adoption.history, AddressNews(self)
        self._belonging = Belonging(self, self._hosting)
        self.mover = Mover(self, move_rows, config.limits.freeze_seconds)
        self._replicas, self.coordinator = Replicas(self), Coordinator(self)
        self._healing, self.given_up = Healing(self, config.replace_after, config.replace_throttle), GivenUp(self)
        self._background, self._undo = Background(self._background_failed), list[Callable[[], Any]]()
        self._clients, self._stopping, self._running = clients, False, False

    # --- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open everything and begin to serve. On an error what was opened is closed again, and the error raised."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        config, ports = self.config, self.ports
        self._undo.append(ports.close_pools)
        if ports.certificates is not None:
            await ports.file_pool.run(ports.certificates.load)
        self._undo.append(ports.claim(config.data_dir, config.node_id, config.cluster_id))
        if ports.audit is not None:
            await ports.file_pool.run(ports.audit.open)
            self._undo.append(ports.audit.close)
        self.space = space_of(config, ports.volume, ports.memory)
        await ports.search_pool.run(self.space.look)
        learned = data_dir.load_addresses(config.data_dir)
        reached = {**dict(parse_node(text, "reach") for text in config.reach), config.node_id: config.announced}
        self.book = AddressBook(reached, learned, lambda new: data_dir.save_addresses(config.data_dir, new))
        store = await ports.file_pool.run(open_log, config, ports, self.watches.flushes)
        self._undo.append(store.close)
        self.peers = ports.peers(self.book.get)
        self._undo.append(self.peers.close)
        self.book.changed = self.peers.update
        engine = make_engine(config, ports, self.peers, store, self._fatal, lambda: self.topology)
        self.host = Host(engine)
        compared = CatalogCompared(self.host, ports.file_pool, lambda: self.catalog, self.beats)
        self.catalog_compared, self.comparing = compared, Comparing(compared, compared.others, self.peers.call)
        self._undo.append(self._hosting.close_replicas)
        await self._open_groups()
        await ports.file_pool.run(ports.trim)  # a log that was read again has left 27 MB
        self._undo.append(ports.close_pools)  # after Raft has stopped, before what its threads work on is closed
        await engine.start()
        self._undo.append(engine.stop)
        self._undo.append(self._hosting.stop_replicas)
        for hosted in self.groups.values():
            hosted.start()
        self.service = Service(self)
        self.listener = ports.listen(self.service)
        engine.gathering.more = self.listener.more
        self._running = True  # what calls open from now on is begun at once
        self.refuse_others(self.topology)
        await self.listener.start()
        self._undo.append(self.listener.stop)
        self._background_works()
        tell(NODE_STARTED, node_name=self.node_id, cluster=config.cluster_id, address=self.listener.address)

    def _background_works(self) -> None:
        works: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *(CatalogFollower(self).run, Registration(self, self._fatal).run, LeaderSpread(self).run),
            *(RoomierLeaders(self).run, self.mover.run, self._replicas.run, self.coordinator.run),
            *(self.reconciler.run, self._healing.run, self.given_up.run, VersionRise(self).run, SavingMemory(self).run),
            *(self.comparing.run, self._adoption.retry_shortages, partial(self.space.watch, self.ports.watch_pool)),
        ]
        if self.config.founders:
            works.append(SettingsFounding(self).run)
        if (certificates := self.ports.certificates) is not None:
            works.append(partial(certificates.watch, self.ports.file_pool.run))
        if (audit := self.ports.audit) is not None:
            works.append(partial(audit.run, self.ports.file_pool.run))
        for work in works:
            self._background.spawn(lasting(work))
        self._undo.append(self._background.end)

    async def _open_groups(self) -> None:
        load_routers(self.config.sharding.router_modules, "sharding.router_modules")
        directory = self.config.data_dir
        self.cluster = load_cluster(directory, self.ports.rng.getrandbits(63))
        self.caller = LocalCaller(self, self.config.address, self._clients())
        self._undo.append(self.caller.close)
        self.shards = ClusterShards(self.caller, NodeTopology(self), rng=self.ports.rng, prefer=self.config.address)
        self.router = router_of(self.shards, monotonic=self.now, blocking=self.blocking)
        self._undo.append(self._hosting.close_catalog)
        known = load_topology(directory)
        # The book holds what nodes said later.
        for older in (known.addresses(), self.cluster.voters, self.config.founders):
            self.book.learn_missing(older)
        if self.node_id in (known.catalog if known.settings is not None else self.cluster.voters):
            self._hosting.open_catalog(known)
        begun = self.catalog.topology.settings is not None if self.catalog is not None else self.cluster.uid != 0
        if known.settings is None and not begun:  # nobody has announced anything yet: the list may have been put right
            self.book.learn(self.config.founders)
        await self.adopt(known, save=False)

    async def stop(self, *, hand_over: bool = True) -> None:
        """Stop serving and close everything. hand_over: first give leadership away, so that nobody waits for an
        election. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        if self._running and hand_over and not self.host.stopped:
            await self.maintenance.give_away(min(4 * self.config.election_timeout, HAND_OVER_SECONDS))
        await self._close()

    async def _close(self) -> None:
        self._running = False
        self._news.end()
        first: Exception | None = None
        while self._undo:
            undo = self._undo.pop()
            try:
                result = undo()
                if isinstance(result, Awaitable):
                    await result
            except Exception as error:  # the rest must be closed all the same; the first failure is raised at the end
                log.error("closing failed", exc_info=error)
                first = first or error
        if first is not None:
            raise first

    def _fatal(self, error: NeedleError) -> None:
        tell(NODE_FAILED, node_name=self.node_id, why=error)
        if not self.failed.done():
            self.failed.set_result(error)

    def _background_failed(self, error: BaseException) -> None:
        if not self.host.stopped and not self._stopping:
            log.error("background work of node %s failed", self.node_id, exc_info=error)
            self._fatal(error if isinstance(error, NeedleError) else Internal(f"background work failed: {error!r}"))

    # --- state -------------------------------------------------------------------------------------------------------
    @property
    def address(self) -> str:
        """Where the node listens."""
        return self.listener.address

    def alive(self) -> bool:
        """Whether the node still does its work; False means it should be restarted."""
        return self._running and not self.failed.done() and not self.host.stopped

    def not_ready(self) -> str:
        """Why the node should get no traffic now; "" when it should."""
        return why_not_ready(self) if self.alive() else "stopped"

    def hosted(self, group: GroupId) -> HostedReplica:
        """The replica of a group on this node. Raises Unavailable if there is none."""
        found = self.groups.get(group)
        if found is None:
            raise Unavailable(f"{group_name(group)} has no replica on node {self.node_id}", group=group)
        return found

    def status(self, group: GroupId, digest: bool = False) -> RaftStatus:
        """This node's view of a group, with addresses and the number of documents. Blocking with a digest, which reads
        every row. Raises ReplicaDamaged then."""
        return status_of(self, group, self.mover, self._replicas, digest=digest)

    def watch_health(self) -> HealthWatch:
        """Ask all replicas how they are, from now on until the node stops."""
        watch = HealthWatch(self.caller, self.shards.topology, self.ports.clock, self.watches.rates)
        self._background.spawn(watch.run())
        return watch

    @property
    def expired(self) -> bool:
        return self.ports.certificates is not None and self.ports.certificates.expired

    @property
    def rng(self) -> Rng:
        return self.ports.rng

    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        return self.ports.search_pool.run

    def due_to_heal(self, topology: Topology) -> Collection[NodeId]:
        """Nodes that have been gone for long, as far as this one knows, which leads the catalog."""
        return self._healing.due(topology)

    def observe(self, what: str, seconds: float, error: NeedleError | None, count: int = 1) -> None:
        """One call was answered, or so many that took as long each."""
        if error is not None and isinstance(error, SCARCITIES):
            tell(REQUEST_REFUSED, method=what, code=error.code, why=error.message)
        if self.observer is not None:
            self.observer(what, seconds, error, count)

    def reading(self) -> int:
        """How many searches and gets run."""
        return self.service.reads.reading

    async def set_maintenance(self, on: bool, timeout: float) -> None:
        """See Maintenance.set."""
        await self.maintenance.set(on, timeout)

    # --- where nodes are ---------------------------------------------------------------------------------------------
    def addresses(self) -> dict[NodeId, str]:
        """What the topology says, and of nodes that it does not know yet, what this node was told."""
        known = {**self.told(), **self.topology.addresses()}
        return dict(sorted(known.items()))

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

    def learn_address(self, node: NodeId, address: str) -> None:
        """A node says that it is there."""
        self.book.learn({node: address})

    def heard_from(self, node: NodeId) -> None:
        """A node speaks to this one."""
        self._belonging.heard_from(node)
        self._news.heard_from(node)

    def refuse_others(self, topology: Topology) -> None:
        """From now on refuse nodes that would pass over this cluster's commands, and clients of another cluster."""
        self.peers.refuse_older(topology.cluster_version)
        if self._running:
            self.listener.refuse_older(topology.cluster_version)
            self.listener.of_founding(topology.founding)

    # --- the catalog -------------------------------------------------------------------------------------------------
    async def wait_topology(self, version: int, timeout: float) -> bool:
        """Wait for a topology of at least `version`; False if it does not come in time."""
        return await self._adoption.wait(version, timeout)

    async def adopt(self, topology: Topology, *, save: bool = True) -> None:
        """Act on a newer topology."""
        await self._adoption.adopt(topology, save=save)

    def unmoved(self) -> AbstractAsyncContextManager[None]:
        """See Adoption.unmoved."""
        return self._adoption.unmoved()

    async def belong_to(self, uid: int) -> None:
        """See Belonging.join."""
        await self._belonging.join(uid)

    async def found(self, call: FoundCall) -> None:
        """See Belonging.found."""
        await self._belonging.found(call)

    def who(self) -> WhoAnswer:
        """This node, as it says of itself."""
        return self._belonging.who()

    def info(self) -> NodeInfo:
        """This node, as the catalog should know it."""
        return self._belonging.info()

    async def confirmed(self, timeout: float) -> Topology:
        """At least as new as everything committed before the call."""
        catalog = self.catalog
        if catalog is not None and self.host.is_leader(CATALOG_GROUP):
            await self.host.read_index(CATALOG_GROUP, timeout)
            return catalog.topology
        known, leader, end = self.topology, self.shards.group(-1), self.now() + timeout
        found = await self._hearing.ask(
            lambda body: leader.ask_leader(TOPOLOGY, lambda _: body, max(0.001, end - self.now())),
            known,
            confirmed=True,
        )
        return found if found is not None else known

    async def execute(self, command: bytes, timeout: float) -> WriteResult:
        """Propose an encoded command to the catalog; this node leads it."""
        result: WriteResult = await self.host.propose(CATALOG_GROUP, command, timeout)
        if self.catalog is not None:
            await self.adopt(self.catalog.topology)
        return result
