"""Fetching a snapshot from a leader: chunk by chunk into a staging directory, verified before anyone sees it.

Invariant: `fetch` returns a directory in which every file of the manifest has its size and checksum, durably. A file
that is partly there (an earlier connection, or this node before a restart) is continued, not fetched again. Nor is one
that is here already: among what was staged of another snapshot, or in the state that is to be replaced. Of a file that
changes, only the blocks travel that are in neither (snapshot_blocks.py). What travels may be slowed down (pacing.py).
It must not know Raft, nor the state machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol

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
from needle.base.parts import as_bytes
from needle.base.runtime import Pool
from needle.multiraft.blocks import BLOCK_BYTES
from needle.multiraft.codec import BlocksRequest, ChunkRequest, HashesRequest, decode_manifest, encode_file_request
from needle.multiraft.config import HostConfig
from needle.multiraft.failpoints import Failpoint
from needle.multiraft.files import Files
from needle.multiraft.ports import SnapshotFile, Transport
from needle.multiraft.snapshots.pacing import Pace, Pacing, at_once
from needle.multiraft.snapshots.snapshot_blocks import SharedFile, find_donors

CHUNK_METHOD: Final = "raft.snapshot_chunk"
HASHES_METHOD: Final = "raft.snapshot_hashes"
BLOCKS_METHOD: Final = "raft.snapshot_blocks"
SHARED_BYTES_MIN: Final = 8 * BLOCK_BYTES
"""A smaller file travels whole: one call instead of two."""
FILES_AT_ONCE: Final = 8
_log = logging.getLogger("needle.multiraft")


class Holder(Protocol):
    """What a state machine says of the files that it has (ports.StateMachine)."""

    def held_file(self, name: str) -> str | None: ...
    def similar_file(self, name: str) -> str | None: ...


class SnapshotFetcher:
    """Fetches snapshots of any group into `directory`."""

    def __init__(
        self,
        directory: str,
        files: Files,
        pool: Pool,
        transport: Transport,
        config: HostConfig,
        failpoint: Failpoint,
        pace: Pace = at_once,
    ) -> None:
        self._directory = directory
        self._files = files
        self._pool = pool
        self._transport = transport
        self._config = config
        self._failpoint = failpoint
        self._pace = pace
        self._resting = asyncio.Lock()
        self.bytes_fetched = 0
        self.bytes_reused = 0

    def staging(self, group: GroupId, descriptor: bytes) -> str:
        """Where the snapshot with this descriptor is, or will be, staged."""
        return f"{self._directory}/in-{group}-{decode_manifest(descriptor).snapshot}"

    async def fetch(self, group: GroupId, frm: NodeId, descriptor: bytes, holder: Holder) -> str:
        """Fetch and verify; the directory. Raises the peer's NeedleError, CorruptSnapshot, StorageError, DiskFull or
        TooManyFiles."""
        manifest = decode_manifest(descriptor)
        directory = self.staging(group, descriptor)
        try:
            await self._pool.run(self._files.make_directory, directory)
            await self._reuse(group, directory, manifest.files, holder)
            similar = await self._pool.run(_similar, manifest.files, holder)
            former = await self._former(group, directory, list(similar))
            await self.discard_others(group, directory, former)
            total = sum(file.size for file in manifest.files)
            pacing = Pacing(lambda: self._pace(group), total, self._config.snapshot_keep / 3, self._resting)
            for files in _together(manifest.files, similar, self._config.snapshot_chunk_bytes):
                fetches = []
                for file in files:
                    donors = [similar[file.name], f"{former}/{file.name}"] if file.name in similar else []
                    fetches.append(self._fetch_file(group, frm, manifest.snapshot, directory, file, donors, pacing))
                await _all_of(fetches)
            await self.discard_others(group, directory)
        except DiskFull:
            await self.discard_others(group)  # the log needs what is left of the disk
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

    async def _staged(self, group: GroupId) -> list[str]:
        names = await self._pool.run(self._files.names, self._directory)
        return [f"{self._directory}/{name}" for name in names if name.startswith(f"in-{group}-")]

    async def _former(self, group: GroupId, directory: str, names: Sequence[str]) -> str:
        """What is staged of another snapshot, of which most is here of the files that are called so; "" if none is."""

        def size(staged: str) -> int:
            return sum(max(0, self._files.size(f"{staged}/{name}")) for name in names)

        others = [staged for staged in await self._staged(group) if staged != directory]
        sizes = [await self._pool.run(size, staged) for staged in others]
        return others[sizes.index(max(sizes))] if any(sizes) else ""

    async def _reuse(self, group: GroupId, directory: str, files: Sequence[SnapshotFile], holder: Holder) -> None:
        """Link the files that are here already, whole and with the right checksum."""
        staged = await self._staged(group)
        for file in files:
            target = f"{directory}/{file.name}"
            if await self._pool.run(self._files.size, target) == file.size:
                continue
            mine = await self._pool.run(holder.held_file, file.name)
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

    async def discard_others(self, group: GroupId, *keep: str) -> None:
        """Remove what is staged for this group, but for the directories `keep`."""
        for staged in await self._staged(group):
            if staged not in keep:
                await self._pool.run(self._files.remove_tree, staged)

    async def _fetch_file(
        self,
        group: GroupId,
        frm: NodeId,
        snapshot: str,
        directory: str,
        file: SnapshotFile,
        donors: Sequence[str],
        pacing: Pacing,
    ) -> None:
        path = f"{directory}/{file.name}"

        async def still_here() -> None:
            await self._ask(frm, CHUNK_METHOD, ChunkRequest(group, snapshot, file.name, 0, 0))

        for attempt in range(2):
            have = await self._pool.run(self._files.size, path)
            if have < 0 or have > file.size:
                have = 0
                await self._pool.run(self._files.write_at, path, 0, b"")
            # The second time as if nothing were here: then it is not what donors have that is wrong.
            use = donors if attempt == 0 and have < file.size else []
            shared = await self._shared(group, frm, snapshot, file, use)
            if shared is not None:
                have -= have % BLOCK_BYTES
            while have < file.size:
                reused = 0 if shared is None else shared.bytes_reused
                if shared is None:
                    chunk = await self._chunk(group, frm, snapshot, file, have)
                else:
                    chunk = await shared.piece(have // BLOCK_BYTES)
                    reused = shared.bytes_reused - reused
                await self._pool.run(self._files.write_at, path, have, chunk)
                self._failpoint("snapshot.after_chunk")
                have += len(chunk)
                await pacing.after(len(chunk) - reused, still_here)
            self.bytes_reused += 0 if shared is None else shared.bytes_reused
            if await self._pool.run(self._files.checksum, path) == file.checksum:
                return
            _log.warning(
                "%s: snapshot file %s fails its checksum (attempt %d)", group_name(group), file.name, attempt + 1
            )
            await self._pool.run(self._files.write_at, path, 0, b"")
        raise CorruptSnapshot(
            f"snapshot file {file.name} of {group_name(group)} from {frm} fails its checksum", group=group
        )

    async def _shared(
        self, group: GroupId, frm: NodeId, snapshot: str, file: SnapshotFile, paths: Sequence[str]
    ) -> SharedFile | None:
        """The file as one of which this node has parts; None if it has none."""
        donors = await find_donors(paths, self._files, self._pool)
        if not donors:
            return None

        async def hashes(first: int, count: int) -> bytes:
            request = HashesRequest(group, snapshot, file.name, first, count)
            return await self._ask(frm, HASHES_METHOD, request)

        async def blocks(numbers: list[int]) -> bytes:
            return await self._ask(frm, BLOCKS_METHOD, BlocksRequest(group, snapshot, file.name, numbers))

        most = max(1, self._config.snapshot_chunk_bytes // BLOCK_BYTES)
        return SharedFile(file, donors, self._pool, hashes, blocks, most)

    async def _chunk(self, group: GroupId, frm: NodeId, snapshot: str, file: SnapshotFile, have: int) -> bytes:
        length = min(self._config.snapshot_chunk_bytes, file.size - have)
        chunk = await self._ask(frm, CHUNK_METHOD, ChunkRequest(group, snapshot, file.name, have, length))
        if not chunk or len(chunk) > length:
            raise CorruptSnapshot(f"{frm} answered {len(chunk)} bytes of {file.name} where {length} were asked")
        return chunk

    async def _ask(self, frm: NodeId, method: str, request: ChunkRequest | HashesRequest | BlocksRequest) -> bytes:
        """A part of a file, asked for again when the connection breaks. Raises the last error."""
        config = self._config
        body = encode_file_request(request)
        for attempt in range(config.snapshot_attempts_max):
            try:
                answer = await self._transport.call(frm, method, body, config.snapshot_chunk_timeout)
                self.bytes_fetched += len(answer)
                return as_bytes(answer)
            except (ConnectionLost, DeadlineExceeded, Overloaded) as error:
                if attempt + 1 == config.snapshot_attempts_max:
                    raise
                _log.info("snapshot chunk of %s from %s: %s; asking again", group_name(request.group), frm, error)
                await asyncio.sleep(config.heartbeat_interval * 2**attempt)
        raise CorruptSnapshot("no attempt to fetch a snapshot chunk is allowed", group=request.group)


def _together(
    files: Sequence[SnapshotFile], similar: Collection[str], bytes_max: int
) -> Iterator[Sequence[SnapshotFile]]:
    """In their order, small ones at one time: behind a slow link each costs a round trip. What is on its way at a time
    has no more than `bytes_max` bytes, as a part of a large file has."""
    found: list[SnapshotFile] = []
    size = 0
    for file in files:
        alone = file.name in similar or file.size > bytes_max
        if found and (alone or len(found) == FILES_AT_ONCE or size + file.size > bytes_max):
            yield found
            found, size = [], 0
        if alone:
            yield [file]
        else:
            found.append(file)
            size += file.size
    if found:
        yield found


async def _all_of(fetches: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Raises what the first of them raises, once none is under way."""
    tasks = [asyncio.create_task(fetch) for fetch in fetches]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _similar(files: Sequence[SnapshotFile], holder: Holder) -> dict[str, str]:
    """Of the files that change, where something like them is here."""
    large = [file.name for file in files if file.size >= SHARED_BYTES_MIN]
    return {name: path for name in large if (path := holder.similar_file(name)) is not None}
