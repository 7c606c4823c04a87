"""Every kind of index finds what brute force finds: plain, under masks, with copies, with uneven lengths, extended."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from mmap import mmap
from pathlib import Path
from threading import Lock, Thread

import numpy as np
import pytest
from pyroaring import BitMap

from needle.base.dtypes import DType
from needle.base.errors import CorruptSegment
from needle.base.explain import Way
from needle.base.model import CODES, GRAPHS, METRICS_OF_NUMBERS, CollectionSpec, IndexKind, IndexParams, Metric
from needle.shard.segments import format as format_
from needle.shard.segments import opened
from needle.shard.segments.builder import build_segment
from needle.shard.segments.opened import OpenIndex
from needle.shard.segments.scoring import Scan, pair_distances, top_k
from needle.shard.segments.sealed import SealedSegment
from needle.shard.segments.trace import Ways
from shard.vectors_util import brute, check_against_brute, clustered, distances_to, new_vectors, publish, seal

ROWS, DIMENSIONS = 9000, 24
NEW = [kind for kind in IndexKind if kind is not IndexKind.HNSW]
LEAST = {kind: 2500 if kind in GRAPHS else 4500 for kind in IndexKind}
"""Of so many vectors each kind has an index of its own: lists begin at 4,096 nodes, and a graph's cost more each."""


def spec(kind: IndexKind, metric: Metric = Metric.COSINE, dimensions: int = DIMENSIONS) -> CollectionSpec:
    return CollectionSpec(name="c", dimensions=dimensions, metric=metric, index=IndexParams(kind=kind))


def build(
    directory: Path, made: CollectionSpec, data: np.ndarray, first: int = 0, base: SealedSegment | None = None
) -> SealedSegment:
    directory.mkdir(exist_ok=True)
    last = first + len(data) - 1
    blocks = [(np.arange(first, last + 1), data)]
    segment, path = build_segment(str(directory), 3, 0, last, blocks, made, base=base)
    return SealedSegment(path, segment, made)


def recall(
    segment: SealedSegment,
    data: np.ndarray,
    queries: np.ndarray,
    mask: np.ndarray | None = None,
    k: int = 10,
    ef: int = 64,
) -> float:
    """By distance: of equal vectors any will do. Every hit counts, is there once, and has its own distance."""
    ordinals, distances = top_k(segment.search(queries, k, ef, mask), len(queries), k)
    live = np.arange(len(data)) if mask is None else np.flatnonzero(mask)
    wanted, found = min(k, len(live)), 0
    exact = data[live].astype(np.float64)
    for got, told, query in zip(ordinals, distances, queries, strict=True):
        got, told = got[:wanted], told[:wanted]
        assert (got >= 0).all() and np.isin(got, live).all() and len(set(got.tolist())) == wanted
        own = dict(zip(*brute(segment.metric, data[got], got, query, wanted), strict=True))
        np.testing.assert_allclose(told, [own[one] for one in got], rtol=1e-4, atol=2e-4)
        farthest = np.partition(distances_to(segment.metric, exact, query), wanted - 1)[wanted - 1]
        found += int((told <= farthest + 1e-5 * max(1, abs(farthest))).sum())
    return found / (wanted * len(queries))


def halves(directory: Path, made: CollectionSpec, data: np.ndarray) -> SealedSegment:
    """A file that extends another one."""
    half = len(data) // 2
    return build(directory, made, data[half:], half, build(directory, made, data[:half]))


@pytest.fixture(scope="module", params=[(kind, metric) for kind in NEW for metric in METRICS_OF_NUMBERS], ids="-".join)
def large(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[SealedSegment, np.ndarray, np.ndarray]:
    kind, metric = request.param
    data, queries = clustered(ROWS, DIMENSIONS, 1), clustered(50, DIMENSIONS, 2)
    if metric is not Metric.COSINE:
        data *= np.exp(0.3 * np.random.default_rng(3).standard_normal((ROWS, 1))).astype(np.float32)
    return halves(tmp_path_factory.mktemp("kind"), spec(kind, metric), data), data, queries


def test_recall(large) -> None:
    segment, data, queries = large
    assert recall(segment, data, queries) >= 0.97
    assert recall(segment, data, queries, k=100) >= 0.97


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_recall_under_a_random_mask(large, share: float) -> None:
    segment, data, queries = large
    assert recall(segment, data, queries, np.random.default_rng(5).random(ROWS) < share) >= 0.95


def test_recall_where_the_mask_leaves_only_what_is_near_or_far(large) -> None:
    segment, data, queries = large
    distance = np.argsort(brute(segment.metric, data, np.arange(ROWS), queries[0], ROWS)[0])
    for rows in (9, ROWS // 100, ROWS // 10, ROWS // 4, ROWS // 2):
        for mask in (distance < rows, distance >= rows, distance >= ROWS - rows):
            assert recall(segment, data, queries[:1], mask) >= 0.9


def test_a_scan_gives_every_neighbour(large) -> None:
    segment, data, queries = large
    scan = Scan(segment.metric, queries[:5], 10, segment.norm_max)
    segment.scan(scan, None)
    ordinals, _ = top_k(scan.found, 5, 10)
    for got, query in zip(ordinals, queries, strict=False):
        assert got.tolist() == brute(segment.metric, data, np.arange(ROWS), query, 10)[0].tolist()


def test_files_are_of_the_kind_asked_for_and_the_same_each_time(tmp_path: Path) -> None:
    for kind in IndexKind:
        data = clustered(LEAST[kind], DIMENSIONS, 1)
        first, again = build(tmp_path / "a", spec(kind), data), build(tmp_path / "b", spec(kind), data)
        assert first.segment == again.segment and first.kind is kind


@pytest.mark.parametrize("kind", IndexKind)
def test_vectors_that_codes_cannot_tell_apart_are_found(tmp_path: Path, kind: IndexKind) -> None:
    """Half of them are one vector but for its last digits, and a single one is a million times longer."""
    rng = np.random.default_rng(1)
    half = 2000 if kind in GRAPHS else 3000
    data = clustered(2 * half, DIMENSIONS, 1, normalise=False)
    data[::2] = data[0] + 1e-4 * rng.standard_normal((half, DIMENSIONS)).astype(np.float32)
    data[1] *= 1e6
    segment = build(tmp_path, spec(kind, Metric.L2), data)
    near = data[0] + 1e-4 * rng.standard_normal((20, DIMENSIONS)).astype(np.float32)
    assert recall(segment, data, near) >= 0.9
    assert recall(segment, data, clustered(20, DIMENSIONS, 2, normalise=False)) >= 0.95


@pytest.mark.parametrize("kind", IndexKind)
def test_copies_are_found_all_and_hide_nothing(tmp_path: Path, kind: IndexKind) -> None:
    data = clustered(2 * LEAST[kind] + 1000, DIMENSIONS, 1)
    data[::2] = data[0]
    segment = halves(tmp_path, spec(kind), data)
    assert segment.kind is kind
    assert recall(segment, data, clustered(20, DIMENSIONS, 2)) >= 0.97
    assert recall(segment, data, data[:1], k=1000) == 1


@pytest.mark.parametrize("kind", NEW)
def test_bands_of_an_inner_product_are_searched_by_codes_and_lists(
    tmp_path: Path, kind: IndexKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    rows = 6600 if kind in GRAPHS else 14_000  # a third of them is enough for a band
    data, queries = clustered(rows, DIMENSIONS, 1), clustered(50, DIMENSIONS, 2)
    data *= (rng.choice([1.0, 1.5, 4.0], (rows, 1)) * rng.uniform(1, 1.04, (rows, 1))).astype(np.float32)
    segment = halves(tmp_path, spec(kind, Metric.DOT), data)
    assert segment.kind is kind and (kind is IndexKind.FLAT or [band.even for band in segment.bands] == [True] * 3)
    monkeypatch.setattr(OpenIndex, "cost", lambda *_: 0)  # no way round the index
    for share in (1.0, 0.9, 0.3, 0.01):
        assert recall(segment, data, queries, rng.random(rows) < share) >= 0.94
    assert recall(segment, data, queries[:5], None, k=2000) >= 0.97


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
def test_small_files(tmp_path: Path, kind: IndexKind, metric: Metric) -> None:
    made = spec(kind, metric, 3)
    nothing, path = build_segment(str(tmp_path), 3, 0, 9, [], made)
    assert SealedSegment(path, nothing, made).search(clustered(4, 3, 2), 5, 64, None) == []
    for rows in (1, 7, 300):
        data = clustered(rows, 3, 1)
        assert recall(build(tmp_path, made, data), data, clustered(4, 3, 2), k=5) == 1


@pytest.mark.parametrize("kind", IndexKind)
def test_a_zero_query_finds_documents_where_some_are_too_long_to_measure(tmp_path: Path, kind: IndexKind) -> None:
    data = clustered(600, DIMENSIONS, 1)
    data[::7] *= np.float32(1e37)
    segment = build(tmp_path, spec(kind, Metric.DOT), data)
    ordinals, distances = top_k(segment.search(np.zeros((2, DIMENSIONS), np.float32), 10, 64, None), 2, 10)
    assert (ordinals >= 0).all() and (distances == 0).all()


@pytest.mark.parametrize("rows", [700, 2040])
@pytest.mark.parametrize("kind", CODES)
def test_codes_of_a_small_file_find_what_full_vectors_do(tmp_path: Path, kind: IndexKind, rows: int) -> None:
    """With an effort as low as that of a preset it is searched by its codes, so these have to be measured, too."""
    data, queries = clustered(rows, DIMENSIONS, 1), clustered(200, DIMENSIONS, 2)
    found, graph = (build(tmp_path / one, spec(one), data) for one in (kind, IndexKind.HNSW))
    for effort in (10, 20):
        assert recall(found, data, queries, k=5, ef=effort) >= recall(graph, data, queries, k=5, ef=effort) - 0.03


@pytest.mark.parametrize("kind", NEW)
def test_every_byte_counts(tmp_path: Path, kind: IndexKind) -> None:
    segment = build(tmp_path, spec(kind), clustered(LEAST[kind], DIMENSIONS, 1))
    assert segment.kind is kind
    path = Path(segment.path)
    whole = path.read_bytes()
    for at in np.linspace(0, len(whole) - 1, 20).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CorruptSegment):
            SealedSegment(str(path), segment.segment, spec(kind))
    for size in np.linspace(0, len(whole) - 1, 20).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptSegment):
            SealedSegment(str(path), segment.segment, spec(kind))
    path.write_bytes(whole)
    assert SealedSegment(str(path), segment.segment, spec(kind)).kind is kind


@pytest.fixture(scope="module")
def wide(module_path: Path) -> Callable[[IndexKind], tuple[SealedSegment, np.ndarray]]:
    """One file of 256 dimensions of each kind that is asked for, opened anew each time."""

    @cache
    def built(kind: IndexKind) -> tuple[SealedSegment, np.ndarray]:
        data = clustered(LEAST[kind] + 500, 256, 1)
        return build(module_path / kind, spec(kind, dimensions=256), data), data

    def opens(kind: IndexKind) -> tuple[SealedSegment, np.ndarray]:
        segment, data = built(kind)
        return SealedSegment(segment.path, segment.segment, spec(kind, dimensions=256)), data

    return opens


@pytest.mark.parametrize("kind", CODES)
def test_full_vectors_beside_codes_do_not_stay_mapped(wide, kind: IndexKind, monkeypatch) -> None:
    monkeypatch.setattr(opened, "LET_GO_BYTES", 1 << 19)
    segment, data = wide(kind)
    before = mapped_bytes(segment.path)
    assert segment.vectors(np.arange(len(data))).nbytes == data.nbytes
    for _ in range(20):
        segment.vectors(np.arange(0, len(data), 400))
    assert mapped_bytes(segment.path) - before < data.nbytes // 2
    assert (segment.vectors(np.arange(len(data))) == data).all()


@pytest.mark.parametrize("kind", [IndexKind.FLAT, IndexKind.HNSW])
def test_others_may_go_on_while_vectors_are_read(tmp_path: Path, kind: IndexKind) -> None:
    """Otherwise the event loop waits for the disk whenever a search in a thread does."""
    segment = build(tmp_path, spec(kind, dimensions=16_384), clustered(100, 16_384, 1))
    gate, ran = Lock(), []
    gate.acquire()
    other = Thread(target=lambda: (gate.acquire(), ran.append(True)))
    other.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(100)  # no thread has to give way
    try:
        gate.release()
        for _ in range(200):
            segment.vectors(np.arange(100))
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(before)
        other.join()


@pytest.mark.parametrize("kind", NEW)
def test_vectors_need_not_begin_where_a_page_of_this_machine_does(tmp_path: Path, kind: IndexKind, monkeypatch) -> None:
    """Pages of 16 and 64 KiB are usual on ARM: there such a file was taken for damaged, deleted and built forever."""
    monkeypatch.setattr(format_, "PAGE_BYTES", 64)
    data = clustered(LEAST[kind], DIMENSIONS, 1)
    segment = build(tmp_path, spec(kind), data)
    at = format_.read_layout(segment.path, format_.verify_file(segment.path), DType.FLOAT32).apart.at
    assert at % 4096 or kind is IndexKind.FLAT
    assert b"".join(rows.tobytes() for _, rows in segment.blocks(None)) == data.tobytes()
    assert recall(segment, data, clustered(20, DIMENSIONS, 2)) >= 0.97


@pytest.mark.parametrize("kind", NEW)
def test_a_scan_does_not_wait_for_each_page_of_its_own(wide, kind: IndexKind, monkeypatch) -> None:
    """Either the system reads ahead by itself, or it is told of all that a scan is about to read."""
    hints: list[tuple[str, int, int]] = []

    def noted(mapping: mmap, advice: str, first: int = 0, size: int = -1) -> None:
        hints.append((advice, first, size))
        advise(mapping, advice, *(() if size < 0 else (first, size)))

    advise = opened._advise
    monkeypatch.setattr(opened, "_advise", noted)
    segment, data = wide(kind)
    seen = np.zeros(data.nbytes, np.bool_)
    for rows in segment.node_blocks():
        assert rows.shape[1] == 256
    for advice, first, size in hints:
        if advice == "MADV_WILLNEED":
            seen[first : first + size] = True
    assert ("MADV_RANDOM" in {hint[0] for hint in hints}) == (kind in CODES)
    assert kind not in CODES or seen.all()


def mapped_bytes(path: str) -> int:
    """What this process has of a file in its page tables."""
    parts = Path("/proc/self/smaps").read_text("utf-8").split("\n")
    found, inside = 0, False
    for line in parts:
        if "-" in line.split(" ")[0]:
            inside = line.endswith(path)
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.parametrize("kind", IndexKind)
def test_a_file_that_nobody_uses_any_more_is_let_go_at_once(tmp_path: Path, kind: IndexKind) -> None:
    """It stayed mapped, with what it takes on the disk, until the collector of reference cycles came: an hour later."""
    data, queries = clustered(1500, DIMENSIONS, 1), clustered(3, DIMENSIONS, 2)
    data[::3] *= 4
    gc.disable()
    try:
        segment = halves(tmp_path, spec(kind, Metric.DOT), data)
        segment.search(queries, 10, 64, None)
        segment.search(queries, 10, 64, np.arange(1500) % 2 == 0)
        assert segment.path in Path("/proc/self/maps").read_text("utf-8")
        path = segment.path
        del segment
        assert path not in Path("/proc/self/maps").read_text("utf-8")
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [kind for kind in NEW if kind is not IndexKind.FLAT])
def test_candidates_are_scored_from_full_vectors(tmp_path: Path, kind: IndexKind, monkeypatch) -> None:
    """As replicas do, whose files may differ: the distances are those of a scan, bit by bit."""
    monkeypatch.setattr(OpenIndex, "cost", lambda *_: 0)  # no way round the index
    made = new_vectors(tmp_path, Metric.L2, DIMENSIONS, kind=kind)
    rows = LEAST[kind]
    made.append(0, clustered(rows, DIMENSIONS, 1))
    publish(made, *seal(made, 0, rows - 1))
    queries = clustered(50, DIMENSIONS, 2)
    found, exact = made.search(queries, 10), made.search(queries, 10, exact=True)
    same = found[0] == exact[0]
    assert same.mean() >= 0.97 and (found[1][same] == exact[1][same]).all()


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize("kind", CODES)
def test_what_faiss_puts_in_order_is_what_scoring_all_candidates_gives(
    tmp_path: Path, kind: IndexKind, metric: Metric, monkeypatch
) -> None:
    monkeypatch.setattr(OpenIndex, "cost", lambda *_: 0)  # no way round the index
    segment = build(tmp_path, spec(kind, metric), clustered(LEAST[kind], DIMENSIONS, 1))
    queries = clustered(40, DIMENSIONS, 2)
    ordered = [top_k(segment.search(part, 10, 64, None), len(part), 10) for part in (queries, queries[:1])]
    assert segment.kind is kind and segment._index._refined is not None
    segment._index._refined = None
    scored = [top_k(segment.search(part, 10, 64, None), len(part), 10) for part in (queries, queries[:1])]
    for (names, distances), (others, told) in zip(ordered, scored, strict=True):
        assert (names == others).all() and (distances == told).all()


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize("kind", IndexKind)
def test_a_scan_of_one_query_goes_over_files_and_growing_rows_alike(
    tmp_path: Path, kind: IndexKind, metric: Metric
) -> None:
    """Rows in a file are looked at where they lie, others by a product: what that says must be comparable."""
    made = new_vectors(tmp_path, metric, DIMENSIONS, kind=kind)
    far = np.float32(1 if metric is Metric.COSINE else 30)
    rows = LEAST[kind]
    data = clustered(rows + 500, DIMENSIONS, 1) * far
    made.append(0, data[:rows])
    publish(made, *seal(made, 0, rows - 1))
    made.append(rows, data[rows:])
    for query in clustered(20, DIMENSIONS, 2) * far:
        for allow in (None, BitMap(range(0, rows + 500, 3))):
            live = np.arange(rows + 500) if allow is None else np.array(allow.to_array())
            found = made.search(query[None], 10, exact=True, allow=allow)
            check_against_brute(metric, found, data, live, query[None], 10)


def test_of_candidates_that_are_as_near_those_of_the_lowest_ordinals_are_found(tmp_path: Path, monkeypatch) -> None:
    """faiss handed on some of them, whichever: of 125 vectors whose cosine is 1 but for rounding."""
    monkeypatch.setattr(OpenIndex, "cost", lambda *_: 0)  # no way round the index
    rng = np.random.default_rng(0)
    queries = clustered(40, DIMENSIONS, 2)
    data = np.repeat(queries, 125, axis=0) + 2e-5 * rng.standard_normal((5000, DIMENSIONS))
    data = (data / np.linalg.norm(data, axis=1, keepdims=True)).astype(np.float32)
    rng.shuffle(data)
    segment = build(tmp_path, spec(IndexKind.IVF_PQ), data)
    assert segment._index._refined is not None
    scan = Scan(segment.metric, queries, 10, segment.norm_max)
    segment.scan(scan, None)
    exact = top_k(scan.found, len(queries), 10)[0]
    found = top_k(segment.search(queries, 10, 64, None), len(queries), 10)[0]
    assert (found == exact).mean() > 0.9


@pytest.mark.parametrize(("dtype", "metric", "dimensions"), [("int8", Metric.L2, 256), ("bit", Metric.HAMMING, 2048)])
def test_a_batch_of_wide_beams_is_scored_some_pairs_at_a_time(
    tmp_path: Path, dtype: str, metric: Metric, dimensions: int
) -> None:
    """The vectors of all that the beams found, and a copy of its query for each, were held at once: 168 MB here for
    bits."""
    index = IndexParams(m=4, ef_construction=10)
    made = CollectionSpec(name="c", dimensions=dimensions, metric=metric, index=index, dtype=DType(dtype))
    rows = np.random.default_rng(1).integers(-99, 99, (ROWS, made.form.numbers)).astype(made.form.array)
    segment = build(tmp_path, made, rows)
    queries, beam = made.form.scored(rows[:64]), 250
    ways = Ways.of(len(queries))
    segment.search(queries[:1], 10, beam, None)
    tracemalloc.start()
    try:
        found = segment.search(queries, 10, beam, None, ways)
        assert tracemalloc.get_traced_memory()[1] < len(queries) * beam * dimensions * 4 / 2
    finally:
        tracemalloc.stop()
    assert ways.told(0, Way.GRAPH) == (Way.GRAPH, beam)
    ordinals, distances = top_k(found, len(queries), 10)
    for query, got, told in zip(queries, ordinals, distances, strict=True):
        assert told.tolist() == pair_distances(metric, query[None], segment.vectors(got)).tolist()
