"""Answers of several shards as one. Pure.

Invariant: hits are ordered by (distance, id), so that equal data gives equal answers however it is spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from needle.base.model import HitBatch, Metric
from needle.protocol.calls import DocumentBatch


def merge_hits(batches: Sequence[HitBatch], k: int) -> HitBatch:
    """The k nearest of all batches. applied_index is the largest; it means something only for one batch."""
    if len(batches) == 1:
        return batches[0]
    order = sorted(
        (distance, name, which, row)
        for which, batch in enumerate(batches)
        for row, (distance, name) in enumerate(zip(batch.distances, batch.ids, strict=True))
    )[:k]
    sizes = [len(batch.vectors) // max(1, len(batch.ids)) for batch in batches]
    with_metadata = any(batch.metadata for batch in batches)
    return HitBatch(
        [name for _, name, _, _ in order],
        [distance for distance, _, _, _ in order],
        [batches[which].versions[row] for _, _, which, row in order],
        [batches[which].metadata[row] for _, _, which, row in order] if with_metadata else [],
        b"".join(batches[which].vectors[row * sizes[which] : (row + 1) * sizes[which]] for _, _, which, row in order),
        max((batch.applied_index for batch in batches), default=0),
        batches[0].metric if batches else Metric.COSINE,
    )


def merge_documents(batches: Sequence[DocumentBatch], asked: Sequence[str]) -> DocumentBatch:
    """The documents of all batches in the order asked for."""
    where: dict[str, tuple[DocumentBatch, int]] = {}
    for batch in batches:
        for row, name in enumerate(batch.ids):
            where.setdefault(name, (batch, row))
    rows = [where[name] for name in asked if name in where]
    return DocumentBatch(
        [batch.ids[row] for batch, row in rows],
        [batch.versions[row] for batch, row in rows],
        [batch.metadata[row] for batch, row in rows],
        b"".join(_row(batch, row) for batch, row in rows),
        max((batch.applied_index for batch in batches), default=0),
    )


def _row(batch: DocumentBatch, row: int) -> bytes:
    size = len(batch.vectors) // len(batch.ids)
    return batch.vectors[row * size : (row + 1) * size]


def by_owner(owners: Sequence[int]) -> Mapping[int, list[int]]:
    """Positions by owner, in order."""
    groups: dict[int, list[int]] = {}
    for at, owner in enumerate(owners):
        groups.setdefault(owner, []).append(at)
    return dict(sorted(groups.items()))
