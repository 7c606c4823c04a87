"""How large the collections of a replica are, from what is kept anyway: no cost grows with the documents. Pure."""

from __future__ import annotations

from needle.base.model import CollectionSize, CollectionSpec
from needle.shard.live_collection import CollectionView, ReplicaView
from needle.shard.weights import FLOAT_BYTES


def sizes_of(view: ReplicaView) -> list[tuple[CollectionSpec, CollectionSize]]:
    """Every collection, by name."""
    return [(held.record.spec, _size(held)) for _, held in sorted(view.collections.items())]


def _size(held: CollectionView) -> CollectionSize:
    vector = FLOAT_BYTES * held.record.spec.dimensions
    documents = held.visible
    return CollectionSize(
        documents=documents,
        document_bytes=documents * max(0, held.document_bytes - 2 * vector),  # these count a vector twice: see weights
        vector_bytes=documents * vector,
        index_bytes=sum(served.sealed.size for served in held.vectors.served),
        field_index_bytes=held.payload.bytes_held(),
    )
