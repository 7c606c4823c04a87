"""For how long no vector has come to each collection, as far as this replica has watched."""

from __future__ import annotations

from needle.shard.segments.collection_vectors import CollectionVectors


class Lulls:
    """Of one replica's collections."""

    def __init__(self) -> None:
        self._written: dict[int, tuple[int, float]] = {}
        """By collection: next ordinal, and since when it is that."""

    def quiet_for(self, vectors: CollectionVectors, now: float) -> float:
        """For how many seconds; now: of the node's clock."""
        next_ordinal = vectors.next_ordinal
        held, since = self._written.get(vectors.collection_id, (-1, now))
        if held != next_ordinal:
            since = now
            self._written[vectors.collection_id] = next_ordinal, since
        return now - since

    def forget(self, collection_id: int) -> None:
        """It is gone."""
        self._written.pop(collection_id, None)
