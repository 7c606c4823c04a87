"""The collections that a replica holds now, for those that look after them beside the log: the segment keeper, the
indexes of fields, the metrics.

From any thread, while apply adds and drops collections and installations replace all of them: ask again for each look.
It must not know commands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from needle.base.sparse import SPARSE_KIND
from needle.base.text import TextField
from needle.protocol.upkeep_commands import LoadRows
from needle.shard.agenda import Changed
from needle.shard.fields.filter_match import Key
from needle.shard.fields.index_budget import FieldName
from needle.shard.fields.run_making import kind_of
from needle.shard.in_flight import InFlight
from needle.shard.live_collection import CollectionView
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.states import States


class HeldCollections:
    """Of one replica. Its first members are segments.keeper.VectorsHost."""

    def __init__(self, states: States, changed: Changed, in_flight: InFlight) -> None:
        self._states = states
        self._in_flight = in_flight
        self._changed = changed
        self._declared: dict[str, None] = {}
        """Names of collections that may have declared indexes."""

    @property
    def segment_directory(self) -> str:
        """See VectorsHost; so the following."""
        return self._states.segment_directory

    def collection_vectors(self) -> list[CollectionVectors]:
        if self._states.damage is not None:
            return []
        return self._states.live.vectors()

    def vectors_of(self, collection_id: int) -> CollectionVectors | None:
        return self._states.live.vectors_of(collection_id)

    def was_dropped(self, collection_id: int) -> bool:
        # In this order: an id is handed out before the collection is here, but not before its entry is applied.
        return self.was_made(collection_id) and self._states.live.vectors_of(collection_id) is None

    def was_made(self, collection_id: int) -> bool:
        """Whether an entry that is applied here gave a collection this id."""
        return collection_id < self._states.view.at.next_collection_id

    def refused_load(self, index: int, command: LoadRows) -> bool:
        """Whether the bulk load in the entry of that index was applied here, and refused: a collection keeps the
        checksum of the one load that it ever takes. False where that is not known: of one that was dropped."""
        # In this order: what is looked at second is as new as the first, or newer.
        applied = self._states.view.at.index
        vectors = self._states.live.vectors_of(command.collection_id)
        return index <= applied and vectors is not None and vectors.indexing.loaded != command.checksum

    def take_changed(self) -> Collection[int] | None:
        return self._changed.take()

    def worn(self) -> list[tuple[str, float]]:
        """Collections that have used up more than half of their ordinals, and how much of them."""
        return self._states.live.worn_shares()

    def first(self, count: int) -> list[CollectionView]:
        """Up to `count` collections, the oldest ones."""
        view = self._states.view.collections
        return [view[name] for name in self._states.live.first_names(count) if name in view]

    def prepare_fields(self, names: Sequence[FieldName]) -> None:
        """Index these fields in the background: searches of the leader use them."""
        self._states.live.prepare_fields(self._states.view, names)

    def declare_fields(
        self,
        declared: Mapping[str, Collection[str]],
        texts: Mapping[str, TextField],
        sparse: Mapping[str, Collection[str]],
    ) -> None:
        """From now on keep indexes of these fields, of the words of these texts and of these sparse vectors, by name of
        the collection in here, and of no others but while searches use them. Made in the background.
        Looks at those that are named, now or the last time."""
        wanted, held = dict.fromkeys((*declared, *texts, *sparse)), self._states.view.collections
        looked_at, self._declared = self._declared | wanted, wanted
        for name in looked_at:
            if (view := held.get(name)) is None:
                continue
            paths = [tuple(path.split(".")) for path in declared.get(name, ())]
            text, vectors = texts.get(name), sparse.get(name, ())
            if paths or text is not None or vectors or view.payload.declared():
                keys: list[Key] = [(path, instants) for path in paths for instants in (False, True)]
                keys += [] if text is None else [(tuple(text.field.split(".")), kind_of(text))]
                keys += [((one,), SPARSE_KIND) for one in vectors]
                view.payload.declare(keys, view.record.next_ordinal, view.record.documents)

    def index_room(self, collection: str, path: str, kind: str = "") -> tuple[int, int]:
        """Bytes that an index of a field would take, and that there are for it. kind: SPARSE_KIND, or "" for one of
        values. Blocking. Raises CollectionNotFound."""
        view = self._states.view.collection(collection)
        return view.payload.room(tuple(path.split(".")), view.record.next_ordinal, view.record.documents, kind)

    def save_fields(self, rows_min: int) -> bool:
        """Keep one index of a field for the next start, to which so many rows have come since it was kept; False if
        there is none. Blocking; raises StorageError, DiskFull or TooManyFiles, and what was kept before stays."""
        with self._in_flight.enter():  # what replaces or closes the state waits
            opened = self._states.opened
            return opened is not None and self._states.damage is None and opened.save_fields(rows_min)
