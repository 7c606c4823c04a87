"""Index files and growing rows of bits: distances are how many bits differ, everywhere, and bytes come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import pytest

from needle.base.config import SegmentConfig
from needle.base.dtypes import DType, VectorForm
from needle.base.model import KINDS_OF, CollectionSpec, IndexKind, IndexParams, Metric
from needle.shard.segments.bits import differing, differing_pairs
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.graph_builder import GraphBuilder
from needle.shard.segments.scoring import Scan, pair_distances, top_k
from needle.shard.segments.sealed import SealedSegment

ROWS, BEAM = 5000, 100
"""So narrow a beam in so many vectors costs less than to score each: graphs are searched."""
WIDTHS = (8, 72, 128)


def spec_of(kind: IndexKind, width: int) -> CollectionSpec:
    return CollectionSpec(
        name="c", dimensions=width, metric=Metric.HAMMING, index=IndexParams(kind=kind), dtype=DType.BIT
    )


def bits_of(rows: int = ROWS, width: int = 128, seed: int = 1) -> np.ndarray:
    """Around forty hearts; some rows are copies, some have one value only."""
    rng = np.random.default_rng(seed)
    hearts = np.random.default_rng(7).integers(0, 2, (40, width))
    bits = hearts[np.arange(rows) % len(hearts)] ^ (rng.random((rows, width)) < 0.15)
    bits[:: max(2, rows // 50)] = bits[1]
    bits[3], bits[4] = 0, 1
    return bits.astype(np.uint8)


def build(directory: Path, spec: CollectionSpec, rows: np.ndarray, base: SealedSegment | None = None) -> SealedSegment:
    directory.mkdir(exist_ok=True)
    first = 0 if base is None else base.segment.last + 1
    blocks = [(np.arange(first, first + len(rows)), rows)]
    segment, path = build_segment(str(directory), 3, 0, first + len(rows) - 1, blocks, spec, base=base)
    return SealedSegment(path, segment, spec)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS_OF[DType.BIT])
def test_a_file_finds_and_keeps_what_is_stored(tmp_path: Path, kind: IndexKind, width: int) -> None:
    spec, bits = spec_of(kind, width), bits_of(width=width)
    rows = spec.form.stored(bits.astype(np.float32))
    assert rows.shape == (ROWS, width // 8)
    half = build(tmp_path / "half", spec, rows[: ROWS // 2])
    segment = build(tmp_path / "whole", spec, rows[ROWS // 2 :], base=half)
    assert np.concatenate([part for _, part in segment.blocks(None)]).tobytes() == rows.tobytes()
    asked = np.concatenate([bits_of(40, width, 2), np.zeros((1, width)), np.ones((1, width))]).astype(np.uint8)
    queries = asked.astype(np.float32)
    differ = (asked[:, None] != bits[None]).sum(axis=2)
    least = np.sort(differ, axis=1)[:, 9:10]
    for mask in (None, np.arange(ROWS) % 3 == 0):
        counts = np.ones(ROWS, bool) if mask is None else mask
        near = np.sort(np.where(counts, differ, width + 1), axis=1)[:, 9:10]
        ordinals, distances = top_k(segment.search(queries, 10, BEAM, mask), len(queries), 10)
        assert counts[ordinals].all()
        assert (distances == np.take_along_axis(differ, ordinals, axis=1)).all()
        assert ((distances <= near).mean(axis=1) > 0.8).all()  # also of queries that have one value only
        assert (distances <= near).mean() > 0.95
        scan = Scan(Metric.HAMMING, queries, 10, segment.norm_max)
        segment.scan(scan, mask)
        _, exact = top_k(scan.found, len(queries), 10)
        assert (exact == np.sort(np.where(counts, differ, width + 1), axis=1)[:, :10]).all()
    assert least.max() <= width
    if kind is IndexKind.FLAT:
        assert segment.size < segment.nodes * width / 8 + ROWS * 8 + 8192  # of which 4 a row name its node
    else:
        assert segment.kind is IndexKind.HNSW_RABITQ  # nothing of it is float32
        assert segment.size < segment.nodes * (2 * width / 8 + 8 + 200) + ROWS * 8 + 8192


def links(index: Any) -> list[bytes]:
    hnsw = index.hnsw
    found = [faiss.vector_to_array(getattr(hnsw, name)).tobytes() for name in ("levels", "offsets", "neighbors")]
    return [*found, bytes([hnsw.max_level]), str(hnsw.entry_point).encode()]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_graph_is_built_over_stored_bits_as_it_would_be_over_zeros_and_ones(tmp_path: Path, width: int) -> None:
    spec, bits = spec_of(IndexKind.HNSW, width), bits_of(width=width)
    rows = spec.form.stored(bits.astype(np.float32))
    builder = GraphBuilder(spec, lambda: False)
    builder.add(rows)
    made = builder.finish()
    assert made.nodes.dtype == np.uint8 and made.nodes.shape == (made.index.ntotal, width // 8)
    plain = msgspec.structs.replace(spec, metric=Metric.L2, dtype=DType.FLOAT32)
    over_floats = GraphBuilder(plain, lambda: False)
    over_floats.add(bits.astype(np.float32))
    wanted = over_floats.finish()
    assert made.nodes.tobytes() == spec.form.stored(wanted.nodes).tobytes()
    assert links(made.index) == links(wanted.index)
    assert (made.beam, made.longest) == (wanted.beam, wanted.longest)
    assert made.beam.width or width == 8  # of 256 nodes none is measured
    segment = build(tmp_path / "whole", spec, rows)
    assert links(faiss.read_index(segment.path)) == links(made.index) and segment.beam == made.beam
    parts = build(tmp_path / "parts", spec, rows[ROWS // 2 :], base=build(tmp_path / "half", spec, rows[: ROWS // 2]))
    assert parts.nodes == segment.nodes


def test_a_file_of_no_bits_at_all(tmp_path: Path) -> None:
    for kind in KINDS_OF[DType.BIT]:
        spec = spec_of(kind, 72)
        segment, path = build_segment(str(tmp_path), 3, 0, 9, [], spec)
        empty = SealedSegment(path, segment, spec)
        rows = spec.form.stored(bits_of(300, 72).astype(np.float32))
        whole, path = build_segment(str(tmp_path), 3, 0, 309, [(np.arange(10, 310), rows)], spec, base=empty)
        found = np.concatenate([part for _, part in SealedSegment(path, whole, spec).blocks(None)])
        assert found.tobytes() == rows.tobytes()


def test_growing_rows_give_the_distances_of_files(tmp_path: Path) -> None:
    spec = spec_of(IndexKind.HNSW, 72)
    rows = spec.form.stored(bits_of(700, 72).astype(np.float32))
    vectors = CollectionVectors(7, spec, str(tmp_path), SegmentConfig(seal_rows=100))
    vectors.begin()
    vectors.append(0, rows)
    vectors.commit()
    queries = bits_of(20, 72, 5).astype(np.float32)
    before = vectors.view().search(queries, 10, exact=True)
    segment, path = build_segment(str(tmp_path), 7, 0, 699, vectors.view().live_blocks(0, 699), spec)
    vectors.attach(SealedSegment(path, segment, spec))
    assert vectors.publish(segment)
    after = vectors.view().search(queries, 10, exact=True)
    assert before[0].tobytes() == after[0].tobytes() and before[1].tobytes() == after[1].tobytes()


@pytest.mark.parametrize("width", WIDTHS)
def test_bits_are_counted_as_they_are_scored_one_by_one(width: int) -> None:
    form, bits = VectorForm(width, DType.BIT), bits_of(500, width).astype(np.float32)
    rows = form.stored(bits)
    assert form.scored(rows).tobytes() == bits.tobytes() == form.scored(form.stored(rows.astype(np.float32))).tobytes()
    far = differing(rows[:3], rows)
    for at in range(3):
        assert far[at].tobytes() == pair_distances(Metric.HAMMING, bits[at : at + 1], bits).tobytes()
        assert far[at].tobytes() == differing_pairs(rows[at : at + 1], rows).tobytes()
    scan, counted = (Scan(Metric.HAMMING, bits[:3], 5, 12.0) for _ in range(2))
    scan.add(bits, np.arange(500))
    counted.add_bits(form, rows, np.arange(500))
    assert [part.tobytes() for part in top_k(scan.found, 3, 5)] == [
        part.tobytes() for part in top_k(counted.found, 3, 5)
    ]
