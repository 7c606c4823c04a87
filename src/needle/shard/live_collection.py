"""The open collections of a replica: what only apply changes, and the immutable views of it that searches get.

A view stays as it was made: apply replaces what it changes. It must not know commands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

import immutables
import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.collection_sizes import IndexProgress
from needle.base.config import SegmentConfig
from needle.base.dtypes import StoredRows
from needle.base.errors import CollectionNotFound, StorageError
from needle.base.model import CollectionSpec
from needle.routing.shard_map import KeyRange
from needle.shard.apply.changes import CollectionChange
from needle.shard.apply.holdings import Fence, encode_holdings
from needle.shard.apply.named import missing
from needle.shard.catalog_known import ANY, CatalogKnown
from needle.shard.documents.digest import DigestParts
from needle.shard.documents.metadata_rows import Rows
from needle.shard.documents.records import AppliedAt, CollectionRecord
from needle.shard.documents.store import DocumentStore
from needle.shard.fields.field_files import FieldFiles
from needle.shard.fields.index_budget import IndexBudget
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.index_change import AS_MADE, IndexState, progress_of
from needle.shard.name_changes import NO_NAMES, NameChanges
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.pins import NO_PINS, Pins
from needle.shard.places import Places
from needle.shard.plan import PublishedSegment, seal_when_quiet_at
from needle.shard.segments.collection_vectors import LOAD_ROWS, CollectionVectors
from needle.shard.segments.view import VectorsView
from needle.shard.weights import SAMPLE, Weights

log = logging.getLogger("needle.shard")
NOT_INDEXED: Final = IndexProgress()
NO_VECTORS: Final[immutables.Map[str, tuple[str, ...]]] = immutables.Map()


@dataclass(frozen=True, slots=True)
class CollectionView:
    """One collection at one applied index. live: the ordinals that an id points at. hidden: those of them that must
    not be seen, because the shard does not own their keys (yet, or any more). places: the vectors of those that have
    one of another ordinal. changes: grows with every view of an opened collection that shows something else.
    sealed_from: so many vectors without an index file are enough for one."""

    record: CollectionRecord
    vectors: VectorsView
    live: OrdinalSet
    payload: PayloadIndex
    hidden: BitMap = field(default_factory=BitMap)
    places: Places = field(default_factory=Places)
    document_bytes: int = 0
    changes: int = 0
    index: IndexProgress = NOT_INDEXED
    sealed_from: int = 0

    @property
    def live_bytes(self) -> int:
        """What the documents that a reader can see weigh."""
        return self.visible * self.document_bytes

    @property
    def visible(self) -> int:
        """How many documents a reader can see."""
        return self.record.documents - len(self.hidden)

    @property
    def counted(self) -> int:
        """So many of them are documents: vectors with a name are of documents that are counted already."""
        return 0 if self.record.spec.of else self.visible


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What searches see: all collections by name, at one applied index, and the file that holds their documents; and
    what the shard owns there, if that ever changed. visible: documents that a reader can see, of all collections;
    live_bytes: what they weigh. pins: open ones. catalog: what whoever serves must know. vectors: the named vectors of
    each collection that has some, by their names in here; vector_count: how many. names: which collections came and
    went lately. parts: of the digests of this state."""

    at: AppliedAt
    collections: immutables.Map[str, CollectionView]
    opened: DocumentStore | None = None
    fence: Fence | None = None
    visible: int = 0
    live_bytes: int = 0
    pins: Pins = NO_PINS
    catalog: CatalogKnown = ANY
    vectors: immutables.Map[str, tuple[str, ...]] = NO_VECTORS
    vector_count: int = 0
    names: NameChanges = NO_NAMES
    parts: DigestParts = field(default_factory=DigestParts)

    @property
    def store(self) -> DocumentStore:
        """Raises StorageError in a replica whose file could not be opened, which has no collections either."""
        if self.opened is None:
            raise StorageError("the documents of this replica are not open")
        return self.opened

    def collection(self, name: str) -> CollectionView:
        """One that has documents, so not that of a named vector: it has no metadata that a bound could judge. Raises
        CollectionNotFound."""
        held = self.collections.get(name)
        if held is None or held.record.spec.of:
            raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
        return held

    @property
    def collection_count(self) -> int:
        """How many collections there are. Not those of named vectors."""
        return len(self.collections) - self.vector_count

    def spec(self, name: str) -> CollectionSpec | None:
        """Of one collection; None if there is none."""
        held = self.collections.get(name)
        return None if held is None else held.record.spec

    def named(self, only: str = "") -> list[CollectionView]:
        """Every collection, by name; or that of one name, if it is there. Not those of named vectors."""
        if only:
            found = self.collections.get(only)
            return [] if found is None or found.record.spec.of else [found]
        return [held for _, held in sorted(self.collections.items()) if not held.record.spec.of]

    def vectors_of(self, of: CollectionView) -> list[CollectionView]:
        """All named vectors of a collection, by name."""
        return [self.collections[name] for name in sorted(self.vectors.get(of.record.spec.name, ()))]

    def vector(self, of: CollectionView, name: str) -> CollectionView:
        """A named vector of a collection. Raises CollectionNotFound."""
        held = self.collections.get(name)
        if held is None or held.record.spec.of != of.record.spec.name:
            raise missing(name)
        return held

    def count(self, name: str | None) -> int:
        """Documents in one collection, or in all. Raises CollectionNotFound."""
        return self.visible if name is None else self.collection(name).visible

    def digest(self) -> str:
        """See Replica.digest."""
        records = [one.record for one in self.collections.values()]
        return self.parts.digest(records, b"" if self.fence is None else encode_holdings(self.fence.holdings))


def digest_of(records: Iterable[CollectionRecord], holdings: bytes | None) -> str:
    """Of a replica with these collections. holdings: encoded; None if they never changed."""
    return DigestParts().digest(records, holdings or b"")


class _StoredMetadata:
    """The metadata of one collection's documents (metadata_rows.Stored). live: the collection's, the newest; it has it
    from here, for what both refer to each other stays until the garbage collector comes."""

    def __init__(self, store: DocumentStore, collection_id: int) -> None:
        self._store = store
        self._id = collection_id
        self.live = OrdinalSet()

    def between(self, first: int, end: int) -> Rows:
        return self._store.metadata_between(self._id, first, end)

    def some(self, ordinals: Sequence[int]) -> Rows:
        return self._store.metadata_of(self._id, ordinals)

    def placed(self, ids: Sequence[str], universe: BitMap) -> BitMap:
        return self._store.placed(self._id, ids, universe, partial(self._died, universe))

    def _died(self, universe: BitMap) -> BitMap:
        """Those of once live ordinals that a read which has begun may find dead. In this order: a batch is written, and
        then `live` has it."""
        lately = self._store.writer.buried(self._id)
        return (universe - self.live.bitmap()) | (universe & lately)


class LiveCollection:
    """One open collection incarnation; only apply changes it."""

    def __init__(
        self,
        record: CollectionRecord,
        store: DocumentStore,
        directory: str,
        config: SegmentConfig | None,
        budget: IndexBudget,
        files: FieldFiles | None = None,
    ) -> None:
        self.record = record
        self.places = Places()
        self._vector_ordinals: OrdinalSet | None = None
        """Of all documents, if `places` ever knew any; otherwise they are `live`."""
        self.hidden: Mapping[int, BitMap] = {}
        """By move (holdings.Transfer)."""
        self._invisible = BitMap()
        self.marked: Mapping[int, BitMap] = {}
        """By move: what its Release will hide, as far as it was looked for; some of it may be dead by now."""
        self.manifest: list[PublishedSegment] = []
        self.indexing = AS_MADE
        self._index = NOT_INDEXED
        self.first_expiry = 0
        """Nothing of it expires before this instant (microseconds since 1970); 0: nothing does."""
        self._changes = 0
        self.vectors = CollectionVectors(record.id, record.spec, directory, config)
        self._stored = _StoredMetadata(store, record.id)
        self._new_payload = partial(PayloadIndex, self._stored, budget, record.id, files)
        self.payload = self._new_payload()
        self._weights = Weights(record.spec.vector_bytes)
        self._sealed_from = seal_when_quiet_at(self.vectors.config, record.spec.dimensions)
        self._store = store

    def rows(self, first: int, last: int) -> Iterator[tuple[npt.NDArray[np.int64], StoredRows]]:
        """Live vectors of [first, last] from SQLite, a page at a time: (ordinals (n,) ascending, vectors as they
        are stored)."""
        for page in self.vector_ordinals.pages(first, last, LOAD_ROWS):
            yield self._store.vectors_of(self.record.id, self.record.spec.form, page)

    @property
    def live(self) -> OrdinalSet:
        """The ordinals that an id points at."""
        return self._stored.live

    @property
    def vector_ordinals(self) -> OrdinalSet:
        """Those that the vectors of all documents have."""
        return self.live if self._vector_ordinals is None else self._vector_ordinals

    def load(self, manifest: list[PublishedSegment], indexing: IndexState = AS_MADE) -> None:
        if self.record.documents:
            ordinals, vectors = self._store.live_ordinals(self.record.id)
            self._stored.live, self.places = OrdinalSet.of(ordinals), Places.of(ordinals, vectors)
            if self.places:
                self._vector_ordinals = OrdinalSet.of(vectors)
            self._weights.note(self._store.last_rows(self.record.id, SAMPLE))
            self.first_expiry = self._store.first_expiry(self.record.id)
        self.manifest, self.indexing = manifest, indexing
        self._index = progress_of(indexing, self.record.spec.index, manifest)
        self.vectors.load(self.record.next_ordinal, self.vector_ordinals, manifest, self.rows, indexing)

    def hide(self, fence: Fence | None) -> None:
        """Find out what must not be seen, when the file is opened."""
        if self.record.spec.of:
            return
        hiding = [one for one in fence.holdings.transfers if one.hides] if fence is not None else []
        self._hide({one.move: found for one in hiding if (found := self._of(fence, one.ranges))})
        marking = [one for one in fence.holdings.transfers if one.marks] if fence is not None else []
        reached = [(one, one.cursors.get(self.record.spec.name, -1)) for one in marking]
        marked = {one.move: self._of(fence, one.ranges) & BitMap(range(upto + 1)) for one, upto in reached}
        self.marked = {move: found for move, found in marked.items() if found}

    def shows(self, ordinal: int) -> bool:
        """Whether a reader can see the document with this ordinal, which is current."""
        return ordinal not in self._invisible

    def _hide(self, hidden: Mapping[int, BitMap]) -> None:
        self.hidden = hidden
        self._invisible = BitMap.union(BitMap(), *hidden.values())

    def _of(self, fence: Fence | None, ranges: Sequence[KeyRange]) -> BitMap:
        """The ordinals of all current documents with keys in `ranges`."""
        if fence is None:
            return BitMap()
        member = fence.member(ranges)
        rows = self._store.live(self.record.id, metadata=fence.custom)
        return BitMap([ordinal for ordinal, name, metadata in rows if member(name, metadata)])

    def take(self, change: CollectionChange) -> None:
        """Bring it to where the batch has brought the file."""
        self._changes += 1
        self.record = change.record
        self.vectors.begin()
        written, kept = change.ordinals, [at for at, _ in change.kept]
        if change.vectors:
            block = b"".join(change.vectors) if len(change.vectors) > 1 else change.vectors[0]
            vectors = change.record.spec.form.rows(block)
            self.vectors.append_at(_without(written, kept), vectors)
        if change.rows and not self.record.spec.of:
            self.payload.add(list(zip(written, [row[3] for row in change.rows], strict=True)))
        if change.rows:
            self._weights.note([(row[1], row[3]) for row in islice(change.rows, SAMPLE)])
        if kept and self._vector_ordinals is None:
            self._vector_ordinals = self.live
        if self._vector_ordinals is not None and (change.rows or change.dead_vectors):
            self._vector_ordinals = self._vector_ordinals.written(written, [*kept, *change.dead_vectors])
        if change.rows or change.dead:
            self._stored.live = self.live.written(written, change.dead)
        if kept:
            self.places = self.places.added(change.kept, self.live.bitmap)
        if change.dead_vectors:
            self.vectors.tombstone(change.dead_vectors)
        for segment in change.published:
            self.vectors.publish(segment)
        if change.manifest is not None:
            self.manifest = change.manifest
        if change.indexing is not None:
            self.indexing = change.indexing
            self.vectors.reindex(change.indexing, change.record.spec, self.manifest)
        if change.manifest is not None or change.indexing is not None:
            self._index = progress_of(self.indexing, self.record.spec.index, self.manifest)
        if change.first_expiry and not 0 < self.first_expiry <= change.first_expiry:
            self.first_expiry = change.first_expiry
        if change.hidden is not None:
            self._hide(change.hidden)
        if change.marked is not None:
            self.marked = change.marked
        self.vectors.commit()

    def take_loaded(self, change: CollectionChange) -> None:
        """The same after a bulk load into what was empty: from the file, as when it is opened, so that no vector that
        an index file has comes into memory."""
        self._changes += 1
        self.record = change.record
        self.payload.close()
        self.payload = self._new_payload()
        self.load(change.manifest or [], change.indexing or self.indexing)

    def close(self) -> None:
        """Give memory and files back. Searches that run get their answers."""
        self.vectors.close()
        self.payload.close()

    def view(self) -> CollectionView:
        vectors, size = self.vectors.view(), self._weights.document_bytes
        state = self.record, vectors, self.live, self.payload, self._invisible, self.places
        return CollectionView(*state, size, self._changes, self._index, self._sealed_from)


def _without(written: Sequence[int], left_out: Sequence[int]) -> npt.NDArray[np.int64]:
    """The ordinals without some; both ascend."""
    if isinstance(written, range):
        ordinals = np.arange(written.start, written.stop, dtype=np.int64)
        return np.delete(ordinals, np.array(left_out, np.int64) - written.start) if left_out else ordinals
    return np.setdiff1d(np.array(written, np.int64), np.array(left_out, np.int64), assume_unique=True)
