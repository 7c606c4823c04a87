"""One collection's vectors: consistent views, files that come late or never, many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.errors import Internal
from needle.base.model import METRICS_OF_NUMBERS, Metric
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.plan import PublishedSegment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.sealed import SealedSegment, segment_file
from shard.vectors_util import check_against_brute, clustered, live_of, new_vectors, publish, seal

DATA = {metric: clustered(2000, 16, 1, normalise=metric == Metric.COSINE) for metric in METRICS_OF_NUMBERS}
QUERIES = {metric: clustered(4, 16, 2, normalise=metric == Metric.COSINE) for metric in METRICS_OF_NUMBERS}


def rows_of(data: np.ndarray, dead: set[int]):
    """What the documents hold: every live vector."""

    def rows(first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(first, last + 1, 128):
            ordinals = np.array([o for o in range(start, min(start + 128, last + 1)) if o not in dead], np.int64)
            yield ordinals, data[ordinals]

    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    st.sampled_from(METRICS_OF_NUMBERS),
    st.integers(50, 900),
    st.lists(st.integers(0, 899), max_size=200),
    st.one_of(st.none(), st.lists(st.integers(0, 950), max_size=400)),
    st.integers(1, 30),
    st.booleans(),
)
def test_search_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    metric: Metric,
    rows: int,
    dead: list[int],
    allow: list[int] | None,
    k: int,
    exact: bool,
) -> None:
    """Small segments are scored exactly by the cost model, so both modes must be exact."""
    vectors = new_vectors(tmp_path_factory.mktemp("set"), metric)
    data, queries = DATA[metric][:rows], QUERIES[metric]
    vectors.append(0, data)
    half = len(dead) // 2
    vectors.tombstone(sorted({o for o in dead[:half] if o < rows}))
    publish(vectors, *seal(vectors, 0, rows // 3))
    publish(vectors, *seal(vectors, rows // 3 + 1, rows // 2))
    vectors.tombstone(sorted({o for o in dead[half:] if o < rows}))
    live = np.setdiff1d(np.arange(rows), dead)
    allowed = None if allow is None else BitMap(allow)
    counted = live if allow is None else np.intersect1d(live, np.array(allow, np.int64))
    found = vectors.search(queries, k, allow=allowed, exact=exact)
    check_against_brute(metric, found, data, counted, queries, k)
    assert len(vectors.view()) == len(live)


def test_results_do_not_depend_on_when_files_arrive(tmp_path: Path) -> None:
    """Leader: files at once. Others: late, in another order, or never; exact answers are the same bits throughout, and
    once all hold the same files so are the answers of the index."""
    (tmp_path / "leader").mkdir()
    data, queries = clustered(9000, 16, 3), clustered(8, 16, 4)
    leader = new_vectors(tmp_path / "leader", ef_construction=40, ef_search=16)
    late, never = new_vectors(tmp_path / "leader", ef_search=16), new_vectors(tmp_path / "leader", ef_search=16)
    files: list[tuple[PublishedSegment, str]] = []

    def everywhere(change) -> None:
        for vectors in (leader, late, never):
            change(vectors)

    def same_exact() -> None:
        expected = leader.search(queries, 10, exact=True)
        for vectors in (late, never):
            found = vectors.search(queries, 10, exact=True)
            assert found[0].tobytes() == expected[0].tobytes()
            assert found[1].tobytes() == expected[1].tobytes()

    for first, last in ((0, 3999), (4000, 7999)):
        everywhere(lambda v, first=first, last=last: v.append(first, data[first : last + 1]))
        everywhere(lambda v, first=first, last=last: v.tombstone(range(first, last, 11)))
        files.append(seal(leader, first, last))
        leader.attach(SealedSegment(files[-1][1], files[-1][0], leader.spec))
        everywhere(lambda v: v.publish(files[-1][0]))
        same_exact()
    everywhere(lambda v: v.append(8000, data[8000:]))
    everywhere(lambda v: v.tombstone(range(5, 8500, 13)))
    same_exact()
    assert late.missing() == [segment for segment, _ in files] and leader.missing() == []
    for segment, path in reversed(files):
        late.attach(SealedSegment(path, segment, late.spec))
        same_exact()
    assert late.missing() == [] and never.missing() == [segment for segment, _ in files]
    expected, found = leader.search(queries, 10), late.search(queries, 10)
    assert found[0].tobytes() == expected[0].tobytes()
    assert found[1].tobytes() == expected[1].tobytes()


def test_a_merge_goes_on_being_served_by_what_it_replaces(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE])
    publish(vectors, *seal(vectors, 0, 499))
    publish(vectors, *seal(vectors, 500, 999))
    merged, path = seal(vectors, 0, 1499, base=False)
    before = vectors.search(QUERIES[Metric.COSINE], 10, exact=True)
    assert vectors.publish(merged)
    assert [s.segment.last for s in vectors.attached()] == [499, 999]
    assert vectors.missing() == [merged]
    vectors.attach(SealedSegment(path, merged, vectors.spec))
    assert [s.segment for s in vectors.attached()] == [merged]
    assert len(vectors.view().growing) == 500
    after = vectors.search(QUERIES[Metric.COSINE], 10, exact=True)
    assert after[0].tobytes() == before[0].tobytes() and after[1].tobytes() == before[1].tobytes()


def test_a_batch_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    data = DATA[Metric.COSINE]
    vectors.append(0, data[:300])
    publish(vectors, *seal(vectors, 0, 199))
    old = vectors.view()
    vectors.begin()
    vectors.append(300, data[300:400])
    vectors.tombstone([5, 250])
    assert len(vectors.view()) == 300
    assert vectors.search(data[5:6], 1)[0].tolist() == [[5]]
    assert vectors.search(data[350:351], 1)[0].tolist() != [[350]]
    vectors.commit()
    assert len(vectors.view()) == 398
    assert vectors.search(data[5:6], 1)[0].tolist() != [[5]]
    assert vectors.search(data[350:351], 1)[0].tolist() == [[350]]
    assert len(old) == 300 and old.search(data[5:6], 1)[0].tolist() == [[5]]


def test_a_view_that_is_held_uses_files_that_arrive_later(tmp_path: Path) -> None:
    """A replica without new writes keeps its view; it must not go on scoring what is indexed by now."""
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE][:300])
    segment, path = seal(vectors, 0, 199)
    assert vectors.publish(segment)
    held, pinned = vectors.view(), vectors.view().frozen()
    before = held.search(QUERIES[Metric.COSINE], 10, exact=True)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert len(held.growing) == 100 and [s.sealed.segment for s in held.served] == [segment]
    assert len(pinned.growing) == 300 and pinned.served == ()
    for view in (held, pinned):
        after = view.search(QUERIES[Metric.COSINE], 10, exact=True)
        assert after[0].tobytes() == before[0].tobytes() and after[1].tobytes() == before[1].tobytes()
    vectors.tombstone([5])
    assert held.search(DATA[Metric.COSINE][5:6], 1)[0].tolist() == [[5]], "a later delete does not reach it"


def test_a_file_that_arrives_within_a_batch_is_used_after_it(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE][:300])
    segment, path = seal(vectors, 0, 199)
    vectors.begin()
    assert vectors.publish(segment)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert vectors.attached() == []
    vectors.commit()
    assert [s.segment for s in vectors.attached()] == [segment]


def test_an_unpublished_file_is_not_served(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE][:300])
    segment, path = seal(vectors, 0, 199)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert vectors.attached() == []
    vectors.forget(segment)
    assert vectors.publish(segment)
    assert vectors.missing() == [segment]


def test_a_file_without_a_live_vector_is_refused(tmp_path: Path) -> None:
    vectors, other = new_vectors(tmp_path), new_vectors(tmp_path)
    for v in (vectors, other):
        v.append(0, DATA[Metric.COSINE][:300])
    other.tombstone([7])
    segment, path = seal(other, 0, 199)
    assert vectors.publish(segment)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert vectors.attached() == [] and vectors.missing() == [segment]
    assert vectors.take_corrupt() == [segment] and vectors.take_corrupt() == []
    assert vectors.search(DATA[Metric.COSINE][7:8], 1)[0].tolist() == [[7]]


@pytest.mark.parametrize("damage", ["none", "deleted", "torn", "changed"])
def test_restart_with_any_state_of_the_files(tmp_path: Path, damage: str) -> None:
    data, queries = DATA[Metric.COSINE][:1000], QUERIES[Metric.COSINE]
    vectors = new_vectors(tmp_path)
    vectors.append(0, data)
    dead = set(range(0, 1000, 9))
    vectors.tombstone(sorted(dead))
    for first in (0, 300, 600):
        publish(vectors, *seal(vectors, first, first + 299))
    vectors.tombstone([301, 302, 950])
    dead |= {301, 302, 950}
    expected = vectors.search(queries, 10, exact=True)
    manifest = vectors.manifest()
    vectors.close()
    path = tmp_path / segment_file(manifest[1])
    if damage == "deleted":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "changed":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(bytes(content))
    again = new_vectors(tmp_path)
    again.load(1000, live_of(1000, dead), manifest, rows_of(data, dead))
    found = again.search(queries, 10, exact=True)
    assert found[0].tobytes() == expected[0].tobytes() and found[1].tobytes() == expected[1].tobytes()
    assert again.missing() == ([] if damage == "none" else [manifest[1]])
    assert again.take_corrupt() == ([manifest[1]] if damage in ("torn", "changed") else [])
    again.append(1000, DATA[Metric.COSINE][1000:1010])
    assert len(again.view()) == 1010 - len(dead)
    merged, file = seal(again, 0, 899)
    publish(again, merged, file)
    assert again.search(queries, 10, exact=True)[0].shape == (4, 10)
    assert merged.rows == 900 - len([o for o in dead if o < 900])


def test_rows_around_a_served_segment_stay_apart(tmp_path: Path) -> None:
    """The first and the third file are gone: their rows must not share a chunk across the second."""
    data = DATA[Metric.COSINE][:900]
    vectors = new_vectors(tmp_path)
    vectors.append(0, data)
    for first in (0, 300, 600):
        publish(vectors, *seal(vectors, first, first + 299))
    manifest = vectors.manifest()
    for segment in (manifest[0], manifest[2]):
        (tmp_path / segment_file(segment)).unlink()
    again = new_vectors(tmp_path)
    again.load(900, live_of(900, set()), manifest, rows_of(data, set()))
    ordinals = np.concatenate([ordinals for ordinals, _ in again.view().live_blocks(0, 899)])
    assert ordinals.tolist() == list(range(900))
    assert again.detach(manifest[1])


def test_detach_reads_the_rows_back(tmp_path: Path) -> None:
    data, queries = DATA[Metric.L2][:900], QUERIES[Metric.L2]
    vectors = new_vectors(tmp_path, Metric.L2)
    dead = {3, 444}
    vectors.load(0, OrdinalSet(), [], rows_of(data, dead))
    vectors.append(0, data)
    for first in (0, 300, 600):
        publish(vectors, *seal(vectors, first, first + 299))
    vectors.tombstone(sorted(dead))
    expected = vectors.search(queries, 10, exact=True)
    middle = vectors.manifest()[1]
    assert vectors.detach(middle)
    assert vectors.missing() == [middle] and len(vectors.view().growing) == 299
    found = vectors.search(queries, 10, exact=True)
    assert found[0].tobytes() == expected[0].tobytes() and found[1].tobytes() == expected[1].tobytes()
    assert not vectors.detach(middle)


def test_a_collection_may_be_dropped_while_rows_of_a_damaged_file_are_read_back(tmp_path: Path) -> None:
    """By the thread that applies. It was a bug of the node's, which ends it."""

    class Dropped(CollectionVectors):
        def _read_rows(self, *arguments: Any) -> Any:
            if self.attached():
                self.close()
            return super()._read_rows(*arguments)

    made = new_vectors(tmp_path)
    vectors = Dropped(made.collection_id, made.spec, made.directory, made.config)
    data = DATA[Metric.COSINE][:300]
    vectors.load(0, OrdinalSet(), [], rows_of(data, set()))
    vectors.append(0, data)
    publish(vectors, *seal(vectors, 0, 199))
    assert not vectors.detach(vectors.manifest()[0])
    assert vectors.closed and len(vectors.view()) == 0


def test_close_releases_files_but_not_views(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE][:300])
    publish(vectors, *seal(vectors, 0, 199))
    view, path = vectors.view(), vectors.attached()[0].path
    vectors.close()
    os.unlink(path)
    assert vectors.closed and len(vectors.view()) == 0
    assert view.search(DATA[Metric.COSINE][7:8], 1)[0].tolist() == [[7]]


def test_wrong_calls_are_internal_errors(tmp_path: Path) -> None:
    vectors = new_vectors(tmp_path)
    vectors.append(0, DATA[Metric.COSINE][:10])
    with pytest.raises(Internal):
        vectors.append(5, DATA[Metric.COSINE][:1])
    with pytest.raises(Internal):
        vectors.append(10, np.zeros((1, 3), np.float32))
    with pytest.raises(Internal):
        vectors.load(0, OrdinalSet(), [], rows_of(DATA[Metric.COSINE], set()))


def test_searches_beside_appends_tombstones_and_publishes(tmp_path: Path) -> None:
    """Upserts in batches: document i is always exactly one of its versions. Every search must see 200 documents."""
    documents, rounds = 200, 30
    vectors = new_vectors(tmp_path)
    data = clustered(documents, 16, 8)
    vectors.append(0, data)
    failures: list[str] = []
    built: list[bool] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            view = vectors.view()
            ordinals, _ = view.search(data[:2], documents + 50, exact=True)
            for row in ordinals:
                seen = sorted((row[row >= 0] % documents).tolist())
                if seen != list(range(documents)):
                    failures.append(f"{len(seen)} documents, {len(set(seen))} distinct")
                    return

    def build() -> None:
        while not stop.is_set():
            loads, end, waiting, _ = vectors.loads()
            if waiting < 50:
                continue
            first = loads[-1].segment.last + 1 if loads else 0
            segment, path = seal(vectors, first, end - 1)
            vectors.attach(SealedSegment(path, segment, vectors.spec))
            built.append(vectors.publish(segment))

    def write() -> None:
        for turn in range(1, rounds):
            for at in range(0, documents, 50):
                vectors.begin()
                vectors.tombstone(range((turn - 1) * documents + at, (turn - 1) * documents + at + 50))
                vectors.append(turn * documents + at, data[at : at + 50])
                vectors.commit()
        stop.set()

    threads = [threading.Thread(target=target) for target in (search, search, build, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and True in built and not any(thread.is_alive() for thread in threads)
    assert len(vectors.view()) == documents
    assert isinstance(vectors, CollectionVectors) and vectors.next_ordinal == documents * rounds
