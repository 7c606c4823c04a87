"""What nodes answer becomes what callers get out. Pure.

Invariant: vectors never become lists of Python floats. The way in is in values.py.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from needle.base.instants import rfc3339
from needle.base.model import Document, Hit, HitBatch, scores_of
from needle.client.named_values import by_row
from needle.client.values import FLOAT32, Vectors
from needle.protocol.calls import DocumentBatch

_parse = msgspec.json.Decoder()


def json_value(data: bytes) -> Any:
    """What JSON bytes hold; None for b""."""
    return _parse.decode(data) if data else None


def hits(batch: HitBatch) -> list[Hit]:
    """The rows of a search's answer. The score follows from the distance and the metric."""
    count, parse = len(batch.ids), _parse.decode
    metadata: list[Any] = [parse(one) if one else None for one in batch.metadata] or [None] * count
    scores = scores_of(batch.distances, batch.metric)
    columns = zip(batch.ids, batch.distances, scores, metadata, batch.versions, strict=True)
    if not batch.vectors and not batch.groups:  # as most are: what each hit has by default costs time, too
        return [
            Hit(id=name, distance=distance, score=score, metadata=told, version=version)
            for name, distance, score, told, version in columns
        ]
    vectors: Any = _rows(batch.vectors, count)
    groups: list[Any] = batch.groups or [None] * count
    more = zip(columns, [None] * count if vectors is None else vectors, groups, strict=True)
    return [
        Hit(id=name, distance=distance, score=score, metadata=told, version=version, vector=vector, group=group)
        for (name, distance, score, told, version), vector, group in more
    ]


def documents(batch: DocumentBatch, named: bool = False) -> list[Document]:
    """The rows of a get's answer. named: named vectors were asked for."""
    rows, vectors = _rows(batch.vectors, len(batch.ids)), by_row(batch) if named else None
    return [
        Document(
            id=name,
            vector=None if rows is None else rows[n],
            metadata=json_value(batch.metadata[n]),
            version=batch.versions[n],
            expires_at=expires_at(batch, n),
            vectors=None if vectors is None else vectors[n],
        )
        for n, name in enumerate(batch.ids)
    ]


def expires_at(batch: DocumentBatch, row: int) -> str | None:
    """When the document of a row expires, as RFC 3339 in UTC; None for never."""
    return rfc3339(batch.expires[row]) if batch.expires and batch.expires[row] else None


def _rows(data: bytes, count: int) -> Vectors | None:
    return np.frombuffer(data, FLOAT32).reshape(count, -1) if data and count else None
