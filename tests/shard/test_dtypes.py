"""Index files and growing rows of each type: the same distances everywhere, and the stored numbers come back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from needle.base.config import SegmentConfig
from needle.base.dtypes import DType, VectorForm
from needle.base.errors import CorruptSegment, InvalidArgument
from needle.base.model import (
    KINDS_OF,
    METRICS_OF_NUMBERS,
    CollectionSpec,
    IndexKind,
    IndexParams,
    Metric,
    SearchRequest,
)
from needle.protocol.commands import CreateCollection, Insert, UpdateVectors
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.scoring import pair_distances, top_k
from needle.shard.segments.sealed import SealedSegment
from shard.replica_util import Log, open_replica
from shard.vectors_util import clustered

ROWS, WIDTH, BEAM = 3000, 24, 60
"""So narrow a beam in so many vectors costs less than to score each: graphs are searched."""
TYPED = [DType.FLOAT16, DType.INT8]


def spec_of(dtype: DType, kind: IndexKind, metric: Metric) -> CollectionSpec:
    return CollectionSpec(name="c", dimensions=WIDTH, metric=metric, index=IndexParams(kind=kind), dtype=dtype)


def stored(dtype: DType, rows: int = ROWS, seed: int = 1) -> np.ndarray:
    data = clustered(rows, WIDTH, seed, normalise=False) * 20
    if rows > 1000:
        data[:: rows // 50] = data[1]  # copies, which share a node
    return VectorForm(WIDTH, dtype).stored(np.clip(np.rint(data), -128, 127) if dtype is DType.INT8 else data)


def build(directory: Path, spec: CollectionSpec, rows: np.ndarray, base: SealedSegment | None = None) -> SealedSegment:
    directory.mkdir(exist_ok=True)
    first = 0 if base is None else base.segment.last + 1
    blocks = [(np.arange(first, first + len(rows)), rows)]
    segment, path = build_segment(str(directory), 3, 0, first + len(rows) - 1, blocks, spec, base=base)
    return SealedSegment(path, segment, spec)


def test_every_float16_is_widened_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(1, -1)
    wide = VectorForm(every.shape[1], DType.FLOAT16).widened(every)
    assert wide.tobytes() == every.astype(np.float32).tobytes()


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize(("dtype", "kind"), [(dtype, kind) for dtype in TYPED for kind in KINDS_OF[dtype]])
def test_a_file_finds_and_keeps_what_is_stored(tmp_path: Path, dtype: DType, kind: IndexKind, metric: Metric) -> None:
    spec, rows = spec_of(dtype, kind, metric), stored(dtype)
    half = build(tmp_path / "half", spec, rows[: ROWS // 2])
    segment = build(tmp_path / "whole", spec, rows[ROWS // 2 :], base=half)
    assert np.concatenate([part for _, part in segment.blocks(None)]).tobytes() == rows.tobytes()
    assert np.concatenate([part for _, part in segment.blocks(None)]).dtype == spec.form.array
    queries = spec.form.scored(stored(dtype, 40, 2))
    scored = spec.form.scored(rows)
    exact = np.stack([pair_distances(metric, np.tile(query, (ROWS, 1)), scored) for query in queries])
    ordinals, distances = top_k(segment.search(queries, 10, BEAM, None), len(queries), 10)
    for at, (found, told) in enumerate(zip(ordinals, distances, strict=True)):
        assert (told == exact[at, found]).all()  # bit by bit
    least = np.sort(exact, axis=1)[:, 9:10]
    assert (distances <= least).mean() > 0.95
    per_vector = segment.size / ROWS
    if metric is not Metric.DOT and kind is IndexKind.FLAT:
        assert per_vector < WIDTH * spec.form.array.itemsize + 16  # nothing of it is float32


@pytest.mark.parametrize("kind", KINDS_OF[DType.INT8])
def test_bits_as_whole_numbers_have_the_root_of_the_hamming_distance(tmp_path: Path, kind: IndexKind) -> None:
    """As docs/index-selection.md says."""
    heart = np.random.default_rng(1).integers(0, 2, (40, WIDTH))
    flipped = np.random.default_rng(2).random((ROWS, WIDTH)) < 0.15
    bits = (heart[np.arange(ROWS) % len(heart)] ^ flipped).astype(np.int8)
    segment = build(tmp_path / "bits", spec_of(DType.INT8, kind, Metric.L2), bits)
    ordinals, distances = top_k(segment.search(heart.astype(np.float32), 10, BEAM, None), len(heart), 10)
    differ = (bits[ordinals] != heart[:, None]).sum(axis=2)
    assert (distances == np.sqrt(differ.astype(np.float32))).all()
    least = np.sort((bits != heart[:, None]).sum(axis=2), axis=1)[:, :10]
    assert (differ <= least[:, -1:]).mean() > 0.95


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize("dtype", TYPED)
def test_codes_that_do_not_do_leave_what_is_stored(tmp_path: Path, dtype: DType, metric: Metric) -> None:
    """Vectors that codes of a bit cannot tell apart: the file has a graph over full vectors."""
    rng = np.random.default_rng(3)
    rows = VectorForm(WIDTH, dtype).stored(100 + rng.integers(0, 2, (ROWS, WIDTH)) * (np.arange(WIDTH) < 12))
    spec = spec_of(dtype, IndexKind.HNSW_RABITQ, metric)
    segment = build(tmp_path, spec, rows)
    assert np.concatenate([part for _, part in segment.blocks(None)]).tobytes() == rows.tobytes()
    again = build(tmp_path, spec, rows[:100], base=segment)
    assert np.concatenate([part for _, part in again.blocks(None)]).tobytes() == rows.tobytes() + rows[:100].tobytes()
    query = spec.form.scored(rows[:5])
    _, distances = top_k(again.search(query, 3, 100, None), 5, 3)
    assert (distances[:, 0] == pair_distances(metric, query, query)).all() or metric is Metric.DOT


def test_a_file_of_another_type_is_refused(tmp_path: Path) -> None:
    rows = stored(DType.INT8, 100)
    spec = spec_of(DType.INT8, IndexKind.FLAT, Metric.L2)
    segment = build(tmp_path, spec, rows)
    with pytest.raises(CorruptSegment, match="not of float16"):
        SealedSegment(segment.path, segment.segment, spec_of(DType.FLOAT16, IndexKind.FLAT, Metric.L2))


@pytest.mark.parametrize("dtype", TYPED)
def test_growing_rows_give_the_distances_of_files(tmp_path: Path, dtype: DType) -> None:
    spec, rows = spec_of(dtype, IndexKind.HNSW, Metric.COSINE), stored(dtype, 700)
    vectors = CollectionVectors(7, spec, str(tmp_path), SegmentConfig(seal_rows=100))
    vectors.begin()
    vectors.append(0, rows)
    vectors.commit()
    queries = spec.form.scored(stored(dtype, 20, 5))
    before = vectors.view().search(queries, 10, exact=True)
    segment, path = build_segment(str(tmp_path), 7, 0, 699, vectors.view().live_blocks(0, 699), spec)
    vectors.attach(SealedSegment(path, segment, spec))
    assert vectors.publish(segment)
    after = vectors.view().search(queries, 10, exact=True)
    assert before[0].tobytes() == after[0].tobytes() and before[1].tobytes() == after[1].tobytes()


def test_a_command_of_another_type_is_refused(tmp_path: Path) -> None:
    """As many bytes: 4 float16, or 8 int8."""
    replica, log = open_replica(tmp_path), Log()
    log.add(CreateCollection(CollectionSpec(name="c", dimensions=4, metric=Metric.L2, dtype=DType.FLOAT16)))
    row = np.array([1, 2, 3, 4], "<f2").tobytes()
    log.add(Insert("c", ["a"], row, [b""], dtype=DType.FLOAT16))
    log.add(Insert("c", ["b"], row, [b""], dtype=DType.INT8))
    log.add(UpdateVectors("c", ["a"], row, dtype=DType.INT8))
    results = replica.apply(log.entries)
    assert [isinstance(one, InvalidArgument) for one in results] == [False, False, True, True]
    assert replica.view.count("c") == 1
    replica.close()


def test_a_search_is_as_long_as_what_it_scores(tmp_path: Path) -> None:
    """Bits are counted as they are, other types are widened first."""
    replica, log, wide = open_replica(tmp_path), Log(), 2048
    for dtype in DType:
        metric = Metric.HAMMING if dtype is DType.BIT else Metric.L2
        made = CollectionSpec(name=dtype, dimensions=wide, metric=metric, dtype=dtype)
        rows = made.form.stored(np.ones((3, wide), np.float32)).tobytes()
        log.add(CreateCollection(made))
        log.add(Insert(dtype, ["a", "b", "c"], rows, [b""] * 3, dtype=dtype))
    replica.apply(log.entries)
    query = SearchRequest(collection="", vector=np.ones(wide, "<f4").tobytes(), k=1, with_metadata=False)
    found = {
        dtype: replica.reads().short_bytes(msgspec.structs.replace(query, collection=dtype)) / (3 * wide * 4)
        for dtype in DType
    }
    assert found[DType.FLOAT32] == 1 and found[DType.BIT] == 1 / 16
    assert 1 < found[DType.INT8] < found[DType.FLOAT16] < 4
    few = CollectionSpec(name="few", dimensions=16, metric=Metric.HAMMING, dtype=DType.BIT)
    log.add(CreateCollection(few))
    log.add(Insert("few", ["a", "b", "c"], b"\xff\xff" * 3, [b""] * 3, dtype=DType.BIT))
    replica.apply(log.entries[-2:])
    query = SearchRequest(collection="few", vector=np.ones(16, "<f4").tobytes(), k=1, with_metadata=False)
    assert replica.reads().short_bytes(query) == 3 * 256, "a row of few bits takes as long as one of many"
    replica.close()


def test_one_row_is_scored_like_many() -> None:
    for dtype in TYPED:
        form, rows = VectorForm(WIDTH, dtype, unit=True), stored(dtype)
        whole = form.scored(rows)
        assert whole[1234].tobytes() == form.scored(rows[1234:1235])[0].tobytes()
        assert np.allclose((whole.astype(np.float64) ** 2).sum(axis=1), 1, atol=1e-6)
