"""Archives the logs of a running cluster's shards, for as long as it runs (docs/adr/0076).

Once a second each shard's leader is asked for the entries that a majority has since; every few seconds, or when they
have CHUNK_BYTES, they are put into the store. What is archived says the store alone, so whoever begins again goes on
there. Where a leader's log does not go back so far, and behind a bulk load, whose documents are in a file, its shard's
state is copied first, as it is again now and then, so that a restore has not to go through months of entries. That
takes as long as it takes, so it goes on beside the looks: those of other shards go on, and the leader is told all the
while behind which entry its log is needed.

Invariants: the head says of nothing that it is archived before it is; two archivers at one target do no harm, for what
they write of an index is the same. Memory: BUFFERED_BYTES_MAX of entries, and a piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from needle.backup.archive_format import Base, Chunk, base_name, chunk_name, encode
from needle.backup.archive_joining import Joining
from needle.backup.archive_notes import NOTHING, Notes
from needle.backup.around import REAL, Around
from needle.backup.complaints import Complaints
from needle.backup.creating import tell
from needle.backup.format import PIECES
from needle.backup.index_archiving import INDEXES_EVERY, IndexArchiving
from needle.backup.keeping import MAKING, PRUNING, Mark
from needle.backup.log_asking import CALL_SECONDS, Followers, ask_followers, ask_log
from needle.backup.resuming import known_of
from needle.backup.shard_archive import ShardArchive
from needle.backup.state_copying import copied, image_of
from needle.backup.store import Store
from needle.base.errors import (
    ClientClosed,
    ClusterTooOld,
    Forbidden,
    InvalidArgument,
    NeedleError,
    Unauthenticated,
    Unavailable,
    UnsupportedFormat,
)
from needle.base.ids import shard_group
from needle.client import Client
from needle.protocol.archive_calls import BackedUpCall, LogAnswer, LogCall
from needle.protocol.stamps import STAMPED_SINCE
from needle.routing.topology import Topology

_log = logging.getLogger("needle.backup")

LOOK_SECONDS: Final = 1.0
CHUNK_BYTES: Final = 4 << 20
ASKED_BYTES: Final = 1 << 20
BUFFERED_BYTES_MAX: Final = 64 << 20
"""Of entries of all shards; one answer of each may come on top."""
AT_ONCE: Final = 8
"""Shards that are asked at a time, or copied."""
TOLD_SECONDS: Final = 3600.0
FOLLOWERS_SECONDS: Final = 20.0
"""Who missed one word hears the next before it takes the archive for one that has ended (multiraft/archives.py)."""
FINAL: Final = (ClientClosed, Forbidden, Unauthenticated, InvalidArgument, UnsupportedFormat)
"""What will not be otherwise at the next look."""


class Archiver:
    """See the module. shards: by number. written: bytes since it began."""

    def __init__(
        self, client: Client, store: Store, *, every: float = 5.0, base_every: float = 86_400.0,
        indexes_every: float = INDEXES_EVERY, around: Around = REAL, begin: bool = False,
    ) -> None:  # fmt: skip
        """As `archive`."""
        self._client, self._store, self._around = client, store, around
        self._every, self._base_every, self._begins = every, base_every, begin
        self._flushed = 0.0
        self._founding = self._expected = 0
        self._notes = Notes(store, self._put, around, 0)
        self._basing: asyncio.Task[NeedleError | None] | None = None
        self._joining, self._followers = Joining(store, around), Followers(client)
        self._indexing = IndexArchiving(client, store, self._put, indexes_every, around)
        self.shards: dict[int, ShardArchive] = {}
        self.written = 0

    async def run(self) -> None:
        """Until it is cancelled. Raises Forbidden, Unauthenticated, InvalidArgument, UnsupportedFormat; whatever else
        happens is tried again."""
        complaints = Complaints(self._around.clock)
        try:
            while True:
                try:
                    await self.look()
                    complaints.goes_on()
                except FINAL:
                    raise
                except NeedleError as error:
                    complaints.waits(error)
                await self._around.rest(LOOK_SECONDS)
        finally:
            await self.close()

    async def close(self) -> None:
        """Break off what is copied, joined, and told, beside the looks."""
        await self._followers.close()
        await self._joining.close()
        if self._basing is not None:
            self._basing.cancel()
            await asyncio.gather(self._basing, return_exceptions=True)

    async def look(self, *, flush: bool = False) -> None:
        """Archive what there is now. flush: have it in the store when this returns, with the states that are lacking.
        Raises the first error, when all shards were asked."""
        while not await self.read(flush=flush) and flush:
            if self._basing is not None and (error := await self._basing) is not None:
                raise error

    async def read(self, *, flush: bool) -> bool:
        """The same, but for states, which are copied from now on. Whether no shard waits for its state."""
        before = self._around.micros()
        now = await self._client.refresh_topology(confirmed=True, timeout=CALL_SECONDS)
        due = flush or self._around.clock.monotonic() - self._flushed >= self._every
        try:
            await self._find_target(now, due=due)
            await self._notes.note_catalog(self._around.micros(), now)  # what was dropped meanwhile was there `before`
        except NeedleError:
            await self._hold_logs(now)
            raise
        self._notes.looked = before
        room = asyncio.Semaphore(AT_ONCE)

        async def archived(shard: int) -> bool:
            async with room:
                return await self._archive(shard, due)

        serving = {info.shard for info in now.serving}
        for known in self.shards.values():
            known.serves = known.shard in serving
        ended = [self._flush(known) for known in self.shards.values() if not known.serves]
        done = await asyncio.gather(*map(archived, sorted(serving)), *ended, return_exceptions=True)
        if due:
            self._flushed = self._around.clock.monotonic()
            await self._note_head()
            await self._tell()
        self._tell_followers()
        self._joining.go_on(now.founding, [one.shard for one in self._serving()])
        if self._basing is None or self._basing.done():
            self._basing = asyncio.create_task(self._base_anew(now))
        for said in done:
            if isinstance(said, BaseException):
                raise said
        return False not in done

    async def _find_target(self, now: Topology, *, due: bool) -> None:
        """See that it is the one that was written to, and what it is called. due: it is written to now."""
        if now.founding != self._founding or ((due or self._notes.strayed) and not await self._notes.are_there()):
            await self._begin_anew(now.founding)
        if now.cluster_version < STAMPED_SINCE:
            raise ClusterTooOld(
                f"the cluster has version {now.cluster_version}, and its log says from version {STAMPED_SINCE} on when "
                "something was written: the archive begins when all nodes run this release"
            )
        if not self._notes.target:
            await self._notes.find_target(now, begins=self._begins)

    async def _hold_logs(self, now: Topology) -> None:
        """The target takes nothing, so nothing is read: the nodes must hear all the same behind which entries their
        logs are needed, for they keep little for who does not ask. What was written last may be elsewhere: the head
        counts. What is not known yet is all that their logs have."""
        room, head = asyncio.Semaphore(AT_ONCE), self._notes.known.shards

        async def told(shard: int) -> None:
            async with room:
                one, noted = self.shards.get(shard), head.get(shard, (0, 0))[0]
                kept = noted if one is None else min(one.kept, noted or one.kept)
                await self._hold_log(one or ShardArchive(shard), kept)

        await asyncio.gather(*(told(info.shard) for info in now.serving))

    async def _hold_log(self, archive: ShardArchive, kept: int) -> None:
        awaits_copy = archive.lacks_state and archive.copied
        try:
            await self._ask_log(archive, archive.copied if awaits_copy else kept, 1)
        except (Forbidden, Unauthenticated):
            raise
        except NeedleError:
            pass  # why nothing is read is told already

    def _serving(self) -> list[ShardArchive]:
        return [one for one in self.shards.values() if one.serves]

    async def _begin_anew(self, founding: int) -> None:
        """Where the store says: of another cluster than before, or of a target that has less than was put there."""
        for one in self.shards.values():
            one.serves = False
        known = self._notes.known if founding == self._founding else NOTHING
        before, self._founding, self.shards = self._founding, founding, {}
        self._notes = Notes(self._store, self._put, self._around, founding, known)
        if before:
            await self._joining.close()
            self._joining = Joining(self._store, self._around)

    async def _note_head(self) -> None:
        known = {one.shard: (one.kept, one.kept_until) for one in self.shards.values() if one.kept_until}
        if known:
            await self._notes.note_head(known)

    async def _tell(self) -> None:
        """The cluster expects that this goes on, so that an alert tells if it does not. Of a store that takes nothing
        it hears nothing: the word would hide that."""
        now = self._around.micros()
        if not any(one.kept_until for one in self.shards.values()):
            return
        if now - self._expected >= TOLD_SECONDS * 1e6 and await tell(self._client, BackedUpCall(archive=now)):
            self._expected = now

    # --- one shard ---------------------------------------------------------------------------------------------------
    async def _archive(self, shard: int, flush: bool) -> bool:
        """Read all there is. False: its state is to be copied first."""
        archive = self.shards.get(shard)
        if archive is None:
            archive = await self._around.blocking(known_of, self._store, self._founding, shard)
            self.shards[shard] = archive
        if archive.based is None and not archive.lacks_state:
            await self._begin(archive)
        while not archive.lacks_state:
            if archive.bytes >= CHUNK_BYTES or self._held() >= BUFFERED_BYTES_MAX or archive.meets_load:
                try:  # which the store refused before: no more is read until it takes this, nor behind a load
                    await self._flush(archive)
                except NeedleError:
                    await self._hold_log(archive, archive.kept)
                    raise
            if archive.meets_load:
                _log.info("shard %d: entry %d is a bulk load: its state is copied", shard, archive.loaded)
                archive.lacks_state = True
                break
            answer = await self._ask_log(archive)
            if answer.entries is None:
                _log.warning("shard %d: its log does not go back to entry %d any more: its state is copied", shard,
                             archive.read)  # fmt: skip
                archive.lacks_state = True
                break
            whole = archive.take(answer)
            if archive.bytes >= CHUNK_BYTES or self._held() >= BUFFERED_BYTES_MAX or (whole and flush):
                await self._flush(archive)
            if whole:
                return True
        if archive.copied:  # else the log would be cut behind the state before that is here, again and again
            await self._ask_log(archive, archive.copied, 1)
        return False

    def _held(self) -> int:
        return sum(one.bytes for one in self.shards.values())

    async def _begin(self, archive: ShardArchive) -> None:
        """The first state of a shard: there is nothing before its log's first entry, if the log still has that."""
        archive.begun = self._around.micros()
        if (await self._ask_log(archive)).entries is None:
            archive.lacks_state = True
            return
        base = Base(index=0, at=self._around.micros(), files=[], behind=0)
        await self._put(base_name(self._founding, archive.shard, 0), encode(base))
        archive.begin_at(base)

    async def _flush(self, archive: ShardArchive) -> None:
        entries = archive.entries
        if entries:
            last = entries[-1].index
            points = [one for one in archive.points if one[0] <= last]
            data = await self._around.blocking(encode, Chunk(entries=entries, points=points))
            await self._put(chunk_name(self._founding, archive.shard, entries[0].index, last), data)
            self._joining.wrote(archive.shard, entries[0].index, last, len(data))
            archive.points = [one for one in archive.points if one[0] > last]
            archive.kept, archive.entries, archive.bytes = last, [], 0
        if archive.kept == archive.read:
            archive.kept_until = archive.until

    def _log_call(self, archive: ShardArchive, kept: int | None = None, most: int = ASKED_BYTES) -> LogCall:
        """See `_ask_log`."""
        (after, upto), target = (archive.read, archive.kept) if kept is None else (kept, kept), self._notes.target
        begun = archive.began_lately(self._around.micros())
        return LogCall(shard_group(archive.shard), after, upto, archive.kept_until, most, target=target, begun=begun)

    async def _ask_log(self, archive: ShardArchive, kept: int | None = None, most: int = ASKED_BYTES) -> LogAnswer:
        """kept: behind which index the log is needed, if not behind what is archived."""
        call = self._log_call(archive, kept, most)
        answer = await ask_log(self._client, archive.shard, call)
        if answer.entries is None and kept is None:
            await self._flush(archive)
            now = self._around.clock.monotonic()
            return await ask_followers(self._client, archive, call, answer, now)
        return answer

    def _tell_followers(self) -> None:
        """Now and then, when there is something to tell."""
        now = self._around.micros()
        due = [
            one for one in self._serving()
            if one.kept_until and not one.lacks_state and now - one.followed >= FOLLOWERS_SECONDS * 1e6
        ]  # fmt: skip
        if due and self._followers.idle:
            for one in due:
                one.followed = now
            self._followers.tell({one.shard: self._log_call(one) for one in due})

    async def _put(self, name: str, data: bytes) -> None:
        await self._around.blocking(self._store.put, name, data)
        self.written += len(data)

    # --- whole states ------------------------------------------------------------------------------------------------
    async def _base_anew(self, topology: Topology) -> NeedleError | None:
        """Copy the states of shards that lack one, and the one that is the oldest, if it is old and the log went on
        since; then index files. Those that were tried last come last: one that cannot be copied keeps no other one
        waiting. The first error."""
        now, serving = self._around.micros(), sorted(self._serving(), key=lambda one: max(one.tried, one.based_at))
        lacking = [one for one in serving if one.lacks_state]
        due = [
            one for one in serving
            if not one.lacks_state and one.based is not None and one.kept > one.based[0]
            and now - one.based_at >= self._base_every * 1e6
        ]  # fmt: skip
        done = await asyncio.gather(*map(self._copied, [*lacking[:AT_ONCE], *due[:1]]))
        await self._indexing.go_on(topology, [one for one in self._serving() if not one.lacks_state])
        return next((error for error in done if error is not None), None)

    async def _copied(self, archive: ShardArchive) -> NeedleError | None:
        archive.tried = self._around.micros()
        try:
            base = await self._base(archive)
        except NeedleError as error:
            _log.warning("shard %d: its state is not copied now: %s", archive.shard, error.message)
            return error
        finally:
            archive.copied = 0
        if archive.lacks_state:
            archive.begin_at(base)
        else:
            archive.based = (base.index, base.at)
        return None

    async def _base(self, archive: ShardArchive) -> Base:
        """Copy a shard's state, and tell of it when all entries up to it are kept that can be had. Raises Unavailable
        while somebody prunes, or if the shard's leader changed meanwhile."""
        around, store, shard = self._around, self._store, archive.shard
        async with Mark(
            store, f"{MAKING}base-{around.rng.getrandbits(64):016x}", PRUNING, "somebody prunes", around
        ) as mark:
            there = {name: stat.size for name, stat in (await around.blocking(store.names, PIECES)).items()}
            image = await image_of(self._client, shard, archive.loaded if archive.lacks_state else archive.kept)
            archive.copied = image.index
            if archive.lacks_state:  # at once: by the next look the log may be cut behind it
                await self._ask_log(archive, image.index, 1)
            files = await copied(self._client, shard, image, there, self._put)
            while archive.serves and not archive.lacks_state and archive.kept < image.index:
                await around.rest(LOOK_SECONDS)
            await mark.check()
            if not archive.serves:
                raise Unavailable(f"the cluster has no shard {shard} any more")
            behind = min(archive.kept, image.index) if archive.lacks_state else image.index
            base = Base(index=image.index, at=image.at, files=files, term=image.term, behind=behind)
            await self._put(base_name(self._founding, shard, image.index), encode(base))
        return base


async def archive(
    client: Client,
    store: Store,
    *,
    every: float = 5.0,
    base_every: float = 86_400.0,
    indexes_every: float = INDEXES_EVERY,
    around: Around = REAL,
    until: Callable[[], Awaitable[object]] | None = None,
    begin: bool = False,
) -> None:
    """Archive the logs of all shards until this is cancelled, or `until` returns; then what was read is in the store.

    every: seconds after which a write is in the store at the latest. base_every: seconds between copies of a shard's
    state, indexes_every: of its index files where there are new ones (sooner while it grows fast); 0 for none. begin:
    an archive may begin here though the cluster has been archived elsewhere; else an empty target is waited for, as one
    whose disk is not mounted. Raises Forbidden for a key without the role admin."""
    with contextlib.suppress(Unavailable):  # the archiver waits for it, and says so
        await client.catalog_status(timeout=CALL_SECONDS)
    archiver = Archiver(
        client, store, every=every, base_every=base_every, indexes_every=indexes_every, around=around, begin=begin
    )
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
        await archiver.read(flush=True)
    await archiver.close()
