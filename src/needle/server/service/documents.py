"""Dispatch of inbound calls: decodes, asks host and replica, encodes. The only code between the wire and the node.

Invariant: a strong or leased read is answered only after its confirmed index is applied here; a write only after quorum
commit and apply. Whatever a caller sends, it gets one answer or one NeedleError, and nothing else happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import (
    CollectionNotFound,
    DiskFull,
    InvalidArgument,
    NeedleError,
    UnknownMethod,
    UnsupportedFormat,
    invalid,
)
from needle.base.ids import GroupId
from needle.base.model import HitBatch, RaftStatus
from needle.base.parts import LARGE_BYTES, Body, Payload, Pieces, encode_parts
from needle.base.runtime import beside
from needle.multiraft.inbound import CALL_METHODS
from needle.protocol import calls, commands
from needle.protocol.calls import (
    AddressBook as AddressBookMessage,
)
from needle.protocol.calls import (
    CollectionsCall,
    CountCall,
    DigestAnswer,
    DocumentBatch,
    GetCall,
    GroupCall,
    LeaderAnswer,
    MaintenanceCall,
    MembershipCall,
    ScanAnswer,
    ScanCall,
    SearchCall,
    StatusCall,
    StepDownCall,
    WriteCall,
)
from needle.protocol.move_commands import MoveCommand
from needle.rpc.promise import Promise
from needle.server.ports import PeerLike
from needle.server.replica import (
    FILTERED_FIELDS,
    PROPOSE_SECONDS,
    READ_INDEX,
    SEGMENT_BUILDING,
    SEGMENT_CHUNK,
    SEGMENT_PUBLISH,
    HostedReplica,
)
from needle.server.service.reads import Reads
from needle.server.service.served import ServedNode, add_address, call_timeout, not_leader
from needle.shard.fields.index_budget import FieldName
from needle.shard.segments.builds import Progress

Run = Callable[[Any], Awaitable[Any]]
ROUTED = frozenset({calls.WRITE, calls.SEARCH, calls.GET, calls.COLLECTIONS, calls.COUNT, calls.SCAN})
"""Calls about documents: they may name the epoch of a shard map."""
T = TypeVar("T")
DROPPABLE = frozenset({*ROUTED - {calls.WRITE}, READ_INDEX, SEGMENT_CHUNK})
"""What is cancelled when its caller's connection ends."""
FORWARD_SECONDS = 2.0
AFTER_SECONDS_MAX = 1.0
"""How long a caller may wait for a new leader in one call."""
ANSWER_SHARE = 0.9
"""Of the time a caller has: why something did not happen must reach it while it still listens."""

JUDGED_BYTES_MAX = 64 * 1024
"""A larger command is checked in a thread: 16 MB of JSON take a third of a second, and heartbeats cannot wait."""
DECODED_BYTES_MAX = 1024 * 1024
"""A larger body is copied out of its frame in a thread."""
HOST_CALL_BYTES_MAX = 4 * 1024 * 1024
"""What nodes ask each other is smaller: some bytes a group."""


class RpcService:
    """The methods of protocol.calls, and those that nodes ask each other."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._host = node.host
        self.reads = reads = Reads(node)
        self._methods: dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]] = {
            calls.WRITE: (WriteCall, self._write),
            calls.SEARCH: (SearchCall, reads.search),
            calls.GET: (GetCall, reads.get),
            calls.COLLECTIONS: (CollectionsCall, reads.collections),
            calls.COUNT: (CountCall, reads.count),
            calls.SCAN: (ScanCall, reads.scan),
            calls.LEADER: (GroupCall, self._leader),
            calls.STATUS: (StatusCall, self._status),
            calls.DIGEST: (GroupCall, self._digest),
            calls.STEP_DOWN: (StepDownCall, self._step_down),
            calls.FORCE_ELECTION: (GroupCall, self._force_election),
            calls.MAINTENANCE: (MaintenanceCall, self._maintenance),
            calls.MEMBERSHIP: (MembershipCall, self._membership),
            calls.ADDRESSES: (AddressBookMessage, self._addresses),
            READ_INDEX: (GroupCall, self._read_index),
            FILTERED_FIELDS: (GroupCall, self._filtered_fields),
            SEGMENT_CHUNK: (tuple[int, str, int, int], self._segment_chunk),
            SEGMENT_PUBLISH: (tuple[int, bytes], self._segment_publish),
            SEGMENT_BUILDING: (tuple[int, int], self._segment_building),
        }
        self._decoders = {name: msgspec.msgpack.Decoder(kind) for name, (kind, _) in self._methods.items()}

    # --- rpc.handler.Handler -----------------------------------------------------------------------------------------
    def on_oneway(self, peer: PeerLike, body: Payload) -> None:
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

    def on_request(self, peer: PeerLike, method: str, body: Any) -> Awaitable[Body]:
        """One call of a client or a node."""
        if method == SEGMENT_PUBLISH and not peer.node_id:
            raise InvalidArgument("segments are published by nodes only", field="method")
        if method in CALL_METHODS:
            if len(body) > HOST_CALL_BYTES_MAX:
                raise invalid("body", f"{len(body)} bytes", f"at most {HOST_CALL_BYTES_MAX} bytes for {method!r}")
            return self._host.on_call(peer.node_id, method, bytes(body))
        found = self._methods.get(method)
        if found is None:
            raise unknown_method(method)
        if len(body) > DECODED_BYTES_MAX:
            return self._serve_large(method, found[1], body)
        call = self._decoded(method, body)
        now = self._at_once(call) if method == calls.WRITE else None
        return now if now is not None else self._serve(method, found[1], call)

    def _decoded(self, method: str, body: Any) -> Any:
        try:
            return self._decoders[method].decode(body)
        except DECODE_ERRORS as error:
            raise InvalidArgument(f"the body of {method!r} is malformed: {error}", field="body") from None

    async def _serve_large(self, method: str, run: Callable[[Any], Awaitable[Any]], body: Any) -> Body:
        return await self._serve(method, run, await self._node.blocking(self._decoded, method, body))

    async def encoded(self, answer: object) -> Body:
        """An answer as bytes; a large one in pieces, made in a thread."""
        rows = answer.documents if isinstance(answer, ScanAnswer) else answer
        if isinstance(rows, HitBatch | DocumentBatch) and calls.batch_bytes(rows) >= LARGE_BYTES:
            pieces: Pieces = await self._node.blocking(encode_parts, answer)
            return pieces
        return calls.encode(answer)

    async def judge(self, size: int, fn: Callable[..., T], *arguments: object) -> T:
        """Run what takes long for a command of `size` bytes if that is large: in a thread, if it is."""
        return await beside(self._node.blocking if size > JUDGED_BYTES_MAX else None, fn, *arguments)

    def _road(self, method: str, run: Run, call: Any) -> tuple[Run, str]:
        """What answers a call, and under which name it is observed."""
        if method in ROUTED and call.epoch:
            raise unknown_method(f"{method} of a shard")
        return run, method

    async def _serve(self, method: str, run: Run, call: Any) -> Body:
        run, observed = self._road(method, run, call)
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
            return answer if isinstance(answer, bytes | Pieces) else await self.encoded(answer)
        except NeedleError as error:
            failure = error
            add_address(error, self._node)
            raise
        finally:
            self._node.observe(observed, self._node.now() - start, failure)

    # --- writes ------------------------------------------------------------------------------------------------------
    async def _write(self, call: WriteCall, command: commands.Command | None = None) -> object:
        """command: the call's, if it is decoded already."""
        hosted, host, group = self._node.hosted(call.group), self._host, call.group
        if not host.is_leader(group):
            raise not_leader(self._node, group)
        timeout = call_timeout(call.timeout)
        if not hosted.settled:
            await hosted.settle(timeout)
        await hosted.be_up_to_date(timeout)
        data = await self.judge(len(call.command), judged, hosted, call, command)
        return await host.propose(group, data, timeout)

    def _at_once(self, call: WriteCall) -> Promise[bytes] | None:
        """`_write` without a task: most of what a small write costs here would be the event loop's work. None if
        something has to be waited for before it can be proposed, or somebody else to answer."""
        if call.epoch or not self._may_write_now(call):
            return None
        return self._write_now(call, calls.WRITE, lambda: judged(self._node.hosted(call.group), call))

    def _may_write_now(self, call: WriteCall) -> bool:
        if len(call.command) > JUDGED_BYTES_MAX:
            return False
        hosted = self._node.groups.get(call.group)
        return hosted is not None and hosted.settled and hosted.up_to_date and self._host.is_leader(call.group)

    def _write_now(self, call: WriteCall, observed: str, judge: Callable[[], bytes]) -> Promise[bytes] | None:
        """judge: gives the command to propose."""
        answer = WriteAnswer(self._node, observed)
        try:
            self._host.submit(call.group, judge(), call_timeout(call.timeout), answer)
        except CollectionNotFound as error:
            if call.epoch:
                return None  # the catalog may have it: it has to be asked
            answer.set_exception(error)
        except NeedleError as error:
            answer.set_exception(error)
        return answer

    # --- reads -------------------------------------------------------------------------------------------------------
    async def _read_index(self, call: GroupCall) -> int:
        return await self._host.read_index(call.group, call_timeout(call.timeout))

    async def _segment_chunk(self, call: tuple[int, str, int, int]) -> bytes:
        group, name, offset, length = call
        data: bytes = await self._node.blocking(self._node.hosted(group).keeper.serve_chunk, name, offset, length)
        return data

    async def _segment_publish(self, call: tuple[int, bytes]) -> bytes:
        """A node finished a build that it began while it led."""
        group, data = call
        command = decoded_command(data)
        if not isinstance(command, commands.PublishSegment):
            raise invalid("command", type(command).__name__, "PublishSegment")
        hosted = self._node.hosted(group)
        hosted.replica.validate(command)
        if not self._host.is_leader(group):
            raise not_leader(self._node, group)
        await self._host.propose(group, commands.encode(command), PROPOSE_SECONDS)  # anew, as in `judged`
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
            await self._host.leader_after(
                call.group, call.after_term, min(call_timeout(call.timeout), AFTER_SECONDS_MAX)
            )
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
            raise not_leader(self._node, call.group)
        await self._host.transfer(call.group, call.to, ANSWER_SHARE * call_timeout(call.timeout))
        return self._led_by(call.group)

    async def _force_election(self, call: GroupCall) -> bytes:
        self._host.force_election(call.group)
        return b""

    async def _maintenance(self, call: MaintenanceCall) -> bytes:
        await self._node.set_maintenance(call.on, call_timeout(call.timeout))
        return b""

    async def _membership(self, call: MembershipCall) -> bytes:
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        for node in [*call.voters, *call.learners]:
            if node not in call.addresses and self._node.address_of(node) is None:
                raise invalid("addresses", dict(call.addresses), f"the address of {node}, which is not known here")
        now, timeout = self._host.status(call.group), call_timeout(call.timeout)
        members, wanted = ({*now.voters}, {*now.learners}), ({*call.voters}, {*call.learners})
        given = {node: at for node, at in call.addresses.items() if node in members[0] | members[1]}
        moved = any(at != self._node.address_of(node) for node, at in given.items())
        new = {node: at for node, at in call.addresses.items() if node not in given}
        await self._node.learn_addresses(new, FORWARD_SECONDS)
        if given:  # others may not know what this node does: its configuration may have been changed already
            await self._node.move_members(call.group, given, timeout)
        if not moved or wanted != members:
            await self._host.change_membership(call.group, call.voters, call.learners, timeout)
        return b""

    async def _addresses(self, call: AddressBookMessage) -> AddressBookMessage:
        self._node.book.check_room(call.addresses, call.moved)
        await self._node.learn_addresses(call.addresses, 0.0)
        self._node.book.move(call.moved)
        return AddressBookMessage(self._node.addresses(), self._node.book.moved())


class WriteAnswer(Promise[bytes]):
    """The answer of one write, settled by the Raft host: encoded, and reported to the node's observer as `observed`."""

    __slots__ = ("_node", "_observed", "_start")

    def __init__(self, node: ServedNode, observed: str) -> None:
        super().__init__()
        self._node = node
        self._observed = observed
        self._start = node.now()

    def set_result(self, result: object) -> None:
        """result: a WriteResult."""
        super().set_result(calls.encode(result))
        self._node.observe(self._observed, self._node.now() - self._start, None)

    def set_exception(self, error: BaseException) -> None:
        """error: a NeedleError."""
        if isinstance(error, NeedleError):
            add_address(error, self._node)
            self._node.observe(self._observed, self._node.now() - self._start, error)
        super().set_exception(error)


def unknown_method(method: str) -> UnknownMethod:
    """For a call that this node does not have."""
    return UnknownMethod(
        f"this node has no call {method[:80]!r}: the caller, or this node, is of another release",
        field="method",
    )


def decoded_command(data: bytes) -> commands.Command:
    """Raises InvalidArgument."""
    try:
        return commands.decode(data)
    except UnsupportedFormat as error:
        raise InvalidArgument(error.message, field="command") from error


def judged(hosted: HostedReplica, call: WriteCall, command: commands.Command | None = None) -> bytes:
    """The command to propose, encoded anew: what a caller put behind the fields that this release knows must not get
    into the log, for whether it can be skipped depends on how deep the call is that applies it, on each replica.
    Raises InvalidArgument, CollectionNotFound."""
    if command is None:
        command = decoded_command(call.command)
    if isinstance(command, commands.PublishSegment | MoveCommand):
        raise InvalidArgument("segments are published, and ranges moved, by leaders only", field="command")
    hosted.space.check(command)
    return commands.encode(hosted.replica.validate(command))
