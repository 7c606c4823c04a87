"""Dispatch of inbound calls: decodes, asks host and replica, encodes. The only code between the wire and the node.

Invariant: a strong or leased read is answered only after its confirmed index is applied here; a write only after quorum
commit and apply. Whatever a caller sends, it gets one answer or one NeedleError, and nothing else happens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from needle.base import commands, protocol
from needle.base.cluster_protocol import SHARD
from needle.base.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    DiskFull,
    InMaintenance,
    InvalidArgument,
    NeedleError,
    NotLeader,
    StaleEpoch,
    TooStale,
    Unavailable,
    UnknownMethod,
    UnsupportedFormat,
    invalid,
)
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.model import Claim, HitBatch, RaftStatus, ReadMode, SearchRequest
from needle.base.move_commands import MoveCommand
from needle.base.protocol import (
    AddressBook as AddressBookMessage,
)
from needle.base.protocol import (
    CollectionsAnswer,
    CollectionsCall,
    DigestAnswer,
    DocumentBatch,
    Freshness,
    GetCall,
    GroupCall,
    LeaderAnswer,
    MaintenanceCall,
    MembershipCall,
    SearchCall,
    StatusCall,
    StepDownCall,
    WriteCall,
)
from needle.multiraft.host import Host
from needle.multiraft.inbound import CALL_METHODS
from needle.rpc.promise import Promise
from needle.server.address_book import AddressBook
from needle.server.disk_space import DiskSpace
from needle.server.hosted import (
    FILTERED_FIELDS,
    PROPOSE_SECONDS,
    READ_INDEX,
    SEGMENT_BUILDING,
    SEGMENT_CHUNK,
    SEGMENT_PUBLISH,
    HostedReplica,
)
from needle.server.ports import PeerLike
from needle.shard.index_budget import FieldName
from needle.shard.records import StoredDocument
from needle.shard.segment_builds import Progress

Method = Callable[[Any, Any], Awaitable[bytes]]
DROPPABLE = frozenset({protocol.SEARCH, protocol.GET, protocol.COLLECTIONS, SHARD, READ_INDEX, SEGMENT_CHUNK})
"""What is cancelled when its caller's connection ends."""
FORWARD_SECONDS = 2.0
AFTER_SECONDS_MAX = 1.0
ANSWER_SHARE = 0.9
"""Of the time a caller has: why something did not happen must reach it while it still listens."""
"""How long a caller may wait for a new leader in one call."""

JUDGED_BYTES_MAX = 64 * 1024
"""A larger command is checked in a thread: 16 MB of JSON take a third of a second, and heartbeats cannot wait."""


class ServedNode(Protocol):
    """The node, as its service sees it."""

    node_id: NodeId
    host: Host
    groups: dict[GroupId, HostedReplica]
    space: DiskSpace
    book: AddressBook

    def hosted(self, group: GroupId) -> HostedReplica: ...
    def status(self, group: GroupId, digest: bool) -> RaftStatus: ...
    def address_of(self, node: NodeId) -> str | None: ...
    def addresses(self) -> dict[NodeId, str]: ...
    def heard_from(self, node: NodeId) -> None: ...
    async def learn_addresses(self, addresses: dict[NodeId, str], timeout: float) -> None: ...
    async def move_members(self, group: GroupId, addresses: dict[NodeId, str], timeout: float) -> None: ...
    async def set_maintenance(self, on: bool, timeout: float) -> None: ...
    def observe(self, what: str, seconds: float, error: NeedleError | None) -> None: ...
    def now(self) -> float: ...
    @property
    def blocking(self) -> Callable[..., Awaitable[Any]]:
        """Runs short blocking calls in the search threads."""
        ...


class RpcService:
    """The methods of base.protocol, and those that nodes ask each other."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._host = node.host
        self.reading = 0
        self._methods: dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]] = {
            protocol.WRITE: (WriteCall, self._write),
            protocol.SEARCH: (SearchCall, self._search),
            protocol.GET: (GetCall, self._get),
            protocol.COLLECTIONS: (CollectionsCall, self._collections),
            protocol.LEADER: (GroupCall, self._leader),
            protocol.STATUS: (StatusCall, self._status),
            protocol.DIGEST: (GroupCall, self._digest),
            protocol.STEP_DOWN: (StepDownCall, self._step_down),
            protocol.FORCE_ELECTION: (GroupCall, self._force_election),
            protocol.MAINTENANCE: (MaintenanceCall, self._maintenance),
            protocol.MEMBERSHIP: (MembershipCall, self._membership),
            protocol.ADDRESSES: (AddressBookMessage, self._addresses),
            READ_INDEX: (GroupCall, self._read_index),
            FILTERED_FIELDS: (GroupCall, self._filtered_fields),
            SEGMENT_CHUNK: (tuple[int, str, int, int], self._segment_chunk),
            SEGMENT_PUBLISH: (tuple[int, bytes], self._segment_publish),
            SEGMENT_BUILDING: (tuple[int, int], self._segment_building),
        }
        self._decoders = {name: msgspec.msgpack.Decoder(kind) for name, (kind, _) in self._methods.items()}

    # --- rpc.server.Handler ------------------------------------------------------------------------------------------
    def on_oneway(self, peer: PeerLike, body: bytes) -> None:
        """Raft messages of another node."""
        if peer.node_id:
            self._node.heard_from(peer.node_id)
            self._host.on_raft(peer.node_id, body)

    def on_gone(self, peer: PeerLike) -> None:
        """A connection ended. That of a node whose process was killed ends at once."""
        if peer.node_id:
            self._host.disconnected(peer.node_id)

    def is_droppable(self, method: str) -> bool:
        """Reads are of no use to anybody else."""
        return method in DROPPABLE

    def on_request(self, peer: PeerLike, method: str, body: Any) -> Awaitable[bytes]:
        """One call of a client or a node."""
        if method == SEGMENT_PUBLISH and not peer.node_id:
            raise InvalidArgument("segments are published by nodes only", field="method")
        if method in CALL_METHODS:
            return self._host.on_call(peer.node_id, method, bytes(body))
        found = self._methods.get(method)
        if found is None:
            raise UnknownMethod(
                f"this node has no call {method[:80]!r}: it belongs to another kind of cluster, fixed or sharded, than "
                "the caller takes it for, or one of both is of another release",
                field="method",
            )
        try:
            call = self._decoders[method].decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(f"the body of {method!r} is malformed: {error}", field="body") from None
        if found[1] == self._write and self._may_write_now(call):
            return self._write_now(call)
        return self._serve(method, found[1], call)

    async def _serve(self, method: str, run: Callable[[Any], Awaitable[Any]], call: Any) -> bytes:
        start = self._node.now()
        failure: NeedleError | None = None
        try:
            try:
                answer = await run(call)
            except DiskFull:
                if method not in DROPPABLE:
                    raise
                # What is applied could not be committed for the read: the reserve is there for that.
                await self._node.blocking(self._node.space.look)
                answer = await run(call)
            return answer if isinstance(answer, bytes) else protocol.encode(answer)
        except NeedleError as error:
            failure = error
            add_address(error, self._node)
            raise
        finally:
            self._node.observe(method, self._node.now() - start, failure)

    # --- writes ------------------------------------------------------------------------------------------------------
    async def _write(self, call: WriteCall) -> object:
        hosted, host, group = self._node.hosted(call.group), self._host, call.group
        if not host.is_leader(group):
            raise self._not_leader(group)
        timeout = _timeout(call.timeout)
        if not hosted.settled:
            await hosted.settle(timeout)
        await hosted.be_up_to_date(timeout)
        if len(call.command) > JUDGED_BYTES_MAX:
            return await host.propose(group, await self._node.blocking(_judged, hosted, call), timeout)
        return await host.propose(group, _judged(hosted, call), timeout)

    def _may_write_now(self, call: WriteCall) -> bool:
        """Whether nothing has to be waited for before the write can be proposed: nearly always."""
        if len(call.command) > JUDGED_BYTES_MAX:
            return False
        hosted = self._node.groups.get(call.group)
        return hosted is not None and hosted.settled and hosted.up_to_date and self._host.is_leader(call.group)

    def _write_now(self, call: WriteCall) -> Promise[bytes]:
        """`_write` without a task: most of what a small write costs here would be the event loop's work."""
        answer = WriteAnswer(self._node)
        try:
            data = _judged(self._node.hosted(call.group), call)
            self._host.submit(call.group, data, _timeout(call.timeout), answer)
        except NeedleError as error:
            answer.set_exception(error)
        return answer

    def _not_leader(self, group: GroupId) -> NotLeader:
        leader = self._host.leader(group)
        where = f"{leader} does" if leader else "no leader is known"
        return NotLeader(
            f"node {self._node.node_id} does not lead {group_name(group)}; {where}", leader=leader, group=group
        )

    # --- reads -------------------------------------------------------------------------------------------------------
    async def _fresh(self, group: GroupId, fresh: Freshness) -> HostedReplica:
        """Wait until this replica may answer a read of that freshness."""
        hosted, host = self._node.hosted(group), self._host
        timeout = _timeout(fresh.timeout)
        if fresh.mode is not ReadMode.EVENTUAL:
            if not hosted.settled and host.is_leader(group):
                await hosted.settle(timeout)
            read = host.read_index if fresh.mode is ReadMode.STRONG else host.read_leased
            await read(group, timeout)
        else:
            host.check_serves(group)
            hosted.check_used()
            if host.maintenance:
                raise InMaintenance(f"node {self._node.node_id} is in maintenance and serves no eventual reads")
            if fresh.max_staleness:
                await hosted.be_fresh(fresh.max_staleness, timeout * 0.9)
        if fresh.min_index > host.applied_index(group):
            try:
                await host.wait_applied(group, fresh.min_index, timeout * 0.9)
            except DeadlineExceeded as error:
                applied = host.applied_index(group)
                raise TooStale(
                    f"node {self._node.node_id} has applied index {applied}, the session needs {fresh.min_index}",
                    applied=applied,
                    wanted=fresh.min_index,
                ) from error
        return hosted

    async def _search(self, call: SearchCall, claim: Claim | None = None) -> HitBatch:
        """claim: what a shard must own to answer."""
        self.reading += 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _timeout(call.freshness.timeout)
        try:
            request = msgspec.structs.replace(call.request, claim=claim)
            if self._may_search_early(call):
                return await self._search_early(call, request)
            hosted = await self._fresh(call.group, call.freshness)
            return await hosted.batcher.search(request, deadline - loop.time())
        finally:
            self.reading -= 1

    def _may_search_early(self, call: SearchCall) -> bool:
        """Whether a strong search will most likely see now what its round will ask for: no write is under way."""
        fresh, group, host = call.freshness, call.group, self._host
        return (
            fresh.mode is ReadMode.STRONG
            and self._node.hosted(group).settled
            and host.is_at_rest(group)
            and fresh.min_index <= host.applied_index(group)
        )

    async def _search_early(self, call: SearchCall, request: SearchRequest) -> HitBatch:
        """Search while the round confirms this leader, instead of after it. What was found counts only if the round is
        confirmed and what it asks for was applied when the search looked; otherwise it is searched again."""
        search, loop = self._node.hosted(call.group).batcher.search, asyncio.get_running_loop()
        deadline = loop.time() + call.freshness.timeout
        confirmed = self._host.begin_read(call.group, _timeout(call.freshness.timeout))
        found: HitBatch | None = None
        try:
            # These are true of this state, which may be old.
            with contextlib.suppress(InvalidArgument, CollectionNotFound, StaleEpoch):
                found = await search(request, deadline - loop.time())
            index = await confirmed
        finally:
            confirmed.cancel()
        return (
            found
            if found is not None and found.applied_index >= index
            else await search(request, deadline - loop.time())
        )

    async def _get(self, call: GetCall, claim: Claim | None = None) -> DocumentBatch:
        limit = 10_000
        if len(call.ids) > limit:
            raise invalid("ids", f"{len(call.ids)} ids", f"at most {limit} in one call")
        self.reading += 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _timeout(call.freshness.timeout)
        try:
            hosted = await self._fresh(call.group, call.freshness)
            applied = self._host.applied_index(call.group)

            def read() -> list[StoredDocument]:
                if loop.time() > deadline:
                    raise DeadlineExceeded("the call's time was over before it could begin")
                return hosted.replica.get(call.collection, call.ids, call.with_vectors, claim)

            found = await self._while_wanted(read)
        finally:
            self.reading -= 1
        return DocumentBatch(
            [document.id for document in found],
            [document.version for document in found],
            [document.metadata for document in found],
            b"".join(document.vector for document in found),
            applied,
        )

    async def _while_wanted(self, read: Callable[..., Any], *arguments: object) -> Any:
        """Run in a search thread, unless the caller is gone before its turn comes."""
        wanted = True

        def run() -> Any:
            if not wanted:
                raise Unavailable("the caller has gone")
            return read(*arguments)

        try:
            return await self._node.blocking(run)
        finally:
            wanted = False

    async def _collections(self, call: CollectionsCall, claim: Claim | None = None) -> CollectionsAnswer:
        hosted = await self._fresh(call.group, call.freshness)
        counts = await self._node.blocking(hosted.replica.counts, claim)  # there may be thousands
        applied = self._host.applied_index(call.group)
        return CollectionsAnswer([spec for spec, _ in counts], [count for _, count in counts], applied)

    async def _read_index(self, call: GroupCall) -> int:
        return await self._host.read_index(call.group, _timeout(call.timeout))

    async def _segment_chunk(self, call: tuple[int, str, int, int]) -> bytes:
        group, name, offset, length = call
        data: bytes = await self._node.blocking(self._node.hosted(group).keeper.serve_chunk, name, offset, length)
        return data

    async def _segment_publish(self, call: tuple[int, bytes]) -> bytes:
        """A node finished a build that it began while it led."""
        group, data = call
        try:
            command = commands.decode(data)
        except UnsupportedFormat as error:
            raise InvalidArgument(error.message, field="command") from error
        if not isinstance(command, commands.PublishSegment):
            raise invalid("command", type(command).__name__, "PublishSegment")
        hosted = self._node.hosted(group)
        hosted.replica.validate(command)
        if not self._host.is_leader(group):
            raise self._not_leader(group)
        await self._host.propose(group, data, PROPOSE_SECONDS)
        return b""

    async def _segment_building(self, call: tuple[int, int]) -> list[Progress]:
        group, collection_id = call
        found = self._node.hosted(group).keeper.building(collection_id)
        return [] if found is None else [found]

    async def _filtered_fields(self, call: GroupCall) -> list[FieldName]:
        return self._node.hosted(call.group).replica.field_indexes.recent()

    # --- the node ----------------------------------------------------------------------------------------------------
    async def _leader(self, call: GroupCall) -> LeaderAnswer:
        if call.after_term >= 0:
            await self._host.leader_after(call.group, call.after_term, min(_timeout(call.timeout), AFTER_SECONDS_MAX))
        return self._led_by(call.group)

    def _led_by(self, group: GroupId) -> LeaderAnswer:
        host = self._host
        status = host.status(group)
        node = self._node
        return LeaderAnswer(
            node.node_id, status.leader, status.current_term, node.addresses(), host.maintenance, not node.space.low
        )

    async def _status(self, call: StatusCall) -> RaftStatus:
        status = self._node.status(call.group, False)
        if not call.digest or call.group not in self._node.groups:
            return status
        replica = self._node.hosted(call.group).replica
        _, digest = await self._node.blocking(replica.stored_digest)
        return msgspec.structs.replace(status, digest=digest)

    async def _digest(self, call: GroupCall) -> DigestAnswer:
        replica = self._node.hosted(call.group).replica
        applied, digest = await self._node.blocking(replica.stored_digest)
        return DigestAnswer(self._node.node_id, applied, digest)

    async def _step_down(self, call: StepDownCall) -> LeaderAnswer:
        if not self._host.is_leader(call.group):
            raise self._not_leader(call.group)
        await self._host.transfer(call.group, call.to, ANSWER_SHARE * _timeout(call.timeout))
        return self._led_by(call.group)

    async def _force_election(self, call: GroupCall) -> bytes:
        self._host.force_election(call.group)
        return b""

    async def _maintenance(self, call: MaintenanceCall) -> bytes:
        await self._node.set_maintenance(call.on, _timeout(call.timeout))
        return b""

    async def _membership(self, call: MembershipCall) -> bytes:
        if not self._host.is_leader(call.group):
            raise self._not_leader(call.group)
        for node in [*call.voters, *call.learners]:
            if node not in call.addresses and self._node.address_of(node) is None:
                raise invalid("addresses", dict(call.addresses), f"the address of {node}, which is not known here")
        now, timeout = self._host.status(call.group), _timeout(call.timeout)
        members, wanted = ({*now.voters}, {*now.learners}), ({*call.voters}, {*call.learners})
        told = {node: at for node, at in call.addresses.items() if at != self._node.address_of(node)}
        moved = {node: at for node, at in told.items() if node in members[0] | members[1]}
        new = {node: at for node, at in call.addresses.items() if node not in moved}
        await self._node.learn_addresses(new, FORWARD_SECONDS)
        if moved:
            await self._node.move_members(call.group, moved, timeout)
        if not moved or wanted != members:
            await self._host.change_membership(call.group, call.voters, call.learners, timeout)
        return b""

    async def _addresses(self, call: AddressBookMessage) -> AddressBookMessage:
        await self._node.learn_addresses(call.addresses, 0.0)
        self._node.book.move(call.moved)
        return AddressBookMessage(self._node.addresses(), self._node.book.moved())


class WriteAnswer(Promise[bytes]):
    """The answer of one write, settled by the Raft host: encoded, and reported to the node's observer."""

    __slots__ = ("_node", "_start")

    def __init__(self, node: ServedNode) -> None:
        super().__init__()
        self._node = node
        self._start = node.now()

    def set_result(self, result: object) -> None:
        """result: a WriteResult."""
        super().set_result(protocol.encode(result))
        self._node.observe(protocol.WRITE, self._node.now() - self._start, None)

    def set_exception(self, error: BaseException) -> None:
        """error: a NeedleError."""
        if isinstance(error, NeedleError):
            add_address(error, self._node)
            self._node.observe(protocol.WRITE, self._node.now() - self._start, error)
        super().set_exception(error)


def add_address(error: NeedleError, node: ServedNode) -> None:
    """Tell a caller who is sent to the leader where that is."""
    leader = error.details.get("leader") if isinstance(error, NotLeader) else None
    if leader:
        error.details["leader_address"] = node.address_of(str(leader))


def _judged(hosted: HostedReplica, call: WriteCall) -> bytes:
    """The command to propose. Raises InvalidArgument, CollectionNotFound."""
    try:
        command = commands.decode(call.command)
    except UnsupportedFormat as error:
        raise InvalidArgument(error.message, field="command") from error
    if isinstance(command, commands.PublishSegment | MoveCommand):
        raise InvalidArgument("segments are published, and ranges moved, by leaders only", field="command")
    hosted.space.check(command)
    checked = hosted.replica.validate(command)
    return call.command if checked is command else commands.encode(checked)


def _timeout(seconds: float) -> float:
    """What a caller allows us, bounded: nothing waits for ever on behalf of a caller that is long gone."""
    if -86_400 <= seconds <= 0:
        raise DeadlineExceeded(f"the call's time was over {abs(seconds):g} s before it arrived; nothing was done")
    if not 0 < seconds <= 86_400:
        raise invalid("timeout", seconds, "seconds, more than 0 and at most 86400")
    return seconds
