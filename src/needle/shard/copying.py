"""What the driver of a move reads from the source's replica: pages of documents, and what was deleted meanwhile.

Each function works on one view (`Replica.view`), and may find documents that are newer. It must not know targets, logs
or pace.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from pyroaring import BitMap

from needle.base.errors import CollectionNotFound
from needle.routing.shard_map import KeyRange
from needle.shard.documents.records import ORDINAL_MAX, StoredDocument
from needle.shard.live_collection import CollectionView, ReplicaView


def last_ordinal(view: ReplicaView, collection: str) -> int:
    """The highest ordinal that there is, -1 for none. Raises CollectionNotFound."""
    return _collection(view, collection).record.next_ordinal - 1


def page(
    view: ReplicaView, collection: str, ranges: Sequence[KeyRange], after: int, rows_max: int
) -> tuple[list[StoredDocument], int, bool]:
    """Documents of the ranges, the ordinal up to which was looked, and whether that may not be the end. Raises
    CollectionNotFound."""
    fence, record = view.fence, _collection(view, collection).record
    rows = view.store.page(record.id, after, ORDINAL_MAX, rows_max)
    if fence is None or not rows:
        return [], after, False
    member = fence.member(ranges)
    chosen = [row.ordinal for row in rows if member(row.id, row.metadata)]
    found = view.store.by_ordinal(record.id, chosen, metadata=True, vectors=True) if chosen else {}
    expires = {row.ordinal: row.expires for row in rows}
    chosen_rows = [msgspec.structs.replace(found[ordinal], expires=expires[ordinal]) for ordinal in chosen]
    return chosen_rows, rows[-1].ordinal, len(rows) == rows_max


def deleted(
    view: ReplicaView, collection: str, ranges: Sequence[KeyRange], upto: int, known: BitMap
) -> tuple[list[str], BitMap]:
    """Ids of the ranges that were deleted, or replaced by documents of other ranges, as far as ordinals up to `upto`
    tell that are not in `known`; and all dead ordinals that need not be looked at again. What was purged before the
    move is not among them; nothing is while it goes on (Replica.checkpoint). Raises CollectionNotFound."""
    fence, held = view.fence, _collection(view, collection)
    dead = BitMap(view.store.graves(held.record.id, upto))
    fresh = list(dead - known)
    if fence is None or not fresh:
        return [], dead | known
    member = fence.member(ranges)
    rows = view.store.by_ordinal(held.record.id, fresh, metadata=True, vectors=False)
    names = {row.ordinal: row.id for row in rows.values() if member(row.id, row.metadata)}
    here = view.store.writer.find(held.record.id, list(dict.fromkeys(names.values()))) if names else {}
    if fence.custom and here:  # there an id does not tell the range
        now = view.store.by_ordinal(held.record.id, [r.ordinal for r in here.values()], metadata=True, vectors=False)
        here = {row.id: here[row.id] for row in now.values() if member(row.id, row.metadata)}
    # Of these the newer document is not copied yet. Should it be deleted before it is, nothing but the older one tells.
    again = [ordinal for ordinal, name in names.items() if name in here and here[name].ordinal > upto]
    return [name for name in dict.fromkeys(names.values()) if name not in here], (dead | known) - BitMap(again)


def _collection(view: ReplicaView, name: str) -> CollectionView:
    found = view.collections.get(name)
    if found is None:
        raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
    return found
