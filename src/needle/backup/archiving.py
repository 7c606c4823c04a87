"""Archives the logs of a running cluster's shards, for as long as it runs (docs/adr/0076).

Once a second each shard's leader is asked for the entries that a majority has since; every few seconds, or when they
have CHUNK_BYTES, they are put into the store. What is archived says the store alone, so whoever begins anew goes on
there. Where a leader's log does not go back so far, its shard's state is copied first, as it is again now and then, so
that a restore has not to go through months of entries.

Invariants: the head says of nothing that it is archived before it is; two archivers at one target do no harm, for what
they write of an index is the same. Memory: BUFFERED_BYTES_MAX of entries, and a piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import msgspec
import xxhash

from needle.backup.archive_format import (
    HEAD,
    Base,
    BaseFile,
    Catalog,
    Chunk,
    Head,
    base_name,
    catalog_name,
    chunk_name,
    directory,
    encode,
)
from needle.backup.archive_reading import bases_of, catalogs_of, chunks_of, reach, read_base, read_catalog, read_head
from needle.backup.around import REAL, Around
from needle.backup.creating import tell
from needle.backup.format import PIECES, PieceRef
from needle.backup.keeping import MAKING, PRUNING, Mark
from needle.backup.shard_archive import ShardArchive
from needle.backup.store import Store
from needle.base.errors import (
    ClientClosed,
    ClusterTooOld,
    CorruptBackup,
    Forbidden,
    InvalidArgument,
    NeedleError,
    Unauthenticated,
    Unavailable,
    UnsupportedFormat,
)
from needle.base.ids import shard_group
from needle.client import Client
from needle.client.shards import ask_leader
from needle.protocol import calls
from needle.protocol.archive_calls import (
    IMAGE,
    IMAGE_CHUNK,
    LOG,
    BackedUpCall,
    ImageAnswer,
    ImageCall,
    ImageChunkCall,
    ImageFile,
    LogAnswer,
    LogCall,
)
from needle.protocol.stamps import STAMPED_SINCE
from needle.routing.topology import Topology

_log = logging.getLogger("needle.backup")

LOOK_SECONDS: Final = 1.0
CHUNK_BYTES: Final = 4 << 20
ASKED_BYTES: Final = 1 << 20
BUFFERED_BYTES_MAX: Final = 64 << 20
"""Of entries of all shards; one answer of each may come on top."""
AT_ONCE: Final = 8
"""Shards that are asked at a time."""
BLOCK_BYTES: Final = 1 << 20
"""A state's files are cut into pieces of so many bytes: what did not change since the last time is there already."""
CALL_SECONDS: Final = 10.0
TOLD_SECONDS: Final = 3600.0
IMAGE_SECONDS: Final = 120.0
"""For a shard's leader to copy its state on its own disk."""
FINAL: Final = (ClientClosed, Forbidden, Unauthenticated, InvalidArgument, UnsupportedFormat)
"""What will not be otherwise at the next look."""
A = TypeVar("A", bound=msgspec.Struct)


class Archiver:
    """See the module. shards: by number. written: bytes since it began."""

    def __init__(
        self, client: Client, store: Store, *, every: float = 5.0, base_every: float = 86_400.0, around: Around = REAL
    ) -> None:
        """every: seconds after which entries are in the store at the latest. base_every: seconds between two copies of
        a shard's whole state."""
        self._client, self._store, self._around = client, store, around
        self._every, self._base_every = every, base_every
        self._flushed = 0.0
        self._looked = 0
        self._founding = self._expected = 0
        self._told: object = None
        self._basing: asyncio.Task[None] | None = None
        self.shards: dict[int, ShardArchive] = {}
        self.written = 0

    async def run(self) -> None:
        """Until it is cancelled. Raises Forbidden, Unauthenticated, InvalidArgument, UnsupportedFormat; whatever else
        happens is tried again."""
        try:
            while True:
                try:
                    await self.look()
                except FINAL:
                    raise
                except NeedleError as error:
                    _log.warning("the archive waits: %s", error.message)
                await self._around.rest(LOOK_SECONDS)
        finally:
            if self._basing is not None:
                self._basing.cancel()
                await asyncio.gather(self._basing, return_exceptions=True)

    async def look(self, *, flush: bool = False) -> None:
        """Archive what there is now. flush: have it in the store when this returns. Raises the first error, when all
        shards were asked."""
        before = self._around.micros()
        now = await self._client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)
        if now.founding != self._founding:
            self._founding, self.shards, self._told, self._looked = now.founding, {}, None, 0
        if now.cluster_version < STAMPED_SINCE:
            raise ClusterTooOld(
                f"the cluster has version {now.cluster_version}, and its log says from version {STAMPED_SINCE} on when "
                "something was written: the archive begins when all nodes run this release"
            )
        await self._note_catalog(self._around.micros(), now)  # what was dropped meanwhile was there `before`
        self._looked = before
        room, elapsed = asyncio.Semaphore(AT_ONCE), self._around.clock.monotonic() - self._flushed
        due = flush or elapsed >= self._every

        async def one(shard: int) -> None:
            async with room:
                await self._archive(shard, due)

        done = await asyncio.gather(*(one(info.shard) for info in now.serving), return_exceptions=True)
        if due:
            self._flushed = self._around.clock.monotonic()
            await self._note_head()
            await self._tell()
        for error in done:
            if error is not None:
                raise error
        if self._basing is None or self._basing.done():
            self._basing = asyncio.create_task(self._base_anew())

    def _last_told(self) -> object:
        """What the newest archived topology says; None if there is none that can be read. Blocking."""
        names = catalogs_of(self._store, self._founding)
        try:
            return _told(read_catalog(self._store, names[-1]).topology) if names else None
        except CorruptBackup:
            return None

    async def _note_catalog(self, at: int, now: Topology) -> None:
        told = _told(now)
        if told == self._told:
            return
        if self._told is None and told == await self._around.blocking(self._last_told):
            self._told = told
            return
        after = self._looked or (await self._around.blocking(self._head)).at
        record = Catalog(at=at, after=after, topology=msgspec.structs.replace(now, keys=(), rebalance=None))
        await self._put(catalog_name(self._founding, at), encode(record))
        self._told = told

    def _head(self) -> Head:
        """As it is in the store; what this archiver knows takes the place of a damaged one. Blocking."""
        try:
            return read_head(self._store, self._founding)
        except CorruptBackup:
            return Head(shards={}, at=0)

    async def _note_head(self) -> None:
        known = {one.shard: (one.kept, one.kept_until) for one in self.shards.values() if one.kept_until}
        if known:
            before = await self._around.blocking(self._head)
            shards = before.shards
            shards |= {shard: said for shard, said in known.items() if said[0] >= shards.get(shard, said)[0]}
            await self._put(
                f"{directory(self._founding)}{HEAD}", encode(Head(shards=shards, at=max(self._looked, before.at)))
            )

    async def _tell(self) -> None:
        """The cluster expects that this goes on, so that an alert tells if it does not."""
        now = self._around.micros()
        if now - self._expected >= TOLD_SECONDS * 1e6 and await tell(self._client, BackedUpCall(archive=now)):
            self._expected = now

    # --- one shard ---------------------------------------------------------------------------------------------------
    async def _archive(self, shard: int, flush: bool) -> None:
        archive = self.shards.get(shard)
        if archive is None:
            archive = await self._around.blocking(self._known, shard)
            self.shards[shard] = archive
        if archive.based is None:
            await self._begin(archive)
        while True:
            if archive.bytes >= CHUNK_BYTES or self._held() >= BUFFERED_BYTES_MAX:
                await self._flush(archive)  # which the store refused before: no more is read until it takes this
            answer = await self._ask_log(archive)
            if answer.entries is None:
                _log.warning("shard %d: its log does not go back to entry %d any more: its state is copied", shard,
                             archive.read)  # fmt: skip
                await self._flush(archive)
                archive.begin_at(await self._base(shard))
                continue
            whole = archive.take(answer)
            if archive.bytes >= CHUNK_BYTES or self._held() >= BUFFERED_BYTES_MAX or (whole and flush):
                await self._flush(archive)
            if whole:
                return

    def _held(self) -> int:
        return sum(one.bytes for one in self.shards.values())

    def _known(self, shard: int) -> ShardArchive:
        """What the store has of a shard. A damaged state is a place to go on from, and is copied anew. Blocking."""
        archive = ShardArchive(shard)
        bases = bases_of(self._store, self._founding, shard)
        if bases:
            try:
                base = read_base(self._store, bases[-1][1])
            except CorruptBackup as error:
                _log.error("%s: the state of shard %d is copied again", error.message, shard)
                base = Base(index=bases[-1][0], at=0, files=[])
            archive.begin_at(base)
            archive.read = archive.kept = reach(chunks_of(self._store, self._founding, shard), base.index)
        return archive

    async def _begin(self, archive: ShardArchive) -> None:
        """The first state of a shard: there is nothing before its log's first entry, if the log still has that."""
        if (await self._ask_log(archive)).entries is None:
            archive.begin_at(await self._base(archive.shard))
            return
        base = Base(index=0, at=self._around.micros(), files=[])
        await self._put(base_name(self._founding, archive.shard, 0), encode(base))
        archive.begin_at(base)

    async def _flush(self, archive: ShardArchive) -> None:
        entries = archive.entries
        if entries:
            last = entries[-1].index
            points = [one for one in archive.points if one[0] <= last]
            data = await self._around.blocking(encode, Chunk(entries=entries, points=points))
            await self._put(chunk_name(self._founding, archive.shard, entries[0].index, last), data)
            archive.points = [one for one in archive.points if one[0] > last]
            archive.kept, archive.entries, archive.bytes = last, [], 0
        if archive.kept == archive.read:
            archive.kept_until = archive.until

    async def _ask_log(self, archive: ShardArchive) -> LogAnswer:
        group = shard_group(archive.shard)
        return await self._ask(
            archive.shard,
            LOG,
            lambda left: calls.encode(
                LogCall(group, archive.read, archive.kept, archive.kept_until, ASKED_BYTES, left)
            ),
            LogAnswer,
        )

    async def _ask(
        self, shard: int, method: str, body: Callable[[float], bytes], kind: type[A], timeout: float = CALL_SECONDS
    ) -> A:
        return calls.decode(await ask_leader(self._client, shard, method, body, timeout), kind)

    async def _put(self, name: str, data: bytes) -> None:
        await self._around.blocking(self._store.put, name, data)
        self.written += len(data)

    # --- whole states ------------------------------------------------------------------------------------------------
    async def _base_anew(self) -> None:
        """Copy the state of the shard whose last one is the oldest, if that is old and the log went on since."""
        now = self._around.micros()
        due = [
            one for one in self.shards.values()
            if one.based is not None and one.kept > one.based[0] and now - one.based[1] >= self._base_every * 1e6
        ]  # fmt: skip
        if due:
            oldest = min(due, key=lambda one: one.based[1] if one.based is not None else 0)
            try:
                base = await self._base(oldest.shard, oldest)
            except NeedleError as error:
                _log.warning("shard %d: its state is not copied now: %s", oldest.shard, error.message)
            else:
                oldest.based = (base.index, base.at)

    async def _base(self, shard: int, behind: ShardArchive | None = None) -> Base:
        """Copy a shard's state, piece by piece. behind: it is told of when all entries up to it are kept. Raises
        Unavailable while somebody prunes, or if the shard's leader changed meanwhile."""
        around, store = self._around, self._store
        group = shard_group(shard)
        async with Mark(
            store, f"{MAKING}base-{around.rng.getrandbits(64):016x}", PRUNING, "somebody prunes", around
        ) as mark:
            there = {name: stat.size for name, stat in (await around.blocking(store.names, PIECES)).items()}
            after = 0 if behind is None else behind.kept
            image = await self._ask(
                shard, IMAGE, lambda left: calls.encode(ImageCall(group, after, left)), ImageAnswer, IMAGE_SECONDS
            )
            files = [await self._copy(shard, image, file, there) for file in image.files]
            while behind is not None and behind.kept < image.index:
                await around.rest(LOOK_SECONDS)
            await mark.check()
            base = Base(index=image.index, at=image.at, files=files)
            await self._put(base_name(self._founding, shard, image.index), encode(base))
        return base

    async def _copy(self, shard: int, image: ImageAnswer, file: ImageFile, there: dict[str, int]) -> BaseFile:
        group, pieces, at, whole = shard_group(shard), list[PieceRef](), 0, xxhash.xxh3_128()
        while at < file.size:
            block = bytearray()
            while len(block) < min(BLOCK_BYTES, file.size - at):
                left = min(BLOCK_BYTES, file.size - at) - len(block)
                call = calls.encode(ImageChunkCall(group, image.snapshot, file.name, at + len(block), left))
                data = await ask_leader(
                    self._client, shard, IMAGE_CHUNK, partial(_same, call), CALL_SECONDS, (Unavailable,)
                )
                if not data:
                    raise Unavailable(f"the state of shard {shard} ends before {file.name} does: it is copied anew")
                block += data
            whole.update(block)
            ref = PieceRef(hashlib.sha256(block).hexdigest(), len(block), 0)
            if there.get(ref.name) != ref.size:
                await self._put(ref.name, bytes(block))
                there[ref.name] = ref.size
            pieces.append(ref)
            at += len(block)
        if whole.hexdigest() != file.checksum:
            raise Unavailable(f"{file.name} of the state of shard {shard} fails its checksum: it is copied anew")
        return BaseFile(file.name, file.size, pieces)


def _told(topology: Topology) -> object:
    """What of a topology has to be archived when it changes."""
    shards = [(info.shard, info.retired) for info in topology.shards]
    return topology.collections, topology.aliases, topology.dropped, shards


def _same(body: bytes, _: float) -> bytes:
    return body


async def archive(
    client: Client,
    store: Store,
    *,
    every: float = 5.0,
    base_every: float = 86_400.0,
    around: Around = REAL,
    until: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Archive the logs of all shards until this is cancelled, or `until` returns; then what was read is in the store.

    every: seconds after which a write is in the store at the latest. base_every: seconds between copies of a shard's
    state. Raises Forbidden for a key without the role admin."""
    await client.catalog_status(timeout=CALL_SECONDS)
    archiver = Archiver(client, store, every=every, base_every=base_every, around=around)
    running = asyncio.ensure_future(archiver.run())
    waiting = [running] if until is None else [running, asyncio.ensure_future(until())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    with contextlib.suppress(NeedleError):
        await archiver.look(flush=True)
