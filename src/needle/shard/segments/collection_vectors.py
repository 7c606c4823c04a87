"""All vectors of one collection incarnation: growing rows, open segments, tombstones and the manifest.

Invariants:
- a live ordinal is served by exactly one place: an open segment that holds it, or the growing segment;
- a reader works on one `VectorsView`, swapped whole, so it sees the vectors as they were between two apply batches;
- a published segment whose file is not here changes nothing for readers: what served its range goes on (exact rows,
  or the smaller segments that it replaces) until `attach` swaps the file in.

Writers are two threads: the apply thread (append, tombstone, publish) and the keeper's (attach, detach). A lock orders
them; readers take none. It does not know documents, filters, Raft or who builds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Lock

import msgspec
import numpy as np
from pyroaring import BitMap

from needle.base.config import SegmentConfig
from needle.base.dtypes import StoredRows
from needle.base.errors import CorruptSegment, Internal
from needle.base.file_errors import SHORTAGES
from needle.base.model import CollectionSpec, IndexParams
from needle.shard.disk import remove_file
from needle.shard.index_change import AS_MADE, IndexState, is_staged
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.plan import PublishedSegment, SegmentLoad, check_manifest, covered, with_published
from needle.shard.segments.growing import GrowingSegment
from needle.shard.segments.scoring import Floats, Ints
from needle.shard.segments.sealed import SealedSegment, segment_file
from needle.shard.segments.view import Served, VectorsView, between

Rows = Callable[[int, int], Iterable[tuple[Ints, Floats]]]
"""Reads live vectors from the documents: rows(first, last) -> pages of (ordinals (n,) ascending int64, vectors (n, d)),
ascending."""

LOAD_ROWS = 4096


class CollectionVectors:
    """The vectors of one collection incarnation on one replica.

    Every mutator is visible at once, except between `begin()` and `commit()`: a batch that is applied as one becomes
    visible as one. Errors of files are CorruptSegment; a broken call order is Internal.
    """

    def __init__(self, collection_id: int, spec: CollectionSpec, directory: str, config: SegmentConfig | None) -> None:
        """config: None where nothing is searched: then no vector is held, only where the next one goes."""
        self.collection_id = collection_id
        self.spec = spec
        self.directory = directory
        self._holds = config is not None
        self.config = config or SegmentConfig()
        self._lock = Lock()
        self._manifest: list[PublishedSegment] = []
        self._indexing = AS_MADE
        self._switching = 0
        """Until all files of ordinals below this are here, those of the index before the switch serve alone."""
        self._next_ordinal = 0
        self._growing = GrowingSegment(spec.form)
        self._served: tuple[Served, ...] = ()
        self._staged_dead: list[int] = []
        self._arrived: list[SealedSegment] = []
        self._in_batch = False
        self._rows: Rows | None = None
        self._closed = False
        self._corrupt: list[PublishedSegment] = []
        self._view = VectorsView(spec, self._growing, ())

    # --- the apply thread --------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Hide the following changes from readers until commit()."""
        with self._lock:
            self._in_batch = True

    def commit(self) -> None:
        """Make everything since begin() visible at once."""
        with self._lock:
            self._in_batch = False
            self._refresh()

    def append(self, first_ordinal: int, vectors: StoredRows) -> None:
        """Add vectors, as they are stored, C-contiguous, as ordinals first_ordinal, first_ordinal + 1, ..."""
        self.append_at(np.arange(first_ordinal, first_ordinal + len(vectors), dtype=np.int64), vectors)

    def append_at(self, ordinals: Ints, vectors: StoredRows) -> None:
        """The same as these ordinals, which ascend."""
        if not len(ordinals):
            return
        with self._lock:
            first = int(ordinals[0])
            if first < self._next_ordinal or vectors.shape != (len(ordinals), self.spec.form.numbers):
                raise Internal(f"append of {vectors.shape} at ordinal {first}, next is {self._next_ordinal}")
            if self._holds:
                self._growing = self._growing.appended(ordinals, vectors)
            self._next_ordinal = int(ordinals[-1]) + 1
            self._refresh()

    def tombstone(self, ordinals: Sequence[int]) -> None:
        """The vectors of these ordinals are deleted or replaced."""
        with self._lock:
            self._staged_dead.extend(ordinals)
            self._refresh()

    def publish(self, segment: PublishedSegment) -> bool:
        """A PublishSegment was applied. False: it does not fit the manifest (see segment_plan) and is ignored, on every
        replica alike. Does no I/O: the file is swapped in when it is attached, which may already have happened."""
        with self._lock:
            manifest = with_published(self._manifest, segment, self._next_ordinal)
            if manifest is None:
                return False
            self._manifest = manifest
            self._refresh()
            return True

    def reindex(self, state: IndexState, spec: CollectionSpec, manifest: list[PublishedSegment]) -> None:
        """What the log says of the index changed. After a switch the manifest is another one: the files of before go
        on serving until all of its are here, and then these take their place at once. No I/O, as `publish`."""
        with self._lock:
            gone = {*self._indexing.staged, *self._manifest} - {*state.staged, *manifest}
            if state.generation != self._indexing.generation:
                self.spec, self._manifest, self._switching = spec, list(manifest), covered(manifest)
            self._indexing = state
            self._arrived = [sealed for sealed in self._arrived if sealed.segment not in gone]
            self._refresh()

    def load(
        self,
        next_ordinal: int,
        live: OrdinalSet,
        manifest: list[PublishedSegment],
        rows: Rows,
        indexing: IndexState = AS_MADE,
    ) -> None:
        """Fill an empty set at open: segments from their files, everything else from `rows`.

        A missing or damaged file is no error here: its range is served exactly, and `missing()` names it; a damaged
        one is also reported by `take_corrupt()` and its file removed.
        """
        check_manifest(manifest)
        opened = [self._open_at_load(segment) for segment in manifest]
        staged = [self._open_at_load(segment) for segment in indexing.staged if segment not in manifest]
        with self._lock:
            if self._next_ordinal or self._manifest:
                raise Internal("load() of a set that is in use")
            self._rows = rows
            self._next_ordinal = next_ordinal
            self._manifest, self._indexing = list(manifest), indexing
            served = []
            for segment, sealed in zip(manifest, opened, strict=True):
                if sealed is None:
                    self._growing = self._read_rows(rows, self._growing, segment.first, segment.last).closed()
                else:
                    served.append(Served(sealed, None).only(live.between(segment.first, segment.last)))
            self._growing = self._read_rows(rows, self._growing, covered(manifest), next_ordinal - 1)
            self._served = tuple(served)
            self._arrived = [sealed for sealed in staged if sealed is not None]
            self._refresh()

    # --- readers -----------------------------------------------------------------------------------------------------
    def view(self) -> VectorsView:
        """The state at the last commit. Hold it as long as you need; later changes do not touch it."""
        return self._view

    def search(
        self, queries: Floats, k: int, *, allow: BitMap | None = None, exact: bool = False, ef_search: int = 0
    ) -> tuple[Ints, Floats]:
        """See VectorsView.search; on the current view."""
        return self._view.search(queries, k, allow=allow, exact=exact, ef_search=ef_search)

    # --- the keeper --------------------------------------------------------------------------------------------------
    @property
    def next_ordinal(self) -> int:
        return self._next_ordinal

    @property
    def closed(self) -> bool:
        """True once close() was called: a dropped collection's builds are cancelled."""
        return self._closed

    def manifest(self) -> list[PublishedSegment]:
        """The published segments, in order."""
        return list(self._manifest)

    @property
    def indexing(self) -> IndexState:
        """What the log says of the index."""
        return self._indexing

    def staged(self) -> list[PublishedSegment]:
        """The files of the index that is to come, in order."""
        return list(self._indexing.staged)

    def names(self, segment: PublishedSegment) -> bool:
        """Whether the log names this file, for now or for later."""
        return segment in self._manifest or segment in self._indexing.staged

    def spec_of(self, segment: PublishedSegment) -> CollectionSpec:
        """What a file that the log names is built by."""
        wanted = self._indexing.wanted
        if wanted is None or segment not in self._indexing.staged:
            return self.spec
        return msgspec.structs.replace(self.spec, index=wanted)

    def missing(self) -> list[PublishedSegment]:
        """Segments that the log names and whose file is not attached."""
        with self._lock:
            here = {sealed.segment for sealed in self._files()}
            return [segment for segment in (*self._manifest, *self._indexing.staged) if segment not in here]

    def beside(self, index: IndexParams) -> tuple[VectorsView, VectorsView] | None:
        """The vectors of this moment, served by the index of now and by the staged one; None unless all files of both
        are here."""
        with self._lock:
            here = {sealed.segment: sealed for sealed in self._files()}
            staged = self._indexing.staged if self._manifest else []
            complete = is_staged(self._indexing, index, self._manifest) and all(one in here for one in staged)
            if not complete or self._in_batch or {s.sealed.segment for s in self._served} != set(self._manifest):
                return None
            growing, served = self._replaced([here[one] for one in staged])
            return self._view.frozen(), VectorsView(msgspec.structs.replace(self.spec, index=index), growing, served)

    def attached(self) -> list[SealedSegment]:
        """The open segments that serve searches, in order."""
        return [served.sealed for served in self._view.served]

    def opened(self) -> list[SealedSegment]:
        """All open segments: those that serve, and those that wait until the log that names them is applied here."""
        with self._lock:
            return [*(served.sealed for served in self._served), *self._arrived]

    def loads(self) -> tuple[list[SegmentLoad], int, int, VectorsView]:
        """What the planner needs, of one moment: (manifest loads, next ordinal, waiting live rows, frozen view)."""
        with self._lock:
            view = self._view.frozen()
            here = {served.sealed.segment: served for served in view.served}
            loads = []
            for segment in self._manifest:
                served = here.get(segment)
                dead = 0 if served is None else served.sealed.rows - served.live_rows()
                loads.append(SegmentLoad(segment, dead, served is not None))
            chunks = view.growing.chunks
            end = max(chunks[-1].last + 1 if chunks else 0, covered(self._manifest))
            waiting = view.growing.live_between(covered(self._manifest), end)
            return loads, end, waiting, view

    def attach(self, sealed: SealedSegment) -> None:
        """Serve a segment from its opened file, as soon as (and only while) the manifest names it.

        May be called before its PublishSegment is applied. A file that lacks a live ordinal is refused: it shows up in
        take_corrupt().
        """
        with self._lock:
            self._arrived.append(sealed)
            if not self._in_batch:
                self._take_arrived()
                self._view.serve_by(self._growing, self._served)

    def forget(self, segment: PublishedSegment) -> None:
        """Drop an attached file that was never published (its proposal was lost)."""
        with self._lock:
            self._arrived = [sealed for sealed in self._arrived if sealed.segment != segment]

    def detach(self, segment: PublishedSegment) -> bool:
        """Stop using a segment whose file turned out damaged; its rows are read back from the documents.

        False: it is not attached, or there are no documents to read from (then it goes on being served)."""
        if (rows := self._rows) is None:
            return False
        # Read outside the lock: the documents have locks of their own, which the apply thread may hold.
        restored = self._read_rows(rows, GrowingSegment(self.spec.form), segment.first, segment.last).closed()
        with self._lock:
            served = next((s for s in self._served if s.sealed.segment == segment), None)
            if served is None:
                return False
            if served.live is not None:
                restored = restored.without(served.sealed.all_ordinals()[~served.live])
            self._growing = self._growing.inserted(restored)
            self._served = tuple(s for s in self._served if s is not served)
            if not self._in_batch:
                self._view.serve_by(self._growing, self._served)
            return True

    def take_corrupt(self) -> list[PublishedSegment]:
        """Segments whose files were damaged at load, or refused when they were swapped in; once each."""
        with self._lock:
            corrupt, self._corrupt = self._corrupt, []
            return corrupt

    def close(self) -> None:
        """Release files and memory; searches on views already taken still work."""
        with self._lock:
            self._closed, self._rows = True, None  # which are of its holder: both would lie until the collector comes
            self._served, self._arrived = (), []
            self._growing = GrowingSegment(self.spec.form)
            self._view = VectorsView(self.spec, self._growing, ())

    # --- inside the lock ---------------------------------------------------------------------------------------------
    def _refresh(self) -> None:
        """Fold staged tombstones and arrived files in and swap the view, unless a batch is open."""
        if self._in_batch:
            return
        if self._staged_dead:
            dead = np.unique(np.array(self._staged_dead, dtype=np.int64))
            self._staged_dead = []
            self._growing = self._growing.without(dead).compacted(covered(self._manifest))
            self._served = tuple(
                s.without(between(dead, s.sealed.segment.first, s.sealed.segment.last)) for s in self._served
            )
        self._take_arrived()
        self._view = VectorsView(self.spec, self._growing, self._served)

    def _take_arrived(self) -> None:
        """Swap in every file that the manifest names; after a switch all of them together."""
        if self._switching:
            wanted = {segment for segment in self._manifest if segment.first < self._switching}
            first = [sealed for sealed in self._files() if sealed.segment in wanted]
            if {sealed.segment for sealed in first} != wanted or not self._swap_in(first):
                return
            self._switching = 0
        for sealed in [s for s in self._arrived if s.segment in self._manifest]:
            self._swap_in([sealed])

    def _files(self) -> list[SealedSegment]:
        """All that are open, each segment once: two indexes of few vectors may have the very same file."""
        return list({s.segment: s for s in (*self._arrived, *(served.sealed for served in self._served))}.values())

    def _swap_in(self, files: list[SealedSegment]) -> bool:
        """Have files serve what they cover, all at once. False: one of them lacks a live vector. Then what served goes
        on, and the keeper learns of it by take_corrupt()."""
        rest = [sealed for sealed in self._arrived if sealed not in files]
        try:
            self._growing, self._served = self._replaced(files)
        except CorruptSegment as error:
            damaged = error.details.get("path")
            self._corrupt += [sealed.segment for sealed in files if sealed.path == damaged]
            serve = [served.sealed for served in self._served]
            self._arrived = [*rest, *(one for one in files if one.path != damaged and one not in serve)]
            return False
        self._arrived = rest
        return True

    def _replaced(self, files: list[SealedSegment]) -> tuple[GrowingSegment, tuple[Served, ...]]:
        """What serves once these files, whose ranges adjoin, do. Raises CorruptSegment."""
        if not files:
            return self._growing, self._served
        first, last = min(s.segment.first for s in files), max(s.segment.last for s in files)
        inside = [s for s in self._served if first <= s.sealed.segment.first and s.sealed.segment.last <= last]
        live = [s.sealed.all_ordinals() if s.live is None else s.sealed.all_ordinals()[s.live] for s in inside]
        live += [ordinals for ordinals, _ in self._growing.blocks(first, last)]
        wanted = np.sort(np.concatenate([np.empty(0, np.int64), *live]))
        served = [s for s in self._served if s not in inside]
        for sealed in files:
            part = between(wanted, sealed.segment.first, sealed.segment.last)
            lacks = len(part) - len(sealed.locals_of(part))
            if lacks:
                raise CorruptSegment(f"segment [{first}, {last}] lacks {lacks} live vectors", path=sealed.path)
            served.append(Served(sealed, None).only(part))
        ordered = tuple(sorted(served, key=lambda s: s.sealed.segment.first))
        return self._growing.removed(first, last), ordered

    def _open_at_load(self, segment: PublishedSegment) -> SealedSegment | None:
        for own in (False, True):
            path = os.path.join(self.directory, segment_file(segment, own=own))
            if not os.path.exists(path):
                continue
            try:
                return SealedSegment(path, segment, self.spec, own=own)
            except CorruptSegment:
                # Reported by the keeper through take_corrupt(); the rows come from the documents meanwhile.
                self._corrupt.append(segment)
                with suppress(*SHORTAGES):  # whoever keeps the files deletes what is reported
                    remove_file(path)
        return None

    def _read_rows(self, rows: Rows, growing: GrowingSegment, first: int, last: int) -> GrowingSegment:
        for ordinals, vectors in rows(first, last) if self._holds else ():
            growing = growing.appended(np.asarray(ordinals, np.int64), np.asarray(vectors, self.spec.form.array))
        return growing
