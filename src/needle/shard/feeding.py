"""A page of a change feed: effects of the log (effects.py), with the documents that they name.

Invariant: what a page tells was applied, and so committed; it passes over nothing. If a row that it needs is gone, it
says so instead. A page ends before a move of ranges that brought documents here, for the feed has to look at the other
shards first. Threads: any. It must not know the log, the network or the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

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
from needle.shard.reads import given
from needle.shard.searching import not_served

NOTHING: Final[Mapping[str, bytes]] = {}
NOTHING_NAMED: Final[Mapping[int, Mapping[str, bytes]]] = {}
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
    position behind it. distance: if it was to be near. named: its named vectors that were asked for."""

    kind: str
    document: StoredDocument
    after: Position
    distance: float = 0.0
    named: Mapping[str, bytes] = NOTHING


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
    named: tuple[str, ...] = ()


class _Wish:
    """Which documents there are for a reader. live: those that are current. vectors: the record of their vectors;
    named: of others, by the name inside the shard."""

    def __init__(self, view: ReplicaView, wanted: Wanted, limits: Limits) -> None:
        """Raises InvalidArgument, CollectionNotFound."""
        held, near = view.collection(wanted.collection), wanted.near
        self.live = held.live
        self.vectors = (view.vector(held, near.vector_name) if near and near.vector_name else held).record
        self.named = {name: view.vector(held, name).record for name in wanted.named}
        self._node = both(wanted.filter, wanted.bound, limits)
        self._near = None if near is None else Nearness(self.vectors, near)
        self.needs_vectors = self._near is not None
        widths = [4 * one.spec.dimensions for one in (self.vectors, *self.named.values())]
        self.chunk = max(1, min(CHUNK, BYTES_MAX // sum(widths)))
        """So many are read at once."""

    def those(self, documents: dict[int, StoredDocument]) -> dict[int, float]:
        """By ordinal, of those that are: how near, 0 if that is not asked for."""
        node = self._node
        if node is not None:
            documents = {at: one for at, one in documents.items() if _matches(node, one)}
        if self._near is None:
            return dict.fromkeys(documents, 0.0)
        return self._near.distances(one for one in documents.values() if one.vector)


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
    rows = _Rows(view, record, effects, _Wish(view, wanted, limits), wanted.with_vectors)
    return _read(rows, _ones(found, record, wanted.position, skipped), wanted, all_of_it)


class _Rows:
    """The rows that changes name."""

    def __init__(
        self, view: ReplicaView, record: CollectionRecord, effects: EffectLog, wish: _Wish, with_vectors: bool
    ) -> None:
        self.view, self.record, self.wish, self.with_vectors = view, record, wish, with_vectors
        self._effects = effects

    def documents(self, part: list[_One]) -> dict[int, StoredDocument] | None:
        """By ordinal, with vectors as they are stored; None if some are gone."""
        record, store, of = self.record, self.view.store, self.wish.vectors
        new = [one.new for one in part if one.new != ABSENT]
        olds = [one.old for one in part if one.old != ABSENT]
        with_old, with_new = self.wish.needs_vectors, self.wish.needs_vectors or self.with_vectors
        here = of.id == record.id
        found = store.by_ordinal(record.id, olds, metadata=True, vectors=with_old and here)
        found.update(store.by_ordinal(record.id, new, metadata=True, vectors=with_new and here))
        if any(at not in found for at in [*new, *olds]):
            return None
        if not here:
            rows = self.named(of.id, part, [*olds, *new])
            return None if rows is None else {at: replace(one, vector=rows.get(at, b"")) for at, one in found.items()}
        with_vectors = [*(new if with_new else ()), *(olds if with_old else ())]
        return found if all(found[at].vector for at in with_vectors) else None

    def named(self, vector_id: int, part: list[_One], ordinals: Sequence[int]) -> dict[int, bytes] | None:
        """The rows that a named vector has under these ordinals, which changes have; None if some are gone.

        What is not there was never there, but for documents that a move has taken away since: where too many left,
        their rows are purged (moved_rows.py), and the effect that wrote them tells whether they were there."""
        found = self.view.store.by_ordinal(vector_id, ordinals, metadata=False, vectors=True)
        doubtful: dict[int, list[int]] = {}
        for one in part:
            if one.new != ABSENT and one.new not in found and one.new not in self.wish.live:
                doubtful.setdefault(one.after.entry, []).append(one.new)
        if any(self._effects.wrote(entry, vector_id, rows) is not False for entry, rows in doubtful.items()):
            return None
        return {at: row.vector for at, row in found.items()}

    def shown(self, documents: list[StoredDocument]) -> list[StoredDocument]:
        """As the reader gets them."""
        if self.with_vectors:
            return given(self.wish.vectors, documents)
        return [replace(one, vector=b"") for one in documents] if self.wish.needs_vectors else documents

    def with_named(self, part: list[_One], documents: list[StoredDocument]) -> dict[int, dict[str, bytes]] | None:
        """By ordinal, the named vectors that are wanted; None if some are gone."""
        ordinals = [one.ordinal for one in documents]
        told: dict[int, dict[str, bytes]] = {at: {} for at in ordinals}
        for name, record in self.wish.named.items():
            rows = self.named(record.id, part, ordinals)
            if rows is None:
                return None
            for at, row in rows.items():
                told[at][name] = record.spec.form.given(row)
        return told


def _read(rows: _Rows, pending: Iterator[_One], wanted: Wanted, all_of_it: Fed) -> Fed | None:
    wish, size, looked, told = rows.wish, 0, 0, list[Told]()
    read, count = 0, min(CHUNK_FIRST, wish.chunk)
    reached = wanted.position
    try:
        while True:
            part = [one for _, one in zip(range(min(count, wanted.limit - len(told))), pending, strict=False)]
            if not part:
                return Fed(told, all_of_it.reached, all_of_it.owned, all_of_it.more)
            documents = rows.documents(part)
            if documents is None:
                return None
            read += sum(len(one.metadata) + len(one.vector) + len(one.id) for one in documents.values())
            there = wish.those(documents)
            new = [documents[one.new] for one in part if one.new in there]
            named = rows.with_named([one for one in part if one.new in there], new) if wish.named else NOTHING_NAMED
            if named is None:
                return None
            documents.update((one.ordinal, one) for one in rows.shown(new))
            for one in part:
                reached = one.after
                if (change := _told(one, documents, there, named)) is not None:
                    told.append(change)
                    size += len(change.document.metadata) + len(change.document.vector) + len(change.document.id)
                    size += sum(map(len, change.named.values()))
            looked, count = looked + len(part), min(wish.chunk, 4 * count)
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


def _told(
    one: _One, documents: dict[int, StoredDocument], there: dict[int, float], named: Mapping[int, Mapping[str, bytes]]
) -> Told | None:
    """What a reader hears for whom only documents in `there` are: one that is not any more is deleted."""
    if one.new in there:
        kind = INSERT if one.old not in there else UPDATE
        return Told(kind, documents[one.new], one.after, there[one.new], named.get(one.new, NOTHING))
    if one.old in there:
        return Told(DELETE, StoredDocument(documents[one.old].id, ABSENT, one.version, b"", b""), one.after)
    return None


def _matches(node: Node, document: StoredDocument) -> bool:
    return evaluate(node, decode_metadata(document.metadata), document.id)
