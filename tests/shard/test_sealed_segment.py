"""Segment files: built the same every time, verified before use, searched well under any mask."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest

from needle.base.dtypes import VectorForm
from needle.base.errors import CorruptSegment, StorageError, TooManyFiles
from needle.base.model import METRICS_OF_NUMBERS, CollectionSpec, Metric
from needle.shard.disk import ReplicaDisk
from needle.shard.plan import PublishedSegment
from needle.shard.segments import builder
from needle.shard.segments.builder import TEMPORARY, build_segment
from needle.shard.segments.files import finish_download
from needle.shard.segments.format import TAIL_BYTES, verify_file
from needle.shard.segments.graph import BuildCancelled
from needle.shard.segments.growing import GrowingSegment
from needle.shard.segments.opened import KEYS_NODES
from needle.shard.segments.scoring import pair_distances, top_k
from needle.shard.segments.sealed import SealedSegment, segment_file
from needle.shard.segments.view import Served, VectorsView
from shard.vectors_util import brute, clustered, spec_of


def build(
    directory: Path, data: np.ndarray, ordinals: np.ndarray | None = None, metric: Metric = Metric.COSINE, **options
) -> tuple[PublishedSegment, str, CollectionSpec]:
    directory.mkdir(exist_ok=True)
    spec = spec_of(metric, data.shape[1])
    held = np.arange(len(data)) if ordinals is None else ordinals
    last = int(held[-1]) if len(held) else 9
    segment, path = build_segment(str(directory), 3, 0, last, [(held, data)], spec, **options)
    return segment, path, spec


def recall(segment: SealedSegment, data: np.ndarray, queries: np.ndarray, mask: np.ndarray | None = None) -> float:
    found = segment.search(queries, 10, 64, mask)
    ordinals, _ = top_k(found, len(queries), 10)
    live = segment.all_ordinals() if mask is None else segment.all_ordinals()[mask]
    hits = 0
    for row, query in enumerate(queries):
        exact, _ = brute(segment.metric, data[live], live, query, 10)
        assert len(np.unique(ordinals[row])) == min(10, len(live)), "a hit is missing or doubled"
        hits += len(np.intersect1d(exact, ordinals[row]))
    return hits / (10 * len(queries))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[SealedSegment, np.ndarray, np.ndarray]:
    """20,000 x 128 clustered, with default index parameters; and which cluster... see `side`."""
    data = clustered(20_000, 128, 1)
    segment, path, spec = build(tmp_path_factory.mktemp("large"), data)
    return SealedSegment(path, segment, spec), data, clustered(100, 128, 2)


def test_recall_with_default_parameters(large) -> None:
    segment, data, queries = large
    assert recall(segment, data, queries) >= 0.95


@pytest.mark.parametrize("share", [0.9, 0.5, 0.35, 0.2, 0.05, 0.001])
def test_recall_under_a_random_mask(large, share: float) -> None:
    segment, data, queries = large
    mask = np.random.default_rng(3).random(segment.rows) < share
    assert recall(segment, data, queries, mask) >= 0.95


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.L2])
def test_rows_that_are_scored_where_they_lie_have_the_same_distances(tmp_path: Path, metric: Metric) -> None:
    """Bit by bit, for few rows and many, one query and several; among them rows that are all but equal."""
    data = clustered(1500, 24, 4)
    data[700:720] = data[3] * (1 + np.arange(1, 21, dtype=np.float32)[:, None] * np.float32(3e-7))
    ordinals = np.sort(np.random.default_rng(5).choice(4000, 1500, replace=False))
    segment, path, spec = build(tmp_path, data, ordinals, metric)
    opened = SealedSegment(path, segment, spec)
    assert opened.node_of is None
    for count in (1, KEYS_NODES - 1, KEYS_NODES, 900):
        local = np.sort(np.random.default_rng(count).choice(1500, count, replace=False))
        for queries in (data[3:4], clustered(2, 24, 6), clustered(7, 24, 7)):
            found, distances = top_k(opened.score(queries, 10, local), len(queries), 10)
            for row, query in enumerate(queries):
                exact = pair_distances(metric, np.repeat(query[None], count, axis=0), data[local])
                order = np.lexsort((ordinals[local], exact))[:10]
                assert found[row, : len(order)].tolist() == ordinals[local][order].tolist()
                assert distances[row, : len(order)].tobytes() == exact[order].tobytes()


def test_the_widened_beam_answers_without_scoring_everything(large, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, _, queries = large

    def refuse(*_: object) -> None:
        pytest.fail("scored exactly")

    monkeypatch.setattr(SealedSegment, "_exact", refuse)
    mask = np.random.default_rng(4).random(segment.rows) < 0.5
    assert segment.search(queries, 10, 64, mask)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.4])
def test_recall_when_the_mask_excludes_what_is_near(large, share: float) -> None:
    """The hardest filter: rows near the query do not count, so a beam around it holds nothing that does."""
    segment, data, _ = large
    query = clustered(1, 128, 5)
    nearness = data @ query[0]
    mask = nearness < np.quantile(nearness, share)
    assert recall(segment, data, query, mask) >= 0.9


def test_a_beam_that_holds_too_few_is_not_mixed_with_the_exact_answer(large) -> None:
    segment, data, _ = large
    query = clustered(1, 128, 5)
    nearness = data @ query[0]
    mask = nearness < np.quantile(nearness, 0.5)
    mask[np.argsort(nearness)[-3:]] = True
    assert recall(segment, data, query, mask) == 1.0


def test_batches_and_single_queries_agree(large) -> None:
    segment, _, queries = large
    together = top_k(segment.search(queries[:16], 10, 64, None), 16, 10)
    for row in range(16):
        alone = top_k(segment.search(queries[row : row + 1], 10, 64, None), 1, 10)
        assert alone[0].tobytes() == together[0][row].tobytes()
        assert alone[1].tobytes() == together[1][row].tobytes()


def test_every_query_gets_k_hits_even_if_k_is_large(large) -> None:
    segment, _, queries = large
    for k in (1, 500, 15_000, 30_000):
        ordinals, _ = top_k(segment.search(queries[:1], k, 64, None), 1, k)
        assert np.count_nonzero(ordinals >= 0) == min(k, segment.rows)
        assert len(np.unique(ordinals[ordinals >= 0])) == min(k, segment.rows)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    data = clustered(3000, 16, 1)
    first, path, _ = build(tmp_path / "a", data)
    second, other, _ = build(tmp_path / "b", data)
    assert first == second
    assert Path(path).read_bytes() == Path(other).read_bytes()
    changed, _, _ = build(tmp_path / "c", data[::-1].copy())
    assert changed.checksum != first.checksum


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
def test_holes_are_mapped_to_the_right_ordinals(tmp_path: Path, metric: Metric) -> None:
    data = clustered(500, 8, 1)
    ordinals = np.setdiff1d(np.arange(500), np.arange(3, 490, 7))
    segment, path, spec = build(tmp_path, data[ordinals], ordinals, metric)
    opened = SealedSegment(path, segment, spec)
    assert opened.all_ordinals().tolist() == ordinals.tolist()
    assert opened.rows == segment.rows == len(ordinals) < segment.last + 1
    for block, vectors in opened.blocks(None):
        assert vectors.tobytes() == data[block].tobytes()
    assert opened.locals_of(np.array([0, 3, 4, 499, 700])).tolist() == [0, 3, len(ordinals) - 1]


def test_extending_a_base_keeps_its_rows_and_searches_as_well(tmp_path: Path) -> None:
    data = clustered(8000, 32, 1)
    held = np.setdiff1d(np.arange(5000), [1, 2, 3])
    base, path, spec = build(tmp_path, data[held], held)
    opened = SealedSegment(path, base, spec)
    segment, longer = build_segment(
        str(tmp_path), 3, 0, 7999, [(np.arange(5000, 8000), data[5000:])], spec, base=opened
    )
    extended = SealedSegment(longer, segment, spec)
    assert segment.rows == 7997
    assert extended.all_ordinals().tolist() == [*held.tolist(), *range(5000, 8000)]
    for block, vectors in extended.blocks(None):
        assert vectors.tobytes() == data[block].tobytes()
    assert recall(extended, data, clustered(50, 32, 2)) >= 0.95


def test_an_empty_segment_is_a_valid_file(tmp_path: Path) -> None:
    segment, path, spec = build(tmp_path, np.empty((0, 8), np.float32), np.empty(0, np.int64))
    opened = SealedSegment(path, segment, spec)
    assert opened.rows == 0 and opened.search(clustered(1, 8, 1), 5, 64, None) == []


def test_every_kind_of_damage_is_found(tmp_path: Path) -> None:
    segment, path, spec = build(tmp_path, clustered(300, 8, 1))
    whole = Path(path).read_bytes()
    damages = {
        "empty": b"",
        "short": whole[: TAIL_BYTES - 1],
        "torn": whole[:-1],
        "cut in half": whole[: len(whole) // 2],
        "longer": whole + b"x",
    }
    for at in (0, len(whole) // 2, len(whole) - TAIL_BYTES, len(whole) - 1):
        damages[f"bit at {at}"] = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for kind, content in damages.items():
        Path(path).write_bytes(content)
        with pytest.raises(CorruptSegment):
            SealedSegment(path, segment, spec)
            pytest.fail(f"{kind} was not noticed")
    os.unlink(path)
    with pytest.raises(CorruptSegment, match="cannot be read"):
        verify_file(path)


def test_a_file_that_was_made_shorter_is_not_read(tmp_path: Path) -> None:
    data = clustered(300, 8, 1)
    segment, path, spec = build(tmp_path, data)
    opened = SealedSegment(path, segment, spec)
    view = VectorsView(spec, GrowingSegment(VectorForm(8)), (Served(opened, None),))
    whole = Path(path).read_bytes()
    os.truncate(path, len(whole) - 1)  # in its last page: nothing ends a process that reads it all the same
    for reading in (opened.check_size, lambda: list(opened.blocks(None)), lambda: view.search(data[:1], 3)):
        with pytest.raises(CorruptSegment, match="made shorter"):
            reading()
    Path(path).write_bytes(whole)  # another file, while a search still uses the one that was cut
    for reading in (opened.check_size, lambda: list(opened.blocks(None)), lambda: view.search(data[:1], 3)):
        with pytest.raises(CorruptSegment, match="made shorter"):
            reading()


def test_a_file_without_a_name_is_read_unless_it_was_condemned(tmp_path: Path) -> None:
    data = clustered(300, 8, 1)
    segment, path, spec = build(tmp_path, data)
    opened = SealedSegment(path, segment, spec)
    view = VectorsView(spec, GrowingSegment(VectorForm(8)), (Served(opened, None),))
    os.unlink(path)
    assert view.search(data[:1], 3)[0].tolist()[0][0] == 0, "what has no name cannot be made shorter"
    opened.condemn("damaged")
    with pytest.raises(CorruptSegment, match="damaged"):
        view.search(data[:1], 3)


def test_a_whole_file_of_something_else_is_refused(tmp_path: Path) -> None:
    segment, path, spec = build(tmp_path, clustered(300, 8, 1))
    SealedSegment(path, segment, spec)
    for other in (
        msgspec.structs.replace(segment, collection_id=4),
        msgspec.structs.replace(segment, last=300),
        msgspec.structs.replace(segment, checksum="0" * 32),
    ):
        with pytest.raises(CorruptSegment, match="expected"):
            SealedSegment(path, other, spec)
    with pytest.raises(CorruptSegment):
        SealedSegment(path, segment, spec_of(Metric.L2, 8))
    with pytest.raises(CorruptSegment):
        SealedSegment(path, segment, spec_of(Metric.COSINE, 9))


def test_an_own_build_serves_a_published_segment_but_only_its_range(tmp_path: Path) -> None:
    data = clustered(300, 8, 1)
    published = PublishedSegment(3, 0, 299, 300, 12345, "ab" * 16)
    _, path, spec = build(tmp_path, data, own_for=published)
    assert os.path.basename(path) == segment_file(published, own=True)
    assert SealedSegment(path, published, spec, own=True).segment == published
    with pytest.raises(CorruptSegment):
        SealedSegment(path, published, spec)
    with pytest.raises(CorruptSegment):
        SealedSegment(path, msgspec.structs.replace(published, last=500), spec, own=True)


def test_cancelling_leaves_nothing_behind(tmp_path: Path) -> None:
    asked = iter([False, True])
    with pytest.raises(BuildCancelled):
        build(tmp_path, clustered(5000, 8, 1), cancelled=lambda: next(asked))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        build_segment(str(tmp_path / "absent"), 3, 0, 0, [(np.arange(1), clustered(1, 8, 1))], spec_of(Metric.L2, 8))


class RecordedDisk(ReplicaDisk):
    """Writes down what is made durable, in order."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    def sync(self, path: str) -> None:
        super().sync(path)
        self.steps.append(("sync", path))

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        self.steps.append(("rename", target))


def test_a_file_is_synced_before_it_has_its_name_and_the_directory_after(tmp_path: Path) -> None:
    disk = RecordedDisk()
    _, path, _ = build(tmp_path, clustered(30, 8, 1), disk=disk)
    assert [step for step, _ in disk.steps] == ["sync", "rename", "sync"]
    assert [where for _, where in disk.steps][1:] == [path, str(tmp_path)]
    assert disk.steps[0][1].endswith(TEMPORARY)


def test_a_download_is_synced_before_it_has_its_name_and_the_directory_after(tmp_path: Path) -> None:
    disk = RecordedDisk()
    segment, path, spec = build(tmp_path, clustered(30, 8, 1))
    part = path + TEMPORARY
    os.rename(path, part)
    finish_download(part, path, segment, spec, disk)
    assert disk.steps == [("sync", part), ("rename", path), ("sync", str(tmp_path))]


def test_a_base_that_cannot_be_opened_for_want_of_handles_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """faiss has one error for everything."""
    segment, path, spec = build(tmp_path, clustered(50, 8, 1))
    base = SealedSegment(path, segment, spec)
    monkeypatch.setattr(builder, "verify_file", lambda _: None)  # it could still be opened a moment ago
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(TooManyFiles):
            build_segment(str(tmp_path), 3, 0, 99, [], spec, base=base)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
