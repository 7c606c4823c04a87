"""Restores a cluster as it was at an instant: each shard out of the archive, then all as a backup is restored.

What a shard owned at that place of its log says its log; between the entry by which one shard gives a range up and that
by which another takes it, its documents are those that the former has. Each document counts once, of the shard that
owned its key.

Invariant: nothing is written to the cluster before every digest that the archive recorded up to each shard's place, and
the next one behind it, was found again, and before every key has exactly one owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import needle
from needle.backup.archive_reading import (
    catalog_at,
    catalog_before,
    catalogs_of,
    chosen,
    founding_of,
    index_set_near,
    read_catalog,
    states_of,
)
from needle.backup.around import REAL, Around
from needle.backup.format import (
    CollectionBackup,
    Contents,
    Cutter,
    IndexFile,
    Manifest,
    Piece,
    PieceRef,
    encode_manifest,
    encode_piece,
    format_of,
    manifest_name,
)
from needle.backup.one_collection import MARK, OneCollection, check_known, one_collection
from needle.backup.owners import owners
from needle.backup.replaying import Place, Replay, Replayed
from needle.backup.restore_conflicts import check_free
from needle.backup.restoring import Progress, Restored, restore
from needle.backup.scratch import scratch_directory
from needle.backup.store import Before, DirectoryStore, Store
from needle.base.decoding import routed_metadata
from needle.base.dtypes import VectorForm
from needle.base.errors import CorruptBackup, InvalidArgument, StorageError, invalid
from needle.base.instants import rfc3339
from needle.base.model import CollectionSpec, VectorSpec
from needle.client import Client
from needle.protocol.calls import DocumentBatch
from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange, ShardMap
from needle.routing.strategy import routing_key
from needle.routing.topology import CollectionInfo, Topology, collection_id, public_name, vector_called

if TYPE_CHECKING:
    from needle.shard.documents.records import StoredDocument

ROWS: Final = 500
"""Documents that are read at a time."""
ALL: Final[list[KeyRange]] = [(b"", None)]
Told = Callable[[str], None]


async def restore_at(
    client: Client,
    store: Store,
    at: int | None = None,
    *,
    indexes: Mapping[int, int] | None = None,
    archive: str | None = None,
    collection: str | None = None,
    name: str | None = None,
    index_files: bool = True,
    scratch: str | None = None,
    timeout: float = 30.0,
    told: Told = lambda _: None,
    progress: Progress = lambda _: None,
    total: Progress = lambda _: None,
    around: Around = REAL,
) -> Restored:
    """Restore what there was at an instant (microseconds since 1970), or at an index of each shard's log.

    archive: the founding of the cluster, in hex, if several are archived at the target. collection, name: that
    one alone, as in `restore`. index_files: whether those of
    the archive are used, which takes as many shards as there were. scratch: a directory with room
    for all documents twice. told: of what is done. progress, total, timeout: as in `restore`. Raises InvalidArgument
    for an instant that the archive does not reach, CorruptBackup, RestoreDiffers, DiskFull and DiskFailed of the
    scratch directory, and what `restore` raises.
    """
    if (at is None) == (indexes is None):
        raise InvalidArgument("give one of at and index", field="at")
    one = one_collection(collection, name)
    with scratch_directory(scratch) as directory:
        made = Making(store, directory, told, one)
        names = await around.blocking(made.names, at, dict(indexes or {}), archive)
        await check_free(client, names, timeout, alone=one is not None)
        backup = await around.blocking(made.run, at, dict(indexes or {}), archive)
        return await restore(
            client, Before(made.local, store), backup, collection=collection, name=name, indexes=index_files,
            timeout=timeout, progress=progress, total=total, around=around,
        )  # fmt: skip


class Making:
    """Makes a backup in a directory of its own of what the archive has. Blocking. local: where."""

    def __init__(
        self, store: Store, directory: Path, told: Told = lambda _: None, one: OneCollection | None = None
    ) -> None:
        """one: nothing but this collection is written."""
        self._one = one
        self._store, self._directory, self._told = store, directory, told
        self.local = DirectoryStore(directory / "backup", durable=False)

    def names(self, at: int | None, indexes: dict[int, int], archive: str | None) -> list[str]:
        """What is to be written is called so: collections that the catalog had there. Raises InvalidArgument for one
        that the archive never heard of."""
        founding = chosen(self._store, founding_of(archive))
        topology, _ = self._topology(founding, at, indexes)
        here = [one.spec.name for one in topology.collections]
        if self._one is None:
            return here
        if self._one.collection not in here:  # it may have been made since the catalog was archived
            ever = (read_catalog(self._store, name).topology.collections for name in catalogs_of(self._store, founding))
            if all(info.spec.name != self._one.collection for infos in ever for info in infos):
                check_known(self._one, here)
        return [self._one.name]

    def run(self, at: int | None, indexes: dict[int, int], archive: str | None) -> str:
        """The id of the backup, the same for the same place."""
        founding = chosen(self._store, founding_of(archive))
        before = states_of(self._store, founding)
        try:
            return self._run(founding, at, indexes)
        except CorruptBackup as error:
            if before <= states_of(self._store, founding):
                raise
            raise StorageError(
                f"somebody deleted a part of the archive (`needle backup prune`) while it was read ({error.message}), "
                "and nothing is restored: run the command again, which says whether this place can still be had"
            ) from None

    def _run(self, founding: int, at: int | None, indexes: dict[int, int]) -> str:
        topology, shards = self._topology(founding, at, indexes)
        shard_map = topology.map
        if shard_map is None:
            raise StorageError("the archive knows no shard map: it began before the cluster was made")
        found: dict[int, Replayed] = {}
        for shard in shards:
            directory = self._directory / f"shard-{shard}"
            directory.mkdir()
            self._told(f"shard {shard}: reading its log")
            with Replay(self._store, founding, shard, directory) as replay:
                found[shard] = replay.to(Place(at=at) if at is not None else Place(index=indexes[shard]))
        owned = owners(found, shard_map)
        if at is None:
            topology = self._said_there(founding, topology, found)
        infos = self._wanted(self._collections(founding, topology, found))
        collections = self._contents(founding, found, owned, shard_map, infos)
        cuts = sorted((shard, one.index) for shard, one in found.items())
        stamp = rfc3339(at // 1_000_000 * 1_000_000).replace("-", "").replace(":", "") if at is not None else "index"
        told = hashlib.sha256(msgspec.json.encode((founding, at, cuts))).hexdigest()[:8]
        manifest = Manifest(
            id=f"{stamp}-{told}",
            format=format_of(collections),
            began=rfc3339(at or 0),
            ended=rfc3339(at or 0),
            release=needle.__version__,
            cluster=f"{founding:x}",
            settings=msgspec.to_builtins(topology.settings),
            collections=collections,
            aliases=_aliases(topology, {one.spec.name for one in collections}),
        )
        self.local.put(manifest_name(manifest.id), encode_manifest(manifest))
        return manifest.id

    def _wanted(self, infos: list[CollectionInfo]) -> list[CollectionInfo]:
        """Not those that say of another restore, of that time, that it is under way."""
        found = [info for info in infos if not info.spec.name.startswith(MARK)]
        if self._one is None:
            return found
        check_known(self._one, [info.spec.name for info in found])
        return [info for info in found if info.spec.name == self._one.collection]

    def _topology(self, founding: int, at: int | None, indexes: dict[int, int]) -> tuple[Topology, list[int]]:
        """As the catalog had it there, and the shards to look into."""
        if at is not None:
            catalog, shards = catalog_at(self._store, founding, at)
            return catalog.topology, shards
        names = catalogs_of(self._store, founding)
        if not names:
            raise StorageError("the archive does not say which shards there were")
        last: list[int] | None = None
        for name in reversed(names):
            topology = read_catalog(self._store, name).topology
            serving = sorted(info.shard for info in topology.serving)
            if serving == sorted(indexes):
                return topology, serving
            last = last or serving
        raise invalid("index", sorted(indexes), f"one index for each of the shards {last}")

    def _said_there(self, founding: int, newest: Topology, found: Mapping[int, Replayed]) -> Topology:
        """What the catalog said at places by index. What it says was dropped may be before the shards have: so of that
        counts what it said when the last of their entries came, of all else what it said when the next one did."""
        next_ones = [one.until for one in found.values() if one.until is not None]
        if not next_ones:
            return newest
        since = max(one.since for one in found.values())
        before = catalog_before(self._store, founding, since) or newest
        until = catalog_before(self._store, founding, max(since, min(next_ones) - 1)) or newest
        return msgspec.structs.replace(until, dropped=before.dropped)

    def _collections(self, founding: int, topology: Topology, found: Mapping[int, Replayed]) -> list[CollectionInfo]:
        """Those that the shards had and none had dropped, nor the catalog; the last of a name."""
        dropped = {one for replayed in found.values() for one in replayed.dropped} | set(topology.dropped)
        known = {info.id: info for info in topology.collections}
        here: dict[str, CollectionInfo] = {}
        specs = {name: spec for one in found.values() for name, (_, spec) in one.collections.items()}
        for stored in sorted(specs, key=lambda name: collection_id(name) or 0):
            number = collection_id(stored)
            if number is None or number in dropped:
                continue
            info = known.get(number) or self._later(founding, number)
            made = info or CollectionInfo(
                id=number, spec=msgspec.structs.replace(specs[stored], name=public_name(stored))
            )
            here[made.spec.name] = made
        for info in topology.collections:  # of those that no shard had yet there is nothing but the name
            if info.id not in dropped and info.spec.name not in here:
                here[info.spec.name] = info
        return [here[name] for name in sorted(here)]

    def _later(self, founding: int, number: int) -> CollectionInfo | None:
        """What the catalog said of a collection for the first time."""
        for name in catalogs_of(self._store, founding):
            topology = read_catalog(self._store, name).topology
            info = next((one for one in topology.collections if one.id == number), None)
            if info is not None:
                return info
        return None

    def _contents(
        self,
        founding: int,
        found: Mapping[int, Replayed],
        owned: Mapping[int, list[KeyRange]],
        shard_map: ShardMap,
        infos: list[CollectionInfo],
    ) -> list[CollectionBackup]:
        """Write the documents of all collections as pieces, one shard after the other."""
        sums = {info.id: Contents() for info in infos}
        pieces: dict[int, list[PieceRef]] = {info.id: [] for info in infos}
        cuts: dict[int, list[tuple[int, int]]] = {info.id: [] for info in infos}
        indexes: dict[str, list[IndexFile]] = {}
        vectors = {info.id: vectors_of(info, found) for info in infos}
        for shard, replayed in sorted(found.items()):
            self._told(f"shard {shard}: reading its documents at index {replayed.index}")
            near = index_set_near(self._store, founding, shard, replayed.index)
            for stored, files in () if near is None else near.collections.items():
                indexes[stored] = indexes.get(stored, []) + files
            with Replay(self._store, founding, shard, Path(replayed.directory)) as replay:
                for info in infos:
                    cuts[info.id].append((shard, replayed.index))
                    if info.stored_name in replayed.collections:
                        names = vectors[info.id]
                        batches = documents(replay, info.stored_name, owned[shard], shard_map, names)
                        pieces[info.id] += self._written(info.spec, batches, sums[info.id])
                replay.prove()
        return [
            CollectionBackup(
                spec=info.spec,
                fields=info.fields,
                documents=sums[info.id].documents,
                expiring=sums[info.id].expiring,
                digest=sums[info.id].digest,
                cuts=cuts[info.id],
                pieces=pieces[info.id],
                indexes=indexes.get(info.stored_name, []),
                vectors=vector_specs(info, vectors[info.id]),
                sparse=info.sparse,
                longest=sums[info.id].longest,
                named_indexes={vector_called(name): indexes[name] for name in vectors[info.id] if name in indexes},
            )
            for info in infos
        ]

    def _written(self, spec: CollectionSpec, batches: Iterator[DocumentBatch], sums: Contents) -> list[PieceRef]:
        cutter, made = Cutter(spec.form.numbers), list[PieceRef]()

        def put(some: Iterator[Piece]) -> None:
            for piece in some:
                ref, data = encode_piece(piece)
                self.local.put(ref.name, data)
                made.append(ref)

        for batch in batches:
            sums.add(batch)
            put(cutter.cut(batch))
        put(cutter.rest())
        return made


def _aliases(topology: Topology, names: set[str]) -> dict[str, str]:
    return {one.name: one.collection for one in topology.aliases if one.collection in names and one.name not in names}


def vectors_of(info: CollectionInfo, found: Mapping[int, Replayed]) -> dict[str, CollectionSpec]:
    """The named vectors that some shard has of a collection, by their names in the shards; of one name the last one."""
    there = {name: spec for one in found.values() for name, spec in one.vectors.items() if spec.of == info.stored_name}
    last = {vector_called(name): name for name in sorted(there, key=lambda name: collection_id(name) or 0)}
    return {name: there[name] for name in sorted(last.values())}


def vector_specs(info: CollectionInfo, stored: Mapping[str, CollectionSpec]) -> dict[str, VectorSpec]:
    """What they are like, by the names that users know. A shard's index may be one of before: the catalog's counts."""
    known = {info.stored_vector(one): one.spec for one in info.vectors}
    return {vector_called(name): known.get(name) or VectorSpec.of(spec) for name, spec in stored.items()}


def documents(
    replay: Replay, stored: str, owned: list[KeyRange], shard_map: ShardMap, vectors: Collection[str]
) -> Iterator[DocumentBatch]:
    """A shard's documents of a collection with keys in `owned`, in the order of their ids, visible there or not."""
    view = replay.replica.view
    record, store = view.collection(stored).record, view.store
    strategy, count, keys = shard_map.strategy, shard_map.shard_count, KeySet(owned)
    custom = strategy.kind == "custom"

    def counts(id_: str, metadata: bytes) -> bool:
        if owned == ALL:
            return True
        return routing_key(strategy, count, id_, routed_metadata(metadata) if custom else None) in keys

    def batch(rows: list[StoredDocument]) -> DocumentBatch:
        found = store.by_ordinal(record.id, [row.ordinal for row in rows], metadata=False, vectors=True)
        made = _batch(found, rows, record.spec.form)
        named = replay.named(stored, vectors, rows)
        return msgspec.structs.replace(made, named=named) if named else made

    rows = []
    for seen in store.scan(record.id, ""):
        one = seen.document
        if one is not None and counts(one.id, one.metadata):
            rows.append(one)
        if len(rows) == ROWS:
            yield batch(rows)
            rows = []
    if rows:
        yield batch(rows)


def _batch(vectors: Mapping[int, StoredDocument], rows: list[StoredDocument], form: VectorForm) -> DocumentBatch:
    return DocumentBatch(
        ids=[row.id for row in rows],
        versions=[row.version for row in rows],
        metadata=[row.metadata for row in rows],
        vectors=form.given(b"".join(vectors[row.ordinal].vector for row in rows)),
        applied_index=0,
        expires=[row.expires for row in rows] if any(row.expires for row in rows) else [],
    )
