"""One replica of a shard: applies log entries, answers searches, makes and installs snapshots.

Invariants:
- Equal applied index means equal documents, ordinals, manifest and sessions on every replica (`digest`, `verify`).
- A search works on one immutable `ReplicaView`, so it sees exactly the state at `HitBatch.applied_index`.
- Who reads SQLite finds every batch that a search can see (documents.py); rows that a search may still read are purged
  only after it has left.

Durability order: see documents.py and snapshot.py. Any error while applying or installing closes the replica for good
(`_broken`): its memory may be behind its disk, so it has to be opened again. But for two kinds:
- damage (`damage`): what is stored is not what was written. Then it answers nothing, also after a restart, until a
  snapshot is installed;
- a shortage (no room, no file handle), which passes by itself: what was done counts, the rest is asked for again. So
  what a batch reads of the store is read before it changes anything, and a state that was swapped in and cannot be
  opened yet is opened before anything is applied: the former one is read until then, and changes no more.

Threads: apply, checkpoint, export and install come from the host, one at a time or not (a lock orders them); search,
get, digest and count from any thread. It does not know Raft, the network or the clock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol

import immutables

from needle.base.commands import Command
from needle.base.config import Limits, SegmentConfig
from needle.base.errors import (
    CorruptDocuments,
    CorruptSnapshot,
    NeedleError,
    StorageError,
)
from needle.base.file_errors import SHORTAGES
from needle.base.model import Claim, CollectionSpec, HitBatch, SearchRequest
from needle.shard.agenda import Changed
from needle.shard.batch import Batch
from needle.shard.disk import ReplicaDisk
from needle.shard.documents import DocumentStore
from needle.shard.execute import decode_entry, execute, runs
from needle.shard.holdings import Fence, check_claim, decode_holdings
from needle.shard.in_flight import InFlight
from needle.shard.index_budget import FieldName, IndexBudget
from needle.shard.live_collection import (
    CollectionView,
    LiveCollection,
    OpenCollections,
    ReplicaView,
    StateBefore,
    digest_of,
)
from needle.shard.reads import Reads, not_served
from needle.shard.records import AppliedAt, CollectionRecord, StoredDocument, WriteSet
from needle.shard.row_check import Checked, verify_image_file
from needle.shard.sealed_segment import segment_file
from needle.shard.segment_files import FILE_NAME as SEGMENT_FILE_NAME
from needle.shard.segment_set import CollectionVectors
from needle.shard.sessions import AnswerRow, SessionRow, SessionTable
from needle.shard.snapshot import (
    DAMAGED,
    SEGMENTS,
    current_state,
    install_image,
    remove_older,
    verify_image,
    write_image,
)
from needle.shard.sqlite_file import FILE_NAME
from needle.shard.upkeep import PURGE_ROWS, Upkeep
from needle.shard.validation import check_command

log = logging.getLogger("needle.shard")

SMALL_BYTES: Final = 16 << 10
FAILPOINTS: Final = ("apply-before-commit", "apply-after-commit", "checkpoint-before", "checkpoint-after")


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


def _no_failpoint(_: str) -> None:
    return None


class Replica:
    """The state machine of one replica."""

    def __init__(
        self,
        directory: str,
        *,
        limits: Limits,
        segments: SegmentConfig,
        disk: ReplicaDisk,
        failpoint: Callable[[str], None] = _no_failpoint,
        purge_rows_min: int = PURGE_ROWS,
    ) -> None:
        """Open or create the replica in `directory`.

        failpoint: called with the names in FAILPOINTS and snapshot.INSTALL_STEPS. purge_rows_min: superseded rows are
        deleted once there are this many, and an eighth of the documents.
        Damaged files are no error: then `damage` says so. Raises DiskFailed or UnsupportedFormat.
        """
        self.directory = directory
        self.limits = limits
        self._config = segments
        self._disk = disk
        self._failpoint = failpoint
        self.field_indexes = IndexBudget(limits.field_index_bytes_max)
        self._applying = threading.Lock()
        self._in_flight = InFlight()
        self._reads = Reads(lambda: self._view, self._in_flight, limits, self._found_damage)
        self._upkeep = Upkeep(lambda: self._store, lambda: self._view, self._applying, self._in_flight, purge_rows_min)
        self._broken: NeedleError | None = None
        self.damage: CorruptDocuments | None = None
        """Why nothing is answered (see the module). Set by whichever thread finds it."""
        self._closed = False
        self._changed = Changed()
        """Collections that the segment keeper has to look at."""
        self._checked = ""
        """The directory of the image whose rows were checked last."""
        self._installed: tuple[str, str] | None = None
        """An image and the state directory made of it: CURRENT names it, and it is not open yet."""
        self._left = ""
        """The state directory before which there is something to delete; "" if not."""
        self._state = ""
        self._opened: DocumentStore | None = None
        self._segment_directory = ""
        self._live = OpenCollections()
        self._sessions = SessionTable()
        self._open()

    def _open(self) -> None:
        try:
            state = current_state(self.directory, self._disk)
            marked = os.path.join(state, DAMAGED)
            if self._disk.exists(marked):
                raise CorruptDocuments(self._disk.read(marked).decode(errors="replace"), path=state)
            self._load(state)
        except CorruptDocuments as error:
            self._found_damage(error)
            # It knows nothing, as if it were new: nobody is to see it before a snapshot is installed.
            self._view = ReplicaView(AppliedAt(), immutables.Map())

    def _found_damage(self, error: CorruptDocuments, state: str = "") -> None:
        """From any thread, while locks are held. state: where, if that may not be the current state any more."""
        if self.damage is not None:
            return
        if state and state != self._state:
            log.warning("%s: it has been replaced since", error.message)
            return
        self.damage = error
        log.critical("%s: nothing of this replica is served until it is had from another one again", error.message)
        if self._state:
            try:
                self._disk.write(os.path.join(self._state, DAMAGED), error.message.encode())
            except StorageError as failed:
                log.error("the damage could not be written down (it will be found again): %s", failed)

    def _load(self, state: str) -> None:
        """Open a state directory and make it the current one; on an error the former one stays."""
        before, self._state = self._state, state
        try:
            self._load_state(state)
        except SHORTAGES:
            self._state = before
            raise

    def _load_state(self, state: str) -> None:
        directory = os.path.join(state, SEGMENTS)
        self._disk.make_directory(directory)
        found = partial(self._found_damage, state=state)
        store = DocumentStore(state, self._disk, self._failpoint, self.limits.commit_rows_max, on_damage=found)
        loaded = OpenCollections()
        try:
            at, records, manifests, sessions, answers = store.load()
            stored = store.holdings()
            fence = None if stored is None else Fence(decode_holdings(stored))
            for record in records:
                live = LiveCollection(record, store, directory, self._config, self.field_indexes)
                loaded.add(live)
                live.load(manifests.get(record.id, []))
                live.hide(fence)
        except BaseException:
            _close_files(store, loaded)
            raise
        self._segment_directory, self._opened, self._live = directory, store, loaded
        self._sessions = SessionTable(sessions, answers)
        views = immutables.Map({name: live.view() for name, live in loaded.named.items()})
        self._view = ReplicaView(at, views, store, fence, sum(view.visible for view in views.values()))
        self._changed.everything()

    @property
    def _store(self) -> DocumentStore:
        if self._opened is None:
            self._check_usable()
            raise StorageError(f"replica {self.directory} is not open")
        return self._opened

    # --- the log -----------------------------------------------------------------------------------------------------
    def applied_index(self) -> int:
        """Index of the last applied entry, 0 for none."""
        return self._view.at.index

    def applied_term(self) -> int:
        return self._view.at.term

    def conf(self) -> bytes:
        """The encoded configuration in force at applied_index; b"" for none yet."""
        return self._view.at.conf

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """Apply consecutive entries in order. One result each: a WriteResult, a NeedleError instance for a refused
        command, or None for an entry without a command. Entries already applied are skipped (None). All of them are
        one transaction, but commands that move ranges are one each: they need the stored state right before them.

        Fewer results than entries: for want of room, or of file handles, only the first ones were applied. Raises
        DiskFull or TooManyFiles if none was. Call it again with the rest when there may be room. Any other error is
        final."""
        with self._applying:
            self._check_usable()
            with self._final_errors():
                self._open_installed()
            fresh = [entry for entry in entries if entry.index > self._view.at.index]
            results: list[Any] = [None] * (len(entries) - len(fresh))
            commands = [decode_entry(entry.data) for entry in fresh]
            for first, end in runs(commands):
                try:
                    done = self._apply(fresh[first:end], commands[first:end])
                except SHORTAGES:
                    if not results:
                        raise
                    break
                results += done
                if len(done) < end - first:
                    break
        return results

    def _apply(self, entries: Sequence[Entry], commands: Sequence[Command | NeedleError | None]) -> list[Any]:
        """One transaction, of the first of them only if what the next one needs cannot be read for now. Raises DiskFull
        or TooManyFiles, with nothing changed, if that is the very first."""
        with self._final_errors():
            at = self._view.at
            before = StateBefore(self._live, self._store, self._view.fence)
            batch = Batch(at, before, self._sessions, self._store.writer.find, before.stored())
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
            with _no_way_back():
                conf = next((entry.conf for entry in reversed(entries) if entry.conf is not None), at.conf)
                changes = batch.write_set(entries[-1].index, entries[-1].term, conf)
                changes.size = sum(len(entry.data) for entry in entries)
                # Waiting saves the fixed cost of a commit: little next to large entries, and searches would wait for
                # theirs.
                self._store.writer.write(changes, may_wait=changes.size < SMALL_BYTES * len(entries))
                self._swap(batch, changes)
        return results

    def _swap(self, batch: Batch, changes: WriteSet) -> None:
        """Bring memory to what SQLite holds, then show it to searches at once."""
        visible = self._view.visible
        views = self._view.collections.mutate()
        for collection_id in batch.dropped:
            live = self._live.remove(collection_id)
            live.close()
            visible -= views.pop(live.record.spec.name).visible
        for change in batch.changes.values():
            if not change.touched or change.record.id in batch.dropped:
                continue
            name = change.record.spec.name
            if change.created:
                empty = CollectionRecord(id=change.record.id, spec=change.record.spec)
                live = LiveCollection(empty, self._store, self._segment_directory, self._config, self.field_indexes)
                live.load([])
                self._live.add(live)
            live = self._live.numbered[change.record.id]
            live.take(change)
            self._live.note(live)
            before = views.get(name)
            views[name] = now = live.view()
            visible += now.visible - (0 if before is None else before.visible)
        self._view = ReplicaView(changes.at, views.finish(), self._store, batch.fence, visible)
        self._changed.note(batch.dropped, changes.collections)

    @property
    def waits(self) -> bool:
        """Whether batches wait for their commit to SQLite (document_writer.py)."""
        return self.damage is None and self._store.writer.waits

    def save(self) -> None:
        """Commit them. Raises StorageError, again and again once a commit has failed."""
        self._check_usable()
        self._store.writer.save()

    def checkpoint(self) -> int:
        """Make everything applied durable; returns the applied index that is safe to compact below. Also purges rows
        that nothing points at any more."""
        self._check_usable()
        self._failpoint("checkpoint-before")
        self._upkeep.purge()
        index = self._store.checkpoint()
        self._failpoint("checkpoint-after")
        return index

    def tidy(self, *, all_of_it: bool) -> bool:
        """One step of deleting rows that nothing points at any more, and of giving their space back; False if nothing
        is left to do, and what was done is on disk. all_of_it: also what is little next to the rest."""
        self._check_usable()
        self._remove_left()
        return self._upkeep.tidy(all_of_it=all_of_it)

    @contextmanager
    def _final_errors(self) -> Iterator[None]:
        try:
            yield
        except SHORTAGES:
            raise  # nothing was changed (_no_way_back)
        except CorruptDocuments as error:
            self._found_damage(error)
            raise
        except NeedleError as error:
            self._broken = error
            raise
        except BaseException as error:
            self._broken = StorageError(f"applying failed half way ({error!r}); restart the node")
            raise

    def _check_usable(self) -> None:
        if self.damage is not None:
            raise not_served(self.damage)
        if self._broken is not None:
            raise self._broken
        if self._closed:
            raise StorageError(f"replica {self.directory} is closed")

    # --- reads -------------------------------------------------------------------------------------------------------
    def search(self, request: SearchRequest) -> HitBatch:
        """The nearest documents of one collection, exactly as of `HitBatch.applied_index`.

        Raises InvalidArgument, CollectionNotFound or a StorageError.
        """
        found = self.search_many([request])[0]
        if isinstance(found, NeedleError):
            raise found
        return found

    def search_many(
        self, requests: list[SearchRequest], wanted: Callable[[int], bool] = lambda _: True
    ) -> list[HitBatch | NeedleError]:
        """Searches that share collection, k and options go as one matrix product or faiss call; each answer, or why
        there is none, stands where its request stood. All see the same applied index. wanted: whether somebody still
        waits for the answer to the request at that place; looked at just before the work."""
        self._check_usable()
        return self._reads.search_many(requests, wanted)

    def get(
        self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None = None
    ) -> list[StoredDocument]:
        """The documents with these ids, in the order asked for; absent ids are left out. Raises StaleEpoch if the shard
        does not own what `claim` says."""
        self._check_usable()
        return self._reads.get(collection, ids, with_vectors, claim)

    def collections(self) -> list[CollectionSpec]:
        """Every collection, by name."""
        return [spec for spec, _ in self._view.counts()]

    def count(self, collection: str | None = None) -> int:
        """Documents in one collection, or in all."""
        return self._view.count(collection)

    def counts(self, claim: Claim | None = None) -> list[tuple[CollectionSpec, int]]:
        """Every collection, by name, and its documents, at one applied index. Raises StaleEpoch as `get` does."""
        self._check_usable()
        view = self._view
        check_claim(view.fence, claim, view.at.index)
        return view.counts()

    @property
    def view(self) -> ReplicaView:
        """What a search would see now."""
        return self._view

    @property
    def fence(self) -> Fence | None:
        """What the log says this shard owns; None if that never changed."""
        return self._view.fence

    def collection_vectors(self) -> list[CollectionVectors]:
        """The vectors of every collection, for the segment keeper; ask again after a snapshot was installed."""
        if self.damage is not None:
            return []
        return self._live.vectors()

    @property
    def segment_directory(self) -> str:
        """See VectorsHost; so the following."""
        return self._segment_directory

    def vectors_of(self, collection_id: int) -> CollectionVectors | None:
        return self._live.vectors_of(collection_id)

    def was_dropped(self, collection_id: int) -> bool:
        # In this order: an id is handed out before the collection is here, but not before its entry is applied.
        handed_out = collection_id < self._view.at.next_collection_id
        return handed_out and collection_id not in self._live.numbered

    def take_changed(self) -> Collection[int] | None:
        return self._changed.take()

    def worn(self) -> list[tuple[str, float]]:
        """Collections that have used up more than half of their ordinals, and how much of them."""
        return self._live.worn_shares()

    def first_collections(self, count: int) -> list[CollectionView]:
        """Up to `count` collections, the oldest ones."""
        view = self._view.collections
        return [view[name] for name in self._live.first_names(count) if name in view]

    def prepare_fields(self, names: Sequence[FieldName]) -> None:
        """Index these fields in the background: searches of the leader use them."""
        self._live.prepare_fields(self._view, names)

    def digest(self) -> str:
        """32 hex digits over collections, ordinals, ids, versions, metadata and vectors, by the sums that apply keeps.
        O(collections). `stored_digest` is by the rows themselves."""
        return self._view.digest()

    def stored_digest(self) -> tuple[int, str]:
        """The applied index and the digest that the stored rows have, all of which are read. Raises ReplicaDamaged."""
        self._check_usable()
        try:
            stored = self._store.stored()
        except CorruptDocuments as error:
            raise not_served(error) from error
        return stored.at.index, digest_of(stored.records, stored.holdings)

    @property
    def used(self) -> bool:
        """Whether there are collections or sessions."""
        return bool(self._view.collections) or len(self._sessions) > 0

    def session_rows(self) -> list[SessionRow]:
        """The dedupe table, equal on replicas at equal applied index."""
        with self._applying:
            return self._sessions.rows()

    def session_answers(self) -> list[AnswerRow]:
        """The answers that it keeps, likewise."""
        with self._applying:
            return self._sessions.answers()

    def verify(self) -> None:
        """Read every stored row and compare with what the log gave and memory knows. Raises CorruptDocuments, and then
        `damage` is set."""
        with self._applying:
            self._check_usable()
            stored = self._store.stored()
            if digest_of(stored.records, stored.holdings) != self.digest():
                error = CorruptDocuments(f"{self.directory}: what is stored and what was applied disagree")
                self._found_damage(error)
                raise error

    def check_sums(self) -> None:
        """Compare each collection's sum with what its ids add up to, and read the small tables. Raises
        CorruptDocuments, and then `damage` is set."""
        self._check_usable()
        self._upkeep.unless_replaced(lambda store: store.check_sums(), None)

    def check_rows(self, collection_id: int, after: str, rows_max: int) -> Checked | None:
        """See row_check.check_rows; when it raises CorruptDocuments, `damage` is set."""
        self._check_usable()
        return self._upkeep.unless_replaced(lambda store: store.check_rows(collection_id, after, rows_max), None)

    def validate(self, command: Command) -> Command:
        """The command to propose, checked against the current collections; cosine vectors are normalised."""
        self._check_usable()
        view = self._view
        return check_command(command, view.spec, self.limits, len(view.collections))

    # --- snapshots ---------------------------------------------------------------------------------------------------
    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[Any]]:
        """Write an image of one applied index into the empty `directory`: (index, term, conf, files as ImageFile)."""
        self._check_usable()
        at, manifest = self._store.copy_to(os.path.join(directory, FILE_NAME))
        paths = [os.path.join(self._segment_directory, segment_file(segment)) for segment in manifest]
        here = [path for path in paths if self._disk.exists(path)]
        return at.index, at.term, at.conf, write_image(directory, at.index, at.term, here, self._disk)

    def held_file(self, name: str) -> str | None:
        """Where this replica has the index file of that name; None for other names and if it has none."""
        path = os.path.join(self._segment_directory, name)
        return path if SEGMENT_FILE_NAME.match(name) and self._disk.exists(path) else None

    def check_snapshot(self, directory: str) -> None:
        """Check every byte, and every row, of the image in `directory`. Raises CorruptSnapshot."""
        self._checked = ""
        verify_image(directory, self._disk)
        path = os.path.join(directory, FILE_NAME)
        try:
            verify_image_file(path)
        except CorruptDocuments as error:
            text = f"{error.message}. Nothing was installed; the sender's copy is bad"
            raise CorruptSnapshot(text, path=path) from error
        self._checked = directory

    def install_snapshot(self, directory: str) -> None:
        """Replace all state by the image in `directory`, also a damaged one. Raises CorruptSnapshot before anything is
        changed; DiskFull or TooManyFiles also when the image is in place already and cannot be opened. Then the state
        before goes on being read, and repeating it, or the next apply, opens the new one."""
        with self._applying:
            if self._broken is not None or self._closed:
                self._check_usable()
            installed = self._installed is not None and self._installed[0] == directory
            if not installed and self._checked != directory:
                self.check_snapshot(directory)
            try:
                if not installed:
                    state = install_image(self.directory, directory, self._disk, self._failpoint)
                    self._installed = (directory, state)
                    self._checked = ""
                self._open_installed()
            except (CorruptSnapshot, *SHORTAGES):
                raise
            except BaseException as error:
                self._broken = StorageError(f"installing a snapshot failed half way ({error!r}); restart the node")
                raise

    def _open_installed(self) -> None:
        """Go over to the state that an installation has put in place, if there is one. Raises DiskFull or TooManyFiles
        as long as it cannot be opened."""
        if self._installed is None:
            return
        _, state = self._installed
        self._disk.sync(self.directory)
        self._failpoint("install-swapped")
        old_store, old_live = self._opened, self._live
        self._load(state)
        self._installed = None
        self.damage = None
        self._left = state
        self._in_flight.drain()  # searches on the old view still read its files
        try:
            if old_store is not None:
                _close_files(old_store, old_live)
            self._remove_left()
        except SHORTAGES as error:
            log.warning("%s: the state before takes room until it can be deleted: %s", self.directory, error)

    def _remove_left(self) -> None:
        """Delete what the last installation replaced."""
        state = self._left
        if state:
            remove_older(state, self._disk)
            if state == self._left:
                self._left = ""

    def close(self) -> None:
        """Close files after running searches have left. Idempotent."""
        with self._applying:
            if not self._closed:
                self._closed = True
                self._in_flight.drain()
                if self._opened is not None:
                    _close_files(self._opened, self._live)


@contextmanager
def _no_way_back() -> Iterator[None]:
    """What is raised as a shortage may be repeated, and what began here may not: memory and disk would differ."""
    try:
        yield
    except SHORTAGES as error:
        raise StorageError(f"applying failed half way ({error!r}); restart the node") from error


def _close_files(store: DocumentStore, live: OpenCollections) -> None:
    for held in live.numbered.values():
        held.close()
    store.close()
