"""Rows of the tables of a replica's file, of what a write set says. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from needle.shard.documents.records import CollectionRecord, DocRef, WriteSet


def found_waiting(waiting: WriteSet, collection_id: int, ids: Sequence[str], found: dict[str, DocRef]) -> list[str]:
    """Put those of `ids` that wait into `found`; the others, which only the file knows."""
    others, known = [], waiting.ids
    for id_ in ids:
        key = (collection_id, id_)
        if key not in known:
            others.append(id_)
        elif (ref := known[key]) is not None:
            found[id_] = ref
    return others


def id_rows(changes: WriteSet) -> Iterable[tuple[int, str, int, int, bytes, int, int]]:
    """Of the table of ids, those that are written."""
    for (collection_id, id_), ref in changes.ids.items():
        if ref is not None:
            yield collection_id, id_, ref.ordinal, ref.version, ref.hash, ref.vector, ref.expires


def applied_rows(changes: WriteSet) -> list[tuple[int | bytes, str]]:
    """What `meta` says of where the file stands."""
    at = changes.at
    return [(at.index, "index"), (at.term, "term"), (at.conf, "conf"), (at.next_collection_id, "next_collection_id")]


def collection_row(record: CollectionRecord) -> tuple[int, bytes, int, int, bytes]:
    """Of the table of collections."""
    spec = msgspec.msgpack.encode(record.spec)
    return (record.id, spec, record.next_ordinal, record.documents, record.total.to_bytes(16, "little"))
