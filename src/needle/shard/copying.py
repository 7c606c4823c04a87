"""What the driver of a move reads from the source's replica: pages of documents, what was deleted meanwhile, and the
rest of ranges that take no writes any more.

Each function works on one view (`Replica.view`), and may find documents that are newer. It must not know targets, logs
or pace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from pyroaring import BitMap

from needle.base.dtypes import DType
from needle.base.errors import CollectionNotFound
from needle.routing.shard_map import KeyRange
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.live_collection import CollectionView, ReplicaView

VectorOf = tuple[str, bytes, DType]
"""See StoredDocument.named."""


@dataclass(frozen=True)
class Looked:
    """Where `deleted` has looked. live: the ordinals up to `upto` that had a document then. again: dead ones that are
    to be looked at once more."""

    live: BitMap
    upto: int
    again: BitMap


@dataclass(frozen=True)
class Rest:
    """What the target lacks of one collection. rows, cursor: as of `page`. deleted, known: as of `deleted`; of a page
    behind which there may be more, none yet and None. record: the collection as it was when this was looked at."""

    name: str
    rows: list[StoredDocument]
    cursor: int
    deleted: list[str]
    known: Looked | None
    record: CollectionRecord


def record(view: ReplicaView, collection: str) -> CollectionRecord:
    """How a collection is. It is another one after each change of a document. Raises CollectionNotFound."""
    return _collection(view, collection).record


def page(
    view: ReplicaView, collection: str, ranges: Sequence[KeyRange], after: int, rows_max: int
) -> tuple[list[StoredDocument], int, bool]:
    """Documents of the ranges, the ordinal up to which was looked, and whether that may not be the end. Raises
    CollectionNotFound."""
    fence, held = view.fence, _collection(view, collection)
    record = held.record
    # Not what is newer than the view: it may have vectors of names that the view does not know.
    rows = view.store.page(record.id, after, record.next_ordinal - 1, rows_max)
    if fence is None or not rows:
        return [], after, False
    member = fence.member(ranges)
    chosen = [row.ordinal for row in rows if member(row.id, row.metadata)]
    found = view.store.by_ordinal(record.id, chosen, metadata=True, vectors=True) if chosen else {}
    expires, named = {row.ordinal: row.expires for row in rows}, _named(view, held, chosen)
    chosen_rows = [
        msgspec.structs.replace(found[ordinal], expires=expires[ordinal], named=tuple(named.get(ordinal, ())))
        for ordinal in chosen
    ]
    return chosen_rows, rows[-1].ordinal, len(rows) == rows_max


def _named(view: ReplicaView, held: CollectionView, ordinals: Sequence[int]) -> dict[int, list[VectorOf]]:
    """The named vectors of documents, by ordinal."""
    found: dict[int, list[VectorOf]] = {}
    for of in view.vectors_of(held) if ordinals else ():
        spec, rows = of.record.spec, view.store.by_ordinal(of.record.id, ordinals, metadata=False, vectors=True)
        for ordinal, row in rows.items():
            found.setdefault(ordinal, []).append((spec.name, row.vector, spec.dtype))
    return found


def deleted(
    view: ReplicaView, collection: str, ranges: Sequence[KeyRange], upto: int, known: Looked | None
) -> tuple[list[str], Looked]:
    """Ids of the ranges that were deleted, or replaced by documents of other ranges, as far as ordinals up to `upto`
    tell, since `known` or ever; and what a later look starts from. It looks at what died between, not at all that is
    dead: of frozen ranges writes wait for it. What was purged before the move is not among them; nothing is while it
    goes on (Replica.checkpoint). Raises CollectionNotFound."""
    fence, held = view.fence, _collection(view, collection)
    upto = min(upto, held.record.next_ordinal - 1)
    span = BitMap(range(upto + 1))
    live = held.live.bitmap() & span
    if known is None:
        fresh = BitMap(view.store.graves(held.record.id, upto))
    else:
        fresh = (known.live & span) - live | BitMap(range(known.upto + 1, upto + 1)) - live | known.again
    if fence is None or not fresh:
        return [], Looked(live, upto, BitMap())
    member = fence.member(ranges)
    rows = view.store.by_ordinal(held.record.id, list(fresh), metadata=True, vectors=False)
    names = {row.ordinal: row.id for row in rows.values() if member(row.id, row.metadata)}
    here = view.store.writer.find(held.record.id, list(dict.fromkeys(names.values()))) if names else {}
    if fence.custom and here:  # there an id does not tell the range
        now = view.store.by_ordinal(held.record.id, [r.ordinal for r in here.values()], metadata=True, vectors=False)
        here = {row.id: here[row.id] for row in now.values() if member(row.id, row.metadata)}
    # Of these the newer document is not copied yet. Should it be deleted before it is, nothing but an older one tells.
    one = {name: ordinal for ordinal, name in names.items()}
    again = BitMap(ordinal for name, ordinal in one.items() if name in here and here[name].ordinal > upto)
    return [name for name in one if name not in here], Looked(live, upto, again)


def rest(
    view: ReplicaView,
    collections: Iterable[str],
    ranges: Sequence[KeyRange],
    copied: Mapping[str, CollectionRecord],
    cursors: Mapping[str, int],
    known: Mapping[str, Looked],
    rows_max: int,
) -> tuple[list[Rest], bool]:
    """What the target lacks of ranges that are frozen, of those of `collections` that are here and were changed since
    they were `copied`; and whether there is more, as after about `rows_max` rows. Nothing of these ranges changes
    meanwhile, so a page and what was deleted are of the same state."""
    found: list[Rest] = []
    left = rows_max
    for name in collections:
        held = view.collections.get(name)
        if held is None or copied.get(name) == held.record:
            continue
        if left <= 0:
            return found, True
        rows, cursor, more = page(view, name, ranges, cursors.get(name, -1), left)
        gone, dead = ([], None) if more else deleted(view, name, ranges, cursor, known.get(name))
        found.append(Rest(name, rows, cursor, gone, dead, held.record))
        if more:
            return found, True
        left -= len(rows) + len(gone)
    return found, False


def _collection(view: ReplicaView, name: str) -> CollectionView:
    found = view.collections.get(name)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return found
