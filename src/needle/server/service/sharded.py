"""Dispatch of calls in a sharded cluster: the epoch and ownership checks around a shard's calls, and the catalog's.

Invariants: a write reaches a shard's log only if the shard owns the routing key of every document in it by the map of
the epoch that the caller routed by; a read's answer names epoch and ranges, and the map did not change while it ran.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from needle.base.config import RaftConfig
from needle.base.decoding import routed_metadata
from needle.base.errors import (
    CollectionNotFound,
    ConnectionLost,
    DeadlineExceeded,
    InvalidArgument,
    NeedleError,
    NotLeader,
    StaleEpoch,
    Unavailable,
    UnsupportedFormat,
    invalid,
)
from needle.base.ids import CATALOG_GROUP, GroupId, NodeId
from needle.base.model import Claim, WriteResult
from needle.base.parts import Body
from needle.catalog.machine import CatalogMachine
from needle.client.router.router import Router
from needle.protocol import calls, catalog_commands, commands
from needle.protocol.calls import (
    AddressBook,
    CollectionsCall,
    CountCall,
    GetCall,
    GroupCall,
    LeaderAnswer,
    MembershipCall,
    ScanCall,
    SearchCall,
    WriteCall,
)
from needle.protocol.catalog_commands import CatalogCommand
from needle.protocol.move_commands import MoveCommand
from needle.protocol.peer_calls import (
    CATALOG,
    FOUND,
    MOVE,
    SHARD_LEADER,
    SYNC,
    TOPOLOGY,
    WHO,
    CatalogCall,
    FoundCall,
    MoveAnswer,
    MoveCall,
    SyncCall,
    TopologyAnswer,
    TopologyCall,
    WhoAnswer,
    WhoCall,
    no_members,
)
from needle.routing.ranges import check_ranges
from needle.routing.strategy import ShardStrategy, routing_key
from needle.routing.topology import Ownership, Topology, public_name
from needle.rpc.promise import Promise
from needle.server.catalog.collections import Reconciler
from needle.server.ports import NodePorts, Peers
from needle.server.service import rebalancing
from needle.server.service.documents import ROUTED, RpcService, Run, decoded_command, judged
from needle.server.service.proxy import Proxy
from needle.server.service.served import ServedNode, call_timeout, not_leader
from needle.server.upkeep.coordinator import Coordinator
from needle.shard.apply.holdings import Fence
from needle.shard.apply.validation import check_spec

BEHIND_SECONDS = 1.0
HOPS_MAX = 2


class ServedClusterNode(ServedNode, Protocol):
    """The node of a sharded cluster, as its service sees it."""

    config: RaftConfig
    ports: NodePorts
    peers: Peers
    topology: Topology
    ownership: Ownership | None
    catalog: CatalogMachine | None
    router: Router
    reconciler: Reconciler
    coordinator: Coordinator

    async def wait_topology(self, version: int, timeout: float) -> bool: ...
    async def confirmed(self, timeout: float) -> Topology: ...
    async def execute(self, command: bytes, timeout: float) -> WriteResult: ...
    async def found(self, call: FoundCall) -> None: ...
    def told(self) -> dict[NodeId, str]: ...
    def who(self) -> WhoAnswer: ...


class ClusterService(RpcService):
    """The methods of protocol.peer_calls, and those of RpcService."""

    def __init__(self, node: ServedClusterNode) -> None:
        super().__init__(node)
        self._cluster = node
        reads = self.reads
        self._routed: dict[str, Run] = {
            calls.WRITE: self._shard_write,
            calls.SEARCH: lambda call: self._shard_read(reads.search, call),
            calls.GET: lambda call: self._shard_read(reads.get, call),
            calls.COLLECTIONS: lambda call: self._shard_read(reads.collections, call),
            calls.COUNT: lambda call: self._shard_read(reads.count, call),
            calls.SCAN: lambda call: self._shard_read(reads.scan, call),
        }
        """What a shard's replica here answers, to who names the epoch of its map; without one they are proxied."""
        self.proxy = proxy = Proxy(node, node.ports.rng, self.judge)
        whole = (
            (calls.WRITE, WriteCall, proxy.write),
            (calls.SEARCH, SearchCall, proxy.search),
            (calls.GET, GetCall, proxy.get),
            (calls.COLLECTIONS, CollectionsCall, proxy.collections),
            (calls.COUNT, CountCall, proxy.count),
            (calls.SCAN, ScanCall, proxy.scan),
            (calls.LEADER, GroupCall, self._itself),
            (calls.MEMBERSHIP, MembershipCall, self._no_members),
        )
        self._methods.update({name: (kind, run) for name, kind, run in whole})
        more: dict[str, tuple[Any, Any]] = {
            SHARD_LEADER: (GroupCall, self._leader),
            TOPOLOGY: (TopologyCall, self._topology),
            CATALOG: (CatalogCall, self._catalog),
            SYNC: (SyncCall, self._sync),
            MOVE: (MoveCall, self._move),
            FOUND: (FoundCall, self._found),
            WHO: (WhoCall, self._who),
            **rebalancing.methods(node.coordinator),
        }
        self._methods.update(more)
        self._decoders.update({name: msgspec.msgpack.Decoder(kind) for name, (kind, _) in more.items()})

    def _road(self, method: str, run: Run, call: Any) -> tuple[Run, str]:
        """What a shard's replica answers is told apart from what is proxied (for metrics)."""
        if method in ROUTED and call.epoch:
            return self._routed[method], f"shard_{method}"
        return run, method

    # --- a shard's documents -----------------------------------------------------------------------------------------
    async def _owned(self, epoch: int) -> Ownership:
        """The map of the caller's epoch. Raises StaleEpoch if this node's is another one."""
        node = self._cluster
        owned = node.ownership
        if owned is None or owned.epoch < epoch:
            # The caller knows a newer map: this node will have it in a moment.
            await node.wait_topology(node.topology.version + 1, BEHIND_SECONDS)
            owned = node.ownership
        if owned is None or owned.epoch < epoch:
            raise Unavailable(f"node {node.node_id} does not know the shard map of epoch {epoch} yet")
        if owned.epoch > epoch:
            raise self._stale(f"the shard map has epoch {owned.epoch}, not {epoch}", owned)
        return owned

    def _stale(self, text: str, here: Ownership, *, owned: bool = True) -> StaleEpoch:
        return StaleEpoch(text, epoch=here.epoch, version=self._cluster.topology.version, owned=owned)

    async def _shard_read(self, run: Callable[[Any, Claim], Awaitable[Any]], call: Any) -> Body:
        owned = await self._owned(call.epoch)
        claim = owned.claim(call.group - 1)
        fresh = call.freshness
        if fresh.min_index < claim.since:  # a replica that lags behind must not answer for what it does not have yet
            fresh = msgspec.structs.replace(fresh, min_index=claim.since)
            call = msgspec.structs.replace(call, freshness=fresh)
        try:
            try:
                answer = await run(call, claim)
            except CollectionNotFound:
                await self._catch_up(call.group, _named_in(call), fresh.timeout)
                answer = await run(call, claim)
        except StaleEpoch as stale:
            await self._moving(owned, call_timeout(fresh.timeout))
            raise self._stale(stale.message, self._cluster.ownership or owned) from stale
        after = self._cluster.ownership
        if after is None or after.map != owned.map:
            raise self._stale("the shard map changed during the read", after or owned)
        body = await self.encoded(answer)
        return calls.encode_body((owned.epoch, owned.fingerprint(call.group - 1), body), body)  # a ShardAnswer

    def _at_once(self, call: WriteCall) -> Promise[bytes] | None:
        """See RpcService. The caller must have routed by this node's map, and the shard's log own what that says."""
        owned = self._cluster.ownership
        if owned is None or owned.epoch != call.epoch or not self._may_write_now(call):
            return None
        hosted = self._node.hosted(call.group)
        fence = hosted.replica.fence
        if fence is not None and not _agrees(fence, owned, call.group):
            return None
        return self._write_now(
            call, "shard_write", lambda: judged(hosted, call, self._checked(owned, call, by_log=fence is not None))
        )

    async def _shard_write(self, call: WriteCall) -> object:
        owned = await self._owned(call.epoch)
        command = await self.judge(len(call.command), self._checked, owned, call)
        await self._hold(owned, call, command)
        try:
            return await self._write(call, command)
        except CollectionNotFound:
            collection = getattr(command, "collection", "")
            await self._catch_up(call.group, collection, call.timeout)
            return await self._write(call, command)

    def _checked(self, owned: Ownership, call: WriteCall, *, by_log: bool = False) -> commands.Command:
        """The command of a shard's write, all of whose documents it owns. by_log: which it owns is left to the shard's
        log to judge, which owns what the map says. May run in any thread."""
        command = decoded_command(call.command)
        if isinstance(command, commands.CreateCollection | commands.DropCollection):
            raise InvalidArgument("collections of a sharded cluster are made through its catalog", field="command")
        custom = owned.map.strategy.kind == "custom"
        if custom and isinstance(command, commands.Patch | commands.ChangeWhere) and command.change is not None:
            _check_keeps_key(owned.map.strategy, command.change)
        if isinstance(command, commands.ChangeWhere) or (
            custom and isinstance(command, commands.Delete | commands.Patch)
        ):
            _check_spread(command)
        elif not by_log:
            self._check_owner(owned, call.group, command)
        return command

    def _check_owner(self, owned: Ownership, group: GroupId, command: commands.Command) -> None:
        """Raises StaleEpoch (owned=False) for a document that another shard owns."""
        shard_map, shard = owned.map, group - 1
        strategy, count = shard_map.strategy, shard_map.shard_count
        if isinstance(command, commands.Insert):
            custom = strategy.kind == "custom"
            for name, metadata in zip(command.ids, command.metadata, strict=False):
                decoded = routed_metadata(metadata) if custom else None
                if shard_map.owner(routing_key(strategy, count, name, decoded)) != shard:
                    raise self._stale(f"shard {shard} does not own document {name[:80]!r}", owned, owned=False)
        elif isinstance(command, commands.Delete | commands.Patch):
            for name in command.ids:
                if shard_map.owner(routing_key(strategy, count, name)) != shard:
                    raise self._stale(f"shard {shard} does not own document {name[:80]!r}", owned, owned=False)

    async def _hold(self, owned: Ownership, call: WriteCall, command: commands.Command) -> None:
        """A write that the shard's log would refuse waits here until the map changes, and is denied then: its range is
        moving. What gets past this is judged by the log."""
        hosted = self._node.groups.get(call.group)
        fence = hosted.replica.fence if hosted is not None and self._host.is_leader(call.group) else None
        if fence is None or _agrees(fence, owned, call.group):
            return  # the log owns what the map says, and that is checked already
        if not await self.judge(len(call.command), _takes, fence, command):
            await self._moving(owned, call_timeout(call.timeout))
            text = f"shard {call.group - 1} does not take this write while its key moves"
            raise self._stale(text, self._cluster.ownership or owned, owned=False)

    async def _moving(self, owned: Ownership, timeout: float) -> None:
        """The shard's log is ahead of the map of this node: that will come in a moment."""
        if self._cluster.ownership is owned:
            await self._cluster.wait_topology(self._cluster.topology.version + 1, min(timeout, BEHIND_SECONDS))

    async def _move(self, call: MoveCall) -> MoveAnswer:
        """One step of a move's driver."""
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        timeout, hosted = call_timeout(call.timeout), self._node.hosted(call.group)
        if call.command:
            command = await self.judge(len(call.command), decoded_command, call.command)
            if not isinstance(command, MoveCommand) or command.move != call.move:
                raise InvalidArgument(f"{type(command).__name__} is no step of move {call.move}", field="command")
            move = self._cluster.topology.move(call.move)
            self._cluster.space.check_import(command, move.state if move is not None else None)
            data = await self.judge(len(call.command), commands.encode, command)  # anew, as in `judged`
            await self._host.propose(call.group, data, timeout)
        else:
            await self._host.read_index(call.group, timeout)
        fence = hosted.replica.fence
        found = fence.holdings.transfer(call.move) if fence is not None else None
        if found is None:
            return MoveAnswer("", 0, 0, {})
        return MoveAnswer(found.phase, found.step, found.at, found.cursors)

    async def _catch_up(self, group: GroupId, collection: str, timeout: float) -> None:
        """A collection that the catalog has but this shard has not yet: make it. Raises CollectionNotFound if the
        catalog confirms that it does not have it, Unavailable on a replica that does not lead."""
        node, seconds = self._cluster, call_timeout(timeout)
        if not _lists(node.topology, collection):
            newest = await node.confirmed(min(seconds, BEHIND_SECONDS))
            if not _lists(newest, collection):
                raise CollectionNotFound(f"there is no collection {collection[:80]!r}", collection=collection[:80])
            if not await node.wait_topology(newest.version, min(seconds, BEHIND_SECONDS)):
                raise Unavailable(f"node {node.node_id} does not know version {newest.version} of the catalog yet")
        if not self._host.is_leader(group):
            raise Unavailable(f"this replica of shard {group - 1} does not have collection {collection[:80]!r} yet")
        await node.reconciler.reconcile(group, seconds)

    # --- the cluster -------------------------------------------------------------------------------------------------
    async def _itself(self, call: GroupCall) -> LeaderAnswer:
        """A client that is not shard-aware asks who leads: whichever node it asks routes for it."""
        node = self._cluster
        leads = node.node_id if node.topology.settings is not None else None
        return LeaderAnswer(node.node_id, leads, 0, node.addresses(), self._host.maintenance)

    async def _no_members(self, call: MembershipCall) -> bytes:
        """A client that is not shard-aware, or older, would change shard 0 as if that were the cluster."""
        raise no_members()

    async def _topology(self, call: TopologyCall) -> TopologyAnswer:
        node = self._cluster
        if call.confirmed:
            if node.catalog is None or not self._host.is_leader(CATALOG_GROUP):
                raise self._not_leader_of_catalog()
            return TopologyAnswer(node.node_id, await node.confirmed(BEHIND_SECONDS))
        if call.wait > 0 and node.topology.version <= call.version:
            await node.wait_topology(call.version + 1, min(call.wait, 60.0))
        newer = node.topology.version > call.version
        return TopologyAnswer(node.node_id, node.topology if newer else None)

    def _not_leader_of_catalog(self) -> NotLeader:
        leader = self._host.leader(CATALOG_GROUP) if self._cluster.catalog is not None else None
        return NotLeader(f"node {self._node.node_id} does not lead the catalog", leader=leader, group=CATALOG_GROUP)

    async def _catalog(self, call: CatalogCall) -> object:
        try:
            command, identity = catalog_commands.decode_identified(call.command)
        except UnsupportedFormat as error:
            raise InvalidArgument(error.message, field="command") from error
        self._check_command(command)
        timeout, node = call_timeout(call.timeout), self._cluster
        if node.catalog is not None and self._host.is_leader(CATALOG_GROUP):
            node.space.check_catalog(command)
            return await node.execute(catalog_commands.encode(command, identity), timeout)  # anew, as in `judged`
        if call.hops >= HOPS_MAX:
            raise self._not_leader_of_catalog()
        body = calls.encode(CatalogCall(call.command, timeout, call.hops + 1))
        leader = self._host.leader(CATALOG_GROUP) if node.catalog is not None else None
        last: NeedleError = self._not_leader_of_catalog()
        for peer in [leader] if leader else node.topology.catalog:
            if peer == node.node_id:
                continue
            try:
                answer = await node.peers.call(peer, CATALOG, body, timeout)
            except NeedleError as error:
                open_fate = isinstance(last, ConnectionLost | DeadlineExceeded)
                if not error.retryable and not (open_fate and error.of_the_node):
                    raise
                if not open_fate:
                    last = error  # of a copy that may have got into the log the caller must hear, whatever others say
                continue
            return answer
        raise last

    def _check_command(self, command: CatalogCommand) -> None:
        """What shards would refuse must not get into the catalog."""
        if isinstance(command, catalog_commands.CreateCollection):
            limits = self._cluster.config.limits
            longest = msgspec.structs.replace(command.spec, name=f"{command.spec.name}@{10**19}")
            check_spec(command.spec, limits)
            check_spec(longest, limits)
        elif isinstance(command, catalog_commands.SetReplicas):
            # Its nodes would give up their replicas at once, while the group counts on them.
            raise InvalidArgument("a command of an earlier release: AssignReplicas takes its place", field="command")

    async def _sync(self, call: SyncCall) -> WriteResult:
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        timeout = call_timeout(call.timeout)
        if not await self._cluster.wait_topology(call.version, timeout):
            raise Unavailable(f"node {self._node.node_id} does not know version {call.version} of the catalog yet")
        await self._cluster.reconciler.reconcile(call.group, timeout)
        return WriteResult(version=call.version, index=self._host.applied_index(call.group))

    async def _addresses(self, call: AddressBook) -> AddressBook:
        """As RpcService._addresses; answers what this node was told last: the catalog may know no new address yet."""
        await super()._addresses(AddressBook(call.addresses))
        return AddressBook(self._cluster.told())

    async def _found(self, call: FoundCall) -> WhoAnswer:
        await self._cluster.found(call)
        return self._cluster.who()

    async def _who(self, call: WhoCall) -> WhoAnswer:
        return self._cluster.who()


def _agrees(fence: Fence, owned: Ownership, group: GroupId) -> bool:
    """Whether a shard's log owns what the map says, and no range of it is about to leave."""
    return not fence.freezes and fence.fingerprint == owned.fingerprint(group - 1)


def _check_keeps_key(strategy: ShardStrategy, change: commands.Change) -> None:
    """A document under another shard key may belong to another shard. Judged here as well as by the log, which knows
    the strategy only after a move."""
    named = [*(path for path, _ in change.set), *change.unset, *(path for path, _ in [*change.append, *change.remove])]
    keys = [tuple(field.split(".")) for field in strategy.fields]
    for path in named:
        at = tuple(path.split("."))
        if strategy.router or any(at[: len(key)] == key or key[: len(at)] == at for key in keys):
            raise invalid("change", path, f"no field that the shard key ({strategy.text()}) is made of; insert it anew")
    if change.whole is not None:
        raise invalid("change", "whole metadata", "fields that are no part of the shard key; insert the document anew")


def _check_spread(command: commands.Delete | commands.Patch | commands.ChangeWhere) -> None:
    """By which map it was spread is the sender's to say, and the log's to judge: a repeated one may come by a newer
    map, and its number may have been executed by the older one."""
    if not command.owned and not command.within:
        raise invalid("owned", command.owned, "the fingerprint of the ranges that this write is about")
    if command.within:
        check_ranges("within", command.within)


def _takes(fence: Fence, command: commands.Command) -> bool:
    """Whether the shard's log would take a write now."""
    if isinstance(command, commands.Insert):
        return all(map(fence.accepts, command.ids, command.metadata))
    if not isinstance(command, commands.Delete | commands.Patch | commands.ChangeWhere):
        return True
    if not fence.custom and not isinstance(command, commands.ChangeWhere):
        return all(fence.accepts(name, b"") for name in command.ids)
    if command.within:
        return fence.takes(command.within)
    return command.owned == fence.fingerprint and not fence.freezes


def _lists(topology: Topology, collection: str) -> bool:
    info = topology.collection(public_name(collection))
    return info is not None and info.stored_name == collection


def _named_in(call: Any) -> str:
    """The collection that a read is about."""
    request = getattr(call, "request", None)
    name: str = request.collection if request is not None else getattr(call, "collection", "")
    return name
