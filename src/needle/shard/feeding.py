"""A page of a change feed: effects of the log (effects.py), with the documents that they name.

Invariant: what a page tells was applied, and so committed; it passes over nothing. If a row that it needs is gone, it
says so instead. A page ends before a move of ranges that brought documents here, for the feed has to look at the other
shards first. Threads: any. It must not know the log, the network or the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from needle.base.config import Limits
from needle.base.errors import CorruptDocuments
from needle.base.filters.nodes import Node, evaluate
from needle.protocol.change_calls import Near
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.effects import ABSENT, DELETED, OWNED, RELEASED, WRITTEN, Effect, EffectLog, Position
from needle.shard.live_collection import ReplicaView
from needle.shard.near import Nearness
from needle.shard.query import both
from needle.shard.reads import given, not_served

INSERT, UPDATE, DELETE = "insert", "update", "delete"
EFFECTS_MAX: Final = 10_000
DOCUMENTS_MAX: Final = 10_000
BYTES_MAX: Final = 4 << 20
"""A page looks at so many effects and documents, and reads and holds so many bytes, about: it has to be there before
who asks gives up, also if nothing of what it reads is told."""
CHUNK_FIRST: Final = 16
CHUNK: Final = 256
"""So many changes are read at once: few first, for nobody knows yet how large their documents are."""


class Told(NamedTuple):
    """One change. document: as the entry left it, b"" for vector and metadata of one that is deleted. after: the
    position behind it. distance: if it was to be near."""

    kind: str
    document: StoredDocument
    after: Position
    distance: float = 0.0


class Fed(NamedTuple):
    """told: in the order of the log. reached: up to where was looked. owned: the move of ranges that is the next thing
    there; 0 if it is not. more: there is more to look at, or ranges left, which is to be heard at once. None in the
    place of a page: what comes next is not known here any more."""

    told: list[Told]
    reached: Position
    owned: int
    more: bool = False


class Wanted(NamedTuple):
    """See protocol.change_calls.ChangesCall."""

    collection: str
    position: Position
    limit: int
    with_vectors: bool
    bound: bytes = b""
    past: int = 0
    filter: bytes = b""
    near: Near | None = None


class _Wish:
    """Which documents there are for a reader."""

    def __init__(self, record: CollectionRecord, wanted: Wanted, limits: Limits) -> None:
        """Raises InvalidArgument."""
        self._record = record
        self._node = both(wanted.filter, wanted.bound, limits)
        self._near = None if wanted.near is None else Nearness(record, wanted.near)
        self.needs_vectors = self._near is not None

    def those(self, documents: dict[int, StoredDocument]) -> dict[int, float]:
        """By ordinal, of those that are: how near, 0 if that is not asked for."""
        node = self._node
        if node is not None:
            documents = {at: one for at, one in documents.items() if _matches(node, one)}
        return dict.fromkeys(documents, 0.0) if self._near is None else self._near.distances(documents.values())


class _One(NamedTuple):
    """A change that was not read yet. new, old: ordinals, or ABSENT."""

    new: int
    old: int
    version: int
    after: Position


def read_changes(view: ReplicaView, effects: EffectLog, wanted: Wanted, limits: Limits) -> Fed | None:
    """The next changes; see Fed. Raises CollectionNotFound, ReplicaDamaged."""
    record = view.collection(wanted.collection).record
    page = effects.after(wanted.position, EFFECTS_MAX, DOCUMENTS_MAX, record.id)
    if page is None:
        return None
    found, more, within, skipped = page
    owned, reached = 0, Position(max(view.at.index + 1, wanted.position.entry))
    if more:
        reached = Position(found[-1].entry + 1)
    for at, effect in enumerate(found):
        if effect.kind == OWNED and effect.first != wanted.past:
            owned, reached, found, more = effect.first, Position(effect.entry), found[:at], False
            within = False
            break
    # Another shard may wait until the feed is behind this, and so the answer for nothing else.
    more = more or any(effect.kind == RELEASED for effect in found)
    if found and found[-1].entry >= reached.entry:  # applied since this view was taken
        reached = Position(found[-1].entry + 1)
    if within:
        reached = _end_of(found, record, wanted.position, skipped)
    all_of_it = Fed([], max(reached, wanted.position), owned, more)
    return _read(view, record, _ones(found, record, wanted.position, skipped), wanted, all_of_it, limits)


def _read(
    view: ReplicaView, record: CollectionRecord, pending: Iterator[_One], wanted: Wanted, all_of_it: Fed, limits: Limits
) -> Fed | None:
    wish, size, looked, told = _Wish(record, wanted, limits), 0, 0, list[Told]()
    read, count = 0, CHUNK_FIRST
    reached = wanted.position
    try:
        while True:
            part = [one for _, one in zip(range(min(count, wanted.limit - len(told))), pending, strict=False)]
            if not part:
                return Fed(told, all_of_it.reached, all_of_it.owned, all_of_it.more)
            documents = _documents(view, record, part, wanted.with_vectors, wish.needs_vectors)
            if documents is None:
                return None
            read += sum(len(one.metadata) + len(one.vector) + len(one.id) for one in documents.values())
            there = wish.those(documents)
            new = [one for one in part if one.new in there]
            shown = [documents[one.new] for one in new]
            if wanted.with_vectors:
                shown = given(record, shown)
            elif wish.needs_vectors:
                shown = [msgspec.structs.replace(one, vector=b"") for one in shown]
            documents.update(zip([one.new for one in new], shown, strict=True))
            for one in part:
                reached = one.after
                if (change := _told(one, documents, there)) is not None:
                    told.append(change)
                    size += len(change.document.metadata) + len(change.document.vector) + len(change.document.id)
            looked, count = looked + len(part), min(CHUNK, 4 * count)
            if len(told) >= wanted.limit or max(size, read) > BYTES_MAX or looked >= DOCUMENTS_MAX:
                return Fed(told, reached, 0, True)
    except CorruptDocuments as error:
        raise not_served(error) from error  # the store has told of it


def _changes(found: list[Effect], record: CollectionRecord) -> list[Effect]:
    return [one for one in found if one.collection_id == record.id and one.kind in (WRITTEN, DELETED)]


def _end_of(found: list[Effect], record: CollectionRecord, position: Position, skipped: int) -> Position:
    """Behind these, of which the last one's entry has more."""
    last = found[-1].entry
    documents = sum(len(effect.olds) for effect in _changes(found, record) if effect.entry == last)
    return Position(last, documents + (skipped if last == position.entry else 0))


def _ones(found: list[Effect], record: CollectionRecord, position: Position, skipped: int) -> Iterator[_One]:
    index, offset = position.entry, skipped
    for effect in _changes(found, record):
        if effect.entry != index:
            index, offset = effect.entry, 0
        for at, old in enumerate(effect.olds):
            offset += 1
            if index > position.entry or offset > position.offset:
                new = ABSENT if effect.kind == DELETED else effect.first + at
                yield _One(new, old, effect.version, Position(index, offset))


def _documents(
    view: ReplicaView, record: CollectionRecord, part: list[_One], vectors: bool, old_vectors: bool
) -> dict[int, StoredDocument] | None:
    """The rows that these changes name, by ordinal, with vectors as they are stored; None if some are gone."""
    new = [one.new for one in part if one.new != ABSENT]
    olds = [one.old for one in part if one.old != ABSENT]
    found = view.store.by_ordinal(record.id, olds, metadata=True, vectors=old_vectors)
    found.update(view.store.by_ordinal(record.id, new, metadata=True, vectors=vectors or old_vectors))
    with_vectors = [*(new if vectors or old_vectors else ()), *(olds if old_vectors else ())]
    if any(at not in found for at in [*new, *olds]) or not all(found[at].vector for at in with_vectors):
        return None
    return found


def _told(one: _One, documents: dict[int, StoredDocument], there: dict[int, float]) -> Told | None:
    """What a reader hears for whom only documents in `there` are: one that is not any more is deleted."""
    if one.new in there:
        return Told(INSERT if one.old not in there else UPDATE, documents[one.new], one.after, there[one.new])
    if one.old in there:
        return Told(DELETE, StoredDocument(documents[one.old].id, ABSENT, one.version, b"", b""), one.after)
    return None


def _matches(node: Node, document: StoredDocument) -> bool:
    return evaluate(node, decode_metadata(document.metadata), document.id)
