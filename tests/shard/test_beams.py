"""The beam of a graph is measured when it is built, by vectors that it does not have yet."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import xxhash

from needle.base.errors import CorruptSegment
from needle.base.model import GRAPHS, METRICS_OF_NUMBERS, PRESETS, CollectionSpec, IndexKind, IndexParams, Metric
from needle.shard.segments import beams
from needle.shard.segments import format as format_
from needle.shard.segments.builder import build_segment
from needle.shard.segments.graph import UNMEASURED, Beam, BuildCancelled
from needle.shard.segments.graph_builder import GraphBuilder
from needle.shard.segments.scoring import top_k
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.trace import Trace
from shard.vectors_util import brute, clustered, new_vectors, publish, seal

ROWS, DIMENSIONS, K = 6000, 48, 10
LOW = PRESETS["low_latency"]


def hard(rows: int, seed: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    """(rows, dimensions) unit vectors without clusters: a narrow beam misses many neighbours."""
    data = np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    return np.ascontiguousarray(data)


def spec(kind: IndexKind = IndexKind.HNSW, metric: Metric = Metric.COSINE, index: IndexParams = LOW) -> CollectionSpec:
    made = IndexParams(m=index.m, ef_construction=index.ef_construction, ef_search=index.ef_search, kind=kind)
    return CollectionSpec(name="c", dimensions=DIMENSIONS, metric=metric, index=made)


def build(
    directory: Path, made: CollectionSpec, data: np.ndarray, base: SealedSegment | None = None, **options
) -> SealedSegment:
    directory.mkdir(exist_ok=True)
    first = 0 if base is None else base.segment.last + 1
    blocks = [(np.arange(first, first + len(data)), data)]
    segment, path = build_segment(str(directory), 3, 0, first + len(data) - 1, blocks, made, base=base, **options)
    return SealedSegment(path, segment, made)


def recall(segment: SealedSegment, data: np.ndarray, ef: int, mask: np.ndarray | None = None) -> float:
    """Of a search that says nothing of its own."""
    queries = hard(100, 2)
    found = top_k(segment.search(queries, K, ef, mask, measured=True), len(queries), K)[0]
    live = np.arange(len(data)) if mask is None else np.flatnonzero(mask)
    exact = [brute(segment.metric, data[live], live, query, K)[0] for query in queries]
    return float(np.mean([np.isin(want, got).mean() for want, got in zip(exact, found, strict=True)]))


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
def test_each_preset_finds_what_it_should(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    """The narrowest one, on data for which it is too narrow; also by a file that extends another one."""
    data = hard(ROWS, 1)
    if metric is Metric.DOT:  # three bands
        data *= np.repeat(np.float32([1, 2, 4]), ROWS // 3)[:, None]
    base = build(tmp_path / "base", spec(kind, metric), data[: ROWS // 2])
    whole = build(tmp_path / "whole", spec(kind, metric), data[ROWS // 2 :], base)
    assert whole.beam.width > LOW.ef_search
    assert recall(whole, data, LOW.ef_search) >= 0.95
    assert recall(whole, data, LOW.ef_search, np.arange(ROWS) % 2 == 0) >= 0.95


def test_a_graph_that_needs_a_very_wide_beam_gets_it(tmp_path: Path) -> None:
    """As graphs of a million vectors do; here few links and little effort make up for few vectors."""
    data = hard(20_000, 1)
    segment = build(tmp_path, spec(index=IndexParams(m=4, ef_construction=8, ef_search=20)), data)
    assert segment.beam.width > 512
    assert recall(segment, data, 20) >= 0.95


def test_a_search_that_says_how_wide_a_beam_it_wants_gets_that_one(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path, Metric.COSINE, DIMENSIONS, m=8, ef_search=20)
    vectors.append(0, hard(ROWS, 1))
    segment, path = seal(vectors, 0, ROWS - 1)
    publish(vectors, segment, path)
    least = vectors.view().served[0].sealed.beam.width
    for asked, beam in ((0, least), (20, 20), (50, 50)):
        trace = Trace(1, lambda: 0.0)
        vectors.view().nearest(hard(1, 3), K, ef_search=asked, trace=trace)
        assert [part.ef for part in trace.segments(0)] == [beam]
    assert least > 50


def test_data_that_is_easy_costs_no_more_than_before(tmp_path: Path) -> None:
    made = spec(index=PRESETS["balanced"])
    segment = build(tmp_path, made, clustered(ROWS, DIMENSIONS, 1))
    assert 0 < segment.beam.width <= PRESETS["balanced"].ef_search


def test_of_neighbours_as_near_as_each_other_any_will_do(tmp_path: Path) -> None:
    """Vectors of ones and zeros: hundreds are as far as the tenth."""
    data = np.unique(np.random.default_rng(1).integers(0, 2, (9000, DIMENSIONS)), axis=0).astype(np.float32)
    few = np.zeros((len(data), DIMENSIONS), np.float32)
    few[:, :13] = data[:, :13]
    few = np.random.default_rng(2).permutation(np.unique(few, axis=0))
    assert 0 < build(tmp_path, spec(metric=Metric.L2), few).beam.width <= 45


def test_nodes_stand_as_their_rows_do(tmp_path: Path) -> None:
    """Otherwise each row would need a table of where it is."""
    data = hard(3000, 1)
    segment = build(tmp_path, spec(), data)
    assert segment.node_of is None and format_.verify_file(segment.path).magic == format_.PLAIN
    assert b"".join(rows.tobytes() for _, rows in segment.blocks(None)) == data.tobytes()


def test_copies_of_vectors_that_wait_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them are in the graph by then, and some not; the same vector comes in many slices."""
    monkeypatch.setattr(beams, "TAIL_BYTES", 4 * DIMENSIONS * 1024)
    data = hard(5000, 1)
    data[2500:5000:5] = data[0:2500:5]
    data[4001] = data[3998]
    segment = build(tmp_path, spec(), data)
    assert segment.nodes == 4499 and segment.beam.width
    assert (segment.vectors(np.arange(5000)) == data).all()


def test_a_file_that_grew_little_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hard(4000, 1)
    first = build(tmp_path / "first", spec(), data[:2000])
    assert first.beam.nodes == 2000 - 2000 // beams.TAIL_SHARE
    measured: list[int] = []
    monkeypatch.setattr(beams._Asked, "least", lambda _: measured.append(1) or 77)
    little = build(tmp_path / "little", spec(), data[2000:2500], first)
    assert little.beam == first.beam and not measured
    much = build(tmp_path / "much", spec(), data[2500:4000], little)
    assert measured == [1] and much.beam == Beam(77, 4000 - 4000 // beams.TAIL_SHARE)


def test_few_vectors_measure_nothing(tmp_path: Path) -> None:
    assert build(tmp_path, spec(), hard(500, 1)).beam == UNMEASURED


def test_a_file_of_before_is_read_as_it_was(tmp_path: Path) -> None:
    for kind in GRAPHS:
        data = hard(2000, 1)
        segment = build(tmp_path / kind, spec(kind), data)
        whole = Path(segment.path).read_bytes()
        at = whole.rindex(b"NDLBEAM1")
        assert segment.beam.width

        def changed(block: bytes, whole: bytes = whole, at: int = at) -> bytes:
            rest = whole[:at] + block + whole[at + 16 : -16]
            return rest + xxhash.xxh3_128(rest).digest()

        before = Path(segment.path)
        before.write_bytes(changed(b""))
        held = format_.verify_file(str(before)).segment
        opened = SealedSegment(str(before), held, spec(kind))
        assert opened.beam == UNMEASURED
        queries = hard(20, 5)
        plain = [top_k(one.search(queries, K, 30, None), 20, K)[0] for one in (segment, opened)]
        assert (plain[0] == plain[1]).all()
        before.write_bytes(changed(b"NDLBEAM1" + b"\xff" * 8))
        with pytest.raises(CorruptSegment, match="beam of 4294967295"):
            SealedSegment(str(before), format_.verify_file(str(before)).segment, spec(kind))


def test_measuring_is_cancelled_and_leaves_the_threads_of_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    data, wanted = hard(3000, 1), [True]
    faiss.omp_set_num_threads(2)
    try:
        builder = GraphBuilder(spec(), lambda: not wanted[0])
        builder.add(data)
        assert builder.finish().beam.width and faiss.omp_get_max_threads() == 2
        again = GraphBuilder(spec(), lambda: not wanted[0])
        again.add(data)

        def least(asked: beams._Asked) -> float:
            wanted[0] = False
            return asked._recall(20)

        monkeypatch.setattr(beams._Asked, "least", least)
        with pytest.raises(BuildCancelled):
            again.finish()
    finally:
        faiss.omp_set_num_threads(1)
