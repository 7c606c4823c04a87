"""The backups that a store has: listing, verifying, pruning; and who is at work in it.

Invariants: what lists as a backup was written last, so all that it names was there. Nothing that a backup names, or one
that is being made may come to name, is deleted: whoever makes one, or prunes, first leaves a mark of its own and then
looks for the other's, so that at least one of two sees the other and gives way. Nothing is deleted that has not the
name of a file of a backup: somebody may name a directory that has other files, too. It must not know clusters.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import msgspec

from needle.backup.archive_comparing import ComparedShard, Told, compare_archives
from needle.backup.archive_format import CATALOG
from needle.backup.archive_keeping import begin_notes, check_archives, outdated, pieces_of_archives, whole_archive
from needle.backup.archive_reading import clusters
from needle.backup.around import REAL, Around
from needle.backup.format import (
    MANIFESTS,
    PIECES,
    SUFFIX,
    CollectionBackup,
    Contents,
    Manifest,
    Piece,
    PieceRef,
    decode_manifest,
    decode_piece,
    manifest_name,
)
from needle.backup.replaying import read_block
from needle.backup.scratch import scratch_directory
from needle.backup.store import PARTIAL, Store, is_full
from needle.base.errors import CorruptBackup, InvalidArgument, NeedleError, StorageError, Unavailable, invalid

MAKING: Final = "making/"
PRUNING: Final = "pruning/"
MARK_SECONDS: Final = 3600.0
"""A mark that was not renewed for so long is of somebody who is dead."""
RENEW_SECONDS: Final = 60.0
AT_WORK: Final = b""
"""What a mark has: nothing, so that there is room for that of a prune on a full disk, too."""
HOURS_MAX: Final = 1_000_000
"""More than a hundred years."""
DELETES: Final = 500
"""After so many it is looked again whether nobody took the mark for dead."""
_PARTIAL: Final = rf"{re.escape(PARTIAL)}-[0-9a-f]{{8}}"
_PIECE: Final = re.compile(rf"{PIECES}[0-9a-f]{{2}}/[0-9a-f]{{64}}({_PARTIAL})?")
_BROKEN_OFF: Final = re.compile(rf"{MANIFESTS}[^/]+{re.escape(SUFFIX)}{_PARTIAL}")
_MARK: Final = re.compile(
    rf"({MAKING}([0-9]{{8}}T[0-9]{{6}}Z-[0-9]{{6}}-[0-9a-f]{{4}}|base-[0-9a-f]{{16}})|{PRUNING}[0-9a-f]{{16}})({_PARTIAL})?"
)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A backup. bytes: of its pieces, shared ones included. damage: why it cannot be read, "" if it can."""

    id: str
    began: str = ""
    ended: str = ""
    cluster: str = ""
    collections: list[str] = []
    documents: int = 0
    bytes: int = 0
    damage: str = ""


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. problems: one line for each damaged or missing file, and each digest that differs. compared: of
    each shard of an archive, how much of it was applied again and compared."""

    backups: int
    pieces: int
    bytes: int
    problems: list[str]
    compared: list[ComparedShard] = []


def backup_ids(store: Store) -> list[str]:
    """From the oldest to the newest."""
    names = [name.removeprefix(MANIFESTS) for name in sorted(store.names(MANIFESTS)) if name.endswith(SUFFIX)]
    return [name.removesuffix(SUFFIX) for name in names if "/" not in name]


def read_manifest(store: Store, backup: str) -> Manifest:
    """Raises InvalidArgument if there is none, CorruptBackup, UnsupportedFormat."""
    name = manifest_name(backup)
    data = store.get(name)
    if data is None:
        raise invalid("backup", backup, "one that `needle backup list` shows")
    manifest = decode_manifest(name, data)
    if manifest.id != backup:
        raise CorruptBackup(f"{name} is the manifest of backup {manifest.id}: it was renamed", file=name)
    return manifest


def read_piece(store: Store, ref: PieceRef) -> Piece:
    """Raises CorruptBackup if it is missing or damaged."""
    data = store.get(ref.name)
    if data is None:
        raise CorruptBackup(f"{ref.name} is missing", file=ref.name)
    return decode_piece(ref, data)


def newest(store: Store) -> str:
    """The id of the newest backup. Raises InvalidArgument if there is none."""
    found = backup_ids(store)
    if not found:
        more = "; of the logs that are archived here `needle restore --at` restores" if clusters(store) else ""
        raise InvalidArgument(
            f"there is no backup at this target: `needle backup create` makes one{more}", field="target"
        )
    return found[-1]


def list_backups(store: Store) -> list[Listed]:
    """All of them, from the oldest to the newest. Blocking."""
    found = []
    for backup in backup_ids(store):
        try:
            manifest = read_manifest(store, backup)
        except StorageError as error:
            found.append(Listed(id=backup, damage=error.message))
            continue
        except InvalidArgument:  # somebody pruned meanwhile
            continue
        found.append(
            Listed(
                id=backup,
                began=manifest.began,
                ended=manifest.ended,
                cluster=manifest.cluster,
                collections=[one.spec.name for one in manifest.collections],
                documents=manifest.documents,
                bytes=sum(ref.size for ref in manifest.refs()),
            )
        )
    return found


def verify(
    store: Store,
    backup: str | None = None,
    *,
    checksums_only: bool = False,
    scratch: str | None = None,
    told: Told = lambda _: None,
) -> Verified:
    """Read every file of one backup, or of all and of archives, and compute all digests again; no cluster is needed.

    Of archives the entries are applied again on the archived states, and compared with every digest that was recorded.
    checksums_only: not that, only each file's checksum, and whether entries are missing. scratch: a directory with room
    for twice the largest shard, for archives. told: of what is done. Blocking. Raises InvalidArgument for a
    target with nothing to verify, and for archives without the whole package, DiskFull and DiskFailed of the scratch
    directory."""
    known: dict[str, int] = {}
    problems: list[str] = []
    ids = backup_ids(store) if backup is None else [backup]
    archived = backup is None and bool(clusters(store))
    if not ids and not archived:  # a disk that is not mounted must not look whole
        raise InvalidArgument("there is no backup and no archive at this target", field="target")
    for one in ids:
        found = list(_problems_of(store, one, known))
        if not found or backup_there(store, one):
            problems += (f"backup {one}: {problem}" for problem in found)
        elif backup is not None:
            read_manifest(store, backup)  # says that there is none
        else:  # somebody pruned meanwhile, which is no damage
            ids = [other for other in ids if other != one]
    if backup is None:
        problems += (f"archive: {problem}" for problem in check_archives(store, known))
    compared: list[ComparedShard] = []
    if archived and not checksums_only:
        with scratch_directory(scratch) as directory:
            for shard, differing in compare_archives(store, directory, told):
                compared.append(shard)
                lines = (f"archive: {problem}" for problem in differing)
                problems += (line for line in lines if line not in problems)  # a damaged file was told of before
    return Verified(
        backups=len(ids), pieces=len(known), bytes=sum(known.values()), problems=problems, compared=compared
    )


def backup_there(store: Store, backup: str) -> bool:
    """Whether it has a manifest, whatever that holds: `prune` deletes this before all else."""
    return store.get(manifest_name(backup)) is not None


def _problems_of(store: Store, backup: str, known: dict[str, int]) -> Iterator[str]:
    """Of a backup. known: as below."""
    try:
        manifest = read_manifest(store, backup)
    except (StorageError, InvalidArgument) as error:
        yield error.message
        return
    for collection in manifest.collections:
        yield from _problems(store, collection, known)


def _problems(store: Store, collection: CollectionBackup, known: dict[str, int]) -> Iterator[str]:
    """Of a collection. known: is told the size of each piece that was read."""
    contents, whole, name = Contents(), True, collection.spec.name
    for ref in collection.pieces:
        try:
            contents.add(read_piece(store, ref))
            known[ref.name] = ref.size
        except CorruptBackup as error:
            whole = False
            yield f"collection {name}: {error.message}"
    for ref in (ref for file in collection.index_files() for ref in file.refs()):
        if ref.name not in known:
            try:
                read_block(store, ref)
                known[ref.name] = ref.size
            except CorruptBackup as error:
                yield f"collection {name}: {error.message}, a part of an index file: a restore builds that again"
    if whole and (contents.documents, contents.digest) != (collection.documents, collection.digest):
        yield (
            f"collection {name}: {contents.documents} documents of digest {contents.digest}, and the manifest says "
            f"{collection.documents} of {collection.digest}"
        )


class Mark:
    """Somebody is at work in a store; a context manager, which renews the mark while it is open."""

    def __init__(self, store: Store, name: str, others: str, doing: str, around: Around = REAL) -> None:
        """others: the prefix of marks that this one gives way to; doing: what those are about."""
        self._store, self._name, self._others, self._doing, self._around = store, name, others, doing, around
        self._renewal: asyncio.Task[None] | None = None
        self._writing, self._left = threading.Lock(), False

    async def __aenter__(self) -> Mark:
        await self._around.blocking(self._enter)
        self._renewal = asyncio.create_task(self._renew())
        return self

    def _enter(self) -> None:
        store = self._store
        store.put(self._name, AT_WORK)
        try:
            own = self.own_time()
            for other, modified in store.names(self._others).items():
                if own - modified.modified < MARK_SECONDS:
                    raise Unavailable(
                        f"{self._doing} at this target now, or was killed within the last hour ({other}): try again "
                        "later, or delete that file if nobody is at work",
                        file=other,
                    )
                if _MARK.fullmatch(other):
                    store.delete(other)
        except BaseException:
            store.delete(self._name)
            raise

    def own_time(self) -> float:
        """When the mark was written, by the store's clock. Blocking. Raises StorageError if others took it for dead."""
        found = self._store.names(self._name.rpartition("/")[0] + "/").get(self._name)
        if found is None:
            raise StorageError(f"{self._name} is not there any more: another command took this one for dead")
        return found.modified

    async def _renew(self) -> None:
        while True:
            await self._around.rest(RENEW_SECONDS)
            with contextlib.suppress(StorageError):  # `check` tells
                await self._around.blocking(self._again)

    def _again(self) -> None:
        with self._writing:
            if not self._left:
                self.own_time()
                self._store.put(self._name, AT_WORK)

    def _leave(self) -> None:
        """Delete the mark. A renewal that is under way in its thread ends first, and none begins: it would put the mark
        there again, and prune would be refused for an hour."""
        with self._writing:
            self._left = True
            self._store.delete(self._name)

    async def check(self) -> None:
        """Raises StorageError if others may have taken it for dead."""
        await self._around.blocking(self.own_time)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        with contextlib.suppress(NeedleError):  # it is taken for dead in an hour
            await self._around.blocking(self._leave)


async def prune(
    store: Store,
    keep: int | None = None,
    *,
    archive_hours: float | None = None,
    drop_archive: str | None = None,
    around: Around = REAL,
) -> tuple[list[str], int]:
    """Delete all backups but the newest `keep`, of archives what leads to no instant of the last so many hours, all of
    the archive of a former cluster (its founding in hex), and pieces that nothing names: ids, and how many files these
    were. None: nothing of that kind. Raises InvalidArgument if there is no backup to keep, or no such archive, or it
    goes on; Unavailable while a backup is being made, or a state copied, CorruptBackup if a manifest that stays cannot
    be read."""
    if keep is None and archive_hours is None and drop_archive is None:
        raise InvalidArgument("say how many backups, or how many hours of the archive, stay", field="keep")
    if keep is not None and keep < 1:
        raise invalid("keep", keep, "1 or more")
    if archive_hours is not None and not 0 < archive_hours <= HOURS_MAX:
        raise invalid("archive_hours", archive_hours, f"more than 0, at most {HOURS_MAX:,}")
    before = None if archive_hours is None else around.micros() - int(archive_hours * 3.6e9)
    if keep is not None:
        await around.blocking(newest, store)  # before there is a mark: where no backup is nothing is changed
    elif archive_hours is not None and not await around.blocking(clusters, store):
        raise InvalidArgument("no logs are archived at this target: nothing was changed", field="target")
    if drop_archive is not None:
        await around.blocking(whole_archive, store, drop_archive, around.micros())
    name = f"{PRUNING}{around.rng.getrandbits(64):016x}"
    async with Mark(store, name, MAKING, "a backup is being made", around) as mark:
        dropped = [] if drop_archive is None else await around.blocking(
            whole_archive, store, drop_archive, around.micros()
        )  # fmt: skip
        done: tuple[list[str], int] = await around.blocking(_prune, store, keep, before, dropped, mark)
        return done


def _prune(store: Store, keep: int | None, before: int | None, dropped: list[str], mark: Mark) -> tuple[list[str], int]:
    ids = backup_ids(store)
    gone, stay = (ids[:-keep], ids[-keep:]) if keep else ([], ids)
    named = {ref.name for backup in stay for ref in read_manifest(store, backup).refs()}
    old = [] if before is None else outdated(store, before)
    old = [*dropped, *(name for name in old if name not in set(dropped))]
    named |= pieces_of_archives(store, set(old))
    mark.own_time()
    notes = begin_notes(store, set(old))
    broken_off = [name for name in store.names(MANIFESTS) if _BROKEN_OFF.fullmatch(name)]
    pieces = [name for name in store.names(PIECES) if name not in named and _PIECE.fullmatch(name)]
    # One record of each catalog stays until then: where none is to be deleted any more, the next prune notes nothing.
    last = {name.rpartition("/")[0]: name for name in old if name.endswith(CATALOG)}
    room = [name for name in old if name not in last.values()]
    _note(store, notes, iter([*broken_off, *map(manifest_name, gone), *pieces, *room]))
    for backup in gone:
        store.delete(manifest_name(backup))
    left = [*broken_off, *old, *pieces]
    for at, name in enumerate(left):
        if at % DELETES == 0:
            mark.own_time()
        store.delete(name)
    return gone, len(left)


def _note(store: Store, notes: list[tuple[str, bytes]], going: Iterator[str]) -> None:
    """Put them. Where there is no room, what is going anyway makes it: if this is broken off then, verify tells of
    these files until the next prune."""
    for name, data in notes:
        while True:
            try:
                store.put(name, data)
                break
            except StorageError as error:
                out = next(going, None)
                if out is None or not is_full(error):
                    raise
            store.delete(out)
