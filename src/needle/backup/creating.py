"""Makes a backup: each collection by a consistent scan (docs/adr/0060), cut into pieces, then the manifest.

Invariants: the manifest is written last, when all pieces that it names are known to be there; it holds all that was
acknowledged before it began. A piece that the store has is not written again. Memory: a page, and a piece, which has
PIECE_BYTES_MAX at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Final

import msgspec

import needle
from needle.backup.archive_reading import clusters
from needle.backup.around import REAL, Around
from needle.backup.format import (
    PIECES,
    CollectionBackup,
    Contents,
    Cutter,
    Manifest,
    Piece,
    PieceRef,
    encode_manifest,
    encode_piece,
    format_of,
    manifest_name,
)
from needle.backup.index_copying import IndexCopying
from needle.backup.keeping import MAKING, PRUNING, Mark, backup_ids, read_manifest
from needle.backup.one_collection import MARK
from needle.backup.pacing import Pace, check_rate
from needle.backup.restore_marks import restores
from needle.backup.scanning import pages
from needle.backup.store import Store
from needle.base.errors import (
    ClusterTooOld,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    ScanEnded,
    StorageError,
    Unavailable,
)
from needle.base.instants import rfc3339
from needle.client import Client
from needle.client.shards import ask_leader
from needle.protocol import calls
from needle.protocol.archive_calls import BACKED_UP, BackedUpCall
from needle.protocol.calls import batch_bytes
from needle.routing.plans import CATALOG
from needle.routing.topology import CollectionInfo, Topology

ATTEMPTS: Final = 3
"""So often a scan is begun; what it wrote before is found again."""
Progress = Callable[[int, int], None]


class Making:
    """One backup that is being made. shipped: bytes that the store did not have. left_out: index
    files that could not be had."""

    def __init__(
        self, client: Client, store: Store, pace: Pace, timeout: float, around: Around, *, indexes: bool = True
    ) -> None:
        self._client, self._store, self._pace, self._timeout, self._around = client, store, pace, timeout, around
        self._known: dict[str, int] = {}
        self.shipped = 0
        self._with_indexes = indexes
        self._shards: list[int] = []
        self._indexes: IndexCopying | None = None

    @property
    def left_out(self) -> list[str]:
        """One line for each shard and collection."""
        return [] if self._indexes is None else self._indexes.left_out

    async def run(self, mark: Mark, backup: str, began: str, progress: Progress) -> Manifest:
        """See `create`."""
        blocking, client = self._around.blocking, self._client
        self._known = {name: stat.size for name, stat in (await blocking(self._store.names, PIECES)).items()}
        now = await client.refresh_topology(confirmed=True, timeout=self._timeout)
        await _check_none_restores(client, now, self._timeout)
        self._shards = [info.shard for info in now.serving]
        if self._with_indexes:
            former = await blocking(_former, self._store)
            known = [] if former is None else [file for one in former.collections for file in one.index_files()]
            self._indexes = IndexCopying(client, self._known, self._store_part, self._pace.rest, known)
        found = [await self._collection(info, progress) for info in now.collections]
        collections = [one for one in found if one is not None]
        names = {one.spec.name for one in collections}
        manifest = Manifest(
            id=backup,
            format=format_of(collections),
            began=began,
            ended=rfc3339(self._around.micros()),
            release=needle.__version__,
            cluster=f"{now.founding:x}",
            settings=msgspec.to_builtins(now.settings),
            collections=collections,
            aliases={one.name: one.collection for one in now.aliases if one.collection in names},
        )
        await blocking(self._check_whole, manifest)
        await mark.check()
        await blocking(self._store.put, manifest_name(backup), encode_manifest(manifest))
        return manifest

    async def _collection(self, info: CollectionInfo, progress: Progress) -> CollectionBackup | None:
        """None: it was dropped meanwhile. A named vector that was dropped before it was read is left out; one that was
        made again is as it is now."""
        for attempt in range(ATTEMPTS):
            failed: NeedleError | None = None
            try:
                self._pace.begin(again=attempt > 0)
                made = await self._scan(info, progress)
                if not info.vectors:  # these are asked for by name, and may be others by now
                    return made
            except (CollectionNotFound, InvalidArgument, ScanEnded) as error:  # the second: another one has its name
                failed = error
            now = await self._client.refresh_topology(confirmed=True, timeout=self._timeout)
            here = next((one for one in now.collections if one.id == info.id), None)
            if here is None:
                return None
            if failed is None and not _made_again(info, here):
                return made
            if attempt == ATTEMPTS - 1:
                raise failed or Unavailable(
                    f"named vectors of collection {info.spec.name!r} are dropped and made again all the time: make the "
                    "backup when that is over"
                )
            info = here
        return None

    async def _scan(self, info: CollectionInfo, progress: Progress) -> CollectionBackup:
        spec, contents, cutter = info.spec, Contents(), Cutter(info.spec.form.numbers)
        pieces: list[PieceRef] = []
        cuts: list[tuple[int, int]] = []
        vectors = {one.name: one.spec for one in info.vectors}
        async with aclosing(pages(self._client, spec, info.id, self._timeout, vectors)) as scan:
            async for batch, pin in scan:
                cuts = sorted(pin.open)
                await self._around.blocking(contents.add, batch)
                pieces += await self._put_all(cutter.cut(batch))
                await self._pace.rest(batch_bytes(batch))
                progress(len(batch.ids), self.shipped)
        pieces += await self._put_all(cutter.rest())
        indexes = {} if self._indexes is None else await self._indexes.of_all(info, self._shards)
        return CollectionBackup(
            spec=spec,
            fields=info.fields,
            documents=contents.documents,
            expiring=contents.expiring,
            digest=contents.digest,
            cuts=cuts,
            pieces=pieces,
            indexes=indexes.pop("", []),
            vectors=vectors,
            sparse=info.sparse,
            longest=contents.longest,
            named_indexes=indexes,
            repeats=contents.repeats,  # they came in the order of their ids
        )

    async def _put_all(self, pieces: Iterator[Piece]) -> list[PieceRef]:
        """All have ended when this returns or raises, so nobody writes behind the mark's end."""
        done = await asyncio.gather(*map(self._put, pieces), return_exceptions=True)
        refs = [one for one in done if isinstance(one, PieceRef)]
        if len(refs) < len(done):
            raise next(one for one in done if isinstance(one, BaseException))
        return refs

    async def _put(self, piece: Piece) -> PieceRef:
        ref, data = await self._around.blocking(encode_piece, piece)
        if self._known.get(ref.name) != ref.size:
            await self._store_part(ref.name, data)
        made: PieceRef = ref
        return made

    async def _store_part(self, name: str, data: bytes) -> None:
        await self._around.blocking(self._store.put, name, data)
        self._known[name] = len(data)
        self.shipped += len(data)

    def _check_whole(self, manifest: Manifest) -> None:
        """Somebody may have deleted files of the store meanwhile."""
        there = self._store.names(PIECES)
        for ref in manifest.refs():
            if ref.name not in there or there[ref.name].size != ref.size:
                raise StorageError(f"{ref.name} was deleted while the backup was made: make it again")


def _made_again(info: CollectionInfo, now: CollectionInfo) -> bool:
    """Whether a named vector is another one now, of the same name."""
    ids = {one.name: one.id for one in now.vectors}
    return any(ids.get(one.name, one.id) != one.id for one in info.vectors)


def _former(store: Store) -> Manifest | None:
    """The newest one that can be read."""
    for backup in reversed(backup_ids(store)):
        with contextlib.suppress(StorageError):
            return read_manifest(store, backup)
    return None


async def _check_none_restores(client: Client, now: Topology, timeout: float) -> None:
    """Raises Unavailable: there is a part only, and it would be the newest backup, for which prune deletes others."""
    mark = next((one.spec.name for one in now.collections if one.spec.name.startswith(MARK)), None)
    if mark is not None:
        raise Unavailable(
            f"a restore of {await restores(client, mark, timeout)} is under way in this cluster, or was broken off: "
            f"make a backup when it is done, or drop collection {mark} if it was given up",
            collection=mark,
        )


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was made. read: bytes that were read; shipped: bytes that the store did not have. told: whether the
    cluster knows of it, for the alert of backups that are too old. indexes: how many index files came along; left_out:
    of which shards and collections they did not, and why: a restore builds these."""

    manifest: Manifest
    read: int
    shipped: int
    told: bool
    indexes: int = 0
    left_out: list[str] = []


async def create(
    client: Client,
    store: Store,
    *,
    rate: float | None = None,
    indexes: bool = True,
    timeout: float = 30.0,
    progress: Progress = lambda _documents, _shipped: None,
    around: Around = REAL,
    begin: bool = False,
) -> Made:
    """Make a backup while the cluster serves. rate: bytes a second that are read at most, 0 for no bound; None: it
    gives way to other callers, by rests that are twice as long as what it reads takes (200 s a collection at most).
    indexes: whether index files come along, which a restore has to build else. timeout: seconds for one call.
    progress: told documents of a page, and bytes written so far. begin: the target may be empty though the cluster has
    been backed up before; else that is taken for a disk that is not mounted.

    Raises Forbidden for a key of some collections or documents only, Unavailable while somebody prunes or restores,
    ScanEnded when a collection takes longer than limits.pinned_scan_seconds, StorageError.
    """
    check_rate(rate)
    await client.catalog_status(timeout=timeout)  # whoever may not see everything is refused, instead of seeing less
    if not begin:
        await around.blocking(_check_target, store, await client.refresh_topology(confirmed=True, timeout=timeout))
    at = around.micros()
    began = rfc3339(at)
    stamp = rfc3339(at // 1_000_000 * 1_000_000).replace("-", "").replace(":", "")
    backup = f"{stamp}-{at % 1_000_000:06}-{around.rng.getrandbits(16):04x}"
    pace = Pace(rate, around)
    making = Making(client, store, pace, timeout, around, indexes=indexes)
    async with Mark(store, f"{MAKING}{backup}", PRUNING, "somebody prunes", around) as mark:
        manifest = await making.run(mark, backup, began, progress)
    told = await tell(client, BackedUpCall(backup=at, timeout=timeout))
    count = sum(len(one.index_files()) for one in manifest.collections)
    return Made(
        manifest=manifest, read=pace.read, shipped=making.shipped, told=told, indexes=count, left_out=making.left_out
    )


def _check_target(store: Store, now: Topology) -> None:
    """Raises StorageError for an empty one where there were backups before: on another disk than was meant nobody looks
    for them, and the alert of backups that are too old would go by them. Blocking."""
    if now.backed_up and not backup_ids(store) and not clusters(store):
        raise StorageError(
            f"a backup of this cluster was made at {rfc3339(now.backed_up)}, and no whole one is at this target: if "
            "its disk is not mounted, mount it. To begin at another target, give --begin, until the first one there is "
            "whole; or say `needle backup forget`, if the backups before are given up. Nothing was written"
        )


async def tell(client: Client, call: BackedUpCall) -> bool:
    """Have the cluster know; whether it does. Nothing depends on it but an alert."""
    try:
        await ask_leader(client, CATALOG, BACKED_UP, lambda _: calls.encode(call), call.timeout, (ClusterTooOld,))
    except NeedleError:
        return False
    return True
