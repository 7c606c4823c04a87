"""Which documents are near a vector, one by one, by the distances that searches give. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from needle.base.errors import InvalidArgument, invalid
from needle.base.model import Metric, score_of
from needle.protocol.change_calls import Near
from needle.shard.apply.vectors import query_of
from needle.shard.documents.records import CollectionRecord, StoredDocument
from needle.shard.segments.scoring import pair_distances


class Nearness:
    """Of one collection."""

    def __init__(self, record: CollectionRecord, near: Near) -> None:
        """record: of the collection, or of its named vector. Raises InvalidArgument for a vector that is none of it, or
        no bound."""
        if near.max_distance is None and near.min_score is None:
            raise InvalidArgument("give max_distance, or min_score: how near documents are to be", field="max_distance")
        metric = record.spec.metric
        if near.min_score is not None and metric in (Metric.L2, Metric.HAMMING) and near.min_score > 0:
            raise invalid("min_score", near.min_score, f"at most 0 for the metric {metric}, whose scores are -distance")
        self._near, self._spec = near, record.spec
        self._query = query_of(near.vector, record.spec)

    def distances(self, documents: Iterable[StoredDocument]) -> dict[int, float]:
        """By ordinal, of those that are near. vectors: as stored."""
        found, form = list(documents), self._spec.form
        if not found:
            return {}
        rows = form.scored(form.rows(b"".join([one.vector for one in found])))
        queries = np.broadcast_to(self._query, rows.shape)
        distances = pair_distances(self._spec.metric, queries, rows).tolist()
        return {one.ordinal: far for one, far in zip(found, distances, strict=True) if self._is_near(far)}

    def _is_near(self, distance: float) -> bool:
        near = self._near
        if near.max_distance is not None and distance > near.max_distance:
            return False
        return near.min_score is None or score_of(distance, self._spec.metric) >= near.min_score
