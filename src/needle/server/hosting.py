"""What a node opens on its disk and runs: the log, its replica of the catalog, its replicas of shards.

Invariant: what could not be opened whole is closed again. It must not know when something is to be opened
(catalog/adoption.py does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId, shard_group
from needle.catalog.machine import CatalogMachine
from needle.multiraft.config import HostConfig
from needle.multiraft.engine import Engine
from needle.multiraft.host import Host
from needle.multiraft.log.log_store import LogStore
from needle.routing.pace import rest_of
from needle.routing.topology import Topology
from needle.server import files as data_dir
from needle.server.adapters import CatalogAdapter
from needle.server.beats import Beats
from needle.server.cluster_files import ClusterFile, catalog_directory
from needle.server.machine.flushes import FlushWatch
from needle.server.machine.space import Space
from needle.server.ports import NodePorts, Peers
from needle.server.replica import HostedReplica
from needle.shard.fields.builders import Builders
from needle.shard.joined_calls import JoinedCalls
from needle.shard.several_searches import SeveralSearches
from needle.shard.state_machine import Replica


class HostingNode(Protocol):
    """The node that opens and closes them."""

    node_id: NodeId
    config: RaftConfig
    ports: NodePorts
    host: Host
    peers: Peers
    space: Space
    groups: dict[GroupId, HostedReplica]
    cluster: ClusterFile
    topology: Topology
    catalog: CatalogMachine | None
    beats: Beats

    def reading(self) -> int: ...


class Hosting:
    """See the module."""

    def __init__(self, node: HostingNode, fatal: Callable[[NeedleError], None]) -> None:
        """fatal: stops the node."""
        self._node = node
        self._fatal = fatal
        ports = node.ports
        self._builders = Builders(ports.search_threads)
        self._searching = JoinedCalls(ports.search_pool, ports.spent, lambda: len(node.groups) < 2)
        self.several = SeveralSearches(ports.search_pool, ports.search_threads, ports.spent)
        # What is neither in use any more nor closed yet. The node may be stopped meanwhile, and closes it then.
        self._closing: list[HostedReplica] = []
        self._closing_catalogs: list[CatalogMachine] = []

    def open_catalog(self, known: Topology) -> None:
        """Begin this node's replica of the catalog, unless it is there."""
        node = self._node
        if node.catalog is None:
            machine = CatalogMachine(catalog_directory(node.config.data_dir), knows=node.ports.knows)
            # Others wait until the group contacts them, and so do all once it may have other members.
            founds = node.node_id in node.cluster.voters and not known.catalog_assigned
            try:
                watched = node.ports.catalog(CATALOG_GROUP, CatalogAdapter(machine))
                voters = sorted(node.cluster.voters) if founds else []
                node.host.engine.open_group(CATALOG_GROUP, watched, voters=voters)
            except BaseException:
                machine.close()
                raise
            node.catalog = machine

    async def leave_catalog(self) -> None:
        """Give this node's replica of the catalog up while the node runs."""
        node = self._node
        if node.catalog is not None:
            machine, node.catalog = node.catalog, None
            self._closing_catalogs.append(machine)
            await node.host.engine.close_group(CATALOG_GROUP)
            machine.close()
            self._closing_catalogs.remove(machine)

    def close_catalog(self) -> None:
        """Close the replica of the catalog, if there is one."""
        for machine in (self._node.catalog, *self._closing_catalogs):
            if machine is not None:
                machine.close()

    async def open_shard(self, shard: int, voters: Sequence[NodeId]) -> HostedReplica:
        """Open this node's replica of a shard. voters: who founds its group, none if others do."""
        node, group = self._node, shard_group(shard)
        config, ports = node.config, node.ports
        replica = await ports.file_pool.run(self._open_replica, data_dir.shard_directory(config.data_dir, shard))
        try:
            node.host.engine.open_group(group, ports.machine(group, replica), voters=voters)
        except BaseException:
            replica.close()
            raise
        if node.topology.archived:
            node.host.expect_archive(group)
        hosted = node.groups[group] = HostedReplica(
            group,
            replica,
            host=node.host,
            ports=ports,
            config=config,
            call=node.peers.call,
            fatal=self._fatal,
            space=node.space,
            builders=self._builders,
            searching=self._searching,
            several=self.several,
            topology=lambda: node.topology,
            reading=node.reading,
            beats=node.beats,
        )
        return hosted

    async def close_shard(self, group: GroupId) -> None:
        """Give this node's replica of a shard up while the node runs."""
        hosted = self._node.groups.pop(group)
        self._closing.append(hosted)
        await hosted.stop()
        await self._node.host.engine.close_group(group)
        hosted.replica.close()
        self._closing.remove(hosted)

    async def stop_replicas(self) -> None:
        """End what all replicas do in the background, and their searches."""
        await self.several.close()
        for hosted in [*self._node.groups.values(), *self._closing]:
            await hosted.stop()

    def close_replicas(self) -> None:
        """Close all replicas' files."""
        for hosted in [*self._node.groups.values(), *self._closing]:
            hosted.replica.close()

    def _open_replica(self, directory: str) -> Replica:
        ports, config = self._node.ports, self._node.config
        return Replica(
            directory,
            limits=config.limits,
            segments=config.segments,
            disk=ports.disk,
            failpoint=ports.failpoint,
            index_rows=ports.index_rows,
            purge_rows_min=ports.purge_rows_min,
            version=lambda: self._node.topology.cluster_version,
        )


def open_log(config: RaftConfig, ports: NodePorts, flushes: FlushWatch) -> LogStore:
    """The Raft log of all groups of a node. flushes: watches its writes. Blocking."""
    store = flushes.watched(ports.open_store(data_dir.log_directory(config.data_dir)))
    try:
        return LogStore(
            store,
            node_id=config.node_id,
            cluster_id=config.cluster_id,
            draw=lambda: ports.rng.getrandbits(63),
            failpoint=ports.failpoint,
        )
    except BaseException:
        store.close()
        raise


def make_engine(
    config: RaftConfig,
    ports: NodePorts,
    peers: Peers,
    store: LogStore,
    fatal: Callable[[NeedleError], None],
    topology: Callable[[], Topology],
) -> Engine:
    """What runs a node's Raft groups, not started yet. topology: the last one; by it new replicas come slowly."""
    return Engine(
        config.node_id,
        host_config(config),
        transport=peers,
        store=store,
        log_pool=ports.log_pool,
        apply_pool=ports.apply_pool,
        long_pool=ports.load_pool,
        clock=ports.clock,
        rng=ports.rng,
        on_fatal=fatal,
        snapshot_dir=data_dir.snapshot_directory(config.data_dir),
        files=ports.files,
        failpoint=ports.failpoint,
        pace=lambda group: rest_of(topology().rebalance, group, config.node_id),
    )


def host_config(config: RaftConfig) -> HostConfig:
    """The Raft host's settings in a node's configuration."""
    return HostConfig(
        election_timeout=config.election_timeout,
        heartbeat_interval=config.heartbeat_interval,
        lease_timeout=config.lease_timeout,
        clock_error_max=config.clock_error_max,
        snapshot_threshold=config.snapshot_threshold,
        log_bytes_max=config.log_bytes_max,
        uncommitted_bytes_max=config.limits.uncommitted_bytes_max,
        append_bytes_max=config.limits.append_bytes_max,
    )
