"""Index files of other ordinals serve the vectors that are here: all of them, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest
import xxhash

from needle.base.dtypes import DType
from needle.base.errors import CorruptSegment, InvalidArgument
from needle.base.model import METRICS_OF_NUMBERS, IndexKind, Metric
from needle.shard.disk import REAL_DISK
from needle.shard.plan import PublishedSegment
from needle.shard.segments.adopted import fit, write_fitted
from needle.shard.segments.builder import build_segment
from needle.shard.segments.format import _BAND, read_layout, verify_file
from needle.shard.segments.graph import BuildCancelled
from needle.shard.segments.made_elsewhere import CHECKED
from needle.shard.segments.scoring import Scan, top_k
from needle.shard.segments.sealed import SealedSegment
from shard.vectors_util import check_against_brute, clustered, spec_of

WIDTH, K = 16, 10
QUERIES = clustered(50, WIDTH, 2)


def data_of(metric: Metric, rows: int = 3000) -> np.ndarray:
    """Some vectors are there several times, and lengths differ where that counts."""
    data = clustered(rows, WIDTH, 1, normalise=metric is Metric.COSINE)
    if metric is Metric.DOT:
        data *= np.exp(np.random.default_rng(4).standard_normal((rows, 1))).astype(np.float32)
    data[rows // 2 : rows // 2 + 200] = data[:200]
    return np.ascontiguousarray(data, np.float32)


def built(directory: Path, data: np.ndarray, metric: Metric, kind: IndexKind = IndexKind.HNSW) -> str:
    blocks = [(np.arange(len(data)), data)]
    return build_segment(str(directory), 3, 0, len(data) - 1, blocks, spec_of(metric, WIDTH, kind=kind))[1]


def adopted(
    directory: Path, path: str, first: int, ordinals: np.ndarray, rows: np.ndarray, metric: Metric, kind: IndexKind
) -> SealedSegment:
    """What serves `rows`, which have these ordinals here, out of the file."""
    spec = spec_of(metric, WIDTH, kind=kind)
    blocks = [(ordinals[at : at + 700], rows[at : at + 700]) for at in range(0, len(rows), 700)]
    fitted = fit(path, first, int(ordinals[-1]), blocks, spec, lambda: False)
    segment, made = write_fitted(str(directory), 8, spec, fitted, REAL_DISK)
    return SealedSegment(made, segment, spec)


def recall(segment: SealedSegment, mask: np.ndarray | None = None) -> float:
    scan = Scan(segment.metric, QUERIES, K, segment.norm_max)
    segment.scan(scan, mask)
    exact, _ = top_k(scan.found, len(QUERIES), K)
    found, _ = top_k(segment.search(QUERIES, K, 64, mask), len(QUERIES), K)
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(exact, found, strict=True)]))


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize("kind", CHECKED)
def test_rows_in_another_order_and_fewer_are_found_as_exactly_as_before(
    tmp_path: Path, metric: Metric, kind: IndexKind
) -> None:
    """A third of the vectors is nobody's any more, the rest has other ordinals, with gaps, in another order."""
    data = data_of(metric)
    path = built(tmp_path, data, metric, kind)
    rng = np.random.default_rng(5)
    chosen = rng.permutation(len(data))[:2000]
    first = 500
    ordinals = np.sort(first + rng.permutation(5000)[:2000])
    segment = adopted(tmp_path, path, first, ordinals, data[chosen], metric, kind)
    assert segment.segment.collection_id == 8 and segment.rows == 2000
    everything = np.zeros((ordinals[-1] + 1, WIDTH), np.float32)
    everything[ordinals] = data[chosen]
    for mask in (None, rng.random(2000) < 0.5):
        live = ordinals if mask is None else ordinals[mask]
        scan = Scan(metric, QUERIES, K, segment.norm_max)
        segment.scan(scan, mask)
        check_against_brute(metric, top_k(scan.found, len(QUERIES), K), everything, live, QUERIES, K)
        ids, _ = top_k(segment.search(QUERIES, K, 64, mask), len(QUERIES), K)
        assert np.isin(ids, live).all() and recall(segment, mask) >= 0.85
    # It is a base like any other: what comes behind it is added, and the rows keep their vectors.
    more = data_of(metric, 3500)[3000:]
    last = int(ordinals[-1]) + len(more)
    joined, grown = build_segment(
        str(tmp_path), 8, first, last, [(np.arange(int(ordinals[-1]) + 1, last + 1), more)],
        spec_of(metric, WIDTH, kind=kind), base=segment,
    )  # fmt: skip
    larger = SealedSegment(grown, joined, spec_of(metric, WIDTH, kind=kind))
    np.testing.assert_array_equal(larger.vectors(np.arange(larger.rows)), np.concatenate([data[chosen], more]))
    assert recall(larger) >= 0.85


def test_a_file_whose_rows_stand_as_here_stays_as_it_was(tmp_path: Path) -> None:
    data = clustered(1000, WIDTH, 1)
    path = built(tmp_path, data, Metric.L2)
    segment = adopted(tmp_path, path, 0, np.arange(1000), data, Metric.L2, IndexKind.HNSW)
    assert segment.node_of is None and segment.size == Path(path).stat().st_size


def test_nodes_as_many_as_rows_in_another_order_are_told_apart_by_a_later_build(tmp_path: Path) -> None:
    """As many distinct vectors as rows do not mean that row i is node i."""
    data = clustered(1000, WIDTH, 1)
    path = built(tmp_path, data, Metric.L2)
    turned = data[::-1].copy()
    segment = adopted(tmp_path, path, 0, np.arange(1000), turned, Metric.L2, IndexKind.HNSW)
    spec = spec_of(Metric.L2, WIDTH)
    joined, grown = build_segment(str(tmp_path), 8, 0, 1000, [(np.array([1000]), turned[:1] + 1)], spec, base=segment)
    larger = SealedSegment(grown, joined, spec)
    np.testing.assert_array_equal(larger.vectors(np.arange(1000)), turned)
    ids, _ = top_k(larger.search(turned[:20], 1, 64, None), 20, 1)
    assert ids[:, 0].tolist() == list(range(20))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = clustered(1000, WIDTH, 1)
    path = built(tmp_path, data, Metric.L2)
    spec, ordinals = spec_of(Metric.L2, WIDTH), np.arange(1000)

    def fitted(rows: np.ndarray, of: np.ndarray = ordinals, cancelled: bool = False) -> object:
        return fit(path, 0, int(of[-1]), [(of, rows)], spec, lambda: cancelled)

    other = data.copy()
    other[17, 3] = np.nextafter(other[17, 3], np.float32(9))
    with pytest.raises(InvalidArgument, match="lacks vectors"):
        fitted(other)
    with pytest.raises(InvalidArgument, match="400 of 1000 vectors are here"):
        fitted(data[:400], ordinals[:400])
    with pytest.raises(InvalidArgument, match="cannot serve the collection"):
        fit(path, 0, 999, [(ordinals, data)], spec_of(Metric.COSINE, WIDTH), lambda: False)
    with pytest.raises(BuildCancelled):
        fitted(data, cancelled=True)
    fitted(data)


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """With other bytes in place of some, and the checksum of all."""
    raw = path.read_bytes()[:-16]
    assert raw.count(old) == 1 and len(old) == len(new)
    raw = raw.replace(old, new)
    path.write_bytes(raw + xxhash.xxh3_128_digest(raw))


def links_of(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    index = faiss.read_index(str(path))
    hnsw = faiss.downcast_index(index).hnsw
    names = ("neighbors", "levels", "offsets", "cum_nneighbor_per_level")
    links, levels, offsets, room = (faiss.vector_to_array(getattr(hnsw, name)) for name in names)
    return links, levels, offsets, room


def refused(path: Path, data: np.ndarray, match: str, metric: Metric = Metric.L2) -> None:
    with pytest.raises((InvalidArgument, CorruptSegment), match=match):
        fit(str(path), 0, len(data) - 1, [(np.arange(len(data)), data)], spec_of(metric, WIDTH), lambda: False)


def test_a_link_to_no_node_is_found_though_the_checksum_is_right(tmp_path: Path) -> None:
    data = clustered(500, WIDTH, 1)
    path = Path(built(tmp_path, data, Metric.L2))
    links = links_of(path)[0]
    wrong = links.copy()
    wrong[3] = 70_000_000
    rewritten(path, links.tobytes(), wrong.tobytes())
    refused(path, data, "70000000 out of range")


def test_an_upper_link_to_a_node_that_is_not_up_there_is_found(tmp_path: Path) -> None:
    """faiss opens such a file, and a search of it ends the process."""
    data = clustered(2000, WIDTH, 1)
    path = Path(built(tmp_path, data, Metric.L2))
    links, levels, offsets, room = links_of(path)
    high, low = int(np.argmax(levels)), int(np.argmin(levels))
    wrong = links.copy()
    wrong[int(offsets[high]) + int(room[1])] = low
    assert levels[high] > 1 and levels[low] == 1
    rewritten(path, links.tobytes(), wrong.tobytes())
    refused(path, data, "has links that lead nowhere")


@pytest.mark.parametrize("change", ["first", "nodes", "longest"])
def test_bands_that_would_hide_vectors_are_found(tmp_path: Path, change: str) -> None:
    data = data_of(Metric.DOT, 6000)
    path = Path(built(tmp_path, data, Metric.DOT))
    bands = read_layout(str(path), verify_file(str(path)), DType.FLOAT32).bands
    assert len(bands) > 1
    table = np.array([tuple(band) for band in bands], _BAND)
    wrong = table.copy()
    wrong[change][-1] -= 1 if change != "longest" else wrong["longest"][-1] / 2
    rewritten(path, table.tobytes(), wrong.tobytes())
    refused(path, data, "longer vectors" if change == "longest" else "leave nodes out", Metric.DOT)


@pytest.mark.parametrize("kind", [kind for kind in IndexKind if kind not in CHECKED])
def test_kinds_that_cannot_be_checked_are_not_taken(tmp_path: Path, kind: IndexKind) -> None:
    data, spec, rows = clustered(5000, 64, 1), spec_of(Metric.L2, 64, kind=kind), np.arange(5000)
    path = build_segment(str(tmp_path), 3, 0, 4999, [(rows, data)], spec)[1]
    with pytest.raises(InvalidArgument, match="are built again, not taken"):
        fit(path, 0, 4999, [(rows, data)], spec, lambda: False)


def test_tables_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    data = data_of(Metric.L2)
    path = Path(built(tmp_path, data, Metric.L2))
    raw = path.read_bytes()[:-16]
    names = np.arange(300, 310, dtype="<u4")
    assert raw.count(names.tobytes()) == 2  # of the ordinals, and of the nodes
    at = raw.rindex(names.tobytes())
    raw = raw[:at] + (names + 70_000_000).tobytes() + raw[at + 40 :]
    path.write_bytes(raw + xxhash.xxh3_128_digest(raw))
    with pytest.raises(CorruptSegment, match="tables that lead nowhere"):
        fit(str(path), 0, 2999, [(np.arange(3000), data)], spec_of(Metric.L2, WIDTH), lambda: False)


def test_a_segment_of_no_vector_adopts_nothing(tmp_path: Path) -> None:
    data = clustered(600, WIDTH, 1)
    empty, path = build_segment(str(tmp_path), 3, 0, 9, [], spec_of(Metric.L2, WIDTH))
    assert empty == PublishedSegment(3, 0, 9, 0, empty.size, empty.checksum)
    with pytest.raises(InvalidArgument, match="lacks vectors"):
        fit(path, 0, 599, [(np.arange(600), data)], spec_of(Metric.L2, WIDTH), lambda: False)
