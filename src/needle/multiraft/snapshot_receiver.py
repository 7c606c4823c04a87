"""Fetching a snapshot from a leader: chunk by chunk into a staging directory, verified before anyone sees it.

Invariant: `fetch` returns a directory in which every file of the manifest has its size and checksum, durably. A file
that is partly there (an earlier connection, or this node before a restart) is continued, not fetched again. Nor is one
that is here already: among what was staged of another snapshot, or in the state that is to be replaced.
It must not know Raft, nor the state machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from needle.base.errors import (
    ConnectionLost,
    CorruptSnapshot,
    DeadlineExceeded,
    DiskFull,
    NeedleError,
    Overloaded,
    StorageError,
    TooManyFiles,
)
from needle.base.ids import GroupId, NodeId, group_name
from needle.base.runtime import Pool
from needle.multiraft.codec import ChunkRequest, decode_manifest, encode_chunk_request
from needle.multiraft.config import HostConfig
from needle.multiraft.failpoints import Failpoint
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile, Transport

CHUNK_METHOD = "raft.snapshot_chunk"
_log = logging.getLogger("needle.multiraft")
Held = Callable[[str], str | None]


class SnapshotFetcher:
    """Fetches snapshots of any group into `directory`."""

    def __init__(
        self, directory: str, files: Files, pool: Pool, transport: Transport, config: HostConfig, failpoint: Failpoint
    ) -> None:
        self._directory = directory
        self._files = files
        self._pool = pool
        self._transport = transport
        self._config = config
        self._failpoint = failpoint
        self.bytes_fetched = 0
        self.bytes_reused = 0

    def staging(self, group: GroupId, descriptor: bytes) -> str:
        """Where the snapshot with this descriptor is, or will be, staged."""
        return f"{self._directory}/in-{group}-{decode_manifest(descriptor).snapshot}"

    async def fetch(self, group: GroupId, frm: NodeId, descriptor: bytes, held: Held) -> str:
        """Fetch and verify; the directory. held: where the state machine has a file by that name which never changes.
        Raises the peer's NeedleError, CorruptSnapshot, StorageError, DiskFull or TooManyFiles."""
        manifest = decode_manifest(descriptor)
        directory = self.staging(group, descriptor)
        try:
            await self._pool.run(self._files.make_directory, directory)
            await self._reuse(group, directory, manifest.files, held)
            await self.discard_others(group, directory)
            for file in manifest.files:
                await self._fetch_file(group, frm, manifest.snapshot, directory, file)
        except DiskFull:
            await self._pool.run(self._files.remove_tree, directory)  # the log needs what is left of the disk
            raise
        try:
            await self._pool.run(self._files.sync_tree, directory)
        except TooManyFiles:
            raise
        except NeedleError:
            # After a failed sync the bytes may be gone though they are still read: nothing of them is used again.
            await self._pool.run(self._files.remove_tree, directory)
            raise
        self._failpoint("snapshot.after_stage")
        return directory

    async def _reuse(self, group: GroupId, directory: str, files: Sequence[SnapshotFile], held: Held) -> None:
        """Link the files that are here already, whole and with the right checksum."""
        names = await self._pool.run(self._files.names, self._directory)
        staged = [f"{self._directory}/{name}" for name in names if name.startswith(f"in-{group}-")]
        for file in files:
            target = f"{directory}/{file.name}"
            if await self._pool.run(self._files.size, target) == file.size:
                continue
            mine = await self._pool.run(held, file.name)
            for source in [mine or "", *(f"{other}/{file.name}" for other in staged if other != directory)]:
                if await self._pool.run(self._link_if_equal, source, target, file):
                    self.bytes_reused += file.size
                    break

    def _link_if_equal(self, source: str, target: str, file: SnapshotFile) -> bool:
        try:
            if self._files.size(source) != file.size or self._files.checksum(source) != file.checksum:
                return False
            self._files.link(source, target)
        except (StorageError, TooManyFiles) as error:  # it may be deleted meanwhile: then it is fetched
            _log.info("snapshot file %s is not reused: %s", file.name, error)
            return False
        return True

    async def discard_others(self, group: GroupId, keep: str) -> None:
        """Remove what is staged for this group, but for the directory `keep` ("" keeps none)."""
        for name in await self._pool.run(self._files.names, self._directory):
            path = f"{self._directory}/{name}"
            if name.startswith(f"in-{group}-") and path != keep:
                await self._pool.run(self._files.remove_tree, path)

    async def _fetch_file(self, group: GroupId, frm: NodeId, snapshot: str, directory: str, file: SnapshotFile) -> None:
        path = f"{directory}/{file.name}"
        for attempt in range(2):
            have = await self._pool.run(self._files.size, path)
            if have < 0 or have > file.size:
                have = 0
                await self._pool.run(self._files.write_at, path, 0, b"")
            while have < file.size:
                length = min(self._config.snapshot_chunk_bytes, file.size - have)
                request = ChunkRequest(group, snapshot, file.name, have, length)
                chunk = await self._chunk(frm, request)
                if not chunk or len(chunk) > length:
                    raise CorruptSnapshot(f"{frm} answered {len(chunk)} bytes of {file.name} where {length} were asked")
                await self._pool.run(self._files.write_at, path, have, chunk)
                self._failpoint("snapshot.after_chunk")
                have += len(chunk)
                self.bytes_fetched += len(chunk)
            if await self._pool.run(self._files.checksum, path) == file.checksum:
                return
            _log.warning(
                "%s: snapshot file %s fails its checksum (attempt %d)", group_name(group), file.name, attempt + 1
            )
            await self._pool.run(self._files.write_at, path, 0, b"")
        raise CorruptSnapshot(
            f"snapshot file {file.name} of {group_name(group)} from {frm} fails its checksum", group=group
        )

    async def _chunk(self, frm: NodeId, request: ChunkRequest) -> bytes:
        """One chunk, asked for again when the connection breaks. Raises the last error."""
        config = self._config
        for attempt in range(config.snapshot_attempts_max):
            try:
                body = encode_chunk_request(request)
                return await self._transport.call(frm, CHUNK_METHOD, body, config.snapshot_chunk_timeout)
            except (ConnectionLost, DeadlineExceeded, Overloaded) as error:
                if attempt + 1 == config.snapshot_attempts_max:
                    raise
                _log.info("snapshot chunk of %s from %s: %s; asking again", group_name(request.group), frm, error)
                await asyncio.sleep(config.heartbeat_interval * 2**attempt)
        raise CorruptSnapshot("no attempt to fetch a snapshot chunk is allowed", group=request.group)
