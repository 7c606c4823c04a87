"""Recall of every kind of index where it is easily lost: after many updates, with copies, with lengths that differ."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pyroaring import BitMap

from needle.base.config import SegmentConfig
from needle.base.model import PRESETS, CollectionSpec, IndexKind, IndexParams, Metric
from needle.shard.plan import plan
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from shard.vectors_util import brute, clustered, publish

DIMENSIONS, K = 24, 10
LEAST = 0.95


def new(
    directory: Path, kind: IndexKind, metric: Metric, config: SegmentConfig, preset: str = "low_latency",
    dimensions: int = DIMENSIONS,
) -> CollectionVectors:  # fmt: skip
    low = PRESETS[preset]
    index = IndexParams(kind=kind, m=low.m, ef_construction=low.ef_construction, ef_search=low.ef_search)
    spec = CollectionSpec(name="c", dimensions=dimensions, metric=metric, index=index)
    return CollectionVectors(7, spec, str(directory), config)


def index_all(vectors: CollectionVectors) -> int:
    """Build whatever the leader of a shard would, until nothing is left to do: how many files that were."""
    for built in count():
        loads, end, waiting, view = vectors.loads()
        task = plan(loads, end, waiting, vectors.config, dimensions=vectors.spec.dimensions, quiet=True, idle=True)
        if task is None:
            return built
        base = next((s.sealed for s in view.served if task.base and s.sealed.segment == task.base), None)
        blocks = view.live_blocks(base.segment.last + 1 if base else task.first, task.last)
        publish(
            vectors,
            *build_segment(vectors.directory, 7, task.first, task.last, blocks, vectors.spec, base=base),
        )
    raise AssertionError


def recall(
    vectors: CollectionVectors, data: np.ndarray, live: np.ndarray, queries: np.ndarray, allow: BitMap | None = None
) -> float:
    """Of searches that say nothing of their own. data: by ordinal. Of as many as can be there each is there, once."""
    ordinals, distances = vectors.search(queries, K, allow=allow)
    counted = live if allow is None else np.intersect1d(live, np.array(allow, np.int64))
    wanted, found = min(K, len(counted)), 0
    for got, told, query in zip(ordinals, distances, queries, strict=True):
        assert np.isin(got[:wanted], counted).all() and len(set(got[:wanted].tolist())) == wanted
        farthest = brute(vectors.spec.metric, data[counted], counted, query, wanted)[1][-1]
        found += int((told[:wanted] <= farthest + 1e-5 * max(1, abs(farthest))).sum())
    return found / (wanted * len(queries))


@pytest.mark.parametrize("kind", IndexKind)
def test_after_ten_rounds_of_updating_every_document(tmp_path: Path, kind: IndexKind) -> None:
    documents, rounds = 1600, 10
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
@pytest.mark.parametrize("metric", Metric)
def test_where_every_vector_is_there_twice(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    half = clustered(4500, DIMENSIONS, 1)
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
