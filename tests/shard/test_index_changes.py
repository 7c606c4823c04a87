"""The index of a collection is changed while it is used: two replicas in memory, one "log" (test_segment_keeper.py)."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness.told import told
from needle.base.collection_sizes import IndexProgress
from needle.base.config import SegmentConfig
from needle.base.dtypes import DType
from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.model import CollectionSpec, IndexKind, IndexParams, Metric, SearchRequest, WriteResult
from needle.protocol.commands import (
    CreateCollection,
    DropCollection,
    KeepIndex,
    PublishSegment,
    StageSegment,
    SwitchIndex,
    encode,
)
from needle.shard.index_change import IndexState, Switched
from needle.shard.ordinal_set import OrdinalSet
from needle.shard.plan import PublishedSegment
from needle.shard.segments.builder import build_segment
from needle.shard.segments.collection_vectors import CollectionVectors
from needle.shard.segments.index_changes import queries_of
from needle.shard.segments.sealed import SealedSegment
from needle.shard.state_machine import Replica as Machine
from shard.replica_util import Log, floats, open_replica, put, spec
from shard.test_segment_keeper import DATA, Cluster, Replica, Running, apply_to, settled, until
from shard.test_segment_keeper import short_retry as short_retry
from shard.vectors_util import new_vectors, publish, seal

SQ8, FLAT = IndexParams(kind=IndexKind.HNSW_SQ8), IndexParams(kind=IndexKind.FLAT)


def kinds(replica: Replica) -> set[IndexKind]:
    return {sealed.kind for sealed in replica.vectors.attached()}


def wish(cluster: Cluster, index: IndexParams | None) -> None:
    cluster.wish = index
    for replica in cluster.replicas.values():
        replica.keeper.look_again([7])


def changed(cluster: Cluster, index: IndexParams) -> bool:
    return all(
        r.vectors.spec.index == index and not r.vectors.missing() and kinds(r) == {index.kind}
        for r in cluster.replicas.values()
    )


async def filled(cluster: Cluster) -> None:
    cluster.each(lambda r: r.vectors.append(0, DATA[:3000]))
    await until(settled(cluster))


async def test_all_replicas_switch_and_back_and_the_files_of_before_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "needle")
    cluster = Cluster(tmp_path)
    first = cluster.a.vectors.spec.index
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        for index in (SQ8, first):
            wish(cluster, index)
            await until(lambda index=index: changed(cluster, index))
            assert cluster.same_answers()
            last = cluster.a.vectors.indexing.last
            assert last is not None and last == cluster.b.vectors.indexing.last
            assert last.queries == 32 and 0.8 < last.before <= 1 and 0.8 < last.after <= 1
            names = [os.path.basename(sealed.path) for sealed in cluster.a.vectors.attached()]
            await until(lambda names=names: cluster.a.files() == cluster.b.files() == sorted(names))
    assert cluster.b.keeper.stats.built == cluster.b.keeper.stats.rebuilt == 0
    assert [one["index"] for one in told(caplog, "index_switched")] == [SQ8.built, first.built]


async def test_what_is_written_meanwhile_is_indexed_and_is_there_after_the_switch(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        wish(cluster, SQ8)
        await until(lambda: bool(cluster.a.vectors.staged()), every=0)
        cluster.each(lambda r: r.vectors.append(3000, DATA[3000:]))
        cluster.each(lambda r: r.vectors.tombstone([1, 2, 3500]))
        await until(lambda: changed(cluster, SQ8) and settled(cluster)())
    assert cluster.same_answers()
    found, _ = cluster.a.vectors.search(DATA[3100:3110], 1)
    assert found.ravel().tolist() == list(range(3100, 3110))
    assert len(cluster.a.vectors.view()) == len(DATA) - 3


async def test_a_change_goes_on_under_another_leader(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        cluster.each(lambda r: r.vectors.append(3000, DATA[3000:]))
        await until(settled(cluster))
        wish(cluster, SQ8)
        await until(lambda: bool(cluster.a.vectors.staged()), every=0)
        cluster.leader = "b"
        cluster.each(lambda r: None)
        await until(lambda: changed(cluster, SQ8))
    assert cluster.same_answers()


async def test_a_change_that_is_taken_back_leaves_nothing(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first = cluster.a.vectors.spec.index
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        before = cluster.a.files()
        cluster.each(lambda r: None)
        cluster.down = True  # so that it does not switch
        cluster.a.keeper._builds._alone.add(7)
        wish(cluster, SQ8)
        await until(lambda: bool(cluster.a.vectors.staged()), every=0)
        assert not kinds(cluster.a) - {IndexKind.HNSW}
        wish(cluster, first)
        cluster.down = False
        await until(lambda: cluster.a.vectors.indexing.wanted is None)
        await until(lambda: cluster.a.files() == cluster.b.files() == before)
    assert cluster.a.vectors.spec.index == cluster.b.vectors.spec.index == first
    assert cluster.a.vectors.indexing.last is None


async def test_of_two_changes_the_later_one_wins(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        wish(cluster, SQ8)
        await until(lambda: bool(cluster.a.vectors.staged()), every=0)
        wish(cluster, FLAT)
        await until(lambda: changed(cluster, FLAT))
        names = [os.path.basename(sealed.path) for sealed in cluster.a.vectors.attached()]
        await until(lambda: cluster.a.files() == cluster.b.files() == sorted(names))


async def test_an_index_whose_files_are_the_same_bytes_as_those_of_before(tmp_path: Path) -> None:
    """Of few vectors there are no lists, so such files are those of `flat`."""
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        for index in (FLAT, IndexParams(kind=IndexKind.IVF_FLAT)):
            wish(cluster, index)
            await until(lambda index=index: {r.vectors.spec.index for r in cluster.replicas.values()} == {index})
        names = [os.path.basename(sealed.path) for sealed in cluster.a.vectors.attached()]
        await until(lambda: cluster.a.files() == cluster.b.files() == sorted(names))
    assert kinds(cluster.a) == {IndexKind.FLAT} and cluster.same_answers()


async def test_a_file_of_the_index_of_before_is_not_published_after_the_switch(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    async with Running(cluster.a, cluster.b):
        await filled(cluster)
        wish(cluster, SQ8)
        await until(lambda: changed(cluster, SQ8))
    with pytest.raises(InvalidArgument, match="does not fit"):
        await cluster.propose(encode(PublishSegment(7, 3000, 3000, 1, 1, "0" * 32)))


def stage(vectors: CollectionVectors, index: IndexParams, first: int, last: int) -> SealedSegment:
    """A staged file, built of what `vectors` serves and not attached."""
    wanted = msgspec.structs.replace(vectors.spec, index=index)
    blocks = vectors.view().live_blocks(first, last)
    segment, path = build_segment(vectors.directory, vectors.collection_id, first, last, blocks, wanted)
    apply_to(vectors, StageSegment(**msgspec.structs.asdict(segment), index=index))
    return SealedSegment(path, segment, wanted)


def two_files(directory: Path) -> CollectionVectors:
    """Rows 0 to 1,999 in two files, and 100 that wait."""
    vectors = new_vectors(directory)
    vectors.load(0, OrdinalSet(), [], lambda *_: iter(()))
    vectors.append(0, DATA[:2000])
    for first in (0, 1000):
        publish(vectors, *seal(vectors, first, first + 999))
    vectors.append(2000, DATA[2000:2100])
    return vectors


def of_view(vectors: CollectionVectors) -> list[tuple[int, IndexKind]]:
    return [(served.sealed.segment.first, served.sealed.kind) for served in vectors.view().served]


def test_a_replica_without_all_files_never_mixes_the_two_indexes(tmp_path: Path) -> None:
    vectors = two_files(tmp_path)
    files = [stage(vectors, SQ8, first, first + 999) for first in (0, 1000)]
    vectors.attach(files[0])
    vectors.tombstone([5, 1500])
    former = [(0, IndexKind.HNSW), (1000, IndexKind.HNSW)]
    assert of_view(vectors) == former
    apply_to(vectors, SwitchIndex(7, SQ8, 1.0, 1.0, 32))
    assert vectors.spec.index == SQ8 and vectors.missing() == [files[1].segment]
    assert of_view(vectors) == former, "one of its files is not here"
    assert len(vectors.view()) == 2098
    # What comes after the switch waits as well.
    _, (segment, path) = (
        None,
        build_segment(vectors.directory, 7, 2000, 2099, vectors.view().live_blocks(2000, 2099), vectors.spec),
    )
    apply_to(vectors, PublishSegment(**msgspec.structs.asdict(segment), generation=1))
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    assert of_view(vectors) == former
    vectors.attach(files[1])
    assert of_view(vectors) == [(first, IndexKind.HNSW_SQ8) for first in (0, 1000, 2000)]
    assert len(vectors.view()) == 2098 and not vectors.view().growing.chunks and not vectors.missing()
    found, _ = vectors.search(DATA[[5, 7, 1500, 2050]], 1)
    assert found[1, 0] == 7 and found[3, 0] == 2050 and 5 not in found and 1500 not in found


def test_a_staged_file_that_lacks_a_vector_is_refused_and_the_former_index_goes_on(tmp_path: Path) -> None:
    vectors = two_files(tmp_path)
    good = stage(vectors, SQ8, 0, 999)
    wanted = msgspec.structs.replace(vectors.spec, index=SQ8)
    rows = [(np.arange(1000, 1900), DATA[1000:1900])]
    segment, path = build_segment(vectors.directory, 7, 1000, 1999, rows, wanted)
    apply_to(vectors, StageSegment(**msgspec.structs.asdict(segment), index=SQ8))
    vectors.attach(good)
    vectors.attach(SealedSegment(path, segment, wanted))
    apply_to(vectors, SwitchIndex(7, SQ8, 1.0, 1.0, 32))
    assert [kind for _, kind in of_view(vectors)] == [IndexKind.HNSW] * 2
    assert vectors.take_corrupt() == [segment] and vectors.missing() == [segment]


def test_files_stand_for_what_was_joined_since(tmp_path: Path) -> None:
    """Two staged files, of ordinals that one file has by now: an own build of each reads a part of that one."""
    vectors = two_files(tmp_path)
    files = [stage(vectors, SQ8, first, first + 999) for first in (0, 1000)]
    publish(vectors, *seal(vectors, 0, 1999))
    again = [(ordinals, rows) for ordinals, rows in vectors.view().live_blocks(1000, 1999)]
    assert np.concatenate([ordinals for ordinals, _ in again]).tolist() == list(range(1000, 2000))
    assert np.array_equal(np.concatenate([rows for _, rows in again]), DATA[1000:2000])
    for sealed in files:
        vectors.attach(sealed)
    assert of_view(vectors) == [(0, IndexKind.HNSW)]
    apply_to(vectors, SwitchIndex(7, SQ8, 1.0, 1.0, 32))
    assert of_view(vectors) == [(0, IndexKind.HNSW_SQ8), (1000, IndexKind.HNSW_SQ8)]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    vectors = two_files(tmp_path)
    part = PublishedSegment(7, 0, 999, 1000, 1, "1" * 32)

    def staged(index: IndexParams = SQ8, **other: int) -> StageSegment:
        return StageSegment(**(msgspec.structs.asdict(part) | other), index=index)

    refused = [
        staged(first=500, last=999),
        staged(last=2050),  # the manifest does not cover it
        staged(index=IndexParams(ef_search=99)),  # it has that index
        SwitchIndex(7, SQ8, 1.0, 1.0, 0),  # nothing is staged
    ]
    for command in refused:
        with pytest.raises(InvalidArgument):
            apply_to(vectors, command)
    apply_to(vectors, staged())
    with pytest.raises(InvalidArgument, match="do not cover"):
        apply_to(vectors, SwitchIndex(7, SQ8, 1.0, 1.0, 0))
    assert vectors.staged() == [part] and vectors.indexing.wanted == SQ8
    apply_to(vectors, staged(index=FLAT))
    assert vectors.indexing.wanted == FLAT and vectors.staged() == [part]


def state_of(replica: Machine) -> tuple[IndexState, list[PublishedSegment], IndexParams]:
    (vectors,) = replica.held.collection_vectors()
    return vectors.indexing, vectors.manifest(), replica.collections()[0].index


def test_what_is_staged_and_the_switch_outlive_restarts_and_travel_with_snapshots(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path / "a"), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b", "c"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])))
    first, staged = ((7, 0, 1, 2, 10, digit * 32) for digit in "01")
    files = PublishSegment(1, *first[1:]), StageSegment(1, SQ8, *staged[1:])
    assert all(isinstance(done, WriteResult) for done in replica.apply(log.add(*files)))
    before = state_of(replica)
    assert before == (
        IndexState(0, SQ8, [PublishedSegment(1, *staged[1:])]),
        [PublishedSegment(1, *first[1:])],
        IndexParams(),
    )

    def everywhere(name: str) -> list[Machine]:
        """The same replica, opened again, and another one that got its snapshot."""
        replica.close()
        again, other = open_replica(tmp_path / "a"), open_replica(tmp_path / name)
        (tmp_path / f"image-{name}").mkdir()
        again.export_snapshot(str(tmp_path / f"image-{name}"))
        other.install_snapshot(str(tmp_path / f"image-{name}"))
        for one in (again, other):
            one.verify()
            assert one.search(SearchRequest(collection="c", vector=floats([4, 5, 6]), k=1)).ids == ["b"]
        return [again, other]

    replica, other = everywhere("b")
    assert state_of(replica) == state_of(other) == before and replica.digest() == other.digest()
    switch = log.add(SwitchIndex(1, SQ8, 0.75, 0.5, 8))
    for one in (replica, other):
        (done,) = one.apply(switch)
        assert isinstance(done, WriteResult)
        assert state_of(one) == (
            IndexState(done.index, last=Switched(0.75, 0.5, 8)),
            [PublishedSegment(1, *staged[1:])],
            SQ8,
        )
        (held,) = one.sizes()
        assert held[1].index == IndexProgress(
            now=[SQ8.built], vectors=2, done=0, recall_before=0.75, recall_after=0.5, queries=8
        )
    replica, third = everywhere("c")
    assert state_of(replica) == state_of(third) == state_of(other)
    assert replica.digest() == third.digest() == other.digest()
    late, keep = replica.apply(log.add(PublishSegment(1, 0, 2, 3, 9, "3" * 32), KeepIndex(1)))
    assert isinstance(late, InvalidArgument) and isinstance(keep, WriteResult)
    dropped, again = replica.apply(log.add(DropCollection("c"), KeepIndex(1)))
    assert isinstance(dropped, WriteResult) and isinstance(again, CollectionNotFound)
    replica.close()
    assert open_replica(tmp_path / "a").held.collection_vectors() == []


def test_indexes_of_bits_are_measured_by_what_was_asked_in_bytes_too(tmp_path: Path) -> None:
    """As most callers have them: such queries were passed over, and recall measured by the vectors themselves alone."""
    made = CollectionSpec(name="c", dimensions=64, metric=Metric.HAMMING, dtype=DType.BIT)
    bits = np.random.default_rng(1).integers(0, 2, (300, 64)).astype(np.float32)
    vectors = CollectionVectors(7, made, str(tmp_path), SegmentConfig())
    vectors.append(0, made.form.stored(bits))
    publish(vectors, *seal(vectors, 0, 299))
    asked = np.random.default_rng(2).integers(0, 2, (3, 64)).astype(np.float32)
    packed = np.packbits(asked[1:] != 0, axis=1).astype("<f4")
    queries, own = queries_of(vectors.view(), [b"odd", asked[0].tobytes(), *(row.tobytes() for row in packed)], 5)
    assert queries[:3].tolist() == asked.tolist() and own == [False] * 3 + [True] * 2
    assert queries[3:].tolist() == bits[[0, 299]].tolist()
