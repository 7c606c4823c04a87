"""A page of a change feed: effects of the log (effects.py), with the documents that they name.

Invariant: what a page tells was applied, and so committed; it passes over nothing. If a row that it needs is gone, it
says so instead. A page ends before a move of ranges that brought documents here, for the feed has to look at the other
shards first. Threads: any. It must not know the log, the network or the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from needle.base.config import Limits
from needle.base.errors import CorruptDocuments
from needle.base.filters.nodes import Node, evaluate
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.effects import ABSENT, DELETED, OWNED, WRITTEN, Effect, EffectLog, Position
from needle.shard.live_collection import ReplicaView
from needle.shard.query import both
from needle.shard.reads import given, not_served

INSERT, UPDATE, DELETE = "insert", "update", "delete"
EFFECTS_MAX: Final = 10_000
DOCUMENTS_MAX: Final = 10_000
BYTES_MAX: Final = 4 << 20
"""A page looks at so many effects and documents, and holds so many bytes, about."""
CHUNK: Final = 256
"""So many changes are read at once."""


class Told(NamedTuple):
    """One change. document: as the entry left it, b"" for vector and metadata of one that is deleted. after: the
    position behind it."""

    kind: str
    document: StoredDocument
    after: Position


class Fed(NamedTuple):
    """told: in the order of the log. reached: up to where was looked. owned: the move of ranges that is the next thing
    there; 0 if it is not. more: there is more to look at. None in the place of a page: what comes next is not known
    here any more."""

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


class _One(NamedTuple):
    """A change that was not read yet. new, old: ordinals, or ABSENT."""

    new: int
    old: int
    version: int
    after: Position


def read_changes(view: ReplicaView, effects: EffectLog, wanted: Wanted, limits: Limits) -> Fed | None:
    """The next changes; see Fed. Raises CollectionNotFound, ReplicaDamaged."""
    record = view.collection(wanted.collection).record
    found = effects.after(wanted.position, EFFECTS_MAX)
    if found is None:
        return None
    owned, reached = 0, Position(max(view.at.index + 1, wanted.position.entry))
    more = len(found) == EFFECTS_MAX
    if more:
        reached = Position(found[-1].entry)  # its other effects may not be among these
        found = [effect for effect in found if effect.entry < reached.entry]
    for at, effect in enumerate(found):
        if effect.kind == OWNED and effect.first != wanted.past:
            owned, reached, found, more = effect.first, Position(effect.entry), found[:at], False
            break
    if found and found[-1].entry >= reached.entry:  # applied since this view was taken
        reached = Position(found[-1].entry + 1)
    return _read(view, record, found, wanted, Fed([], max(reached, wanted.position), owned, more), limits)


def _read(
    view: ReplicaView, record: CollectionRecord, found: list[Effect], wanted: Wanted, all_of_it: Fed, limits: Limits
) -> Fed | None:
    node, size, looked, told = both(b"", wanted.bound, limits), 0, 0, list[Told]()
    pending = _ones([effect for effect in found if effect.collection_id == record.id], wanted.position)
    reached = wanted.position
    try:
        while True:
            part = [one for _, one in zip(range(min(CHUNK, wanted.limit - len(told))), pending, strict=False)]
            if not part:
                return Fed(told, all_of_it.reached, all_of_it.owned, all_of_it.more)
            documents = _documents(view, record, part, wanted.with_vectors)
            if documents is None:
                return None
            for one in part:
                reached = one.after
                if (change := _told(one, documents, node)) is not None:
                    told.append(change)
                    size += len(change.document.metadata) + len(change.document.vector) + len(change.document.id)
            looked += len(part)
            if len(told) >= wanted.limit or size > BYTES_MAX or looked >= DOCUMENTS_MAX:
                return Fed(told, reached, 0, True)
    except CorruptDocuments as error:
        raise not_served(error) from error  # the store has told of it


def _ones(effects: list[Effect], position: Position) -> Iterator[_One]:
    index = offset = 0
    for effect in effects:
        if effect.kind not in (WRITTEN, DELETED):
            continue
        if effect.entry != index:
            index, offset = effect.entry, 0
        for at, old in enumerate(effect.olds):
            offset += 1
            if index > position.entry or offset > position.offset:
                new = ABSENT if effect.kind == DELETED else effect.first + at
                yield _One(new, old, effect.version, Position(index, offset))


def _documents(
    view: ReplicaView, record: CollectionRecord, part: list[_One], vectors: bool
) -> dict[int, StoredDocument] | None:
    """The rows that these changes name, by ordinal; None if some are gone."""
    new = [one.new for one in part if one.new != ABSENT]
    olds = [one.old for one in part if one.old != ABSENT]
    found = view.store.by_ordinal(record.id, olds, metadata=True, vectors=False)
    found.update(view.store.by_ordinal(record.id, new, metadata=True, vectors=vectors))
    if any(ordinal not in found for ordinal in [*new, *olds]) or (vectors and any(not found[at].vector for at in new)):
        return None
    if vectors:
        found.update(zip(new, given(record, [found[at] for at in new]), strict=True))
    return found


def _told(one: _One, documents: dict[int, StoredDocument], node: Node | None) -> Told | None:
    """What a reader hears who sees only what matches `node`: a document that does not match any more is deleted."""
    now, before = documents.get(one.new), documents.get(one.old)
    if node is not None:
        now, before = (found if found is not None and _matches(node, found) else None for found in (now, before))
    if now is not None:
        return Told(INSERT if before is None else UPDATE, now, one.after)
    if before is not None:
        return Told(DELETE, StoredDocument(before.id, ABSENT, one.version, b"", b""), one.after)
    return None


def _matches(node: Node, document: StoredDocument) -> bool:
    return evaluate(node, decode_metadata(document.metadata), document.id)
