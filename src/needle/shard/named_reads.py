"""Documents with their named vectors.

A name has rows for the documents that have such a vector, under the same ordinals (apply/named.py). So the vectors of
what was found are found by its ordinals, also of versions that are replaced by now, as long as the read has not left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from needle.base.model import Claim
from needle.protocol.named import Named
from needle.shard.documents.records import StoredDocument
from needle.shard.fields.builders import Builders
from needle.shard.live_collection import ReplicaView
from needle.shard.reads import GoOn, Page, Reads, Scanned


class Wanted(NamedTuple):
    """Documents by their ids. with_vectors: those without a name. names: of named ones, inside the shard."""

    collection: str
    ids: list[str]
    with_vectors: bool
    names: Sequence[str] = ()


def get_named(
    reads: Reads, wanted: Wanted, claim: Claim | None, bound: bytes
) -> tuple[list[StoredDocument], list[Named]]:
    """As Reads.get, with named vectors. Raises CollectionNotFound, for a vector too."""
    with reads.entered():
        found = reads.get(wanted.collection, wanted.ids, wanted.with_vectors, claim, bound)
        return found, named_of(reads.view(), wanted.collection, wanted.names, found)


def scan_named(
    reads: Reads, page: Page, names: Sequence[str], claim: Claim | None, go_on: GoOn, builders: Builders | None
) -> tuple[Scanned, list[Named]]:
    """As Reads.scan, with named vectors, by their names inside the shard. Raises CollectionNotFound, for a vector
    too."""
    with reads.entered():
        found = reads.scan(page, claim, go_on, builders)
        return found, named_of(reads.view(), page.collection, names, found.documents)


def named_of(view: ReplicaView, collection: str, names: Iterable[str], found: Sequence[StoredDocument]) -> list[Named]:
    """Of documents those named vectors that they have, as callers get them. Raises CollectionNotFound."""
    ordinals, told = [document.ordinal for document in found], list[Named]()
    # Each once, however often it is asked for: a collection has few names, and what an answer holds is bounded by that.
    for name in dict.fromkeys(names):
        record = view.vector(view.collection(collection), name).record
        rows = view.store.by_ordinal(record.id, ordinals, metadata=False, vectors=True)
        places = [at for at, ordinal in enumerate(ordinals) if ordinal in rows]
        block = b"".join(rows[ordinals[at]].vector for at in places)
        if places:
            told.append(Named(name, places, record.spec.form.given(block)))
    return told
