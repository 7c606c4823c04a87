"""Which documents a scan has to look at, as far as the indexes of fields tell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.base.filters.nodes import Node, named
from needle.shard.fields.builders import Builders
from needle.shard.live_collection import CollectionView

GoOn = Callable[[], None]


def matching_of(
    collection: CollectionView, node: Node | None, builders: Builders | None, go_on: GoOn
) -> Callable[[int], bool]:
    """Which ordinals may match, by the indexes of fields: to look at every document for a key that sees few of them
    takes as long as there are many. Documents newer than the view have to be looked at."""
    upto, looked = collection.record.next_ordinal, 0
    found = collection.payload.within(node, upto, collection.live.bitmap(), builders, go_on) if node else None

    def matching(ordinal: int) -> bool:
        nonlocal looked
        looked += 1
        if not looked % 4096:
            go_on()
        return found is None or ordinal >= upto or ordinal in found

    return matching


def few_of(held: CollectionView, node: Node | None, most: int, go_on: GoOn) -> Sequence[int] | None:
    """The ordinals of what a filter allows, if it names ids or indexes that are there tell it, and if there are `most`
    at most; else None. Not yet or no longer visible ones included."""
    record = held.record
    if node is None or record.documents <= most:
        return None
    if named(node) is None and not held.payload.whole(node, record.next_ordinal):
        return None
    found = held.payload.within(node, record.next_ordinal, held.live.bitmap(), None, go_on)
    return list(found) if len(found) <= most else None
