"""Calls about a node and its groups: who leads, how they are, maintenance, addresses; and what replicas ask each other.

It must not know documents' calls, nor the catalog's.
"""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from needle.base.errors import invalid
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import RaftStatus
from needle.base.runtime import micros_of
from needle.base.sparse import SPARSE_KIND
from needle.protocol import commands
from needle.protocol.calls import (
    AddressBook,
    DigestAnswer,
    GroupCall,
    LeaderAnswer,
    MaintenanceCall,
    StatusCall,
    StepDownCall,
)
from needle.protocol.peer_calls import IndexRoom, IndexRoomCall
from needle.protocol.upkeep_commands import INDEX_COMMANDS
from needle.routing.key_space import KeySpace
from needle.server.announced import Announced
from needle.server.certificates import EXPIRED
from needle.server.chores.comparing import APPLY_SECONDS
from needle.server.replica import PROPOSE_SECONDS
from needle.server.service.served import ServedNode, call_timeout, decoded_command, not_leader
from needle.shard.fields.index_budget import FieldName
from needle.shard.segments.builds import Progress
from needle.shard.state_machine import Replica

AFTER_SECONDS_MAX = 1.0
"""How long a caller may wait for a new leader in one call."""
ANSWER_SHARE = 0.9
"""Of the time a caller has: why something did not happen must reach it while it still listens."""


class _Digest:
    """One that is made. applied: what the replica had applied when its rows began to be read; None before that."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.applied: int | None = None
        self.made: asyncio.Future[tuple[int, str]]

    def serves(self, replica: Replica) -> bool:
        """Whether it has all that the replica has by now."""
        return self.replica is replica and self.applied in (None, replica.applied_index())


class _Digests:
    """Of all rows that replicas have stored: each reads the whole file, in a thread that searches need. So one is made
    at a time, and who asks while one is made of the same replica gets that, unless something was applied since its
    rows began to be read; then those who ask meanwhile share the next one. Callers that gave up and ask again, as they
    do where it takes longer than they wait, would have all threads busy for minutes."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._one = asyncio.Lock()
        self._newest: dict[GroupId, _Digest] = {}

    async def of(self, group: GroupId, replica: Replica) -> tuple[int, str]:
        """The index that it is of, and the digest: of what the replica had applied when this was asked, or later."""
        newest = self._newest.get(group)
        if newest is None or not newest.serves(replica):
            newest = self._newest[group] = _Digest(replica)
            newest.made = asyncio.ensure_future(self._made(newest))
            newest.made.add_done_callback(partial(self._ended, group, newest))
        return await asyncio.shield(newest.made)

    def _ended(self, group: GroupId, ended: _Digest, done: asyncio.Future[tuple[int, str]]) -> None:
        if self._newest.get(group) is ended:
            del self._newest[group]
        if not done.cancelled():
            done.exception()  # all who asked may have given up

    async def _made(self, one: _Digest) -> tuple[int, str]:
        async with self._one:
            one.applied = one.replica.applied_index()
            made: tuple[int, str] = await self._node.blocking(one.replica.stored_digest)
            return made


class Operations:
    """See the module."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._host = node.host
        self._announced = Announced(node)
        self._digests = _Digests(node)

    # --- groups ------------------------------------------------------------------------------------------------------
    async def itself(self, call: GroupCall) -> LeaderAnswer:
        """Who knows nothing of shards asks who leads: whichever node it asks routes for it."""
        node = self._node
        leads = node.node_id if node.topology.settings is not None else None
        return LeaderAnswer(node.node_id, leads, 0, node.addresses(), self._host.maintenance)

    async def leader(self, call: GroupCall) -> LeaderAnswer:
        """Who leads a group, as far as this node knows."""
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
            node.node_id,
            status.leader,
            status.current_term,
            node.addresses(),
            host.maintenance,
            not node.space.low,
            status.lost or status.damage or (EXPIRED if node.expired else ""),
        )

    async def status(self, call: StatusCall) -> RaftStatus:
        """This node's view of a group."""
        status = self._node.status(call.group, False)
        hosted, owned = self._node.groups.get(call.group), self._node.ownership
        if call.hot and hosted is not None and owned is not None:
            sampled = hosted.calls.sampled(self._node.now())
            hot = await self._node.blocking(sampled.hot, owned.map, owned.ranges(call.group - 1))
            status = msgspec.structs.replace(status, hot=hot)
        by_id = owned is not None and not KeySpace(owned.map).even and self._host.is_leader(call.group)
        if call.parts and hosted is not None and owned is not None and by_id:
            ranges = owned.ranges(call.group - 1)
            parts = await hosted.parts.of(hosted.replica, ranges, self._node.blocking, self._node.now)
            status = msgspec.structs.replace(status, parts=parts)
        if not call.digest or call.group not in self._node.groups:
            return status
        replica = self._node.hosted(call.group).replica
        _, digest = await self._digests.of(call.group, replica)
        return msgspec.structs.replace(status, digest=digest)

    async def digest(self, call: GroupCall) -> DigestAnswer:
        """A digest of all documents, read from the disk."""
        replica = self._node.hosted(call.group).replica
        applied, digest = await self._digests.of(call.group, replica)
        return DigestAnswer(self._node.node_id, applied, digest)

    async def step_down(self, call: StepDownCall) -> LeaderAnswer:
        """Hand leadership over."""
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        await self._host.transfer(call.group, call.to, ANSWER_SHARE * call_timeout(call.timeout))
        return self._led_by(call.group)

    async def force_election(self, call: GroupCall) -> bytes:
        """Campaign now."""
        self._host.force_election(call.group)
        return b""

    async def maintenance(self, call: MaintenanceCall) -> bytes:
        """Begin or end maintenance."""
        await self._node.set_maintenance(call.on, call_timeout(call.timeout))
        return b""

    async def addresses(self, call: AddressBook) -> AddressBook:
        """Learn where nodes say that they are; what this node was told last: the catalog may know no new one yet."""
        self._node.book.check_room(call.addresses)
        await self._announced.check(call.addresses)
        self._node.book.learn(call.addresses)
        return AddressBook(self._node.told())

    # --- what replicas ask each other --------------------------------------------------------------------------------
    async def read_index(self, call: GroupCall) -> int:
        """An index that covers all that was acknowledged before."""
        return await self._host.read_index(call.group, call_timeout(call.timeout))

    async def segment_chunk(self, call: tuple[int, str, int, int]) -> bytes:
        """A piece of an index file."""
        group, name, offset, length = call
        data: bytes = await self._node.blocking(self._node.hosted(group).keeper.serve_chunk, name, offset, length)
        return data

    async def segment_publish(self, call: tuple[int, bytes]) -> bytes:
        """A node finished a build that it began while it led."""
        group, data = call
        command = decoded_command(data)
        if not isinstance(command, INDEX_COMMANDS):
            raise invalid("command", type(command).__name__, "one that names index files")
        hosted = self._node.hosted(group)
        hosted.replica.validate(command)
        if not self._host.is_leader(group):
            raise not_leader(self._node, group)
        data = commands.entry(command, self._node.topology, micros_of(self._node.ports.clock))  # again, as in `judged`
        await self._host.propose(group, data, PROPOSE_SECONDS)
        return b""

    async def segment_building(self, call: tuple[int, int]) -> list[Progress]:
        """How far a build has come here."""
        group, collection_id = call
        found = self._node.hosted(group).keeper.building(collection_id)
        return [] if found is None else [found]

    async def segment_staged(self, call: tuple[int, int]) -> list[str]:
        """Which files of the index that a collection is to get this replica has: their checksums."""
        group, collection_id = call
        return self._node.hosted(group).keeper.staged(collection_id)

    async def digest_at(self, call: tuple[int, int]) -> list[str]:
        """The digest that this replica had at an entry, once it has applied that; none if it keeps none."""
        group, index = call
        await self._host.wait_applied(group, index, APPLY_SECONDS)
        if group == CATALOG_GROUP:
            return await self._node.catalog_compared.answer(index)
        found = self._node.hosted(group).replica.compared.at(index)
        return [] if found is None else [found]

    async def index_room(self, call: IndexRoomCall) -> IndexRoom:
        """What an index would take, and what there is for it, on this shard's leader."""
        if not self._host.is_leader(call.group):
            raise not_leader(self._node, call.group)
        if call.kind not in ("", SPARSE_KIND):
            raise invalid("kind", call.kind, f"{SPARSE_KIND}, or nothing")
        held = self._node.hosted(call.group).replica.held
        return IndexRoom(*await self._node.blocking(held.index_room, call.collection, call.path, call.kind))

    async def filtered_fields(self, call: GroupCall) -> list[FieldName]:
        """The fields that this replica's searches filter on."""
        return self._node.hosted(call.group).replica.field_indexes.recent()
