"""The catalog's calls: its topology, its commands, and how a node comes to belong to a cluster.

Invariant: a command is passed on to nodes that may lead the catalog, and what the caller hears never denies that an
earlier copy of it may have got into the log.
"""

from __future__ import annotations

import asyncio

from needle.base.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    NotLeader,
    Unavailable,
    UnsupportedFormat,
    invalid,
)
from needle.base.filters.builder import field_path
from needle.base.ids import CATALOG_GROUP
from needle.base.model import WriteResult
from needle.base.runtime import micros_of
from needle.protocol import calls, catalog_commands
from needle.protocol.archive_calls import BackedUpCall
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.commands import KnowCatalog, entry
from needle.protocol.peer_calls import (
    CATALOG,
    CatalogCall,
    FoundCall,
    SyncCall,
    TopologyAnswer,
    TopologyCall,
    WhoAnswer,
    WhoCall,
)
from needle.protocol.vector_commands import AddVector, DeclareSparse
from needle.routing.topology_changes import FORM
from needle.server.service.checks import BEHIND_SECONDS
from needle.server.service.served import ServedNode, call_timeout, not_leader
from needle.shard.apply.spec_validation import (
    check_ef_search,
    check_index,
    check_name,
    check_new,
    check_sparse_name,
    check_ttl,
    check_vectors,
)

HOPS_MAX = 2


class CatalogCalls:
    """See the module."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._host = node.host

    async def topology(self, call: TopologyCall) -> TopologyAnswer:
        """This node's topology, or one that the catalog confirms."""
        node = self._node
        if call.confirmed:
            if node.catalog is None or not self._host.is_leader(CATALOG_GROUP):
                raise self._not_leader_of_catalog()
            newest = await node.confirmed(BEHIND_SECONDS)
            has_it = call.founding and (call.version, call.founding) == (newest.version, newest.founding)
            return TopologyAnswer(node.node_id, None if has_it else newest)
        if call.wait > 0 and node.topology.version <= call.version:
            await node.wait_topology(call.version + 1, min(call.wait, 60.0))
        newer = node.topology.version > call.version
        return TopologyAnswer(node.node_id, node.topology if newer else None)

    def shortened(self, call: TopologyCall, answer: TopologyAnswer) -> TopologyAnswer:
        """Only what changed, for a caller who can put that into what it has. answer: as the caller may hear it."""
        told = answer.topology
        if told is None or call.form != FORM:
            return answer
        changes = self._node.history.since(call.version, call.founding, told)
        return answer if changes is None else TopologyAnswer(answer.node_id, None, changes)

    def _not_leader_of_catalog(self) -> NotLeader:
        leader = self._host.leader(CATALOG_GROUP) if self._node.catalog is not None else None
        return NotLeader(f"node {self._node.node_id} does not lead the catalog", leader=leader, group=CATALOG_GROUP)

    async def catalog(self, call: CatalogCall) -> object:
        """Execute a command, or have who leads the catalog execute it."""
        try:
            command, identity = catalog_commands.decode_identified(call.command)
        except UnsupportedFormat as error:
            raise InvalidArgument(error.message, field="command") from error
        self._check_command(command)
        timeout, node = call_timeout(call.timeout), self._node
        if node.catalog is not None and self._host.is_leader(CATALOG_GROUP):
            node.space.check_catalog(command)
            data = catalog_commands.entry(command, node.catalog.topology, identity)  # again, as in `judged`
            return await node.execute(data, timeout)
        if call.hops >= HOPS_MAX:
            raise self._not_leader_of_catalog()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        leader = self._host.leader(CATALOG_GROUP) if node.catalog is not None else None
        last: NeedleError = self._not_leader_of_catalog()
        for peer in [leader] if leader else node.topology.catalog:
            if peer == node.node_id or (left := deadline - loop.time()) <= 0:
                continue
            try:
                body = calls.encode(CatalogCall(call.command, left, call.hops + 1))
                answer = await node.peers.call(peer, CATALOG, body, left)
            except NeedleError as error:
                open_fate = isinstance(last, ConnectionLost | DeadlineExceeded)
                if not error.retryable and not (open_fate and error.of_the_node):
                    raise
                if not open_fate:
                    last = error  # of a copy that may have got into the log the caller must hear, whatever others say
                continue
            return answer
        raise last

    async def backed_up(self, call: BackedUpCall) -> bytes:
        """Note that a backup was made, or that the logs are archived. Not what is said of the time to come: it would
        hide that none is made any more."""
        now = micros_of(self._node.ports.clock)
        if min(call.backup, call.archive) < 0:
            raise invalid("backup", min(call.backup, call.archive), "microseconds since 1970")
        command = catalog_commands.NoteBackup(min(call.backup, now), min(call.archive, now))
        await self.catalog(CatalogCall(catalog_commands.encode(command), call.timeout))
        return b""

    def _check_command(self, command: CatalogCommand) -> None:
        """What shards would refuse must not get into the catalog."""
        if isinstance(command, catalog_commands.CreateCollection):
            check_new(command.spec, self._node.config.limits)
            for path in command.fields:
                field_path(path, "field")
            check_vectors(dict(command.vectors), self._node.config.limits)
            if len({name for name, _ in command.vectors}) < len(command.vectors):
                raise InvalidArgument("a named vector is named twice", field="vectors")
            for name in command.sparse:
                check_sparse_name(name)
        elif isinstance(command, AddVector):
            check_vectors({command.vector: command.spec}, self._node.config.limits)
        elif isinstance(command, DeclareSparse):
            check_sparse_name(command.vector)
        elif isinstance(command, catalog_commands.CreateCluster):
            if command.first is not None:
                check_new(command.first, self._node.config.limits)
        elif isinstance(command, catalog_commands.AlterCollection):
            if command.ef_search:
                check_ef_search(command.ef_search)
            if command.ttl >= 0:
                check_ttl(command.ttl)
            if command.index is not None:
                check_index(command.index)
            for change in command.vectors:
                if change.ef_search:
                    check_ef_search(change.ef_search)
                if change.index is not None:
                    check_index(change.index)
        elif isinstance(command, catalog_commands.DeclareField):
            field_path(command.path, "field")
        elif isinstance(command, catalog_commands.SetAlias):
            check_name("alias", command.alias)
        elif isinstance(command, catalog_commands.SetReplicas):
            # Its nodes would give up their replicas at once, while the group counts on them.
            raise InvalidArgument("a command of an earlier release: AssignReplicas takes its place", field="command")
        elif isinstance(command, catalog_commands.RaiseVersion):
            raise InvalidArgument("the catalog's leader raises the cluster's version by itself", field="command")

    async def sync(self, call: SyncCall) -> WriteResult:
        """Have a shard apply the catalog's collections."""
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        timeout = call_timeout(call.timeout)
        if not await self._node.wait_topology(call.version, timeout):
            raise Unavailable(f"node {self._node.node_id} does not know version {call.version} of the catalog yet")
        await self._node.reconciler.reconcile(call.group, timeout)
        now = self._node.topology
        if call.by_log and now.cluster_version >= KnowCatalog.SINCE:
            known = self._node.hosted(call.group).replica.view.catalog
            if known.founding != now.founding or known.version < call.version:
                command = KnowCatalog(now.founding, call.version)
                await self._host.propose(call.group, entry(command, now, micros_of(self._node.ports.clock)), timeout)
        return WriteResult(version=call.version, index=self._host.applied_index(call.group))

    async def found(self, call: FoundCall) -> WhoAnswer:
        """Belong to the cluster that is being created."""
        await self._node.found(call)
        return self._node.who()

    async def who(self, call: WhoCall) -> WhoAnswer:
        """What this node says of itself."""
        return self._node.who()
