"""Brings a backup back into a cluster of any number of shards and nodes, by writes like any other.

A collection that is called `restoring-BACKUP` (one_collection.py) says that it is under way, and how far it is: who
finds it goes on. It is dropped last, when every collection was read back and has the digest that the backup recorded.

Invariants: nothing that was in the cluster before is written over; a piece is only restored if its checksum is right;
what was killed anywhere may be run again; who still runs then ends (restore_marks.py). Memory: a few pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from needle.backup.around import REAL, Around
from needle.backup.format import CollectionBackup, Manifest, Piece, PieceRef
from needle.backup.index_restoring import IndexFilesChanged
from needle.backup.index_rounds import IndexRounds
from needle.backup.index_rounds import begin as begin_rounds
from needle.backup.keeping import backup_there, newest, read_manifest, read_piece
from needle.backup.one_collection import OneCollection, mark_of, narrowed, one_collection
from needle.backup.restore_comparing import ReadBack
from needle.backup.restore_conflicts import claim, in_the_way, not_ours, taken
from needle.backup.restore_expiry import SOON_SECONDS, LateInstants, with_instants
from needle.backup.restore_limits import (
    Taking,
    check_all_homes,
    check_shape,
    go_on,
    refused_late,
    taking_of,
    with_longest,
)
from needle.backup.restore_marks import Held, Notes, check_no_other, home_of, note_of, noted
from needle.backup.store import Store
from needle.base.errors import (
    CollectionExists,
    CollectionNotFound,
    CorruptBackup,
    InvalidArgument,
    NeedleError,
    OutcomeUnknown,
    StorageError,
)
from needle.client import Client
from needle.routing.topology import Topology

AT_ONCE: Final = 16
"""Pieces that are written at a time."""
NOTED: Final = 128
"""After so many pieces it is noted how far it is."""
GIVEN: Final = 500
"""Documents that one write gives vectors."""
ATTEMPTS: Final = 10
AGAIN_SECONDS: Final = 0.5
Progress = Callable[[int], None]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. digests: of each collection, as read back from the cluster; resumed: somebody had begun.
    indexed: documents that are searched by index files of the backup, and indexed_named: named vectors that are; built:
    which shards build theirs though the backup has some, and why."""

    backup: str
    documents: int
    digests: dict[str, str]
    resumed: bool
    indexed: int = 0
    built: list[str] = []
    indexed_named: int = 0


async def restore(
    client: Client,
    store: Store,
    backup: str | None = None,
    *,
    collection: str | None = None,
    name: str | None = None,
    indexes: bool = True,
    timeout: float = 30.0,
    progress: Progress = lambda _documents: None,
    total: Progress = lambda _documents: None,
    around: Around = REAL,
) -> Restored:
    """Restore a backup, by default the newest, into a cluster that has none of its collections (or empty ones, made
    alike). collection: that one alone, under its name or the one that is given; then the cluster may have others, and
    must have nothing of that name, and no aliases are set. indexes: whether index files of the backup are used, which
    takes as many shards as it was made of. progress: told how many documents were written. total: told once how many
    there are. Index files that did not come along are built in the background when this returns: `wait_indexed` waits
    for them.

    Raises CollectionExists for a cluster that has something of that name, InvalidArgument for a collection that the
    backup does not have, CorruptBackup, UnsupportedFormat for a backup
    of a later release, RestoreDiffers if what was read back is not what the backup holds.
    """
    one = one_collection(collection, name)
    await client.catalog_status(timeout=timeout)  # whoever may not see everything would compare less
    manifest = await around.blocking(read_manifest, store, backup or await around.blocking(newest, store))
    manifest = narrowed(manifest, one)
    total(manifest.documents)
    restoring = _Restoring(client, store, manifest, timeout, progress, around, one=one, indexes=indexes)
    return await restoring.run()


class _Restoring:
    def __init__(
        self, client: Client, store: Store, manifest: Manifest, timeout: float, progress: Progress, around: Around, *,
        one: OneCollection | None, indexes: bool,
    ) -> None:  # fmt: skip
        self._client, self._store, self._manifest = client, store, manifest
        self._timeout, self._progress, self._around = timeout, progress, around
        self._mark, self._alone, self._with_indexes = mark_of(manifest.id, one), one is not None, indexes
        self._note = note_of(manifest.id, one)
        self._notes = Notes(client, self._mark, timeout)
        self._held = Held(self._notes, self._note, around)
        self._indexed, self._built, self._taking = (0, 0), list[str](), Taking({})
        self._late = LateInstants()

    async def run(self) -> Restored:
        """See `restore`."""
        try:
            return await self._run()
        except CollectionNotFound:  # the mark is gone: by whom is told
            await self._held.check()
            raise

    async def _run(self) -> Restored:
        client, manifest = self._client, self._manifest
        now = await client.refresh_topology(confirmed=True, timeout=self._timeout)
        resumed = any(one.spec.name == self._mark for one in now.collections)
        self._notes.home = await self._around.blocking(self._home, now)
        if not resumed:
            await self._check_room(now)
        await self._check_limits(now, resumed=resumed)
        manifest = self._manifest
        if not resumed:
            await self._around.blocking(check_all_homes, now, manifest, lambda ref: self._read(ref, 0, None))
            await self._begin()
        await self._held.take()
        if self._alone:
            await self._own(manifest.collections[0], resumed=resumed)
        for collection in manifest.collections:
            await self._fill(collection)
        there = ReadBack(
            client, self._around, self._taking, self._timeout, lambda ref: self._read(ref, 0, None), self._mark
        )
        digests = {one.spec.name: await there.digest(one) for one in manifest.collections}
        await self._held.check()
        for name, field in ((one.spec.name, field) for one in manifest.collections for field in one.sparse):
            # Only now: what was written before they were sparse vectors need not be such. And though there may be no
            # memory for the index: it was searched without one before, too.
            declare = partial(client.documents.declare_sparse, name, field, True, self._timeout, fits=False)
            await self._patiently(declare)
        for alias, name in manifest.aliases.items():
            await self._held.check(at_once=False)
            await client.set_alias(alias, name, timeout=self._timeout)
        await client.drop_collection(self._mark, timeout=self._timeout)
        return Restored(
            backup=manifest.id, documents=manifest.documents, digests=digests, resumed=resumed,
            indexed=self._indexed[0], indexed_named=self._indexed[1], built=self._built,
        )  # fmt: skip

    def _home(self, now: Topology) -> Mapping[str, Any]:
        if now.settings is None:
            return {}
        refs = (ref for one in self._manifest.collections for ref in one.pieces)
        ref = next(refs, None) if now.settings.strategy.router else None
        return home_of(now.settings.strategy, [] if ref is None else self._read(ref, 0, None).metadata)

    async def _begin(self) -> None:
        """Leave the mark. Raises CollectionExists if another restore began at the same moment: one of the two at least
        sees the other one's mark."""
        client, timeout = self._client, self._timeout
        absent = not self._alone  # else another restore of it that began just now would write to what is not its own
        await client.create_collection(self._mark, dimensions=1, if_absent=absent, timeout=timeout)
        now = await client.refresh_topology(confirmed=True, timeout=timeout)
        try:
            await check_no_other(client, now, self._mark, timeout)
        except CollectionExists:
            await client.drop_collection(self._mark, timeout=timeout)
            raise

    async def _check_room(self, now: Topology) -> None:
        """Raises CollectionExists for what is in the way."""
        there = {one.spec.name: one for one in now.collections}
        await check_no_other(self._client, now, self._mark, self._timeout)
        aliases = {one.name for one in now.aliases}
        for name in [*(one.spec.name for one in self._manifest.collections), *self._manifest.aliases]:
            if name in aliases:
                what = "give another name (--as)" if self._alone else "restore into a new cluster"
                raise CollectionExists(f"this cluster has an alias {name}: {what}", collection=name)
            if name in self._manifest.aliases and name in there:
                raise CollectionExists(
                    f"this cluster has a collection {name}, an alias in the backup: restore into a new cluster",
                    collection=name,
                )
        for one in self._manifest.collections:
            found = there.get(one.spec.name)
            if found is None:
                continue
            if self._alone:
                raise taken(one.spec.name)
            if found.spec != one.spec or await self._client.count(collection=one.spec.name, timeout=self._timeout):
                raise in_the_way(one.spec.name)

    async def _check_limits(self, now: Topology, *, resumed: bool) -> None:
        """Raises InvalidArgument if the nodes do not take what the backup has, by what its manifest says; where that
        says nothing, and nodes take less than usual, by what its pieces are."""
        self._taking = await taking_of(self._client, self._timeout)
        after = go_on(self._mark) if resumed else "and restore again. Nothing was changed"
        if self._taking.unusual:
            known = [await self._around.blocking(self._with_longest, one) for one in self._manifest.collections]
            self._manifest = msgspec.structs.replace(self._manifest, collections=known)
        check_shape(self._taking, self._manifest, now, self._note, self._notes.home, self._mark, after)
        if self._with_indexes and not self._taking.takes_index_files:
            self._with_indexes = False
            self._built.append("all collections: limits.frame_bytes_max is too small for a part of an index file")

    def _with_longest(self, collection: CollectionBackup) -> CollectionBackup:
        if collection.longest is not None:
            return collection
        return with_longest(collection, (self._read(ref, 0, None) for ref in collection.pieces))

    async def _own(self, collection: CollectionBackup, *, resumed: bool) -> None:
        """Make the one collection that is restored, unless this restore has. Raises CollectionExists if somebody else
        made one of that name, InvalidArgument if none may have it: then nothing stays of a restore that just began."""
        client, name, timeout = self._client, collection.spec.name, self._timeout
        there = (await client.refresh_topology(confirmed=True, timeout=timeout)).named(name)
        if there is not None and resumed:
            before = await noted(client, self._mark, timeout)
            if before is not None and before.made == there.id:
                return
            raise not_ours(name, self._mark)
        try:
            await client.delete([name], collection=self._mark, timeout=timeout)  # what was written is gone
            made = await client.documents.create_collection(collection.spec, False, timeout, *_vectors(collection))
        except (CollectionExists, InvalidArgument) as error:
            if resumed:
                raise
            await self._held.check()  # else the mark is another command's by now, and so may the collection be
            await client.drop_collection(self._mark, timeout=timeout)
            raise (taken(name) if isinstance(error, CollectionExists) else error) from None
        await self._held.note_made(made.version)

    async def _fill(self, collection: CollectionBackup) -> None:
        """Write all that is not noted yet."""
        client, name = self._client, collection.spec.name
        await self._made(collection)
        note = await self._notes.get(name) or {}
        # Who began without index files goes on so. (What an earlier release began is refused: see `claim`.)
        if self._with_indexes and (not note or "round" in note):
            now = await client.refresh_topology(confirmed=True, timeout=self._timeout)
            if collection.spec.ttl and collection.named_indexes:
                self._built.append(f"collection {name}: named vectors, whose documents have a time to live")
            try:  # a file that is not what it was: a piece may be written again, so it all is
                rounds = begin_rounds(client, self._store, self._around, collection, now, note)
                if rounds is not None:
                    await self._fill_in_rounds(collection, rounds, int(note.get("of_round", 0)))
                    return
            except IndexFilesChanged as error:
                self._built.append(f"collection {name}: {error}")
        await self._write_from(collection, int(note.get("pieces", 0)), lambda done: {"pieces": done}, self._write)

    async def _fill_in_rounds(self, collection: CollectionBackup, rounds: IndexRounds, done: int) -> None:
        """The same in rounds. done: how many pieces were looked through of the first round that is not whole; what was
        written before is found again by looking through them."""
        async with rounds:
            for one in range(rounds.count):
                await rounds.begin(one)
                known = len(collection.pieces) if one < rounds.begun else done if one == rounds.begun else 0
                for at, ref in enumerate(collection.pieces[:known]):
                    await self._around.blocking(self._read, ref, at, rounds)
                await self._write_from(collection, known, rounds.note, partial(self._write, rounds=rounds))
                if one >= rounds.begun:
                    await rounds.end()
        self._indexed = self._indexed[0] + rounds.adopted[0], self._indexed[1] + rounds.adopted[1]
        self._built += rounds.left_out

    async def _write_from(
        self,
        collection: CollectionBackup,
        done: int,
        note: Callable[[int], dict[str, Any]],
        write: Callable[..., Coroutine[Any, Any, int]],
    ) -> None:
        """Have `write` write all pieces but the first `done`, and put down how far it is."""
        name, lives = collection.spec.name, bool(collection.spec.ttl)
        if not note(0).get("round", 0):
            self._progress(sum(piece.documents for piece in collection.pieces[:done]))
        for start in range(done, len(collection.pieces), AT_ONCE):
            some = collection.pieces[start : start + AT_ONCE]
            self._progress(await _all(write(name, at, ref, lives=lives) for at, ref in enumerate(some, start)))
            if (start // AT_ONCE + 1) % (NOTED // AT_ONCE) == 0:
                await self._patiently(partial(self._notes.put, name, note(start + len(some))))

    async def _made(self, collection: CollectionBackup) -> None:
        client, spec = self._client, collection.spec
        documents = client.documents
        if not self._alone:
            create = partial(documents.create_collection, spec, True, self._timeout, *_vectors(collection))
            await self._patiently(create)
            await self._patiently(partial(claim, self._notes, spec.name))
        for path in collection.fields:
            await self._patiently(partial(documents.declare_field, spec.name, path, True, self._timeout))

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        """A call that may be repeated, until it is answered. Raises what it raises in the end."""
        for attempt in range(ATTEMPTS):
            try:
                await call()
                return
            except NeedleError as error:
                if attempt == ATTEMPTS - 1 or not (error.retryable or isinstance(error, OutcomeUnknown)):
                    raise
            await self._around.rest(AGAIN_SECONDS)

    def _read(self, ref: PieceRef, at: int, rounds: IndexRounds | None) -> Piece:
        try:
            piece = read_piece(self._store, ref)
        except CorruptBackup as error:
            raise self._pruned() or error from None
        return piece if rounds is None else rounds.part(at, piece)

    def _pruned(self) -> StorageError | None:
        """What there is to say if a piece is gone because its backup is."""
        backup = self._manifest.id
        if backup_there(self._store, backup):
            return None
        return StorageError(
            f"backup {backup} is not there any more: somebody has deleted it (`needle backup prune`) while it was "
            f"restored. Drop collection {self._mark}, if it is there, and the collections that were restored, then "
            "restore another backup"
        )

    async def _write(self, name: str, at: int, ref: PieceRef, *, lives: bool, rounds: IndexRounds | None = None) -> int:
        """The piece of that number, or what of it is of this round; how many documents. lives: the collection has a
        time to live, which must not be given to documents that had none."""
        piece: Piece = await self._around.blocking(self._read, ref, at, rounds)
        if not piece.ids:
            return 0
        if rounds is not None and rounds.gives_vectors:
            await self._give(name, piece)
            return 0
        piece = with_instants(piece, lives=lives)
        for some in await self._around.blocking(self._taking.batches, piece):
            await self._patiently(partial(self._put, name, some))
        return len(piece.ids)

    async def _give(self, name: str, piece: Piece) -> None:
        """The named vectors of a piece to documents that are there."""
        for some in await self._around.blocking(self._taking.batches, piece):
            for one in some.named:
                ids, width = [some.ids[row] for row in one.rows], len(one.vectors) // len(one.rows)
                for first in range(0, len(ids), GIVEN):
                    await self._held.check(at_once=False)
                    block = one.vectors[first * width : (first + GIVEN) * width]
                    give = partial(
                        self._client.documents.update_vectors, name, ids[first : first + GIVEN], block, None, b"",
                        self._timeout, vector_name=one.vector,
                    )  # fmt: skip
                    await self._patiently(give)

    async def _put(self, name: str, piece: Piece) -> None:
        for seconds in SOON_SECONDS:
            await self._held.check(at_once=False)
            some = self._late.given(piece, self._around.micros(), seconds)
            parts = await self._client.documents.insert_batch(
                name, some.ids, memoryview(some.vectors), some.metadata, self._timeout, some.expires, named=some.named
            )
            failed = next((part.outcome for part in parts if isinstance(part.outcome, NeedleError)), None)
            if not self._late.heard(failed, self._around.micros()):
                break
        if isinstance(failed, InvalidArgument):  # by a node that was not asked, or is started with other settings since
            raise refused_late(self._client.topology(), name, some, failed, self._mark) from failed
        if failed is not None:
            raise failed


def _vectors(collection: CollectionBackup) -> tuple[Any, ...]:
    """The last arguments of `create_collection`, if it needs them."""
    return ((), sorted(collection.vectors.items())) if collection.vectors else ()


async def _all(writes: Iterable[Coroutine[Any, Any, int]]) -> int:
    """Do these at a time; the sum. Raises the first error, when none goes on."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in writes]
    except* NeedleError as errors:
        raise errors.exceptions[0] from None
    return sum(task.result() for task in tasks)
