"""One state directory of a replica, open: its documents, the collections in memory, the sessions, and the view of them
that searches get.

`apply` brings all of them on together, one transaction at a time, and then shows them at once. It must not know locks,
damage or installations: those are state_machine.Replica's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Protocol

import immutables

from needle.base.config import SegmentConfig
from needle.base.errors import CorruptDocuments, StorageError
from needle.base.file_errors import SHORTAGES
from needle.protocol.commands import Command
from needle.shard.agenda import Changed
from needle.shard.apply.batch import Batch
from needle.shard.apply.execute import execute
from needle.shard.apply.holdings import Fence, decode_holdings
from needle.shard.apply.sessions import SessionTable
from needle.shard.bulk.staged import StagedFiles
from needle.shard.catalog_known import decode_known
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.digest import DigestParts
from needle.shard.documents.image import SEGMENTS, write_image
from needle.shard.documents.records import CollectionRecord, WriteSet
from needle.shard.documents.sqlite_file import FILE_NAME
from needle.shard.documents.store import DocumentStore
from needle.shard.effects import EffectLog
from needle.shard.fields.field_files import FieldFiles
from needle.shard.fields.index_budget import IndexBudget
from needle.shard.index_change import AS_MADE
from needle.shard.live_collection import LiveCollection, ReplicaView
from needle.shard.open_collections import OpenCollections
from needle.shard.pins import decode_pins
from needle.shard.segments.files import FILE_NAME as SEGMENT_FILE_NAME
from needle.shard.segments.sealed import segment_file
from needle.shard.state_before import StateBefore

FIELDS: Final = "fields"
"""The directory of kept field indexes. It goes with no snapshot."""
SMALL_BYTES: Final = 16 << 10


class Entry(Protocol):
    """A committed entry (multiraft.ports.Applied)."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def conf(self) -> bytes | None: ...


@dataclass(frozen=True)
class Surroundings:
    """What every state of a replica is opened with. changed: is told which collections the segment keeper has to look
    at; effects: what entries did. version: of the cluster, which snapshots are written for. staged: files of bulk
    loads."""

    disk: ReplicaDisk
    failpoint: Callable[[str], None]
    commit_rows_max: int
    segments: SegmentConfig | None
    field_indexes: IndexBudget
    version: Callable[[], int]
    changed: Changed = field(default_factory=Changed)
    effects: EffectLog = field(default_factory=EffectLog)
    staged: StagedFiles | None = None


class OpenedState:
    """Only apply changes it; `view` may be taken from any thread."""

    def __init__(self, directory: str, around: Surroundings, on_damage: Callable[[CorruptDocuments], None]) -> None:
        """on_damage: documents.DocumentStore's. Raises CorruptDocuments, DiskFull, TooManyFiles or another
        StorageError; then everything is closed."""
        self.segment_directory = os.path.join(directory, SEGMENTS)
        self._fields_directory = os.path.join(directory, FIELDS)
        self._around = around
        around.disk.make_directory(self.segment_directory)
        self._field_files: FieldFiles | None = None
        self.store = DocumentStore(
            directory, around.disk, around.failpoint, around.commit_rows_max, on_damage=on_damage
        )
        self.live = OpenCollections()
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        at, records, manifests, sessions, answers, indexing = self.store.load()
        stored = self.store.named("holdings")
        fence = None if stored is None else Fence(decode_holdings(stored))
        around, ends = self._around, {record.id: record.next_ordinal for record in records}
        bytes_max = around.field_indexes.bytes_max
        self._field_files = FieldFiles(self._fields_directory, around.disk, at.index, ends, bytes_max)
        for record in records:
            live = self._collection(record)
            self.live.add(live)
            live.load(manifests.get(record.id, []), indexing.get(record.id, AS_MADE))
            live.hide(fence)
            self.live.note(live)
        self.sessions = SessionTable(sessions, answers)
        views = immutables.Map({name: live.view() for name, live in self.live.named.items()})
        visible, size = sum(view.counted for view in views.values()), sum(view.live_bytes for view in views.values())
        pins, catalog = decode_pins(self.store.named("pins")), decode_known(self.store.named("catalog"))
        named = self.live.vectors_by, self.live.vector_count, self.live.names, DigestParts()
        self.view = ReplicaView(at, views, self.store, fence, visible, size, pins, catalog, *named)
        self.view.digest()  # all of its parts are made here, in a thread, and not when replicas are compared
        comes = fence is not None and any(one.incoming and one.hides for one in fence.holdings.transfers)
        around.effects.begin(at.index, doubtful=comes)

    def _collection(self, record: CollectionRecord) -> LiveCollection:
        around = self._around
        return LiveCollection(
            record, self.store, self.segment_directory, around.segments, around.field_indexes, self._field_files
        )

    def close(self) -> None:
        """Nobody may be using it any more."""
        if self._field_files is not None:
            self._field_files.close()
        for held in self.live.numbered.values():
            held.close()
        self.store.close()

    # --- the log -----------------------------------------------------------------------------------------------------
    def apply(self, entries: Sequence[Entry], commands: Sequence[Command | None]) -> list[Any]:
        """One transaction, of the first of them only if what the next one needs cannot be read for now. Raises DiskFull
        or TooManyFiles, with nothing changed, if that is the very first."""
        at = self.view.at
        before = StateBefore(self.live, self.store, self.view, self._around.staged)
        batch = Batch(at, before, self.sessions, self.store.writer.find, before.stored())
        batch.prefetch(commands)
        results: list[Any] = []
        for entry, command in zip(entries, commands, strict=True):
            try:
                results.append(execute(batch, entry.index, command))
            except SHORTAGES:
                if not results:
                    raise
                break
        entries = entries[: len(results)]
        if any(change.loaded is not None for change in batch.changes.values()):
            self._write_loaded(batch, entries[-1], at.conf)
            return results
        with _no_way_back():
            conf = next((entry.conf for entry in reversed(entries) if entry.conf is not None), at.conf)
            changes = batch.write_set(entries[-1].index, entries[-1].term, conf)
            changes.size = sum(len(entry.data) for entry in entries)
            # Waiting saves the fixed cost of a commit: little next to large entries, for whose commit searches wait.
            self.store.writer.write(changes, may_wait=changes.size < SMALL_BYTES * len(entries))
            if batch.copies_expired:
                self._around.effects.doubt()
            self._around.effects.add(batch.effects)  # before the view: who sees that index sees what it did
            self._swap(batch, changes)
        return results

    def _write_loaded(self, batch: Batch, entry: Entry, conf: bytes) -> None:
        """The transaction of a bulk load, of which nothing is done if there is no room for it."""
        self._give(batch)
        changes = batch.write_set(entry.index, entry.term, conf if entry.conf is None else entry.conf)
        self.store.writer.write_at_once(changes)
        with suppress(*SHORTAGES):
            # Whoever looks for files that the log does not name may have deleted them, for it did not name them yet.
            self._give(batch)
        with _no_way_back():
            self._around.effects.add(batch.effects)
            self._swap(batch, changes)

    def _give(self, batch: Batch) -> None:
        """Have the index files of a bulk load where they are opened."""
        if (staged := self._around.staged) is not None:
            for segment in chain.from_iterable(change.manifest or () for change in batch.changes.values()):
                staged.give(segment_file(segment), self.segment_directory)

    def _swap(self, batch: Batch, changes: WriteSet) -> None:
        """Bring memory to what SQLite holds, then show it to searches at once."""
        visible, size = self.view.visible, self.view.live_bytes
        views = self.view.collections.mutate()
        for collection_id in batch.dropped:
            live = self.live.remove(collection_id)
            live.close()
            gone = views.pop(live.record.spec.name)
            visible, size = visible - gone.counted, size - gone.live_bytes
        for change in batch.changes.values():
            if not change.touched or change.record.id in batch.dropped:
                continue
            name = change.record.spec.name
            if change.created:
                live = self._collection(CollectionRecord(id=change.record.id, spec=change.record.spec))
                live.load([])
                self.live.add(live)
            live = self.live.numbered[change.record.id]
            if change.loaded is None:
                live.take(change)
            else:
                live.take_loaded(change)
            self.live.note(live)
            before = views.get(name)
            views[name] = now = live.view()
            visible += now.counted - (0 if before is None else before.counted)
            size += now.live_bytes - (0 if before is None else before.live_bytes)
        what = batch.fence, visible, size, batch.pins, batch.catalog, self.live.vectors_by, self.live.vector_count
        self.view = ReplicaView(changes.at, views.finish(), self.store, *what, self.live.names, self.view.parts)
        self._around.changed.note(batch.dropped, changes.collections)

    def save_fields(self, rows_min: int) -> bool:
        """See HeldCollections.save_fields."""
        if self._field_files is None:
            return False
        self._field_files.drop_others(set(self.live.numbered))
        payloads = [live.payload for live in list(self.live.numbered.values())]
        held = {place for payload in payloads for place in payload.kept()}
        return any(payload.save(rows_min, self._committed, held) for payload in payloads)

    def _committed(self) -> int:
        """The index of the view, which the file has by now: after a kill it would not be there otherwise, and what is
        of a later index than the documents is thrown away."""
        index = self.view.at.index
        self.store.writer.save()
        return index

    # --- files -------------------------------------------------------------------------------------------------------
    def export(self, directory: str) -> tuple[int, int, bytes, list[Any]]:
        """See Replica.export_snapshot."""
        disk = self._around.disk
        at, manifest = self.store.copy_to(os.path.join(directory, FILE_NAME), self._around.version())
        paths = [os.path.join(self.segment_directory, segment_file(segment)) for segment in manifest]
        here = [path for path in paths if disk.exists(path)]
        return at.index, at.term, at.conf, write_image(directory, at.index, at.term, here, disk)

    def held_file(self, name: str) -> str | None:
        """See Replica.held_file."""
        path = os.path.join(self.segment_directory, name)
        return path if SEGMENT_FILE_NAME.match(name) and self._around.disk.exists(path) else None


@contextmanager
def _no_way_back() -> Iterator[None]:
    """What is raised as a shortage may be repeated, and what began here may not: memory and disk would differ."""
    try:
        yield
    except SHORTAGES as error:
        raise StorageError(f"applying failed half way ({error!r}); restart the node") from error
