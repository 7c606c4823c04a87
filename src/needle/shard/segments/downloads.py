"""Gets published index files from the other replicas: the part of segment_keeper.py that meets what peers send.

Invariant: a file gets its final name only once every byte of it was checked against what the log says of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable

from needle.base.errors import CorruptSegment, NeedleError
from needle.base.events import INDEX_SHIPPED, tell
from needle.base.ids import NodeId
from needle.base.runtime import Pool
from needle.shard.disk import ReplicaDisk
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import TEMPORARY
from needle.shard.segments.builds import KeeperStats, about
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.files import CHUNK_BYTES, delete, finish_download, write_chunk
from needle.shard.segments.sealed import SealedSegment, segment_file

log = logging.getLogger(__name__)

FetchChunk = Callable[[NodeId, str, int, int], Awaitable[bytes]]
"""fetch_chunk(peer, file name, offset, length): the peer's `serve_chunk`. Raises NeedleError."""


class SegmentDownloads:
    """The downloads of one replica. On the event loop, one at a time."""

    def __init__(
        self, *, name: str, fetch_chunk: FetchChunk, file_pool: Pool, disk: ReplicaDisk, stats: KeeperStats
    ) -> None:
        """name: of the shard, in the log."""
        self._name = name
        self._fetch_chunk = fetch_chunk
        self._file_pool = file_pool
        self._disk = disk
        self._stats = stats

    async def get(self, vectors: CollectionVectors, segment: PublishedSegment, peer: NodeId) -> SealedSegment | None:
        """Download, verify and open. None: this peer cannot serve it, or what it sent is damaged."""
        path = os.path.join(vectors.directory, segment_file(segment))
        part = path + TEMPORARY
        try:
            for offset in range(0, segment.size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, segment.size - offset)
                chunk = await self._fetch_chunk(peer, segment_file(segment), offset, length)
                if len(chunk) != length:
                    raise CorruptSegment(f"{peer} sent {len(chunk)} of {length} bytes of {segment_file(segment)}")
                await self._file_pool.run(write_chunk, part, offset, chunk)
            sealed = await self._file_pool.run(finish_download, part, path, segment, vectors.spec, self._disk)
        except CorruptSegment as error:
            self._stats.corrupt += 1
            log.warning("segment file from %s is damaged: %s", peer, error)
        except NeedleError as error:
            log.info("segment [%d, %d] not fetched from %s: %s", segment.first, segment.last, peer, error)
        else:
            self._stats.shipped += 1
            self._stats.shipped_bytes += segment.size
            of, size = about(self._name, vectors, segment), segment.size
            tell(INDEX_SHIPPED, peer=peer, bytes=size, **of)
            return sealed
        await self._file_pool.run(delete, part)
        return None
