"""Takes the index files of shards along in an archive, so that a restore of an instant need not build them
(docs/adr/0111).

The log says when there are new ones. They are copied then, but for what the store has, once an hour at most, or when
the log has twice as many entries as the last time. Invariant: a set is told of when all that it names is in the
store; nobody who prunes meanwhile deletes it. Memory: as index_copying.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from needle.backup.archive_format import IndexSet, encode, indexes_name
from needle.backup.archive_reading import index_sets_of, read_index_set
from needle.backup.around import Around
from needle.backup.format import PIECES, IndexFile
from needle.backup.index_copying import IndexCopying, stored_names
from needle.backup.keeping import MAKING, PRUNING, Mark
from needle.backup.shard_archive import ShardArchive
from needle.backup.store import Store
from needle.base.errors import NeedleError, StorageError
from needle.client import Client
from needle.routing.topology import Topology

_log = logging.getLogger("needle.backup")
INDEXES_EVERY: Final = 3600.0
AGAIN_MICROS: Final = 60_000_000
"""So long after a failure it is tried again."""
Put = Callable[[str, bytes], Awaitable[None]]


class IndexArchiving:
    """Of one archiver. every: seconds, 0 for never."""

    def __init__(self, client: Client, store: Store, put: Put, every: float, around: Around) -> None:
        self._client, self._store, self._put, self._every, self._around = client, store, put, every, around

    async def go_on(self, now: Topology, shards: list[ShardArchive]) -> None:
        """Copy the files of the one that waits the longest, if any does. A failure is told, and tried again."""
        at = self._around.micros()
        due = [one for one in shards if one.lacks_indexes(at, self._every)] if self._every else []
        if not due:
            return
        archive = min(due, key=lambda one: one.indexed[1])
        try:
            await self._copy(now, archive, at)
        except NeedleError as error:
            _log.warning("shard %d: its index files are not copied now: %s", archive.shard, error.message)
            archive.index_waits = at + AGAIN_MICROS
            return
        archive.indexed = (archive.kept, at)

    async def _copy(self, now: Topology, archive: ShardArchive, at: int) -> None:
        around, store, shard, index = self._around, self._store, archive.shard, archive.kept
        mark = Mark(store, f"{MAKING}base-{around.rng.getrandbits(64):016x}", PRUNING, "somebody prunes", around)
        async with mark:
            there = {name: stat.size for name, stat in (await around.blocking(store.names, PIECES)).items()}
            known = await around.blocking(_last, store, now.founding, shard)

            async def put(name: str, data: bytes) -> None:
                await self._put(name, data)
                there[name] = len(data)

            copying = IndexCopying(self._client, there, put, _at_once, known)
            names = [stored for info in now.collections for stored in stored_names(info).values()]
            found = {stored: await copying.copied(stored, [shard]) for stored in names}
            found = {name: files for name, files in found.items() if files}
            for line in copying.left_out:
                _log.warning("no index files of %s", line)
            if found:
                await mark.check()
                await self._put(indexes_name(now.founding, shard, index), encode(IndexSet(at=at, collections=found)))


async def _at_once(_: int) -> None:
    """Nothing bounds the rate."""


def _last(store: Store, founding: int, shard: int) -> list[IndexFile]:
    """The files of the newest set. Blocking."""
    for _, name in reversed(index_sets_of(store, founding, shard)):
        with contextlib.suppress(StorageError):
            return read_index_set(store, name).files()
    return []


def indexed(store: Store, founding: int, shard: int) -> tuple[int, int]:
    """The index and the clock of a shard's newest set; (0, 0) without one. Blocking."""
    for index, name in reversed(index_sets_of(store, founding, shard)):
        with contextlib.suppress(StorageError):
            return index, read_index_set(store, name).at
    return 0, 0
