"""The documents of hits, and answers made of them. Pure but for what the store reads.

It must not know how hits are found.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from needle.base.errors import CorruptDocuments
from needle.base.filters.builder import field_path
from needle.base.filters.values import Value, first, values_of
from needle.base.model import CollectionSpec, HitBatch, SearchRequest, near_enough
from needle.routing.topology import called
from needle.shard.documents.metadata_rows import decode_metadata
from needle.shard.documents.projection import projection
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.documents.store import DocumentStore

Nearest = tuple[list[int], list[float]]
"""Ordinals and distances of one query's answer, nearest first."""


def with_vectors(
    record: CollectionRecord, of: CollectionRecord, store: DocumentStore, ordinals: list[int], *, metadata: bool
) -> dict[int, StoredDocument]:
    """Documents with the vectors that were searched."""
    if of is record:
        return read_documents(record, store, ordinals, metadata=metadata, vectors=True)
    vectors = read_documents(of, store, ordinals, metadata=False, vectors=True)
    documents = read_documents(record, store, ordinals, metadata=metadata, vectors=False)
    return {at: msgspec.structs.replace(one, vector=vectors[at].vector) for at, one in documents.items()}


def batches_of(
    record: CollectionRecord,
    of: CollectionRecord,
    store: DocumentStore,
    request: SearchRequest,
    found: list[Nearest],
    applied: int,
) -> list[HitBatch]:
    """of: the vectors that were searched."""
    shown = projection(request.fields)
    if request.max_distance is not None or request.min_score is not None:
        near = [near_enough(distances, of.spec.metric, request) for _, distances in found]
        found = [(ordinals[:n], distances[:n]) for n, (ordinals, distances) in zip(near, found, strict=True)]
    found = _k_each(record, store, request.k, found)
    wanted = sorted({ordinal for ordinals, _ in found for ordinal in ordinals})
    metadata = request.with_metadata or bool(request.order_by)
    if request.with_vectors:
        documents = with_vectors(record, of, store, wanted, metadata=metadata)
    else:
        documents = read_documents(record, store, wanted, metadata=metadata, vectors=False)
    return [
        _batch([documents[o] for o in ordinals], distances, request, applied, of.spec, shown)
        for ordinals, distances in found
    ]


def read_documents(
    record: CollectionRecord, store: DocumentStore, ordinals: list[int], *, metadata: bool, vectors: bool
) -> dict[int, StoredDocument]:
    """By ordinal. Raises CorruptDocuments if one is not there."""
    documents = store.by_ordinal(record.id, ordinals, metadata=metadata, vectors=vectors)
    if len(documents) != len(ordinals):
        missing = len(ordinals) - len(documents)
        raise CorruptDocuments(f"{missing} found ordinals of {called(record.spec.name)!r} have no document")
    return documents


def _k_each(record: CollectionRecord, store: DocumentStore, k: int, found: list[Nearest]) -> list[Nearest]:
    """Without what is tied with the k-th but has a greater id. Of documents that may fall out only the ids are read."""
    tied = {o for ordinals, distances in found if len(ordinals) > k for o in _tied(ordinals, distances)}
    if not tied:
        return found
    ids = read_documents(record, store, sorted(tied), metadata=False, vectors=False)
    kept = []
    for ordinals, distances in found:
        if len(ordinals) > k:
            last = sorted(_tied(ordinals, distances), key=lambda ordinal: ids[ordinal].id)
            nearer = ordinals[: len(ordinals) - len(last)]
            ordinals, distances = [*nearer, *last][:k], distances[:k]
        kept.append((ordinals, distances))
    return kept


def _tied(ordinals: list[int], distances: list[float]) -> list[int]:
    """The ordinals whose distance is that of the last."""
    return ordinals[distances.index(distances[-1]) :]


def _batch(
    documents: list[StoredDocument],
    distances: list[float],
    request: SearchRequest,
    applied: int,
    spec: CollectionSpec,
    shown: Callable[[bytes], bytes],
) -> HitBatch:
    if len(set(distances)) < len(distances):  # ties stand in the order of their ordinals so far
        pairs = sorted(zip(distances, documents, strict=True), key=lambda pair: (pair[0], pair[1].id))
        distances, documents = [distance for distance, _ in pairs], [document for _, document in pairs]
    return columns(documents, distances, request, applied, spec, shown)


def columns(
    documents: list[StoredDocument],
    distances: list[float],
    request: SearchRequest,
    applied: int,
    spec: CollectionSpec,
    shown: Callable[[bytes], bytes],
) -> HitBatch:
    """An answer, of documents in its order."""
    return HitBatch(
        ids=[document.id for document in documents],
        distances=distances,
        versions=[document.version for document in documents],
        metadata=[shown(document.metadata) or b"null" for document in documents] if request.with_metadata else [],
        vectors=spec.form.given(b"".join([one.vector for one in documents])) if request.with_vectors else b"",
        applied_index=applied,
        metric=spec.metric,
        order=_order(documents, request) if request.order_by else [],
    )


def _order(documents: list[StoredDocument], request: SearchRequest) -> list[Value | None]:
    """By what the documents are ordered."""
    path = field_path(request.order_by, "order_by")
    found = (values_of(decode_metadata(document.metadata), path).values() for document in documents)
    return [first(values, descending=request.descending) for values in found]
