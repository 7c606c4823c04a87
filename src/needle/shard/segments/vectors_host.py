"""The replica, as those see it who look after its index files: its collections, and which of them changed.

It must not know who looks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from needle.shard.segments.collection_vectors import CollectionVectors


class VectorsHost(Protocol):
    """The replica, as the keeper sees it."""

    @property
    def segment_directory(self) -> str:
        """Where the files are; another one once a snapshot was installed."""
        ...

    def collection_vectors(self) -> Sequence[CollectionVectors]:
        """The vectors of every collection that exists now, in a fixed order."""
        ...

    def vectors_of(self, collection_id: int) -> CollectionVectors | None:
        """Of one collection, if it exists."""
        ...

    def was_dropped(self, collection_id: int) -> bool:
        """Whether it existed and never will again."""
        ...

    def take_changed(self) -> Collection[int] | None:
        """Ids of the collections that changed since the last call, dropped ones too; None: of all."""
        ...
