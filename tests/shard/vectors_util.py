"""Data and brute force for the tests of segments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from needle.base.config import SegmentConfig
from needle.base.model import CollectionSpec, IndexParams, Metric
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.sealed import SealedSegment


def live_of(end: int, dead: Iterable[int] = ()) -> OrdinalSet:
    """The ordinals below `end` that are not dead."""
    return OrdinalSet().changed(0, end, list(dead))


def spec_of(metric: Metric, dimensions: int, **index: Any) -> CollectionSpec:
    return CollectionSpec(name="c", dimensions=dimensions, metric=metric, index=IndexParams(**index))


def clustered(rows: int, dimensions: int, seed: int, centres: int = 50, normalise: bool = True) -> np.ndarray:
    """(rows, dimensions) float32 around `centres` centres."""
    rng = np.random.default_rng(seed)
    heart = np.random.default_rng(99).standard_normal((centres, dimensions)).astype(np.float32)
    data = heart[rng.integers(0, centres, rows)]
    data = data + rng.standard_normal((rows, dimensions)).astype(np.float32) * np.float32(0.6)
    if normalise:
        data /= np.linalg.norm(data, axis=1, keepdims=True)
    return np.ascontiguousarray(data, dtype=np.float32)


def brute(
    metric: Metric, rows: np.ndarray, ordinals: np.ndarray, query: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ordinals, distances) of the k nearest in float64, ties by ordinal."""
    distance = distances_to(metric, rows.astype(np.float64), query)
    near = np.arange(len(distance))
    if k < len(distance):  # to order a few is enough; who is as near as the last of them may come before it
        near = np.flatnonzero(distance <= np.partition(distance, k - 1)[k - 1])
    order = near[np.lexsort((ordinals[near], distance[near]))[:k]]
    return ordinals[order], distance[order]


def distances_to(metric: Metric, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(n,) of `rows`, which are float64."""
    q = query.astype(np.float64)
    if metric == Metric.L2:
        return np.sqrt(((rows - q) ** 2).sum(axis=1))
    return -(rows @ q) if metric == Metric.DOT else 1 - rows @ q


def check_against_brute(
    metric: Metric,
    found: tuple[np.ndarray, np.ndarray],
    data: np.ndarray,
    live: np.ndarray,
    queries: np.ndarray,
    k: int,
) -> None:
    """Exact results: right length, right distances, and every row nearer than the last one is there."""
    ordinals, distances = found
    for row, query in enumerate(queries):
        expected, expected_distance = brute(metric, data[live], live, query, k)
        count = len(expected)
        got = ordinals[row]
        assert np.all(got[count:] == -1) and np.all(np.isinf(distances[row][count:]))
        np.testing.assert_allclose(distances[row][:count], expected_distance, rtol=1e-4, atol=2e-4)
        assert len(set(got[:count].tolist())) == count
        assert np.all(np.isin(got[:count], live))
        pairs = list(zip(distances[row][:count].tolist(), got[:count].tolist(), strict=True))
        assert pairs == sorted(pairs)


def seal(vectors: CollectionVectors, first: int, last: int, *, base: bool = False) -> tuple[PublishedSegment, str]:
    """Build [first, last] of what `vectors` serves now; base: extend the segment that starts at `first`."""
    view = vectors.view()
    start = next(s.sealed for s in view.served if s.sealed.segment.first == first) if base else None
    begin = start.segment.last + 1 if start else first
    return build_segment(
        vectors.directory,
        vectors.collection_id,
        first,
        last,
        view.live_blocks(begin, last),
        vectors.spec,
        base=start,
    )


def publish(vectors: CollectionVectors, segment: PublishedSegment, path: str) -> None:
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert vectors.publish(segment)


def new_vectors(
    directory: object, metric: Metric = Metric.COSINE, dimensions: int = 16, **index: Any
) -> CollectionVectors:
    return CollectionVectors(7, spec_of(metric, dimensions, **index), str(directory), SegmentConfig(seal_rows=100))
