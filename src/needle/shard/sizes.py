"""How large the collections of a replica are, from what is kept anyway: no cost grows with the documents. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from needle.base.collection_sizes import CollectionSize
from needle.base.model import CollectionSpec
from needle.routing.collection_names import vector_called
from needle.shard.live_collection import CollectionView, ReplicaView


def sizes_of(view: ReplicaView, only: str) -> list[tuple[CollectionSpec, CollectionSize]]:
    """Of every collection, by name, or of one."""
    return [(held.record.spec, size_of(held, view.vectors_of(held))) for held in view.named(only)]


def size_of(held: CollectionView, named: Sequence[CollectionView] = ()) -> CollectionSize:
    """See the module. named: its named vectors; their bytes are the collection's, and so is what waits for a file of
    the one for which most do: whoever waits for the index waits for all of them."""
    vector = held.record.spec.vector_bytes
    documents = held.visible
    return CollectionSize(
        documents=documents,
        document_bytes=documents * max(0, held.document_bytes - 2 * vector),  # these count a vector twice: see weights
        vector_bytes=documents * vector + sum(one.visible * one.record.spec.vector_bytes for one in named),
        index_bytes=sum(served.sealed.size for one in (held, *named) for served in one.vectors.served),
        field_index_bytes=held.payload.bytes_held(),
        fields=held.payload.declared(),
        index=msgspec.structs.replace(held.index, waiting=max(map(_waiting, (held, *named)))),
        vectors={
            vector_called(one.record.spec.name): msgspec.structs.replace(one.index, waiting=_waiting(one))
            for one in named
        },
    )


def _waiting(held: CollectionView) -> int:
    growing = len(held.vectors.growing)
    return growing if growing >= held.sealed_from else 0
