"""Has a collection's vectors served by an index file that somebody brings, instead of building one (docs/adr/0093).

Who brings it says first that nothing is to be built meanwhile, for a time; then comes the file, part by part, then the
word to adopt it. All in memory. Every replica waits, so that a new leader does, too; the file comes to the leader
only. Invariants: at most one file a collection is on its way, of a size that what waits can need; what is left of it
goes when the time is over, or this replica leads no more.
On the event loop, one call at a time for each collection. It does not know who brings files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from needle.base.errors import InvalidArgument, Unavailable, invalid
from needle.base.runtime import Clock, Pool
from needle.shard.disk import ReplicaDisk
from needle.shard.plan import BuildTask, covered
from needle.shard.segments.adopted import UNUSED_SHARE, Fitted, fit, write_fitted
from needle.shard.segments.builder import TEMPORARY, unless_cancelled
from needle.shard.segments.builds import SegmentBuilds
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.files import delete, write_chunk

ROW_BYTES_MAX: Final = 2048
"""What an index file has for a vector beside the vector, at most: its links, codes and ordinal."""
BUSY_SECONDS: Final = 1.0
"""While something is done with a file it is looked at so often."""
SMALL_BYTES: Final = 1 << 20
_CHECKSUM: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(slots=True)
class _Held:
    """until: builds wait so long, in seconds of the clock. path, size, here: of the file that comes. busy: something
    is being done with it."""

    until: float
    path: str = ""
    size: int = 0
    here: int = 0
    busy: bool = False


class Adoption:
    """Of one replica's collections."""

    def __init__(
        self, builds: SegmentBuilds, is_leader: Callable[[], bool], build_pool: Pool, file_pool: Pool, clock: Clock,
        disk: ReplicaDisk,
    ) -> None:  # fmt: skip
        self._builds, self._is_leader = builds, is_leader
        self._build_pool, self._file_pool, self._clock, self._disk = build_pool, file_pool, clock, disk
        self._held: dict[int, _Held] = {}

    async def held_until(self, collection_id: int) -> float:
        """Until when nothing is to be built; 0.0: build. Deletes what nobody asked for again."""
        held, now = self._held.get(collection_id), self._clock.monotonic()
        if held is None:
            return 0.0
        if held.busy:
            return max(held.until, now + BUSY_SECONDS)
        if held.until > now:
            if held.path and not self._is_leader():
                await self._discard(held)
            return held.until
        del self._held[collection_id]
        await self._discard(held)
        return 0.0

    async def tidy(self) -> list[tuple[int, float]]:
        """Delete what nobody asked for again, and all of it where this node does not lead, or its disk is nearly full.
        Of what is left: the collection, and when to look again."""
        untils = [(one, await self.held_until(one)) for one in list(self._held)]
        return [(one, until) for one, until in untils if until]

    async def forget(self, collection_id: int) -> None:
        """It was dropped."""
        held = self._held.get(collection_id)
        if held is not None:
            held.until = 0.0  # what is at work deletes the file, or the next look does
            await self.held_until(collection_id)

    async def hold(self, vectors: CollectionVectors, seconds: float) -> None:
        """Begin no build for so many seconds from now on."""
        held = self._held.get(vectors.collection_id)
        until = self._clock.monotonic() + seconds
        if held is not None:
            held.until = until
        elif seconds:
            self._held[vectors.collection_id] = _Held(until)

    async def put(self, vectors: CollectionVectors, checksum: str, size: int, offset: int, data: bytes) -> None:
        """A part of a file. Raises InvalidArgument, Unavailable unless builds wait and the parts before are here."""
        if _CHECKSUM.fullmatch(checksum) is None:
            raise invalid("checksum", checksum, "32 hex digits")
        held = self._waiting(vectors)
        waiting, dimensions = vectors.loads()[2], vectors.spec.dimensions
        most = UNUSED_SHARE * waiting * (4 * dimensions + ROW_BYTES_MAX) + SMALL_BYTES
        if not 0 < size <= most:
            raise invalid("size", size, f"1 to {most} bytes for the {waiting} vectors that no index file serves")
        directory = vectors.directory
        path = os.path.join(directory, f"{vectors.collection_id}-0-0.put-{checksum}{TEMPORARY}")
        if offset + len(data) > size:
            raise invalid("offset", offset, f"up to {size - len(data)}, for {len(data)} of {size} bytes")
        held.busy = True
        try:
            if offset == 0 and held.path != path:
                await self._discard(held)
                held.path, held.size, held.here = path, size, 0
            if held.path != path or held.size != size or offset > held.here:
                raise Unavailable("the parts of this index file before this one are not here: begin again")
            await self._file_pool.run(write_chunk, path, offset, data)
            held.here = max(held.here, offset + len(data)) if offset else len(data)
        finally:
            held.busy = False

    async def adopt(self, vectors: CollectionVectors, checksum: str) -> int:
        """Serve what no file serves by the one that is here; how many vectors that are. Raises InvalidArgument if it
        has not all of them, CorruptSegment, Unavailable if not all of it is here, or nobody took it."""
        held = self._waiting(vectors)
        loads, next_ordinal, waiting, view = vectors.loads()
        first, last = covered([load.segment for load in loads]), next_ordinal - 1
        if not waiting:
            await self._discard(held)
            return 0
        if f".put-{checksum}." not in held.path or held.here != held.size:
            raise Unavailable("not all of this index file is here: begin again")
        if vectors.indexing.wanted is not None:
            raise InvalidArgument("the collection's index is being changed: no file can be adopted", field="collection")
        if waiting > vectors.config.rows_max:
            raise InvalidArgument(f"{waiting} vectors are more than segments.rows_max", field="file")
        held.busy = True
        try:
            blocks = view.live_blocks(first, last)
            fitted: Fitted | None = await self._build_pool.run(
                unless_cancelled, fit, held.path, first, last, blocks, vectors.spec,
                lambda: vectors.closed or self._builds.stopping,
            )  # fmt: skip
            if fitted is None:
                raise Unavailable("the collection was dropped, or this node stops")
            if fitted.footer.segment.checksum != checksum:
                raise invalid("checksum", checksum, fitted.footer.segment.checksum)
            write = partial(write_fitted, vectors.directory, vectors.collection_id, vectors.spec, fitted, self._disk)
            task = BuildTask(first, last, None, 0)
            if not await self._builds.build_and_publish(vectors, task, view, made=write):
                raise Unavailable("the index file could not be published: the node's log says why")
            return len(fitted.offsets)
        finally:
            held.busy = False
            await self._discard(held)

    def _waiting(self, vectors: CollectionVectors) -> _Held:
        self._check_leads()
        held = self._held.get(vectors.collection_id)
        if held is None or held.until <= self._clock.monotonic():
            raise Unavailable("builds do not wait for an index file any more: say so, and begin again")
        if held.busy or self._builds.busy(vectors.collection_id):
            raise Unavailable("another index file of this collection is at hand")
        return held

    def _check_leads(self) -> None:
        if not self._is_leader():
            raise Unavailable("this node does not lead the shard any more, or its disk is nearly full")

    async def _discard(self, held: _Held) -> None:
        if held.path:
            path, held.path, held.size, held.here = held.path, "", 0, 0
            await self._file_pool.run(delete, path)
