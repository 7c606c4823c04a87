"""Executing the entry by which a bulk load's documents appear (docs/adr/0119): all of them in one transaction, streamed
from a file that lies on this replica.

Deterministic: what is refused is refused before the file is looked at, or for what is in it. A replica that has not got
its files yet raises FileAwaited with nothing changed, and is asked again: it applies nothing that comes later until
then. Memory: a block of the file, and 24 bytes a document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

import msgspec

from needle.base.errors import CollectionNotFound, CorruptDocuments, FileAwaited, InvalidArgument, StaleEpoch, invalid
from needle.base.model import CollectionSpec, WriteResult
from needle.protocol.upkeep_commands import LoadRows
from needle.routing.collection_names import called
from needle.shard.apply.batch import Batch
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.holdings import Fence
from needle.shard.bulk.rows_file import Rows, checksum_of, doubled, id_hashes, read_rows
from needle.shard.bulk.staged import Awaited, StagedFiles, rows_name
from needle.shard.documents.digest import MODULUS, document_hash
from needle.shard.documents.records import CollectionRecord, LoadedBlock, row_id
from needle.shard.effects import ABSENT, WRITTEN, Effect
from needle.shard.plan import PublishedSegment
from needle.shard.segments.sealed import segment_file

HASH_BYTES: Final = 16
EFFECT_ROWS: Final = 1024
"""Documents that one effect tells of."""


def load_rows(batch: Batch, index: int, command: LoadRows) -> WriteResult:
    """Raises CollectionNotFound, InvalidArgument and StaleEpoch as results; FileAwaited, with nothing changed."""
    record = batch.numbered(command.collection_id)
    if record is None:
        raise CollectionNotFound(f"there is no collection with id {command.collection_id}")
    change = batch.change(record)
    state = batch.indexing(change)
    if state.loaded == command.checksum:
        return WriteResult(version=index, index=index, existed=True, count=record.documents)
    _check(batch, record, command, state.generation)
    manifest = _manifest(command)
    path = _path(batch, command, manifest)
    loaded = LoadedRows(path, record, batch.version(index))
    change.loaded, change.manifest = loaded.blocks, manifest
    change.indexing = msgspec.structs.replace(state, loaded=command.checksum)
    _tell(batch, change, loaded)
    batch.settle(change, next_ordinal=loaded.rows, documents=loaded.rows, total=loaded.total)
    return WriteResult(version=loaded.version, index=index, count=loaded.rows)


def _tell(batch: Batch, change: CollectionChange, loaded: LoadedRows) -> None:
    """In parts: a change feed reads a page of them at a time."""
    for first in range(0, loaded.rows, EFFECT_ROWS):
        olds = (ABSENT,) * min(EFFECT_ROWS, loaded.rows - first)
        batch.effects.append(Effect(batch.telling, WRITTEN, change.record.id, loaded.version, first, olds))


def _check(batch: Batch, record: CollectionRecord, command: LoadRows, generation: int) -> None:
    check_takes_loads(record.spec)
    if record.next_ordinal:
        raise InvalidArgument(
            f"collection {called(record.spec.name)!r} was written to already in this shard, and a bulk load is for one "
            "that never was: make another collection, load into that, and have an alias lead to it",
            field="collection",
            documents=record.documents,
        )
    check_owned(batch.fence, command)
    if generation != command.generation:
        raise InvalidArgument("the collection got another index since the load was prepared", field="index")


def check_owned(fence: Fence | None, command: LoadRows) -> None:
    """Raises StaleEpoch unless the shard owns what the load was made for, all of it open to writes."""
    if fence is not None and (fence.fingerprint != command.owned or fence.freezes):
        raise StaleEpoch(
            "the ranges of keys that this shard owns are not those that the load was made for, or are about to move: "
            "prepare it again, by the map that there is now",
            owned=False,
        )


def check_takes_loads(spec: CollectionSpec) -> None:
    """Raises InvalidArgument for a collection that no load can be made for. One that has named vectors takes it: its
    documents have none of them then, and get them as others do."""
    if spec.of:
        raise InvalidArgument(
            f"{called(spec.name)!r} holds a named vector of collection {called(spec.of)!r}, whose ordinals are those "
            "of its documents: load the documents, and add their named vectors by updates",
            field="collection",
        )


def _manifest(command: LoadRows) -> list[PublishedSegment]:
    at, found = 0, []
    for one in command.indexes:
        if one.first != at or not one.first <= one.last < command.rows or one.rows != one.last - one.first + 1:
            raise invalid("indexes", f"[{one.first}, {one.last}]", f"files without a gap from 0 to {command.rows - 1}")
        found.append(PublishedSegment(command.collection_id, one.first, one.last, one.rows, one.size, one.checksum))
        at = one.last + 1
    return found


def _path(batch: Batch, command: LoadRows, manifest: list[PublishedSegment]) -> str:
    """Of the rows. The index files have to be here, too: without them their vectors would come into memory, all of
    them, and an entry cannot be refused for want of that."""
    staged, name = batch.stored.staged, rows_name(command.collection_id, command.checksum)
    if staged is None:
        raise FileAwaited(f"file {name} cannot be had here: bulk loads are not applied outside of a node")
    lacking = [one for one in manifest if not staged.has(segment_file(one))]
    if not staged.has(name) or (not lacking and not staged.sound(name)):
        _await(staged, Awaited(command.collection_id, command.checksum, command.size))
    for one in lacking:
        _await(staged, Awaited(command.collection_id, one.checksum, one.size, segment_file(one)))
    staged.awaited = None
    return staged.path(name)


def _await(staged: StagedFiles, awaited: Awaited) -> NoReturn:
    """Raises FileAwaited; CorruptDocuments for what nobody has any more."""
    name = awaited.name
    if staged.lost == awaited.checksum:
        raise CorruptDocuments(f"file {name} of a bulk load is on no replica any more", path=staged.path(name))
    staged.awaited = awaited
    raise FileAwaited(f"file {name} of a bulk load is fetched from the other replicas", name=name)


def lacks_files(staged: StagedFiles, command: LoadRows) -> bool:
    """Whether a file that the entry names is not here, or its rows are damaged. Reads them, and changes nothing."""
    rows = rows_name(command.collection_id, command.checksum)
    if not all(map(staged.has, [rows, *map(segment_file, _manifest(command))])):
        return True
    return checksum_of(staged.path(rows)) != command.checksum


class LoadedRows:
    """What such a file makes of an empty collection: read once for the hashes, and once for the rows."""

    def __init__(self, path: str, record: CollectionRecord, version: int) -> None:
        """Raises InvalidArgument for a file that does not fit the collection, or has an id twice."""
        self._path, self._id, self.version = path, record.id, version
        self._width = record.spec.vector_bytes
        self._hashes = bytearray()
        self.rows = self.total = 0
        names = []
        for first, rows in self._read():
            width, vectors = self._width, memoryview(rows.vectors)
            if len(vectors) != width * len(rows.ids):
                raise invalid("vectors", f"{len(vectors)} bytes", f"{width} for each of {len(rows.ids)} documents")
            for at, id_ in enumerate(rows.ids):
                part, ordinal = vectors[at * width : (at + 1) * width], first + at
                hash_ = document_hash(ordinal, version, id_, rows.metadata[at], ordinal, part)
                self._hashes += hash_
                self.total += int.from_bytes(hash_, "little")
            self.rows += len(rows.ids)
            names.append(id_hashes(rows))
        self.total %= MODULUS
        if doubled(names):
            raise InvalidArgument("two documents of a bulk load have the same id (or hash)", field="ids")

    def _read(self) -> Iterator[tuple[int, Rows]]:
        first = 0
        for rows in read_rows(self._path):
            yield first, rows
            first += len(rows.ids)

    def blocks(self) -> Iterator[LoadedBlock]:
        """The rows of the tables, a block at a time."""
        base, width, version, id_ = row_id(self._id, 0), self._width, self.version, self._id
        for first, rows in self._read():
            vectors, count = memoryview(rows.vectors), len(rows.ids)
            hashes = bytes(self._hashes[first * HASH_BYTES : (first + count) * HASH_BYTES])
            numbered = list(enumerate(rows.ids))
            yield LoadedBlock(
                [(base | first + at, name, version, rows.metadata[at], first + at) for at, name in numbered],
                [(base | first + at, vectors[at * width : (at + 1) * width]) for at in range(count)],
                [
                    (id_, name, first + at, version, hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES], first + at, 0)
                    for at, name in numbered
                ],
            )
