"""Index files of shards that this node leads, for a backup that takes them along and a restore that brings them
(docs/adr/0093). It must not know what a backup is.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

from needle.base.dtypes import DType
from needle.base.errors import ClusterTooOld, CollectionNotFound, Unavailable, invalid
from needle.base.ids import GroupId
from needle.base.vector_hashes import row_hashes
from needle.protocol.index_file_calls import (
    ADOPTED_SINCE,
    BYTES_MAX,
    HASHES_MAX,
    HOLD_SECONDS_MAX,
    INDEX_ADOPT,
    INDEX_BYTES,
    INDEX_FILES,
    INDEX_HASHES,
    INDEX_HOLD,
    INDEX_PUT,
    IndexAdoptAnswer,
    IndexAdoptCall,
    IndexBytesCall,
    IndexFileInfo,
    IndexFilesAnswer,
    IndexFilesCall,
    IndexHashesCall,
    IndexHoldCall,
    IndexPutCall,
)
from needle.server.replica import HostedReplica
from needle.server.service.served import ServedNode, call_timeout, not_leader
from needle.shard.live_collection import ReplicaView
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.made_elsewhere import CHECKED
from needle.shard.segments.sealed import SealedSegment

PUT_SECONDS: Final = 10.0
HASHED_BYTES: Final = 4 << 20
"""So much is read at a time for hashes: what it takes must not grow with the dimensions."""


class IndexFiles:
    """See the module."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node

    # --- a backup ----------------------------------------------------------------------------------------------------
    async def files(self, call: IndexFilesCall) -> IndexFilesAnswer:
        """What is here. Raises NotLeader, CollectionNotFound."""
        found: IndexFilesAnswer = await self._node.blocking(self._led(call.group).replica.look, _files, call)
        return found

    async def part(self, call: IndexBytesCall) -> bytes:
        """A part of a file. Raises Unavailable if it is not here any more."""
        if call.offset < 0 or not 0 < call.length <= BYTES_MAX:
            raise invalid("length", call.length, f"1 to {BYTES_MAX} bytes from an offset of 0 or more")
        found: bytes = await self._node.blocking(self._led(call.group).replica.look, _bytes, call)
        return found

    async def hashes(self, call: IndexHashesCall) -> bytes:
        """By which its vectors are found again. Raises Unavailable if it is not here any more."""
        found: bytes = await self._node.blocking(self._led(call.group).replica.look, _hashes, call)
        return found

    # --- a restore ---------------------------------------------------------------------------------------------------
    async def hold(self, call: IndexHoldCall) -> bytes:
        """Have nothing built for a while. Any replica: it may lead soon."""
        if not 0 <= call.seconds <= HOLD_SECONDS_MAX:
            raise invalid("seconds", call.seconds, f"0 to {HOLD_SECONDS_MAX:g}")
        hosted, vectors = self._taking(self._node.hosted(call.group), call.collection)
        await hosted.keeper.adoption.hold(vectors, call.seconds)
        hosted.keeper.look_again((vectors.collection_id,))
        return b""

    async def put(self, call: IndexPutCall) -> bytes:
        """Take a part of a file."""
        if not 0 < len(call.data) <= BYTES_MAX or call.offset < 0:
            raise invalid(
                "data", f"{len(call.data)} bytes", f"1 to {BYTES_MAX}, from an offset on that is not negative"
            )
        hosted, vectors = self._taking(await self._caught_up(call.group, PUT_SECONDS), call.collection)
        await hosted.keeper.adoption.put(vectors, call.checksum, call.size, call.offset, call.data)
        return b""

    async def adopt(self, call: IndexAdoptCall) -> IndexAdoptAnswer:
        """Serve by it what no file serves."""
        hosted = await self._caught_up(call.group, call_timeout(call.timeout))
        hosted, vectors = self._taking(hosted, call.collection)
        return IndexAdoptAnswer(await hosted.keeper.adoption.adopt(vectors, call.checksum))

    def _taking(self, hosted: HostedReplica, stored: str) -> tuple[HostedReplica, CollectionVectors]:
        now = self._node.topology
        if now.cluster_version < ADOPTED_SINCE:
            raise ClusterTooOld(
                f"the cluster has version {now.cluster_version}, and takes index files from {ADOPTED_SINCE} on: "
                "upgrade all nodes first"
            )
        vectors = hosted.replica.held.vectors_of(_id_of(hosted.replica.view, stored))
        if vectors is None:
            raise _unknown(stored)
        if vectors.spec.dtype is not DType.FLOAT32:
            raise invalid("collection", stored, f"one of float32: index files of {vectors.spec.dtype} are built again")
        return hosted, vectors

    async def _caught_up(self, group: GroupId, timeout: float) -> HostedReplica:
        """One that this node leads, with all of its documents: who leads newly may not have applied the last ones."""
        hosted = self._led(group)
        await self._node.host.read_leased(group, timeout)
        return hosted

    def _led(self, group: GroupId) -> HostedReplica:
        hosted = self._node.hosted(group)
        if not self._node.host.is_leader(group):
            raise not_leader(self._node, group)
        return hosted


def methods(files: IndexFiles) -> dict[str, tuple[Any, Callable[[Any], Awaitable[Any]]]]:
    """By name: what a call's body is, and what answers it."""
    return {
        INDEX_FILES: (IndexFilesCall, files.files),
        INDEX_BYTES: (IndexBytesCall, files.part),
        INDEX_HASHES: (IndexHashesCall, files.hashes),
        INDEX_HOLD: (IndexHoldCall, files.hold),
        INDEX_PUT: (IndexPutCall, files.put),
        INDEX_ADOPT: (IndexAdoptCall, files.adopt),
    }


def _unknown(stored: str) -> CollectionNotFound:
    return CollectionNotFound(f"this shard has no collection {stored}", collection=stored)


def _id_of(view: ReplicaView, stored: str) -> int:
    if stored not in view.collections:
        raise _unknown(stored)
    return view.collections[stored].record.id


def _sealed(view: ReplicaView, stored: str) -> dict[str, tuple[SealedSegment, int]]:
    """Those that serve by the published file, by its checksum, and how many live rows each has."""
    _id_of(view, stored)
    if view.collections[stored].record.spec.dtype is not DType.FLOAT32:
        return {}  # their vectors are found again by the bytes of float32 only; other kinds are not taken anywhere
    served = [one for one in view.collections[stored].vectors.served if not one.sealed.own]
    return {one.sealed.segment.checksum: (one.sealed, one.live_rows()) for one in served if one.sealed.kind in CHECKED}


def _files(view: ReplicaView, call: IndexFilesCall) -> IndexFilesAnswer:
    found = _sealed(view, call.collection).items()
    return IndexFilesAnswer([IndexFileInfo(name, one.size, one.nodes, rows) for name, (one, rows) in found])


def _found(view: ReplicaView, call: IndexBytesCall | IndexHashesCall) -> SealedSegment:
    found = _sealed(view, call.collection).get(call.checksum)
    if found is None:
        raise Unavailable(f"index file {call.checksum} is not here any more: ask which there are")
    return found[0]


def _bytes(view: ReplicaView, call: IndexBytesCall) -> bytes:
    sealed = _found(view, call)
    sealed.check_size()
    try:
        with open(sealed.path, "rb") as file:
            return os.pread(file.fileno(), call.length, call.offset)
    except FileNotFoundError:
        raise Unavailable(f"index file {call.checksum} is not here any more: ask which there are") from None


def _hashes(view: ReplicaView, call: IndexHashesCall) -> bytes:
    sealed = _found(view, call)
    sealed.check_size()
    if call.first < 0:
        raise invalid("first", call.first, "0 or more")
    count = min(HASHES_MAX, max(1, HASHED_BYTES // (4 * sealed.dimensions)))
    end = min(call.first + count, sealed.nodes)
    vectors = sealed.node_vectors(slice(call.first, max(call.first, end)))
    return row_hashes(vectors).astype("<u8").tobytes()
