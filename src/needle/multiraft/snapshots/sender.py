"""A leader's snapshots: made on demand, kept while a peer fetches them, served in chunks.

Invariant: a file is served only out of a finished export. At most one export a group, and `snapshot_exports_max` a
node, run at a time. It must not know how a peer stores them.
"""

from __future__ import annotations

import asyncio
import logging

from needle.base.errors import NeedleError, Unavailable, invalid
from needle.base.file_errors import SHORTAGES
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.runtime import Pool, Rng
from needle.multiraft.blocks import BLOCK_BYTES, TABLE_BLOCKS, block_count
from needle.multiraft.codec import BlocksRequest, ChunkRequest, HashesRequest, Manifest, decode_conf, encode_manifest
from needle.multiraft.failpoints import Failpoint
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile, StateMachine
from needle.raft.messages import SnapshotMeta

_log = logging.getLogger("needle.multiraft")


class Exported:
    """A finished snapshot on this node's disk. used: when a peer last read from it (seconds, monotonic)."""

    def __init__(
        self, snapshot: str, directory: str, meta: SnapshotMeta, files: list[SnapshotFile], now: float
    ) -> None:
        self.snapshot = snapshot
        self.directory = directory
        self.meta = meta
        self.files = {file.name: file for file in files}
        self.used = now
        self._sent: dict[NodeId, dict[str, int]] = {}

    def note(self, peer: NodeId, name: str, end: int) -> None:
        """A peer has read a file up to here."""
        known = self._sent.setdefault(peer, {})
        known[name] = min(max(known.get(name, 0), end), self.files[name].size)

    def shares(self) -> dict[NodeId, float]:
        """How much of it each peer has read, 0 to 1. What peers had already they do not read."""
        total = sum(file.size for file in self.files.values())
        return {peer: sum(read.values()) / total if total else 1.0 for peer, read in self._sent.items()}


class SnapshotShelf:
    """The snapshots of all groups of this node that peers may fetch; at most one a group."""

    def __init__(
        self,
        directory: str,
        files: Files,
        pool: Pool,
        rng: Rng,
        exports_max: int,
        chunk_bytes_max: int,
        failpoint: Failpoint,
    ) -> None:
        self._directory = directory
        self._files = files
        self._pool = pool
        self._rng = rng
        self._chunk_bytes_max = chunk_bytes_max
        self._failpoint = failpoint
        self._exports = asyncio.Semaphore(exports_max)
        self._shelf: dict[GroupId, Exported] = {}
        self.bytes_sent = 0

    def clean(self) -> None:
        """Remove what an earlier run of this node exported. Blocking."""
        for name in self._files.names(self._directory):
            if name.startswith("out-"):
                self._files.remove_tree(f"{self._directory}/{name}")

    def current(self, group: GroupId) -> Exported | None:
        """The group's snapshot, if there is one."""
        return self._shelf.get(group)

    async def export(self, group: GroupId, machine: StateMachine, lock: asyncio.Lock, now: float) -> Exported:
        """Make a snapshot of the group's state, and put it in the place of the older one."""
        snapshot = f"{group}-{self._rng.getrandbits(64):016x}"
        directory = f"{self._directory}/out-{snapshot}"
        async with self._exports, lock:
            await self._pool.run(self._files.remove_tree, directory)
            try:
                await self._pool.run(self._files.make_directory, directory)
                index, term, conf, files = await self._pool.run(machine.export_snapshot, directory)
            except NeedleError:
                await self._pool.run(self._files.remove_tree, directory)  # half an image must not take room
                raise
        self._failpoint("snapshot.after_export")
        descriptor = encode_manifest(Manifest(snapshot, tuple(files)))
        meta = SnapshotMeta(index, term, decode_conf(conf), descriptor)
        await self.drop(group)
        made = self._shelf[group] = Exported(snapshot, directory, meta, files, now)
        return made

    async def drop(self, group: GroupId) -> None:
        """Remove the group's snapshot, if there is one."""
        old = self._shelf.pop(group, None)
        if old is not None:
            try:
                await self._pool.run(self._files.remove_tree, old.directory)
            except SHORTAGES as error:
                _log.warning("a snapshot stays until the next start: %s", error)

    async def read(self, request: ChunkRequest, now: float, peer: NodeId = "") -> bytes:
        """One chunk. peer: the member of the group that reads it, if one does. Raises Unavailable if the snapshot is
        gone: the peer will be offered another one."""
        path, size = self._asked(request, now)
        length = max(0, min(request.length, self._chunk_bytes_max))
        offset = max(0, min(request.offset, size))
        chunk: bytes = await self._pool.run(self._files.read, path, offset, length)
        self.bytes_sent += len(chunk)
        self._note(request, peer, offset + len(chunk))
        return chunk

    async def hashes(self, request: HashesRequest, now: float) -> bytes:
        """The hashes of some blocks. Raises Unavailable as `read` does."""
        path, size = self._asked(request, now)
        first = max(0, min(request.first, block_count(size)))
        return await self._pool.run(self._files.block_hashes, path, first, max(0, min(request.count, TABLE_BLOCKS)))

    async def blocks(self, request: BlocksRequest, now: float, peer: NodeId = "") -> bytes:
        """Some blocks, one behind the other. Raises Unavailable as `read` does, InvalidArgument for blocks that the
        file does not have, or too many."""
        path, size = self._asked(request, now)
        most, count = max(1, self._chunk_bytes_max // BLOCK_BYTES), block_count(size)
        if len(request.blocks) > most:
            raise invalid("blocks", len(request.blocks), f"at most {most} of them")
        if request.blocks and not 0 <= min(request.blocks) <= max(request.blocks) < count:
            raise invalid("blocks", f"{min(request.blocks)} to {max(request.blocks)}", f"0 to {count - 1}")
        found = b"".join(await self._pool.run(self._files.read_blocks, path, request.blocks))
        self.bytes_sent += len(found)
        self._note(request, peer, BLOCK_BYTES * (1 + max(request.blocks, default=-1)))
        return found

    def _note(self, request: ChunkRequest | BlocksRequest, peer: NodeId, end: int) -> None:
        exported = self._shelf.get(request.group)
        if peer and exported is not None and exported.snapshot == request.snapshot:  # else it is gone by now
            exported.note(peer, request.name, end)

    def _asked(self, request: ChunkRequest | HashesRequest | BlocksRequest, now: float) -> tuple[str, int]:
        """Path and size of a file that is here. Raises Unavailable."""
        exported = self._shelf.get(request.group)
        file = exported.files.get(request.name) if exported is not None else None
        if exported is None or file is None or exported.snapshot != request.snapshot:
            raise _gone(request)
        exported.used = now
        return f"{exported.directory}/{file.name}", file.size


def _gone(request: ChunkRequest | HashesRequest | BlocksRequest) -> NeedleError:
    return Unavailable(
        f"snapshot {request.snapshot} of {group_name(request.group)} (file {request.name}) is not here any more",
        group=request.group,
    )
