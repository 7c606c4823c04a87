"""Joins the small files of entries that an archiver writes every few seconds into larger ones (docs/adr/0093).

Steps: the joined file is put into the store, by one name that says which entries it has; then the files go that it
holds. Whoever is killed between leaves both, which does no harm (archive_reading.chain takes the one that leads
further), and what is held by another file goes at the next start.

Invariants: every entry is at each moment in a file of the store; nothing is deleted but what a larger file holds. So
several archivers may join at a time. Memory: JOINED_BYTES and a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

from needle.backup.archive_format import Chunk, Span, chunk_name, encode
from needle.backup.archive_reading import chunks_of, read_chunk
from needle.backup.around import Around
from needle.backup.store import Store
from needle.base.errors import CorruptBackup, NeedleError
from needle.protocol.archive_calls import LoggedEntry

_log = logging.getLogger("needle.backup")

JOINED_FILES: Final = 64
"""So many small ones are joined: a shard that is written to all day has some 270 more in the evening, not 17,000."""
SMALL_BYTES: Final = 1 << 20
JOINED_BYTES: Final = 4 << 20
"""Or as many as have so many bytes."""
Sized = tuple[Span, int]


def run_to_join(files: Sequence[Sized]) -> list[Sized]:
    """The first ones that are to become one: small, and without a gap between. files: a shard's, in order. Pure."""
    run: list[Sized] = []
    size, last = 0, 0
    for span, bytes_ in files:
        if bytes_ >= SMALL_BYTES or (run and not run[0][0].first <= span.first <= last + 1):
            run, size, last = [], 0, 0
            if bytes_ >= SMALL_BYTES:
                continue
        run.append((span, bytes_))
        size, last = size + bytes_, max(last, span.last)
        if len(run) > 1 and (len(run) >= JOINED_FILES or size >= JOINED_BYTES):
            return run
    return []


def held_by_others(files: Sequence[Sized]) -> list[tuple[Span, Span]]:
    """Those of which another one has all entries, and that one. Pure."""
    found, best = list[tuple[Span, Span]](), None
    for span, _ in sorted(files, key=lambda file: (file[0].first, -file[0].last)):
        if best is not None and span.last <= best.last:
            found.append((span, best))
        else:
            best = span
    return found


class Joining:
    """Of one archiver. A task of its own, beside its looks."""

    def __init__(self, store: Store, around: Around) -> None:
        self._store, self._around = store, around
        self._founding = 0
        self._files: dict[int, list[Sized]] = {}
        self._due: set[int] = set()
        self._left_alone: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def wrote(self, shard: int, first: int, last: int, size: int) -> None:
        """There is a new file of entries."""
        if shard in self._files:
            self._files[shard].append((Span(first, last, chunk_name(self._founding, shard, first, last)), size))
            tail = self._files[shard][-JOINED_FILES:]
            if len(tail) == JOINED_FILES or sum(bytes_ for _, bytes_ in tail) >= JOINED_BYTES:
                self._due.add(shard)

    def go_on(self, founding: int, shards: Sequence[int]) -> None:
        """Have what is to be joined be joined, in the background."""
        if self._task is not None:
            if not self._task.done():
                return
            self._task.result()
        if founding != self._founding:
            self._founding, self._files, self._due = founding, {}, set()
        new = [shard for shard in shards if shard not in self._files]
        if new or self._due:
            self._task = asyncio.create_task(self._run(new))

    async def close(self) -> None:
        """Break it off; what it had to do is done by the next one."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, new: Sequence[int]) -> None:
        for shard in dict.fromkeys([*new, *sorted(self._due)]):
            try:
                if shard in new:
                    await self._begin(shard)
                while run := run_to_join(self._to_join(shard)):
                    await self._join(shard, run)
                self._due.discard(shard)
                self._files[shard] = self._files[shard][-JOINED_FILES:]
            except NeedleError as error:  # they stay as they are, and are looked at again
                if shard in self._files:
                    self._due.add(shard)
                _log.warning("shard %d: files of the archive are not joined now: %s", shard, error.message)

    def _to_join(self, shard: int) -> list[Sized]:
        return [file for file in self._files[shard] if file[0].name not in self._left_alone]

    async def _begin(self, shard: int) -> None:
        """Learn what is there, and delete what was left over."""
        sizes = await self._around.blocking(self._listed, shard)
        whole: dict[Span, bool] = {}
        for span, holder in held_by_others(sizes):
            if holder not in whole:
                whole[holder] = await self._around.blocking(self._is_whole, holder)
            if whole[holder]:
                await self._around.blocking(self._store.delete, span.name)
                sizes = [file for file in sizes if file[0] != span]
        self._files[shard] = sizes

    def _is_whole(self, span: Span) -> bool:
        try:
            read_chunk(self._store, span)
        except CorruptBackup:
            return False
        return True

    def _listed(self, shard: int) -> list[Sized]:
        sizes = self._store.names(chunk_name(self._founding, shard, 0, 0).rpartition("/")[0] + "/")
        return [(span, sizes[span.name].size) for span in chunks_of(self._store, self._founding, shard)
                if span.name in sizes]  # fmt: skip

    async def _join(self, shard: int, run: Sequence[Sized]) -> None:
        """Raises NeedleError; what cannot be read is left alone from then on."""
        entries, points = list[LoggedEntry](), list[tuple[int, str]]()
        for span, _ in run:
            try:
                chunk = await self._around.blocking(read_chunk, self._store, span)
            except NeedleError:
                self._left_alone.add(span.name)
                raise
            at = entries[-1].index if entries else 0
            entries += [one for one in chunk.entries if one.index > at]
            points += [one for one in chunk.points if one[0] > at]
        made = Span(entries[0].index, entries[-1].index, "")
        made = made._replace(name=chunk_name(self._founding, shard, made.first, made.last))
        data = await self._around.blocking(encode, Chunk(entries=entries, points=points))
        await self._around.blocking(self._store.put, made.name, data)
        gone = {span for span, _ in run if span.name != made.name}
        held = [file for file in self._files[shard] if file[0] not in gone and file[0].name != made.name]
        self._files[shard] = sorted([*held, (made, len(data))])
        for span in sorted(gone):
            with contextlib.suppress(NeedleError):  # it goes at the next start
                await self._around.blocking(self._store.delete, span.name)
