"""What a document takes of a collection: an ordinal, and a place in time."""

from __future__ import annotations

from needle.base.errors import InvalidArgument
from needle.protocol.commands import AS_IT_IS
from needle.shard.documents.records import ORDINAL_MAX, CollectionRecord, DocRef


def instant_of(said: int, ref: DocRef | None) -> int:
    """When a document expires after a write that says so, or AS_IT_IS or NEVER; 0 for never. ref: of what it keeps."""
    if said == AS_IT_IS:
        return 0 if ref is None else ref.expires
    return max(said, 0)


def check_room(record: CollectionRecord, count: int) -> None:
    """Raises InvalidArgument if a collection cannot take `count` more document versions: each ever written takes one
    ordinal."""
    if record.next_ordinal + count > ORDINAL_MAX:
        name = record.spec.name
        raise InvalidArgument(
            f"collection {name!r} has taken all the {ORDINAL_MAX} document versions that one can take; copy its "
            f"documents into a new collection (docs/operations.md)",
            field="collection",
            collection=name,
        )
