"""One replica of a shard: applies log entries, answers searches, makes and installs snapshots.

Invariants:
- Equal applied index means equal documents, ordinals, manifest and sessions on every replica (`digest`, `verify`).
- A search works on one immutable `ReplicaView`, so it sees exactly the state at `HitBatch.applied_index`.
- Who reads SQLite finds every batch that a search can see (documents/store.py); rows that a search may still read are
  purged only after it has left.

Durability order: see documents/store.py and documents/image.py. Any error while applying or installing closes the
replica for good (usable.py): its memory may be behind its disk, so it has to be opened again. But for two kinds:
- damage (`damage`): what is stored is not what was written. Then it answers nothing, also after a restart, until a
  snapshot is installed;
- a shortage (no room, no file handle), which passes by itself: what was done counts, the rest is asked for again. So
  what a batch reads of the store is read before it changes anything, and a state that was swapped in and cannot be
  opened yet is opened before anything is applied: the former one is read until then, and changes no more.

Threads: apply, checkpoint, export and install come from the host, one at a time or not (a lock orders them); search,
get, digest and count from any thread. It does not know Raft, the network or the clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from needle.base.collection_sizes import CollectionSize
from needle.base.compared import Compared
from needle.base.config import Limits, SegmentConfig
from needle.base.errors import CorruptDocuments, CorruptSnapshot, StorageError, Unavailable
from needle.base.file_errors import SHORTAGES
from needle.base.model import Claim, CollectionSpec, HitBatch, SearchRequest
from needle.base.versions import KNOWN
from needle.protocol.commands import Command, Compare
from needle.shard.apply.execute import decode_entry, runs, takes_long
from needle.shard.apply.holdings import Fence, check_claim
from needle.shard.apply.sessions import SessionTable
from needle.shard.apply.validation import check_command
from needle.shard.bulk.staged import StagedFiles
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.records import StoredDocument
from needle.shard.documents.row_check import Checked
from needle.shard.documents.store import DocumentStore
from needle.shard.effects import EffectLog
from needle.shard.fields.builders import Builders, SearchAnswer
from needle.shard.fields.index_budget import USUAL_ROWS, IndexBudget, IndexRows
from needle.shard.held_collections import HeldCollections
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import ReplicaView, digest_of
from needle.shard.opened_state import Entry, OpenedState, Surroundings
from needle.shard.reads import GoOn, Page, Reads, Scanned, on
from needle.shard.searching import not_served
from needle.shard.sizes import sizes_of
from needle.shard.states import States
from needle.shard.upkeep import PURGE_ROWS, Upkeep
from needle.shard.usable import Usable

T = TypeVar("T")
FAILPOINTS: Final = ("apply-before-commit", "apply-after-commit", "checkpoint-before", "checkpoint-after")


class Replica:
    """The state machine of one replica."""

    def __init__(
        self,
        directory: str,
        *,
        limits: Limits,
        segments: SegmentConfig | None,
        disk: ReplicaDisk,
        failpoint: Callable[[str], None] = lambda _: None,
        purge_rows_min: int = PURGE_ROWS,
        index_rows: IndexRows = USUAL_ROWS,
        version: Callable[[], int] = lambda: KNOWN,
    ) -> None:
        """Open or create the replica in `directory`. failpoint: called with the names in FAILPOINTS and
        image.INSTALL_STEPS. purge_rows_min: superseded rows are deleted once there are this many, and an eighth of
        the documents. index_rows: of field indexes. segments: None: no vectors are in memory. version: the cluster's,
        that snapshots are written for. Raises DiskFailed or UnsupportedFormat; of damaged files `damage` tells."""
        self.directory, self.limits, self._failpoint = directory, limits, failpoint
        self.field_indexes = fields = IndexBudget(limits.field_index_bytes_max, index_rows)
        self._applying, self._in_flight = threading.Lock(), InFlight()
        self.effects = log = EffectLog(limits.feed_bytes_max)
        self.staged, most = StagedFiles(directory, disk), limits.commit_rows_max
        around = Surroundings(disk, failpoint, most, segments, fields, version, effects=log, staged=self.staged)
        self._states = States(directory, around, self._in_flight)
        self.held = HeldCollections(self._states, around.changed, self._in_flight)
        """For those that look after the collections in the background."""
        self._reads = Reads(lambda: self.view, self._in_flight, limits, self._states.found_damage)
        parts = (self._applying, self._in_flight, self.effects, purge_rows_min, limits.feed_rows_bytes_max)
        self._upkeep = Upkeep(lambda: self._store, lambda: self.view, *parts)
        self._usable, self.compared, self.takes_long = Usable(directory, self._states), Compared(), takes_long
        self._states.open()

    @property
    def damage(self) -> CorruptDocuments | None:
        """Why nothing is answered (see the module)."""
        return self._states.damage

    @property
    def _current(self) -> OpenedState:
        opened = self._states.opened
        if opened is None:
            self._usable.check()
            raise StorageError(f"replica {self.directory} is not open")
        return opened

    @property
    def _store(self) -> DocumentStore:
        return self._current.store

    # --- the log -----------------------------------------------------------------------------------------------------
    def applied_index(self) -> int:
        """Index of the last applied entry, 0 for none."""
        return self.view.at.index

    def applied_term(self) -> int:
        return self.view.at.term

    def conf(self) -> bytes:
        """The encoded configuration in force at applied_index; b"" for none yet."""
        return self.view.at.conf

    def apply(self, entries: Sequence[Entry]) -> list[Any]:
        """Apply consecutive entries in order. One result each: a WriteResult, a NeedleError instance for a refused
        command, or None for an entry without a command. Entries already applied are skipped (None). All of them are
        one transaction, but commands that move ranges are one each: they need the stored state right before them.

        Fewer results than entries: for want of room, or of file handles, only the first ones were applied. Raises
        DiskFull or TooManyFiles if none was. Call it again with the rest when there may be room. Any other error is
        final."""
        with self._applying:
            self._usable.check()
            with self._usable.final_errors():
                self._states.open_installed()
            fresh = [entry for entry in entries if entry.index > self.view.at.index]
            results: list[Any] = [None] * (len(entries) - len(fresh))
            with self._usable.final_errors():
                commands = [decode_entry(entry.data) for entry in fresh]
            for first, end in runs(commands):
                try:
                    with self._usable.final_errors():
                        done = self._current.apply(fresh[first:end], commands[first:end])
                except SHORTAGES:
                    if not results:
                        raise
                    break
                if type(commands[first]) is Compare:
                    self.compared.note(self.view.at.index, self.digest())
                results += done
                if len(done) < end - first:
                    break
        return results

    @property
    def waits(self) -> bool:
        """Whether batches wait for their commit to SQLite (documents/writer.py)."""
        return self.damage is None and self._store.writer.waits

    def save(self) -> None:
        """Commit them. Raises StorageError, again and again once a commit has failed."""
        self._usable.check()
        self._store.writer.save()

    def checkpoint(self) -> int:
        """Make all that was applied durable, and purge unused rows; returns the index that is safe to compact below."""
        self._usable.check()
        self._failpoint("checkpoint-before")
        self._upkeep.purge()
        index = self._store.checkpoint()
        self._failpoint("checkpoint-after")
        return index

    def may_expire(self, now: int) -> bool:
        """Whether documents of this replica may expire at `now` (microseconds since 1970) or earlier. Looks at nothing
        that is stored; what was given a later instant since is still counted."""
        first = self._states.live.first_expiring()
        return first is not None and first[0] <= now

    def expired(self, now: int) -> str:
        """The collection whose next document expires first, if that is at `now` or earlier; "" if none does. Blocking:
        finds by the index of instants, whatever the number of documents."""
        while True:
            with self._applying:
                self._usable.check()
                if (first := self._states.live.first_expiring()) is None or first[0] > now:
                    return ""
                live = first[1]
                live.first_expiry = self._store.first_expiry(live.record.id)
                self._states.live.note(live)
                if 0 < live.first_expiry <= now:
                    return live.record.spec.name

    def tidy(self, *, all_of_it: bool, short: bool = False) -> bool:
        """One step of deleting rows that nothing points at any more, and of giving their space back; False if nothing
        is left to do, and what was done is on disk. all_of_it: also what is little; short: and what feeds may read."""
        self._usable.check()
        self._states.remove_left()
        return self._upkeep.tidy(all_of_it=all_of_it, short=short)

    # --- reads -------------------------------------------------------------------------------------------------------
    def reads(self) -> Reads:
        """What answers from views. Raises if nothing may be answered."""
        self._usable.check()
        return self._reads

    def search(self, request: SearchRequest) -> HitBatch:
        """The nearest documents of one collection, exactly as of `HitBatch.applied_index`. Raises InvalidArgument,
        CollectionNotFound or a StorageError."""
        found = self.search_many([request])[0]
        if isinstance(found, HitBatch):
            return found
        raise found

    def search_many(
        self,
        requests: list[SearchRequest],
        wanted: Callable[[int], bool] = lambda _: True,
        builders: Builders | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> list[SearchAnswer]:
        """Searches that share collection, k and options go as one matrix product or faiss call; each answer, or why
        not, stands where its request stood. All see the same applied index. wanted: whether somebody still waits for
        the answer at that place; looked at before the work and in it. builders: who may make a field's index; without
        them this thread does, with them BeingIndexed may stand for an answer. clock: seconds, to explain searches."""
        self._usable.check()
        return self._reads.search_many(requests, wanted, builders, clock)

    def take_cut_files(self) -> list[str]:
        """Paths of index files that searches found shorter than they were; once each."""
        return self._reads.take_cut()

    def get(
        self, collection: str, ids: list[str], with_vectors: bool, claim: Claim | None = None, bound: bytes = b""
    ) -> list[StoredDocument]:
        """Those that are there and match `bound` (JSON), as asked for. Raises StaleEpoch unless `claim` is true."""
        self._usable.check()
        return self._reads.get(collection, ids, with_vectors, claim, bound)

    def count_matching(
        self,
        collection: str,
        filter_json: bytes,
        claim: Claim | None = None,
        go_on: GoOn = on,
        builders: Builders | None = None,
        bound: bytes = b"",
    ) -> tuple[int, int]:
        """How many documents match a filter (b"": all), and at which applied index. go_on: called every now and then;
        what it raises ends the work. builders: as in `search_many`. Raises StaleEpoch as `get` does, BeingIndexed."""
        self._usable.check()
        return self._reads.count(collection, filter_json, claim, go_on, builders, bound)

    def scan(
        self, page: Page, claim: Claim | None = None, go_on: GoOn = on, builders: Builders | None = None
    ) -> Scanned:
        """A page of documents in the order of their ids, all from one applied index. Raises as `count_matching`."""
        self._usable.check()
        return self._reads.scan(page, claim, go_on, builders)

    def collections(self) -> list[CollectionSpec]:
        """Every collection, those of named vectors too, by name."""
        return [held.record.spec for _, held in sorted(self.view.collections.items())]

    def count(self, collection: str | None = None) -> int:
        """Documents in one collection, or in all."""
        return self.view.count(collection)

    @property
    def live_bytes(self) -> int:
        """What the documents of all collections weigh, see `weights`. As cheap as `count`."""
        return self.view.live_bytes

    def counts(self, claim: Claim | None = None, only: str = "") -> list[tuple[CollectionSpec, int]]:
        """Every collection, by name, or one, and its documents, at one applied index. Raises as `get` does."""
        return [(held.record.spec, held.visible) for held in self._claimed(claim).named(only)]

    def sizes(self, claim: Claim | None = None, only: str = "") -> list[tuple[CollectionSpec, CollectionSize]]:
        """As `counts`, and how large each is."""
        return sizes_of(self._claimed(claim), only)

    def _claimed(self, claim: Claim | None) -> ReplicaView:
        self._usable.check()
        view = self.view
        check_claim(view.fence, claim, view.at.index)
        return view

    @property
    def view(self) -> ReplicaView:
        """What a search would see now."""
        return self._states.view

    @property
    def fence(self) -> Fence | None:
        """What the log says this shard owns; None if that never changed."""
        return self.view.fence

    def digest(self) -> str:
        """32 hex digits over all that is stored, by the sums that apply keeps: O(collections). See `stored_digest`."""
        return self.view.digest()

    def stored_digest(self) -> tuple[int, str]:
        """The applied index and the digest that the stored rows have, all of which are read. Raises ReplicaDamaged."""
        self._usable.check()
        try:
            stored = self._store.stored()
        except CorruptDocuments as error:
            raise not_served(error) from error
        return stored.at.index, digest_of(stored.records, stored.holdings)

    @property
    def used(self) -> bool:
        """Whether there are collections or sessions."""
        return bool(self.view.collections) or len(self._states.sessions) > 0

    @property
    def sessions(self) -> SessionTable:
        """The dedupe table, equal on replicas at equal applied index. What it says of requests (`once`) may be asked
        at any time, all else while nothing is applied."""
        return self._states.sessions

    def verify(self) -> None:
        """Read every stored row and compare with what the log gave and memory knows. Raises CorruptDocuments, and then
        `damage` is set."""
        with self._applying:
            self._usable.check()
            stored = self._store.stored()
            if digest_of(stored.records, stored.holdings) != self.digest():
                error = CorruptDocuments(f"{self.directory}: what is stored and what was applied disagree")
                self._states.found_damage(error)
                raise error

    def check_sums(self) -> None:
        """Compare each collection's sum with what its ids add up to, and read the small tables. Raises
        CorruptDocuments, and then `damage` is set."""
        self._usable.check()
        self._upkeep.unless_replaced(lambda store: store.check_sums(), None)

    def check_rows(self, collection_id: int, after: str, rows_max: int) -> Checked | None:
        """See row_check.check_rows; when it raises CorruptDocuments, `damage` is set."""
        self._usable.check()
        return self._upkeep.unless_replaced(lambda store: store.check_rows(collection_id, after, rows_max), None)

    def validate(self, command: Command) -> Command:
        """The command to propose, checked against the current collections; cosine vectors are normalised."""
        self._usable.check()
        view = self.view
        return check_command(command, view.spec, self.limits, lambda: view.collection_count)

    # --- snapshots ---------------------------------------------------------------------------------------------------
    def export_snapshot(self, directory: str) -> tuple[int, int, bytes, list[Any]]:
        """Write an image of one applied index into the empty `directory`: (index, term, conf, files as ImageFile)."""
        self._usable.check()
        return self._current.export(directory)

    def held_file(self, name: str) -> str | None:
        """Where this replica has the index file of that name; None for other names and if it has none."""
        return None if self._states.opened is None else self._states.opened.held_file(name)

    def similar_file(self, name: str) -> str | None:
        """Where this replica has its documents, which an image's file of that name shares pages with, also if they
        are damaged; None for other names. The file is in use."""
        return self._states.similar_file(name)

    def check_snapshot(self, directory: str) -> None:
        """Check every byte, and every row, of the image in `directory`. Raises CorruptSnapshot."""
        self._states.check(directory)

    def install_snapshot(self, directory: str) -> None:
        """Replace all state by the image in `directory`, also a damaged one. Raises CorruptSnapshot before anything is
        changed; DiskFull or TooManyFiles also when the image is in place already and cannot be opened. Then the state
        before goes on being read, and repeating it, or the next apply, opens the new one."""
        with self._applying:
            self._usable.check_open()
            self._states.check_once(directory)
            try:
                self._states.install(directory)
            except (CorruptSnapshot, *SHORTAGES):
                raise
            except BaseException as error:
                self._usable.failed_half_way("installing a snapshot", error)
                raise

    def look(self, at: Callable[..., T], *arguments: object) -> T:
        """What `at` finds in the view of this moment (`view`): its files stay open until it returns. Blocking. Raises
        Unavailable once this is closed."""
        with self._in_flight.enter():
            if self._usable.closed:
                raise Unavailable("this replica is closed")
            return at(self.view, *arguments)

    def close(self) -> None:
        """Close files after running searches have left. Idempotent."""
        with self._applying:
            if not self._usable.closed:
                self._usable.closed = True
                self._in_flight.drain()
                if self._states.opened is not None:
                    self._states.opened.close()
