"""The recall of live searches is measured in the background, of one view, and only while nobody is kept waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from client.fake_shards import virtually
from needle.base.config import Limits
from needle.base.errors import CollectionNotFound, Unavailable
from needle.base.model import CollectionSpec, IndexParams, Metric, RaftStatus, SearchRequest, VectorSpec
from needle.client.conditions import NodeView, conditions
from needle.protocol.commands import CreateCollection, Named, PublishSegment
from needle.routing.topology import Topology
from needle.server.beats import Beats
from needle.server.chores.context import ChoreContext
from needle.server.chores.recall import (
    BUSY_BYTES,
    COLLECTIONS_MAX,
    CPU_SHARE,
    KEPT_SECONDS,
    PATIENCE,
    SAMPLES_MAX,
    SAMPLES_MIN,
    Recall,
)
from needle.shard.recall import BYTES_MAX, Measured, _share, part_of, recall_of
from needle.shard.segments.graph import UNMEASURED
from needle.shard.segments.sealed import SealedSegment
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put
from shard.vectors_util import seal

ROWS, WIDTH, K = 4000, 48, 10
NARROW = IndexParams(m=2, ef_construction=2, ef_search=1)


def opened(directory: Path, index: IndexParams) -> Iterator[Replica]:
    """Most of its vectors are in an index that finds few of them."""
    made, log = open_replica(directory), Log()
    spec = CollectionSpec(name="c", dimensions=WIDTH, metric=Metric.L2, index=index)
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32).tolist()
    made.apply(log.add(CreateCollection(spec), CreateCollection(msgspec.structs.replace(spec, name="plain"))))
    for start in range(0, ROWS, 1000):
        ids = [f"d{n:05}" for n in range(start, start + 1000)]
        made.apply(log.add(put(ids, rows[start : start + 1000], [{"n": n} for n in range(1000)])))
    made.apply(log.add(msgspec.structs.replace(put(["x"], rows[:1]), collection="plain")))
    vectors = next(one for one in made.held.collection_vectors() if one.spec.name == "c")
    segment, path = seal(vectors, 0, ROWS - 101)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    made.apply(log.add(PublishSegment(**msgspec.structs.asdict(segment))))
    yield made
    made.close()


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    yield from opened(tmp_path_factory.mktemp("recall"), NARROW)


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    """Its index finds some half, and a wider search through it not all either: nobody measured its beam."""
    for made in opened(tmp_path, IndexParams(m=8, ef_construction=16, ef_search=20)):
        for served in made.view.collection("c").vectors.served:
            monkeypatch.setattr(served.sealed, "beam", UNMEASURED)
        yield made


def asked(seed: int, **options: Any) -> SearchRequest:
    vector = np.random.default_rng(seed).standard_normal(WIDTH).astype("<f4").tobytes()
    narrow = {"collection": "c", "vector": vector, "k": K, "ef_search": NARROW.ef_search}
    return SearchRequest(**{**narrow, **options})


def nothing() -> None:
    return None


def test_it_is_the_share_of_the_exact_hits(replica: Replica) -> None:
    shares = []
    for seed in range(20):
        request = asked(seed, filter=b'{"n":{"$lt":900}}' if seed % 2 else b"")
        found = replica.search(request).ids
        exact = replica.search(msgspec.structs.replace(request, exact=True)).ids
        share = replica.look(recall_of, request, Limits(), nothing)
        assert share == (pytest.approx(len(set(found) & set(exact)) / K), 1.0)
        shares.append(share.found)
    assert min(shares) < 0.2 <= max(shares)  # so this can fail
    wide = [replica.look(recall_of, asked(seed, ef_search=2000), Limits(), nothing) for seed in range(5)]
    assert np.mean([one.found for one in wide]) > np.mean(shares)


def test_of_a_named_vector_it_is_that_of_its_own_index(tmp_path: Path) -> None:
    made, log, name = open_replica(tmp_path), Log(), "c/title"
    spec = CollectionSpec(name="c", dimensions=2, metric=Metric.L2)
    title = VectorSpec(dimensions=WIDTH, metric=Metric.L2, index=NARROW).stored_as(name, "c")
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype("<f4")
    made.apply(log.add(CreateCollection(spec), CreateCollection(title)))
    for start in range(0, ROWS, 1000):
        have = list(range(0, 1000, 2))
        named = [Named(name, have, rows[start : start + 1000][have].tobytes())]
        ids, metadata = [f"d{n:05}" for n in range(start, start + 1000)], [{"n": n} for n in range(1000)]
        made.apply(log.add(put(ids, [[1, 2]] * 1000, metadata, named=named)))
    vectors = next(one for one in made.held.collection_vectors() if one.spec.name == name)
    segment, path = seal(vectors, 0, ROWS - 101)
    vectors.attach(SealedSegment(path, segment, vectors.spec))
    made.apply(log.add(PublishSegment(**msgspec.structs.asdict(segment))))
    shares = []
    for seed in range(20):
        request = asked(seed, vector_name=name, filter=b'{"n":{"$lt":900}}' if seed % 2 else b"")
        found = made.search(request).ids
        exact = made.search(msgspec.structs.replace(request, exact=True)).ids
        share = made.look(recall_of, request, Limits(), nothing)
        assert share == (pytest.approx(len(set(found) & set(exact)) / K), 1.0)
        shares.append(share.found)
        assert made.look(recall_of, request, Limits(), nothing, seed, 4 * WIDTH * ROWS // 10) is not None
    assert min(shares) < 0.3 and np.mean(shares) < 0.8

    async def work() -> None:
        world = World(made)
        task = asyncio.get_running_loop().create_task(world.recall.run())
        for seed in range(100):
            world.recall.saw(asked(seed, vector_name=name))
            await asyncio.sleep(1.0)
        task.cancel()
        assert world.recall.recorded(name) and not world.recall.recorded("c")
        assert world.recall.told().keys() == {name} and world.recall.told()[name] < 0.9

    virtually(work())
    made.close()


def test_where_there_is_nothing_to_measure(replica: Replica) -> None:
    assert replica.look(recall_of, asked(1, exact=True), Limits(), nothing) is None
    assert replica.look(recall_of, asked(1, collection="plain"), Limits(), nothing) is None  # no index
    assert replica.look(recall_of, asked(1, filter=b'{"n":-1}'), Limits(), nothing) is None  # no hits
    with pytest.raises(CollectionNotFound):
        replica.look(recall_of, asked(1, collection="gone"), Limits(), nothing)
    assert replica.look(recall_of, asked(2, max_distance=0.0), Limits(), nothing, 1, ROWS * WIDTH) is None


def test_of_more_vectors_than_are_scored_it_is_an_estimate_of_the_same(half: Replica) -> None:
    """A tenth of the vectors is scored. What a wider search finds would not tell."""
    requests, bytes_max = [asked(seed, ef_search=20) for seed in range(80)], 4 * WIDTH * ROWS // 10
    exact = [one.found for request in requests if (one := half.look(recall_of, request, Limits(), nothing))]
    parts = [half.look(recall_of, request, Limits(), nothing, seed, bytes_max) for seed, request in enumerate(requests)]
    measured = [one for one in parts if one is not None]
    assert len(measured) == len(exact) == len(requests)
    found, near = (sum(column) for column in zip(*measured, strict=True))
    truth = sum(exact) / len(exact)
    assert 0.4 < truth < 0.7
    assert found / near == pytest.approx(truth, abs=0.05)
    assert found / len(requests) > truth + 0.08, "what the wider search misses, too, has to be counted"


def test_a_search_that_finds_all_is_told_to_find_all(replica: Replica) -> None:
    for seed in range(10):
        request = asked(seed, ef_search=4000)
        one = replica.look(recall_of, request, Limits(), nothing, seed, 4 * WIDTH * ROWS // 3)
        assert one == replica.look(recall_of, request, Limits(), nothing) == (1.0, 1.0)


def test_each_ordinal_is_as_likely_in_the_part_which_has_a_bound() -> None:
    among = BitMap(range(5, 1000)) - BitMap(range(100, 300))
    often = np.zeros(1000)
    for seed in range(2000):
        part, share = part_of(among, 100, 16, seed)
        assert part <= among and share == 8 / 63
        assert len(part) <= 8 * 16
        often[np.array(part)] += 1
    assert often[np.array(among)] / 2000 == pytest.approx(np.full(len(among), 8 / 63), abs=0.035)


def test_hits_that_are_as_near_count(replica: Replica) -> None:
    found = replica.search(asked(1, exact=True))
    other = msgspec.structs.replace(found, ids=[*found.ids[:-1], "as near"])
    assert _share(other, found) == 1.0
    farther = msgspec.structs.replace(other, distances=[*found.distances[:-1], found.distances[-1] * 1.01])
    assert _share(farther, found) == (K - 1) / K


class World:
    """One replica whose recall is looked after in virtual time; a measurement takes `took` seconds."""

    def __init__(self, replica: Replica, share: float = 1.0) -> None:
        self.busy, self.stopped, self.took = False, False, 0.001
        self.now = asyncio.get_running_loop().time
        self.measured: list[float] = []
        self.bytes: list[int] = []
        clock: Any = SimpleNamespace(monotonic=self.now)
        pool: Any = SimpleNamespace(run=self._run)
        host: Any = self
        config: Any = SimpleNamespace(segments=SimpleNamespace(recall_share=share), limits=Limits())
        self.recall = Recall(
            ChoreContext(1, replica, host, clock, pool, Topology, Beats(self.now)),
            random.Random(1),
            config,
            lambda: self.busy,
        )

    async def _run(self, call: Any, *arguments: Any) -> Any:
        self.measured.append(self.now())
        self.bytes.append(arguments[-1])
        await asyncio.sleep(self.took)
        return call(*arguments)

    async def run(self, seconds: float, *, searches: int = 1) -> None:
        task = asyncio.get_running_loop().create_task(self.recall.run())
        for at in range(int(seconds)):
            for _ in range(searches):
                self.recall.saw(asked(at))
            await asyncio.sleep(1.0)
        task.cancel()


def test_it_takes_a_hundredth_of_a_core_and_waits_while_the_node_is_busy(replica: Replica) -> None:
    async def work() -> None:
        world = World(replica)
        await world.run(100)
        assert 70 <= len(world.measured) <= 100
        assert world.recall.told()["c"] < 0.9
        world.measured, world.took = [], 0.2
        await world.run(200)
        assert 8 <= len(world.measured) <= 200 * CPU_SHARE / world.took + 1
        world.measured, world.busy = [], True
        await world.run(PATIENCE - 2)
        assert world.measured == []
        with pytest.raises(Unavailable):
            replica.look(recall_of, asked(1), Limits(), world.recall._go_on)

    virtually(work())


def test_a_node_that_is_always_busy_measures_enough_to_tell(replica: Replica) -> None:
    """It told nothing. What it does is bounded, in how often and in how much."""

    async def work() -> None:
        world = World(replica)
        world.busy, world.took = True, 0.05
        await world.run(KEPT_SECONDS)
        assert SAMPLES_MIN <= len(world.measured) <= KEPT_SECONDS / PATIENCE
        assert set(world.bytes) == {BUSY_BYTES}
        assert world.recall.told()["c"] < 0.9
        world.busy, world.bytes = False, []
        await world.run(100)
        assert set(world.bytes) == {BYTES_MAX}

    virtually(work())


def test_a_share_of_the_searches_is_taken(replica: Replica) -> None:
    async def work() -> None:
        none = World(replica, 0.0)
        await none.run(10, searches=10)
        assert (none.measured, none.recall.told()) == ([], {})
        some, taken = World(replica, 0.02), 0
        for at in range(10_000):
            some.recall.saw(asked(at))
            taken += some.recall._waits is not None
            some.recall._waits = None
        assert 150 < taken < 260

    virtually(work())


def test_what_is_old_or_dropped_is_not_told_and_names_are_bounded(replica: Replica) -> None:
    async def work() -> None:
        told = World(replica).recall
        for _ in range(SAMPLES_MIN - 1):
            told._note("c", Measured(0.5, 1.0))
        assert told.told() == {}
        told._note("c", Measured(0.5, 1.0))
        told._note("dropped", Measured(0.5, 1.0))
        assert told.told() == {"c": pytest.approx(0.5)}
        for _ in range(SAMPLES_MAX):
            told._note("c", Measured(1.0, 1.0))
        assert told.told() == {"c": pytest.approx(1.0)}
        await asyncio.sleep(KEPT_SECONDS + 1)
        assert told.told() == {} == told._found
        for number in range(COLLECTIONS_MAX + 5):
            told._note(f"n{number}", Measured(0.5, 1.0))
        assert len(told._found) <= COLLECTIONS_MAX

    virtually(work())


def test_status_tells_of_a_low_one() -> None:
    status = RaftStatus(
        node_id="n1", group=1, state="Follower", current_term=2, leader="n2", commit_index=9, last_applied=9,
        first_index=1, last_index=9, peers=[], voters=["n1", "n2"], learners=[], lease_remaining=1.0,
        leader_changes=1, recall={"books": 0.62},
    )  # fmt: skip
    found = [one for one in conditions([NodeView(node="n1", address="a:1", status=status)]) if "Recall" in one.alert]
    assert [(one.severity, one.subject) for one in found] == [("warning", "books: 62% of what is nearest, by n1")]


def test_a_search_that_cannot_be_asked_again_ends_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller was answered; the node ended when the measurement ran out of memory."""

    def fails(*_: object) -> float:
        raise MemoryError

    monkeypatch.setattr("needle.server.chores.recall.recall_of", fails)

    async def work() -> None:
        world = World(replica)
        await world.run(10)
        assert len(world.measured) > 3 and world.recall.told() == {}

    virtually(work())
    assert "cannot be measured" in caplog.text
