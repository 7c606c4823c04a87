"""Recall of every kind of index where it is easily lost: after many updates, with copies, with lengths that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap

from bench.recall import index_all, recall
from bench.recall import new as vectors_of
from needle.base.config import SegmentConfig
from needle.base.model import CODES, GRAPHS, METRICS_OF_NUMBERS, IndexKind, Metric
from needle.shard.segments.collection_vectors import CollectionVectors
from shard.vectors_util import clustered

DIMENSIONS = 24
LEAST = 0.95


def new(directory: Path, kind: IndexKind, metric: Metric, config: SegmentConfig) -> CollectionVectors:
    return vectors_of(directory, kind, metric, config, "low_latency", DIMENSIONS)


@pytest.mark.parametrize("kind", IndexKind)
def test_after_rounds_of_updating_every_document(tmp_path: Path, kind: IndexKind) -> None:
    """Codes are made anew with each file: ten rounds of them are in test_recall_of_presets.py, among campaigns."""
    documents, rounds = 1600, 5 if kind in CODES else 10
    vectors = new(tmp_path, kind, Metric.COSINE, SegmentConfig(seal_rows=400))
    rng = np.random.default_rng(1)
    data = clustered(documents * (rounds + 1), DIMENSIONS, 1)
    at, built = np.arange(documents), 0
    vectors.append(0, data[:documents])
    index_all(vectors)
    for _ in range(rounds):
        for part in np.array_split(rng.permutation(documents), 3):  # files grow by some, and lose others
            first = vectors.next_ordinal
            vectors.append(first, data[first : first + len(part)])
            vectors.tombstone(np.sort(at[part]).tolist())
            at[part] = np.arange(first, first + len(part))
            built += index_all(vectors)
    assert built > rounds and sum(s.sealed.rows for s in vectors.view().served) >= documents - 400
    queries, live = clustered(100, DIMENSIONS, 2), np.sort(at)
    assert recall(vectors, data, live, queries) >= LEAST
    for share in (0.5, 0.1, 0.01):
        assert recall(vectors, data, live, queries, BitMap(live[rng.random(documents) < share])) >= LEAST


@pytest.mark.parametrize("kind", IndexKind)
@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
def test_where_every_vector_is_there_twice(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    half = clustered(2500 if kind in GRAPHS else 4500, DIMENSIONS, 1)  # fewer nodes have no lists
    data = np.concatenate((half, half[np.random.default_rng(3).permutation(len(half))]))
    vectors = new(tmp_path, kind, metric, SegmentConfig(seal_rows=1000))
    vectors.append(0, data)
    index_all(vectors)
    queries, live = clustered(50, DIMENSIONS, 2), np.arange(len(data))
    assert recall(vectors, data, live, queries) >= LEAST
    assert recall(vectors, data, live, queries, BitMap(live[::7])) >= LEAST


@pytest.mark.parametrize("kind", IndexKind)
def test_inner_products_of_vectors_of_any_length(tmp_path: Path, kind: IndexKind) -> None:
    rng = np.random.default_rng(4)
    data = clustered(9000, DIMENSIONS, 1) * np.exp(rng.standard_normal((9000, 1))).astype(np.float32)
    vectors = new(tmp_path, kind, Metric.DOT, SegmentConfig(seal_rows=1000))
    vectors.append(0, data)
    index_all(vectors)
    queries, live = clustered(50, DIMENSIONS, 2), np.arange(len(data))
    assert recall(vectors, data, live, queries) >= LEAST
    lengths = np.linalg.norm(data, axis=1)
    short, long = np.flatnonzero(lengths < np.median(lengths)), np.flatnonzero(lengths >= np.quantile(lengths, 0.9))
    for allow in (short, long, short[:3], live[rng.random(9000) < 0.01]):
        assert recall(vectors, data, live, queries, BitMap(allow)) >= LEAST
