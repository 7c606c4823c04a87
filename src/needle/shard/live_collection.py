"""The open collections of a replica: what only apply changes, and the immutable views of it that searches get.

A view stays as it was made: apply replaces what it changes. It must not know commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from needle.base.config import SegmentConfig
from needle.shard.documents import DocumentStore
from needle.shard.payload_index import PayloadIndex
from needle.shard.records import AppliedAt, CollectionRecord
from needle.shard.segment_plan import PublishedSegment
from needle.shard.segment_set import CollectionVectors
from needle.shard.vectors_view import VectorsView


@dataclass(frozen=True, slots=True)
class CollectionView:
    """One collection at one applied index. dead: ordinals below record.next_ordinal that no id points at."""

    record: CollectionRecord
    vectors: VectorsView
    dead: BitMap
    payload: PayloadIndex


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What searches see: all collections by name, at one applied index, and the file that holds their documents."""

    at: AppliedAt
    collections: Mapping[str, CollectionView]
    store: DocumentStore


class LiveCollection:
    """One open collection incarnation; only apply changes it."""

    def __init__(self, record: CollectionRecord, store: DocumentStore, directory: str, config: SegmentConfig) -> None:
        self.record = record
        self.dead = BitMap()
        self.manifest: list[PublishedSegment] = []
        self.vectors = CollectionVectors(record.id, record.spec, directory, config)
        self.payload = PayloadIndex(lambda first, end: store.metadata_between(record.id, first, end))
        self._store = store

    def rows(self, first: int, last: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Live vectors of [first, last] from SQLite: (ordinals (n,) ascending, vectors (n, d) float32)."""
        ordinals, vectors = self._store.vectors_between(self.record.id, self.record.spec.dimensions, first, last)
        gone = np.array(self.dead.to_array(), np.int64)
        keep = ~np.isin(ordinals, gone, assume_unique=True)
        return ordinals[keep], vectors[keep]

    def load(self, manifest: list[PublishedSegment]) -> None:
        live = BitMap(self._store.live_ordinals(self.record.id))
        self.dead = BitMap(range(self.record.next_ordinal)) - live
        self.manifest = manifest
        self.vectors.load(self.record.next_ordinal, self.dead, manifest, self.rows)

    def view(self) -> CollectionView:
        return CollectionView(self.record, self.vectors.view(), self.dead, self.payload)
