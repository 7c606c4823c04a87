"""Writes of API keys that are bound to a filter: which stored documents are there for them, and what they may write.

Invariant: such a write changes no document that does not match its filter, and leaves none that does not. What is not
visible is as if it were not there, but that no insert replaces it. Pure decisions on the stored state, as in `execute`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from needle.base.errors import Forbidden
from needle.base.filters.builder import Filter
from needle.base.filters.nodes import Node, evaluate
from needle.protocol.commands import Bound, Insert
from needle.protocol.versioned import APPLIED_LIMITS
from needle.shard.apply.batch import Batch
from needle.shard.apply.changes import CollectionChange
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.records import DocRef


def parsed(filter_json: bytes) -> Node:
    """A filter of a log entry."""
    return Filter.from_json(filter_json or b"{}", APPLIED_LIMITS).node


def seen(
    batch: Batch, change: CollectionChange, ids: Sequence[str], bound: Bound | None
) -> Mapping[str, DocRef | None]:
    """What these ids, which were looked up, are for a write: None for what is not there, or not visible."""
    if not bound:
        return change.refs
    node = parsed(bound.filter)
    stored = batch.metadata(change, ids).items()
    hidden = {id_ for id_, metadata in stored if not evaluate(node, decode_metadata(metadata), id_)}
    return {id_: None if id_ in hidden else change.refs[id_] for id_ in ids}


def check_written(bound: Bound | None, documents: Iterable[tuple[str, bytes]]) -> None:
    """documents: id and metadata, as they will be stored. Raises Forbidden."""
    if not bound:
        return
    node = parsed(bound.filter)
    for id_, metadata in documents:
        if not evaluate(node, decode_metadata(metadata), id_):
            raise Forbidden(
                f"document {id_[:80]!r} would not match the filter of this API key, and it writes only documents that "
                "do: give its metadata what the filter asks for",
                field="metadata",
            )


def check_insert(batch: Batch, change: CollectionChange, command: Insert) -> None:
    """Raises Forbidden for a document that may not be written, or that stands where one stands that is not visible."""
    bound = command.bound
    if not bound:
        return
    check_written(bound, zip(command.ids, command.metadata, strict=True))
    for id_, ref in seen(batch, change, command.ids, bound).items():
        if ref is None and change.refs[id_] is not None:
            raise Forbidden(f"document {id_[:80]!r} is not for this API key to write: choose another id", field="id")
