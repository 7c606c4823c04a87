"""Builds index files and has them published: the builder's half of segment_keeper.py.

A build begins on the leader and goes on when leadership moves: which vectors have the ordinals [first, last] is decided
by the log, equally on every replica, and whether a file may still serve them is decided at apply (segment_plan), so it
does not matter who built it or who proposes it. `publish` hands it to whoever leads by then. A new leader asks the
others before it builds in a collection for the first time, and waits for a build that makes progress.

Invariant: a build ends as soon as the manifest could not take it any more. It does not know who leads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import asdict, replace

from needle.base.errors import CorruptSegment, InvalidArgument, NeedleError
from needle.base.events import (
    INDEX_ADOPTED,
    INDEX_BUILT,
    INDEX_PUBLISHED,
    INDEX_REBUILT,
    INDEX_STAGED,
    INDEX_UNPUBLISHED,
    tell,
)
from needle.base.ids import NodeId
from needle.base.model import IndexParams
from needle.base.runtime import Clock, Pool
from needle.protocol.commands import PublishSegment, StageSegment, encode
from needle.routing.topology import called
from needle.shard.disk import ReplicaDisk
from needle.shard.index_change import with_staged
from needle.shard.plan import BuildTask, PublishedSegment, may_publish
from needle.shard.segments.builder import build_segment, give_back, unless_cancelled
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.files import SegmentFiles, delete
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.view import VectorsView

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 30.0
"""For so long a finished file is offered to whoever leads."""
STALLED_SECONDS = 60.0
"""A build elsewhere that made no progress for so long is not waited for."""

Progress = tuple[int, int, int]
"""First and last ordinal of a build, and a number that grows while it goes on."""
Make = Callable[[], tuple[PublishedSegment, str]]
"""Writes a file: what to publish, and its path. Blocking."""
AskBuilding = Callable[[NodeId, int], Awaitable[Progress | None]]
"""ask_building(peer, collection id): the peer's `building`. Raises NeedleError."""


@dataclass(slots=True)
class KeeperStats:
    """Counters since start. built: segments built to be published. shipped: files fetched. rebuilt: own builds because
    nobody offered the published file. adopted: files that a restore brought. corrupt: damaged files found. unpublished:
    proposals of builds that failed. awaited: builds not begun because another node was at it. building: files that are
    being built now."""

    built: int = 0
    build_seconds: float = 0.0
    inserted_rows: int = 0
    shipped: int = 0
    shipped_bytes: int = 0
    rebuilt: int = 0
    adopted: int = 0
    corrupt: int = 0
    unpublished: int = 0
    awaited: int = 0
    deleted: int = 0
    building: int = 0


@dataclass(slots=True)
class _Running:
    """index: that the file is staged for; None: it is published. generation: IndexState's at the beginning."""

    task: BuildTask
    index: IndexParams | None
    generation: int
    asked: Callable[[], bool]
    made: Make | None = None
    steps: int = 0


class SegmentBuilds:
    """The builds of one replica. On the event loop, one at a time."""

    def __init__(
        self,
        *,
        name: str = "a shard",
        publish: Callable[[bytes], Awaitable[object]],
        peers: Callable[[], Sequence[NodeId]],
        ask_building: AskBuilding,
        build_pool: Pool,
        file_pool: Pool,
        clock: Clock,
        disk: ReplicaDisk,
        files: SegmentFiles,
        stats: KeeperStats,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        """name: of the shard, in the log. pause: waits before a failed proposal is made again."""
        self._name = name
        self._publish = publish
        self._peers = peers
        self._ask_building = ask_building
        self._build_pool = build_pool
        self._file_pool = file_pool
        self._clock = clock
        self._disk = disk
        self._files = files
        self._stats = stats
        self._pause = pause
        self.stopping = False
        self._running: dict[int, _Running] = {}
        self._alone: set[int] = set()
        self._seen: dict[tuple[NodeId, int], tuple[Progress, float]] = {}

    def busy(self, collection_id: int) -> bool:
        """Whether a file is being built, or waits to be published, that the manifest does not name yet."""
        return collection_id in self._running

    def building(self, collection_id: int) -> Progress | None:
        """What this node builds now in a collection."""
        running = self._running.get(collection_id)
        return None if running is None else (running.task.first, running.task.last, running.steps)

    def forget(self, collection_id: int) -> None:
        """A collection was dropped."""
        self._alone.discard(collection_id)
        for key in [key for key in self._seen if key[1] == collection_id]:
            del self._seen[key]

    def begin_to_lead(self) -> None:
        """Others may be building."""
        self._alone.clear()
        self._seen.clear()

    async def elsewhere(self, collection_id: int) -> bool:
        """Whether another node builds in this collection; once none does, it is not asked any more."""
        if collection_id in self._alone:
            return False
        peers = list(self._peers())
        answers = await asyncio.gather(*(self._ask(peer, collection_id) for peer in peers))
        if any(answers):
            self._stats.awaited += 1
            return True
        self._alone.add(collection_id)
        return False

    async def _ask(self, peer: NodeId, collection_id: int) -> bool:
        try:
            progress = await self._ask_building(peer, collection_id)
        except NeedleError as error:
            log.info("%s does not say whether it builds: %s", peer, error)
            return False
        if progress is None:
            return False
        now, key = self._clock.monotonic(), (peer, collection_id)
        before, since = self._seen.get(key, (None, now))
        self._seen[key] = (progress, since if before == progress else now)
        return now - self._seen[key][1] < STALLED_SECONDS

    async def build_and_publish(
        self,
        vectors: CollectionVectors,
        task: BuildTask,
        view: VectorsView,
        index: IndexParams | None = None,
        asked: Callable[[], bool] = lambda: True,
        made: Make | None = None,
    ) -> bool:
        """False: it was cancelled, or nobody took it. index: have it staged for this one. asked: whether it is still
        wanted. made: writes the file, instead of a build. Raises CorruptSegment if the base is damaged."""
        sealed: SealedSegment | None = None
        running = _Running(task, index, vectors.indexing.generation, asked, made)
        self._running[vectors.collection_id] = running
        self._stats.building = len(self._running)
        try:
            started = self._clock.monotonic()
            sealed = await self._build_pool.run(unless_cancelled, self._build, vectors, running, view)
            if sealed is None:
                return False
            seconds = self._clock.monotonic() - started
            self._files.added(sealed.path)
            await self._file_pool.run(vectors.attach, sealed)
            self._count(vectors, running, sealed.segment, seconds)
            await self._offer(vectors, running, sealed.segment)
        except CorruptSegment:
            raise
        except NeedleError as error:
            self._failed(vectors, task, error)
            if sealed is not None and not vectors.names(sealed.segment):
                vectors.forget(sealed.segment)
                delete(sealed.path)
            return False
        finally:
            del self._running[vectors.collection_id]
            self._stats.building = len(self._running)
        return True

    async def _offer(self, vectors: CollectionVectors, running: _Running, segment: PublishedSegment) -> None:
        """Propose it until the log has decided about it, for a while. It may be proposed twice: the second changes
        nothing. Raises NeedleError if it was not taken, as far as this replica knows."""
        deadline, first = self._clock.monotonic() + PUBLISH_SECONDS, True
        while not _taken(vectors, running, segment):
            try:
                await self._publish(encode(_command(running, segment)))
                of = about(self._name, vectors, segment)
                if running.index is None:
                    tell(INDEX_PUBLISHED, **of)
                else:
                    tell(INDEX_STAGED, **of)
                return
            except NeedleError as error:
                # Refused at once, it came too late. Refused later, an earlier proposal may be what it collides with.
                decided = first and isinstance(error, InvalidArgument)
                if decided or not self._wanted(vectors, running) or self._clock.monotonic() >= deadline:
                    raise
                self._failed(vectors, running.task, error)
            first = False
            running.steps += 1
            await self._pause()

    def _count(self, vectors: CollectionVectors, running: _Running, segment: PublishedSegment, seconds: float) -> None:
        if running.made is not None:
            self._stats.adopted += 1
            of = about(self._name, vectors, segment)
            tell(INDEX_ADOPTED, bytes=segment.size, rows=segment.rows, seconds=seconds, **of)
            return
        self._stats.built += 1
        self._stats.build_seconds += seconds
        self._stats.inserted_rows += running.task.inserts
        self._tell_built(vectors, segment, seconds, own=False)

    def _failed(self, vectors: CollectionVectors, task: BuildTask, error: NeedleError) -> None:
        self._stats.unpublished += 1
        tell(INDEX_UNPUBLISHED, why=error, **about(self._name, vectors, task))

    def _tell_built(self, vectors: CollectionVectors, segment: PublishedSegment, seconds: float, *, own: bool) -> None:
        of = about(self._name, vectors, segment)
        tell(INDEX_BUILT, bytes=segment.size, rows=segment.rows, seconds=seconds, own=own, **of)

    def _wanted(self, vectors: CollectionVectors, running: _Running) -> bool:
        task, state = running.task, vectors.indexing
        if running.index is None:
            fits = may_publish(vectors.manifest(), task.first, task.last, vectors.next_ordinal)
        else:
            fits = with_staged(
                state, running.index, PublishedSegment(0, task.first, task.last, 0, 0, ""), vectors.manifest(),
                vectors.next_ordinal,
            ) is not None  # fmt: skip
        same = state.generation == running.generation and running.asked()
        return fits and same and not vectors.closed and not self.stopping

    def _build(self, vectors: CollectionVectors, running: _Running, view: VectorsView) -> SealedSegment:
        task = running.task
        if running.made is not None:
            segment, path = running.made()
            return SealedSegment(path, segment, vectors.spec)
        base = next((s.sealed for s in view.served if task.base and s.sealed.segment == task.base), None)

        def cancelled() -> bool:
            running.steps += 1
            return not self._wanted(vectors, running)

        spec = vectors.spec if running.index is None else replace(vectors.spec, index=running.index)
        segment, path = build_segment(
            vectors.directory,
            vectors.collection_id,
            task.first,
            task.last,
            view.live_blocks(base.segment.last + 1 if base else task.first, task.last),
            spec,
            base=base,
            threads=vectors.config.build_threads,
            disk=self._disk,
            cancelled=cancelled,
        )
        give_back(segment.size)
        return SealedSegment(path, segment, vectors.spec)

    async def build_own(self, vectors: CollectionVectors, segment: PublishedSegment) -> SealedSegment | None:
        """The file of a published segment that nobody offers; None: it is not wanted any more. Raises NeedleError."""
        tell(INDEX_REBUILT, **about(self._name, vectors, segment))
        view, began = vectors.view().frozen(), self._clock.monotonic()
        sealed = await self._build_pool.run(unless_cancelled, self._build_for, vectors, segment, view)
        if sealed is not None:
            self._stats.rebuilt += 1
            self._tell_built(vectors, segment, self._clock.monotonic() - began, own=True)
        return sealed

    def _build_for(self, vectors: CollectionVectors, segment: PublishedSegment, view: VectorsView) -> SealedSegment:
        built, path = build_segment(
            vectors.directory,
            vectors.collection_id,
            segment.first,
            segment.last,
            view.live_blocks(segment.first, segment.last),
            vectors.spec_of(segment),
            threads=vectors.config.build_threads,
            disk=self._disk,
            cancelled=lambda: self.stopping or vectors.closed or not vectors.names(segment),
            own_for=segment,
        )
        give_back(built.size)
        return SealedSegment(path, segment, vectors.spec, own=True)


def _taken(vectors: CollectionVectors, running: _Running, segment: PublishedSegment) -> bool:
    """Whether the log has it for what it was built for: two indexes of few vectors may have the very same file."""
    if running.index is None:
        return segment in vectors.manifest()
    wanted = vectors.indexing.wanted
    return wanted is not None and wanted.built == running.index.built and segment in vectors.staged()


def _command(running: _Running, segment: PublishedSegment) -> PublishSegment | StageSegment:
    of = asdict(segment)
    if running.index is None:
        return PublishSegment(**of, generation=running.generation)
    return StageSegment(**of, index=running.index)


def about(name: str, vectors: CollectionVectors, part: BuildTask | PublishedSegment) -> dict[str, object]:
    """What every event of an index file tells. name: of the shard."""
    return {"group": name, "collection": called(vectors.spec.name), "first": part.first, "last": part.last}
