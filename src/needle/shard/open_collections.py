"""The collections that a replica has open, by name and by number. See live_collection.py for one of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from needle.routing.topology import called
from needle.shard.documents.records import ORDINAL_MAX, ORDINAL_WARN
from needle.shard.fields.index_budget import FieldName
from needle.shard.live_collection import NO_VECTORS, LiveCollection, ReplicaView
from needle.shard.name_changes import NameChanges
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.soonest import Soonest

log = logging.getLogger("needle.shard")


class OpenCollections:
    """Every open collection of a replica, by name and by id; only apply changes them."""

    def __init__(self) -> None:
        self.named: dict[str, LiveCollection] = {}
        self.numbered: dict[int, LiveCollection] = {}
        self.worn: set[int] = set()
        """Ids of those that have used up more than half of their ordinals."""
        self.moving: set[int] = set()
        """Ids of those of which a move hides documents, or has marked some."""
        self._expiring = Soonest()
        self.vectors_by = NO_VECTORS
        """See ReplicaView.vectors; of each in the order of their ids."""
        self.vector_count = 0
        """Of all named vectors."""
        self.names = NameChanges(of=object())
        """See ReplicaView.names."""

    def vector_names(self, name: str) -> Sequence[str]:
        """The named vectors of a collection, by their names in the shard, in the order of their ids."""
        return self.vectors_by.get(name, ())

    def add(self, live: LiveCollection) -> None:
        """In the order of their ids."""
        if of := live.record.spec.of:
            self.vector_count += 1
            self.vectors_by = self.vectors_by.set(of, (*self.vector_names(of), live.record.spec.name))
        self.named[live.record.spec.name] = self.numbered[live.record.id] = live
        self.names = self.names.with_one(live.record.spec.name)
        self.note(live)

    def note(self, live: LiveCollection) -> None:
        """It has taken a batch, or was read."""
        record = live.record
        self._expiring.put(record.id, live.first_expiry)
        if live.hidden or live.marked:
            self.moving.add(record.id)
        else:
            self.moving.discard(record.id)
        if record.next_ordinal > ORDINAL_WARN and record.id not in self.worn:
            self.worn.add(record.id)
            log.warning(
                "collection %r has taken %d document versions of the %d that one can take: copy it into a new one in "
                "time, see docs/operations.md",
                called(record.spec.name),
                record.next_ordinal,
                ORDINAL_MAX,
            )

    def remove(self, collection_id: int) -> LiveCollection:
        """It has to be there."""
        self.worn.discard(collection_id)
        self.moving.discard(collection_id)
        self._expiring.put(collection_id, 0)
        live = self.numbered.pop(collection_id)
        name, of = live.record.spec.name, live.record.spec.of
        del self.named[name]
        self.names = self.names.with_one(name)
        if of:
            self.vector_count -= 1
            left = tuple(one for one in self.vector_names(of) if one != name)
            self.vectors_by = self.vectors_by.set(of, left) if left else self.vectors_by.delete(of)
        return live

    # --- from any thread, while apply adds and drops -----------------------------------------------------------------
    def vectors(self) -> list[CollectionVectors]:
        """Of every collection."""
        return [live.vectors for live in list(self.numbered.values())]

    def vectors_of(self, collection_id: int) -> CollectionVectors | None:
        """Of one collection; None if there is none."""
        live = self.numbered.get(collection_id)
        return None if live is None else live.vectors

    def first_expiring(self) -> tuple[int, LiveCollection] | None:
        """The collection of which something may expire first, and when; None if nothing does."""
        first = self._expiring.first()
        live = None if first is None else self.numbered.get(first[1])
        return None if first is None or live is None else (first[0], live)

    def worn_shares(self) -> list[tuple[str, float]]:
        """The names of the worn ones, and how much of their ordinals they have used up."""
        held = [live.record for id_ in sorted(self.worn) if (live := self.numbered.get(id_)) is not None]
        return [(record.spec.name, record.next_ordinal / ORDINAL_MAX) for record in held]

    def first_names(self, count: int) -> list[str]:
        """Of up to `count` collections, the oldest ones."""
        while True:
            try:
                return list(islice(self.named, count))
            except RuntimeError:  # apply adds or drops one at this moment
                continue

    def prepare_fields(self, shown: ReplicaView, names: Sequence[FieldName]) -> None:
        """Index these fields in the background. shown: a view's documents are all known to its indexes, and not those
        that apply is at."""
        for collection_id in {name[0] for name in names}:
            live = self.numbered.get(collection_id)
            view = None if live is None else shown.collections.get(live.record.spec.name)
            if view is not None and view.record.id == collection_id:
                keys = [(path, instants) for other, path, instants in names if other == collection_id]
                view.payload.prepare(keys, view.record.next_ordinal, view.record.documents)
