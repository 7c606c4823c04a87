"""Which cluster a node belongs to, by its data directory: it joins one, or founds it, once.

Invariant: what it belongs to is on disk before it acts on it: a node that only believed to belong would be a stranger
after a restart.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from needle.base.config import RaftConfig
from needle.base.errors import InvalidArgument
from needle.base.ids import NodeId
from needle.base.runbooks import runbooks_of
from needle.base.runtime import micros_of
from needle.base.versions import FIRST, SAID
from needle.multiraft.host import Host
from needle.protocol.peer_calls import FoundCall, Levels, WhoAnswer, check_fresh
from needle.routing.strategy import router_names
from needle.routing.topology import NodeInfo, Topology
from needle.server.address_book import AddressBook
from needle.server.catalog.settings_founding import cluster_uid
from needle.server.cluster_files import ClusterFile, check_unused, save_cluster
from needle.server.hosting import Hosting
from needle.server.machine.space import Space
from needle.server.machine.watches import Watches
from needle.server.ports import NodePorts
from needle.server.upkeep.archives import archive_lags
from needle.server.upkeep.coordinator import Coordinator
from needle.server.upkeep.given_up import GivenUp

STRANGERS_MAX = 16


class BelongingNode(Protocol):
    """The node whose directory it is."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    book: AddressBook
    space: Space
    watches: Watches
    topology: Topology
    cluster: ClusterFile
    given_up: GivenUp
    coordinator: Coordinator


class Belonging:
    """See the module."""

    def __init__(self, node: BelongingNode, hosting: Hosting) -> None:
        self._node = node
        self._hosting = hosting
        self._changing = asyncio.Lock()
        self._strangers: set[NodeId] = set()
        """Nodes that spoke Raft to this one before its cluster was made; the first few."""

    def heard_from(self, node: NodeId) -> None:
        """A node speaks to this one. Before the cluster of this node is made, nobody but those it is founded with has
        anything to say to it: who does knew another directory under its name, or its address."""
        unmade = self._node.topology.settings is None
        if unmade and len(self._strangers) < STRANGERS_MAX and node not in self._node.cluster.voters:
            self._strangers.add(node)

    def strange(self) -> list[NodeId]:
        """Who spoke to this node, before its cluster is made, and is not founded with it."""
        node = self._node
        joined = node.cluster.uid != 0 and not node.cluster.voters  # these are nodes of its cluster, not known here yet
        return (
            [] if joined or node.topology.settings is not None else sorted(self._strangers - node.cluster.voters.keys())
        )

    async def join(self, uid: int) -> None:
        """Write down which cluster this node joins. Raises InvalidArgument if its directory holds data of another."""
        node = self._node
        async with self._changing:
            if node.cluster.uid == 0:
                check_unused(node.node_id, node.config.data_dir)
                await self._become(msgspec.structs.replace(node.cluster, uid=uid))

    async def _become(self, cluster: ClusterFile) -> None:
        node = self._node
        await node.ports.file_pool.run(save_cluster, node.config.data_dir, cluster)
        node.cluster = cluster

    async def found(self, call: FoundCall) -> None:
        """Belong to the cluster that is being created. Raises InvalidArgument if this node belongs to another one, or
        its name does; LostState if it does not go on."""
        node = self._node
        async with self._changing:
            strangers = set() if node.cluster.uid else self._strangers - call.voters.keys()
            check_fresh(node.node_id, node.host.lost, strangers)
            if node.cluster.uid not in (0, call.uid):
                raise InvalidArgument(
                    f"node {node.node_id} belongs to another cluster; give it an empty data directory to use it here",
                    field="node",
                )
            if node.cluster.uid == 0:
                check_unused(node.node_id, node.config.data_dir)
                node.ports.failpoint("founding.before_file")
                await self._become(msgspec.structs.replace(node.cluster, uid=call.uid, voters=dict(call.voters)))
                node.ports.failpoint("founding.after_file")
            self._check_voters(call)
        node.book.learn({name: at for name, at in call.voters.items() if name != node.node_id})
        if node.node_id in node.cluster.voters and not node.topology.catalog_assigned:
            self._hosting.open_catalog(node.topology)
            node.ports.failpoint("founding.after_catalog")

    def _check_voters(self, call: FoundCall) -> None:
        """Raises InvalidArgument if the cluster was begun with a catalog on other nodes, and is not made yet."""
        node = self._node
        begun = node.cluster.voters.keys()
        if begun and begun != call.voters.keys() and node.topology.settings is None:
            raise InvalidArgument(
                f"making the cluster was begun with its catalog on {', '.join(sorted(begun))}, as node {node.node_id} "
                f"says, and now it would be on {', '.join(sorted(call.voters))}. Which nodes hold it follows from the "
                "nodes named, their zones and weights, and the number of replicas: create the cluster again with a "
                "release that goes on with what was begun, or with all of these as they were",
                field="nodes",
            )

    def who(self) -> WhoAnswer:
        """This node, as it says of itself."""
        node = self._node
        return WhoAnswer(
            node.node_id,
            node.config.announced,
            node.cluster.incarnation,
            node.config.placement.zone,
            node.config.placement.weight,
            node.cluster.uid,
            node.topology.version,
            router_names(),
            node.host.lost,
            self.strange(),
            cluster_uid(node.config) if node.config.founders else 0,
            node.space.disk.room(),
            node.host.engine.lives.nonce,
            node.ports.knows,
            node.given_up.told(),
            self._levels(),
            runbooks_of(node.config),
            dict(node.cluster.voters) if node.topology.settings is None else {},
        )

    def _levels(self) -> Levels:
        node = self._node
        certificates = node.ports.certificates
        left = None if certificates is None else certificates.expires - node.ports.clock.wall()
        engine, now = node.host.engine, micros_of(node.ports.clock)
        behind = archive_lags(node.host, node.topology, now).values()
        backup = (now - node.topology.backed_up) / 1e6 if node.topology.backed_up else None
        log_bytes, archive = engine.bytes_used(), max(behind, default=None)
        memory, flushes = node.space.memory.room(), node.watches.flushes.levels()
        rate = node.watches.rates.levels(node.ports.clock.monotonic())
        log_max, waited = engine.config.log_bytes_max, node.coordinator.waited()
        refused = "" if certificates is None else certificates.refused
        return Levels(log_bytes, log_max, left, backup, archive, memory, flushes, rate, waited, refused)

    def info(self) -> NodeInfo:
        """This node, as the catalog should know it: without what it knows while there may be nodes that would not
        keep that."""
        node = self._node
        return NodeInfo(
            id=node.node_id,
            address=node.config.announced,
            incarnation=node.cluster.incarnation,
            zone=node.config.placement.zone,
            weight=node.config.placement.weight,
            knows=node.ports.knows if node.topology.cluster_version >= SAID else FIRST,
        )
