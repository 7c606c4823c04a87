"""Bulk loads into shards (docs/adr/0119): files come to each replica, and then the leader has one entry name them.

Invariant: the entry is proposed only once this leader has read all files, found them fit, and knows that a majority of
the voters has them on disk; so whoever applies it can get them. It must not know who prepares loads, nor how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    DiskFull,
    InvalidArgument,
    NeedleError,
    Unavailable,
    invalid,
)
from needle.base.ids import GroupId, NodeId
from needle.base.model import CollectionSpec, WriteResult
from needle.base.runtime import micros_of
from needle.base.versions import LOADS
from needle.protocol import calls, commands
from needle.protocol.bulk_calls import (
    BULK_BEGIN,
    BULK_BYTES,
    BULK_HERE,
    BULK_LOAD,
    BULK_PUT,
    NAMES_MAX,
    PUT_BYTES_MAX,
    BulkBeginAnswer,
    BulkBeginCall,
    BulkBytesAnswer,
    BulkBytesCall,
    BulkHereAnswer,
    BulkHereCall,
    BulkLoadCall,
    BulkPutCall,
)
from needle.protocol.upkeep_commands import LoadRows
from needle.routing.collection_names import called
from needle.routing.topology import Ownership
from needle.server.replica import HostedReplica
from needle.server.service.served import Deadline, ServedNode, not_leader
from needle.shard.apply.bulk import check_owned, check_takes_loads
from needle.shard.bulk.staged import StagedFiles, read_name, rows_name
from needle.shard.bulk_checking import Owning, check_load
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import unless_cancelled
from needle.shard.segments.sealed import segment_file

LEASE_SECONDS: Final = 10.0
ASK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.5
ROOM_TIMES: Final = 4
ROW_ROOM: Final = 250
"""The documents are written to SQLite's log and then to its file. In each of them a document takes its bytes of the
file of rows, twice as many in the worst case, for vectors of which two do not fit on a page; and what tables take
(measured: 85 bytes and its id)."""
ALL_SECONDS: Final = 10.0
"""So long the leader waits for replicas beyond a majority: whoever has the files need not fetch them to apply. At most
half of the time that there is."""


class BulkLoads:
    """See the module."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    async def begin(self, call: BulkBeginCall) -> BulkBeginAnswer:
        """What a load has to be made for. Raises NotLeader, CollectionNotFound, ClusterTooOld, InvalidArgument."""
        hosted = self._led(call.group)
        self._check_allowed()
        await self._node.host.read_leased(call.group, LEASE_SECONDS)
        view = hosted.replica.view.collections.get(call.collection)
        live = None if view is None else hosted.replica.held.vectors_of(view.record.id)
        if view is None or live is None:
            raise CollectionNotFound(
                f"there is no collection {called(call.collection[:300])!r} any more", collection=call.collection[:300]
            )
        record, state = view.record, live.indexing
        self._check_takes(hosted, record.spec)
        return BulkBeginAnswer(
            record.id, record.spec, state.generation, record.documents, record.next_ordinal > 0, state.loaded,
            live.config.rows_max, self._owned().fingerprint(call.group - 1),
        )  # fmt: skip

    async def put(self, call: BulkPutCall) -> BulkHereAnswer:
        """Take a part of a file."""
        self._check_allowed()
        if not 0 < len(call.data) <= PUT_BYTES_MAX or call.offset < 0:
            raise invalid("data", f"{len(call.data)} bytes", f"1 to {PUT_BYTES_MAX}, from an offset of 0 or more")
        hosted = self._node.hosted(call.group)
        collection_id = read_name(call.name).collection_id
        self._node.space.check(LoadRows(collection_id, 1, call.size, "", 0))
        if hosted.replica.held.was_dropped(collection_id):
            raise CollectionNotFound(f"the collection with id {collection_id} was dropped")
        here = await self._node.blocking(hosted.replica.staged.put, call.name, call.size, call.offset, call.data)
        return self._answer([here])

    async def here(self, call: BulkHereCall) -> BulkHereAnswer:
        """How much of some files is here."""
        if len(call.names) > NAMES_MAX:
            raise invalid("names", len(call.names), f"at most {NAMES_MAX}")
        staged = self._node.hosted(call.group).replica.staged
        return self._answer(await self._node.blocking(_here, staged, call.names))

    async def bytes(self, call: BulkBytesCall) -> BulkBytesAnswer:
        """A part of a file, for a replica that lacks it."""
        if call.offset < 0 or not 0 < call.length <= PUT_BYTES_MAX:
            raise invalid("length", call.length, f"1 to {PUT_BYTES_MAX} bytes from an offset of 0 or more")
        replica = self._node.hosted(call.group).replica
        data = await self._node.blocking(replica.staged.read, call.name, call.offset, call.length)
        if data is None:
            collection_id = read_name(call.name).collection_id
            vectors = replica.held.vectors_of(collection_id)
            over = replica.held.was_dropped(collection_id) or (vectors is not None and vectors.next_ordinal > 0)
            return BulkBytesAnswer(False, over, b"")
        return BulkBytesAnswer(True, False, data)

    async def load(self, call: BulkLoadCall) -> WriteResult:
        """Have the documents of the files appear. Raises InvalidArgument for files that are not fit, Unavailable while
        no majority has them, StaleEpoch where the map is another one, and what a write raises."""
        hosted, command, deadline = self._led(call.group), call.command, Deadline(self._node, call.timeout)
        self._check_allowed()
        hosted.replica.validate(command)
        await self._node.host.read_leased(call.group, min(deadline.left(), LEASE_SECONDS))
        vectors = hosted.replica.held.vectors_of(command.collection_id)
        if vectors is None:
            raise CollectionNotFound(f"there is no collection with id {command.collection_id}")
        if vectors.indexing.loaded != command.checksum:
            await self._ready(hosted, call.group, command, deadline)
        entry = commands.entry(command, self._node.topology, micros_of(self._node.ports.clock))
        result: WriteResult = await self._node.host.propose(call.group, entry, deadline.left())
        hosted.keeper.kick()
        return result

    async def _ready(self, hosted: HostedReplica, group: GroupId, command: LoadRows, deadline: Deadline) -> None:
        staged, names = hosted.replica.staged, _names(command)
        here = await self._node.blocking(_here, staged, names)
        if any(size != -1 for size in here):
            raise Unavailable("the leader has not got all files of this load: put them there first", group=group)
        here_now = (v.record for v in hosted.replica.view.collections.values())
        record = next((one for one in here_now if one.id == command.collection_id), None)
        if record is None:  # dropped since it was looked for
            raise CollectionNotFound(f"there is no collection with id {command.collection_id}")
        self._check_takes(hosted, record.spec)
        check_owned(hosted.replica.view.fence, command)
        owned, shard = self._owned(), group - 1
        if owned.fingerprint(shard) != command.owned:
            raise Unavailable("this node does not know yet that the shard owns what the load was made for", group=group)
        owning = Owning(owned.map.strategy, owned.map.shard_count, owned.ranges(shard))
        check = (check_load, command, staged, record.spec, self._node.config.limits, owning)
        await self._node.ports.build_pool.run(unless_cancelled, *check, lambda: self._node.host.stopped)
        await self._held_by_majority(group, names, needed_room(command), deadline)

    async def _held_by_majority(self, group: GroupId, names: list[str], needed: int, deadline: Deadline) -> None:
        """Return when all voters have the files, or a majority has and the others had their time. Raises DiskFull if
        one that has them has no room for what its state takes of them: it would apply nothing from the entry on, also
        no drop."""
        since, have = self._node.now(), {self._node.node_id}
        patience = min(ALL_SECONDS, deadline.left() / 2)
        _check_room(self._node.node_id, self._room(), needed)
        while True:
            status = self._node.status(group, False)
            others = [node for node in status.voters if node not in have]
            answers = await asyncio.gather(*(self._whole(node, group, names) for node in others))
            for node, room in zip(others, answers, strict=True):
                if room is not None:
                    _check_room(node, room, needed)
                    have.add(node)
            held = sum(node in have for node in status.voters)
            if held == len(status.voters):
                return
            if held > len(status.voters) // 2 and self._node.now() - since >= patience:
                return
            if deadline.left() < 2 * AGAIN_SECONDS:
                raise Unavailable(f"{held} of {len(status.voters)} replicas have the files of this load", group=group)
            await asyncio.sleep(AGAIN_SECONDS)

    def _answer(self, here: list[int]) -> BulkHereAnswer:
        limits = self._node.config.limits
        return BulkHereAnswer(here, self._room(), limits.id_bytes_max, limits.metadata_bytes_max)

    def _room(self) -> int:
        told = self._node.space.disk.room()
        return max(0, told.free - told.kept_free)

    async def _whole(self, node: NodeId, group: GroupId, names: list[str]) -> int | None:
        """The room on a node that has all of these; None of one that has not, or does not say."""
        try:
            body = calls.encode(BulkHereCall(group, names))
            answer = calls.decode(await self._node.peers.call(node, BULK_HERE, body, ASK_SECONDS), BulkHereAnswer)
        except NeedleError:
            return None
        return answer.room if all(size == -1 for size in answer.here) else None

    def _check_allowed(self) -> None:
        now = self._node.topology
        if now.cluster_version < LOADS:
            raise ClusterTooOld(
                f"the cluster has version {now.cluster_version}, and bulk loads need {LOADS}: upgrade all nodes first",
                needs=LOADS,
                version=now.cluster_version,
            )

    def _check_takes(self, hosted: HostedReplica, spec: CollectionSpec) -> None:
        """Raises InvalidArgument for a collection that takes no load, by its settings here or in the catalog."""
        check_takes_loads(spec)
        info = hosted.collections.find(self._node.topology, spec.name)
        if info is not None and info.spec.ttl:
            raise InvalidArgument(
                f"documents of collection {info.spec.name!r} expire after {info.spec.ttl:g} s: a bulk load takes none "
                "that expire",
                field="collection",
            )

    def _owned(self) -> Ownership:
        if self._node.ownership is None:
            raise Unavailable("this node knows no map of the cluster yet")
        return self._node.ownership

    def _led(self, group: GroupId) -> HostedReplica:
        hosted = self._node.hosted(group)
        if not self._node.host.is_leader(group):
            raise not_leader(self._node, group)
        return hosted


def methods(loads: BulkLoads) -> dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]]:
    """By name: what a call's body is, and what answers it."""
    return {
        BULK_BEGIN: (BulkBeginCall, loads.begin),
        BULK_PUT: (BulkPutCall, loads.put),
        BULK_LOAD: (BulkLoadCall, loads.load),
        BULK_HERE: (BulkHereCall, loads.here),
        BULK_BYTES: (BulkBytesCall, loads.bytes),
    }


def needed_room(command: LoadRows) -> int:
    """Bytes that a replica's disk has to take beyond the files, when the entry is applied."""
    return ROOM_TIMES * command.size + ROW_ROOM * command.rows


def _check_room(node: NodeId, room: int, needed: int) -> None:
    if room < needed:
        raise DiskFull(
            f"the disk of node {node} takes {room} more bytes, and to apply this load it needs {needed} for a while: "
            "give it more room, or drop collections, and load again; nothing was loaded",
            node=node, room=room, needed=needed,
        )  # fmt: skip


def _here(staged: StagedFiles, names: list[str]) -> list[int]:
    return [staged.here(name) for name in names]


def _names(command: LoadRows) -> list[str]:
    indexes = [PublishedSegment(command.collection_id, *_fields(one)) for one in command.indexes]
    return [rows_name(command.collection_id, command.checksum), *map(segment_file, indexes)]


def _fields(one: Any) -> tuple[int, int, int, int, str]:
    return one.first, one.last, one.rows, one.size, one.checksum
