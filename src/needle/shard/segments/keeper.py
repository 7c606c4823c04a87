"""Keeps one replica's segment files as the manifest says: builds on the leader, fetches on the others, repairs.

Leader: plan -> build in a thread -> attach -> have PublishSegment proposed (segment_builds.py). Every replica: a
published segment whose file is not here is fetched from whoever has it, leader first, verified (segment_downloads.py)
and attached; if nobody offers it within `ship_timeout`, it is built here from the vectors at hand ("own" file). Files
that the manifest no longer names are deleted; open mappings of them stay valid. Searches are right at every moment,
only slower, while files are missing.

Invariant: nothing here can change which documents exist; the worst a fault can do is cost time. It sleeps until
`kick()`, and looks at the collections that changed; only while something is missing or failed, or will be built once no
write comes, does a timer wake it. It does not know Raft or the network: both are arguments.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from needle.base.errors import CorruptSegment, NeedleError
from needle.base.events import INDEX_DAMAGED, tell
from needle.base.file_errors import SHORTAGES
from needle.base.ids import NodeId
from needle.base.model import IndexParams
from needle.base.runtime import Clock, Pool
from needle.shard.agenda import Agenda, until_due
from needle.shard.disk import REAL_DISK, ReplicaDisk
from needle.shard.plan import BuildTask, PublishedSegment, covered, plan
from needle.shard.segments.adoption import Adoption
from needle.shard.segments.builds import AskBuilding, KeeperStats, Progress, SegmentBuilds, about
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.downloads import FetchChunk, SegmentDownloads
from needle.shard.segments.files import SegmentFiles, delete, delete_all, read_chunk
from needle.shard.segments.format import verify_file
from needle.shard.segments.index_changes import AskStaged, IndexChanges
from needle.shard.segments.lulls import Lulls
from needle.shard.segments.sealed import SealedSegment, segment_file
from needle.shard.segments.vectors_host import VectorsHost
from needle.shard.segments.view import VectorsView

log = logging.getLogger(__name__)

PASS_SLICE = 32
"""After looking at so many collections others get the event loop: each takes some 20 us."""
RETRY_SECONDS = 1.0
QUIET_SECONDS = 1.0
"""No vector has come for so long: what waits is indexed earlier."""
IDLE_SECONDS = 30.0
"""And for so long: segments are joined that writing would soon have joined anyway."""


@dataclass(slots=True)
class _Missing:
    """A published file that this replica lacks: since when, and when to ask for it again. Seconds of the clock."""

    since: float
    next_try: float


class SegmentKeeper:
    """One replica's keeper. All methods run on the event loop, except `serve_chunk`, which blocks."""

    def __init__(
        self,
        host: VectorsHost,
        *,
        is_leader: Callable[[], bool],
        publish: Callable[[bytes], Awaitable[object]],
        ask_building: AskBuilding,
        ask_staged: AskStaged,
        fetch_chunk: FetchChunk,
        peers: Callable[[], Sequence[NodeId]],
        build_pool: Pool,
        file_pool: Pool,
        clock: Clock,
        disk: ReplicaDisk = REAL_DISK,
        name: str = "a shard",
        wish: Callable[[str], IndexParams | None] = lambda _: None,
        queries: Callable[[str], Sequence[bytes]] = lambda _: (),
        saving: Callable[[], bool] = lambda: False,
    ) -> None:
        """publish: has one of INDEX_COMMANDS proposed, by this node or by whichever leads. peers: the other replicas,
        leader first. build_pool: for builds only (they take minutes). file_pool: of files. name: of the shard, in the
        log. wish: the index that a collection, by its name in the shard, is to have. queries: some that searches of it
        brought lately. saving: whether memory is short, so that only what waits gets a file, without older files."""
        self._host, self._name = host, name
        self._is_leader, self._peers, self._saving = is_leader, peers, saving
        self._file_pool, self._clock = file_pool, clock
        self._build_wanted = asyncio.Event()
        self._files_wanted = asyncio.Event()
        self._planned = False
        """Whether all collections were looked at since this node began to lead."""
        self._lulls = Lulls()
        self._missing: dict[int, dict[PublishedSegment, _Missing]] = {}
        self._distrusted: set[PublishedSegment] = set()
        self._damaged: set[PublishedSegment] = set()
        self._manifests: dict[int, list[PublishedSegment]] = {}
        self._to_plan, self._to_check = Agenda(), Agenda()
        self._files = SegmentFiles()
        self.stats = KeeperStats()
        self._downloads = SegmentDownloads(
            name=name, fetch_chunk=fetch_chunk, file_pool=file_pool, disk=disk, stats=self.stats
        )
        self._builds = SegmentBuilds(
            name=name, publish=publish, peers=peers, ask_building=ask_building, build_pool=build_pool,
            file_pool=file_pool, clock=clock, disk=disk, files=self._files, stats=self.stats,
            pause=lambda: asyncio.sleep(RETRY_SECONDS),
        )  # fmt: skip
        self.adoption = Adoption(self._builds, is_leader, build_pool, file_pool, clock, disk)
        self._changes = IndexChanges(
            name=name, builds=self._builds, wish=wish, publish=publish, peers=peers,
            ask_staged=ask_staged, queries=queries, pool=file_pool, clock=clock,
        )  # fmt: skip

    def kick(self) -> None:
        """Something changed: an apply batch, the leader, a collection. Cheap; call it on the event loop's thread."""
        leading, changed = self._is_leader(), self._host.take_changed()
        if leading and not self._planned:
            self._builds.begin_to_lead()
        if changed is None or (leading and not self._planned):
            everything = [vectors.collection_id for vectors in self._host.collection_vectors()]
            self._to_plan.add(everything)
            if changed is None:
                changed = everything
        self._planned = leading
        if leading:
            self._to_plan.add(changed)
        else:
            self._to_plan.clear()
        self._to_check.add(changed)
        self._build_wanted.set()
        self._files_wanted.set()

    def look_again(self, collection_ids: Iterable[int]) -> None:
        """The catalog may wish another index of these, or there is memory for them again."""
        if self._planned:
            self._to_plan.add(collection_ids)
            self._build_wanted.set()
            self._files_wanted.set()

    async def run(self) -> None:
        """Work until cancelled. An error that is not a NeedleError is a bug and ends it."""
        self._builds.stopping = False
        everything = [vectors.collection_id for vectors in self._host.collection_vectors()]
        self._to_check.add(everything)
        self._to_plan.add(everything if self._is_leader() else ())
        tasks = [asyncio.ensure_future(self._build_loop()), asyncio.ensure_future(self._files_loop())]
        self.kick()
        try:
            await asyncio.gather(*tasks)
        finally:
            self._builds.stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- building, on the leader -------------------------------------------------------------------------------------
    async def _build_loop(self) -> None:
        while True:
            await until_due(self._build_wanted, self._to_plan, self._clock)
            await self._build_pass()

    async def _build_pass(self) -> None:
        """At most one build for each collection that is due, so that none waits for all of another's."""
        for at, collection_id in enumerate(self._to_plan.take(self._clock.monotonic())):
            if at % PASS_SLICE == PASS_SLICE - 1:
                await asyncio.sleep(0)
            if not self._is_leader():
                self._planned = False
                break
            vectors = self._host.vectors_of(collection_id)
            if vectors is None or vectors.closed:
                self._lulls.forget(collection_id)
                continue
            await self._look_at(vectors)

    async def _look_at(self, vectors: CollectionVectors) -> None:
        """Build what one collection needs now, and put down when to look again though nothing changes."""
        if held := await self.adoption.held_until(vectors.collection_id):
            self._to_plan.later(vectors.collection_id, held)
            return
        loads, next_ordinal, waiting, view = vectors.loads()
        now = self._clock.monotonic()
        quiet_for = self._lulls.quiet_for(vectors, now)
        changing, dimensions, saving = self._changes.pending(vectors), vectors.spec.dimensions, self._saving()
        apart = changing or saving
        decide = partial(plan, loads, next_ordinal, waiting, vectors.config, dimensions=dimensions, apart=apart)
        if vectors.spec.of:  # of a named vector, which few of the documents may have
            decide = partial(decide, ordinal_of=partial(view.growing.ordinal_of, first=covered(vectors.manifest())))
        task = decide(quiet=quiet_for >= QUIET_SECONDS, idle=quiet_for >= IDLE_SECONDS)
        if task is not None:
            self._again(vectors, 0 if await self._build(vectors, task, view) else RETRY_SECONDS)
        elif changing and not saving:
            self._again(vectors, await self._changes.step(vectors, loads, view))
            self._check(vectors)
        elif quiet_for < QUIET_SECONDS and decide(quiet=True) is not None:
            self._to_plan.later(vectors.collection_id, now + QUIET_SECONDS - quiet_for)
        elif quiet_for < IDLE_SECONDS and decide(quiet=True, idle=True) is not None:
            self._to_plan.later(vectors.collection_id, now + IDLE_SECONDS - quiet_for)
        elif saving and (changing or decide(quiet=True, idle=True, apart=False) is not None):
            # There may be memory again before anybody has seen that there was none, and then nobody says so.
            self._to_plan.later(vectors.collection_id, now + IDLE_SECONDS)

    def _again(self, vectors: CollectionVectors, seconds: float) -> None:
        if seconds:
            self._to_plan.later(vectors.collection_id, self._clock.monotonic() + seconds)
        else:
            self._to_plan.add((vectors.collection_id,))

    async def _build(self, vectors: CollectionVectors, task: BuildTask, view: VectorsView) -> bool:
        if await self._builds.elsewhere(vectors.collection_id) or await self.adoption.held_until(vectors.collection_id):
            return False
        try:
            return await self._builds.build_and_publish(vectors, task, view)
        except CorruptSegment as error:
            await self._found_corrupt(vectors, task.base, error)
            return False
        finally:
            self._check(vectors)

    def building(self, collection_id: int) -> Progress | None:
        """What this node builds now in a collection, for a peer's ask_building."""
        return self._builds.building(collection_id)

    def staged(self, collection_id: int) -> list[str]:
        """The checksums of the files that are open here, of the index that a collection is to get."""
        vectors = self._host.vectors_of(collection_id)
        missing = () if vectors is None else vectors.missing()
        return [] if vectors is None else [one.checksum for one in vectors.staged() if one not in missing]

    # --- files, on every replica -------------------------------------------------------------------------------------
    async def _files_loop(self) -> None:
        while True:
            await until_due(self._files_wanted, self._to_check, self._clock)
            await self._files_pass()

    def _check(self, vectors: CollectionVectors) -> None:
        self._to_check.add((vectors.collection_id,))
        self._files_wanted.set()

    async def _files_pass(self) -> None:
        """Of the collections that are due, get every missing file and delete what is not needed."""
        if await self._files.follow(lambda: self._host.segment_directory, self._host.was_dropped, self._file_pool):
            self._manifests.clear()
        for collection_id, until in await self.adoption.tidy():
            self._to_check.later(collection_id, until)
        for at, collection_id in enumerate(self._to_check.take(self._clock.monotonic())):
            if at % PASS_SLICE == PASS_SLICE - 1:
                await asyncio.sleep(0)
            vectors = self._host.vectors_of(collection_id)
            if vectors is not None:
                await self._complete(vectors)
            elif self._host.was_dropped(collection_id) and not self._builds.busy(collection_id):
                await self._forget(collection_id)

    async def _complete(self, vectors: CollectionVectors) -> None:
        """Get every missing file of a collection, delete what it does not need, and put down to try again."""
        for segment in vectors.take_corrupt():
            await self._refused(vectors, segment)
        damaged = [segment for segment in vectors.manifest() if segment in self._damaged]
        before, now_missing = self._missing.pop(vectors.collection_id, {}), {}
        for segment in [*vectors.missing(), *damaged]:
            now = self._clock.monotonic()
            missing = now_missing[segment] = before.get(segment) or _Missing(now, now)
            # Every write has this called: who was asked without success is not asked again at once.
            if now >= missing.next_try and await self._provide(vectors, segment, missing.since):
                continue
            if now >= missing.next_try:
                missing.next_try = self._clock.monotonic() + RETRY_SECONDS
            self._to_check.later(vectors.collection_id, missing.next_try)
        if now_missing:
            self._missing[vectors.collection_id] = now_missing
        await self._sweep(vectors)

    async def _forget(self, collection_id: int) -> None:
        """A collection was dropped: its files go."""
        for known in (self._manifests, self._missing):
            known.pop(collection_id, None)
        self._lulls.forget(collection_id)
        self._builds.forget(collection_id)
        await self.adoption.forget(collection_id)
        for marked in (self._distrusted, self._damaged):
            marked.difference_update([one for one in marked if one.collection_id == collection_id])
        await self._delete(self._files.unneeded(collection_id, ()))

    async def _delete(self, paths: Sequence[str]) -> None:
        if paths:
            self.stats.deleted += await self._file_pool.run(delete_all, paths)

    async def _provide(self, vectors: CollectionVectors, segment: PublishedSegment, since: float) -> bool:
        """Attach one published segment: from disk, from a peer, or after a while from an own build."""
        peers = list(self._peers())
        if segment not in self._distrusted:
            for peer in peers:
                sealed = await self._downloads.get(vectors, segment, peer)
                if sealed is not None:
                    return await self._attach(vectors, sealed)
                if not vectors.names(segment) or vectors.closed:
                    return True
        if peers and self._clock.monotonic() - since < vectors.config.ship_timeout and segment not in self._distrusted:
            return False
        return await self._build_own(vectors, segment)

    async def _attach(self, vectors: CollectionVectors, sealed: SealedSegment) -> bool:
        self._files.added(sealed.path)
        await self._file_pool.run(vectors.attach, sealed)
        if not vectors.names(sealed.segment):  # it came too late, and would be kept forever
            vectors.forget(sealed.segment)
        self._damaged.discard(sealed.segment)
        self._check(vectors)
        return True

    async def _build_own(self, vectors: CollectionVectors, segment: PublishedSegment) -> bool:
        try:
            sealed = await self._builds.build_own(vectors, segment)
        except NeedleError as error:
            log.warning("own build of segment [%d, %d] failed: %s", segment.first, segment.last, error)
            return False
        if sealed is None:
            return True
        self._distrusted.discard(segment)
        return await self._attach(vectors, sealed)

    async def _sweep(self, vectors: CollectionVectors) -> None:
        """Delete files that neither the manifest nor an open segment needs, when the manifest changed."""
        busy = self._builds.busy(vectors.collection_id)
        manifest = [*vectors.manifest(), *vectors.staged()]
        if vectors.closed or busy or self._manifests.get(vectors.collection_id) == manifest:
            return
        keep = {segment_file(segment, own=own) for segment in manifest for own in (False, True)}
        opened = vectors.opened()
        for sealed in opened:  # a bulk load brought its files itself
            self._files.added(sealed.path)
        keep |= {os.path.basename(sealed.path) for sealed in opened}
        await self._delete(self._files.unneeded(vectors.collection_id, keep))
        # Files of before a switch go once nothing serves by them any more, though the manifest stays.
        if not vectors.missing() and all(sealed.segment in manifest for sealed in opened):
            self._manifests[vectors.collection_id] = manifest

    # --- damage ------------------------------------------------------------------------------------------------------
    async def scrub(self, only: Collection[str] | None = None) -> int:
        """Read every attached file, or those at these paths, and compare checksums; repair what is damaged. Returns how
        many were."""
        found = 0
        for vectors in self._host.collection_vectors():
            for sealed in vectors.attached():
                if only is not None and sealed.path not in only:
                    continue
                try:
                    await self._file_pool.run(verify_file, sealed.path)
                except SHORTAGES as error:
                    log.warning("an index file is not checked now: %s", error)
                except CorruptSegment as error:
                    if sealed.segment in vectors.manifest():
                        found += 1
                        await self._found_corrupt(vectors, sealed.segment, error)
        return found

    async def _found_corrupt(
        self, vectors: CollectionVectors, segment: PublishedSegment | None, error: CorruptSegment
    ) -> None:
        """A file in use is damaged: stop using it, read its rows from the documents, and get it again."""
        self.stats.corrupt += 1
        log.error("%s; it will be fetched or built again", error)
        if segment is None:
            return
        for sealed in vectors.opened():
            if sealed.segment == segment:
                sealed.condemn(error.message)  # before its name is gone, by which searches see that it was made shorter
        for own in (False, True):
            await self._file_pool.run(delete, os.path.join(vectors.directory, segment_file(segment, own=own)))
        if not await self._file_pool.run(vectors.detach, segment):
            self._damaged.add(segment)
        self._check(vectors)

    async def _refused(self, vectors: CollectionVectors, segment: PublishedSegment) -> None:
        """Damaged at open (the file is gone already), or whole but not the right rows (do not fetch that again)."""
        self.stats.corrupt += 1
        tell(INDEX_DAMAGED, **about(self._name, vectors, segment))
        for own in (False, True):
            path = os.path.join(vectors.directory, segment_file(segment, own=own))
            if await self._file_pool.run(os.path.exists, path):
                self._distrusted.add(segment)
                await self._file_pool.run(delete, path)

    def serve_chunk(self, name: str, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of a segment file, for a peer's fetch_chunk. Blocking: call it in a thread.

        Raises InvalidArgument (not a segment's name, or a bad range) or CorruptSegment (not here).
        """

        def directory_of(collection_id: int) -> str | None:
            vectors = self._host.vectors_of(collection_id)
            return None if vectors is None else vectors.directory

        return read_chunk(directory_of, name, offset, length)
