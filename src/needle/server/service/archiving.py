"""What an archive of the log asks of this node, of shards that it leads (docs/adr/0076).

Invariant: what is told as acknowledged before an instant is confirmed by a majority after the clock was read. It must
not know what an archive does with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from needle.base.errors import Unavailable
from needle.base.runtime import micros_of
from needle.multiraft.codec import ChunkRequest, decode_manifest
from needle.protocol import commands
from needle.protocol.archive_calls import (
    ImageAnswer,
    ImageCall,
    ImageChunkCall,
    ImageFile,
    LogAnswer,
    LogCall,
    LoggedEntry,
)
from needle.raft.messages import EntryKind
from needle.server.service.served import ServedNode, call_timeout, not_leader
from needle.shard.held_collections import HeldCollections
from needle.shard.live_collection import ReplicaView

BYTES_MAX: Final = 1 << 20
"""Entries of one answer have about so many: they are read on the event loop, as those for a member that is behind."""
TARGET_CHARS: Final = 64
_NORMAL: Final = int(EntryKind.NORMAL)


def _digest(view: ReplicaView) -> tuple[int, str]:
    return view.at.index, view.digest()


def refused_loads(held: HeldCollections, entries: Sequence[LoggedEntry] | None) -> list[int]:
    """Which of the entries are bulk loads that are known to have changed nothing: no archive needs a state for them."""
    loads = [(one.index, commands.decode_logged(one.data)) for one in entries or () if commands.is_load(one.data)]
    return [index for index, load in loads if isinstance(load, commands.LoadRows) and held.refused_load(index, load)]


class Archiving:
    """See the module."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._host = node.host

    async def log(self, call: LogCall) -> LogAnswer:
        """Entries behind an index. Raises NotLeader, NoQuorum."""
        node, group = self._node, call.group
        hosted = node.hosted(group)
        if not self._host.is_leader(group):
            if call.follower:
                self._note(call, micros_of(node.ports.clock))  # it may lead next
                upto = self._host.has_upto(group, (await node.blocking(hosted.replica.look, _digest))[0])
                entries, term = self._entries(call, upto), self._host.term_of(group, call.after)
                return LogAnswer(upto, 0, entries, 0, "", term, refused_loads(hosted.replica.held, entries))
            raise not_leader(node, group)
        until = micros_of(node.ports.clock)
        upto = await self._host.read_index(group, call_timeout(call.timeout))
        self._note(call, until)
        entries = self._entries(call, self._host.has_upto(group, upto))
        if entries == [] and call.after < upto:  # not all: before `until` more was acknowledged
            raise Unavailable("the disk of the leader does not have all yet that is committed")
        term = self._host.term_of(group, call.after)
        at, digest = await node.blocking(hosted.replica.look, _digest)
        return LogAnswer(upto, until, entries, at, digest, term, refused_loads(hosted.replica.held, entries))

    def _note(self, call: LogCall, now: int) -> None:
        """Not what is said of the time to come: the leader before had a clock that ran ahead, and it would hide a
        lag."""
        until = call.until if call.until <= now else 0
        self._host.note_archived(call.group, call.target[:TARGET_CHARS], call.kept, until, call.begun)

    def _entries(self, call: LogCall, upto: int) -> list[LoggedEntry] | None:
        found = self._host.committed(call.group, call.after, upto, max(1, min(call.bytes_max, BYTES_MAX)))
        if found is None:
            return None
        return [LoggedEntry(one.index, one.term, one.data if one.kind == _NORMAL else b"") for one in found]

    async def image(self, call: ImageCall) -> ImageAnswer:
        """A copy of the shard's state, which stays while it is read. Raises NotLeader, StorageError."""
        node, group = self._node, call.group
        node.hosted(group)
        if not self._host.is_leader(group):
            raise not_leader(node, group)
        made = await self._host.image(group, call.after)
        manifest = decode_manifest(made.meta.descriptor)
        files = [ImageFile(one.name, one.size, one.checksum) for one in manifest.files]
        return ImageAnswer(manifest.snapshot, made.meta.index, made.meta.term, micros_of(node.ports.clock), files)

    async def image_chunk(self, call: ImageChunkCall) -> bytes:
        """Some bytes of it. Raises Unavailable if it is not here any more."""
        self._node.hosted(call.group)
        return await self._host.image_chunk(
            ChunkRequest(call.group, call.snapshot, call.name, call.offset, call.length)
        )
