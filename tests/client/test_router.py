"""The router against shards in memory, on virtual time: coverage, stale maps, partial answers, pruning."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.fake_shards import FakeShards, ask, fill, vector, virtually
from needle.base.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    DiskFailed,
    InvalidArgument,
    NoQuorum,
    Unavailable,
)
from needle.base.filters.builder import Filter
from needle.base.model import HitBatch, ReadMode, SearchRequest, WriteResult
from needle.client.router.latency import DELAY_MIN, DELAY_UNKNOWN, Latencies
from needle.client.router.merge import merge_hits
from needle.client.router.pruning import pinned_keys
from needle.client.router.router import Router
from needle.routing.shard_map import uncovered
from needle.routing.strategy import HASH, RANGE, ShardStrategy, routing_key

MODES = [ReadMode.STRONG, ReadMode.LEASED, ReadMode.EVENTUAL]


@pytest.mark.parametrize("mode", MODES)
def test_searches_see_every_shard_in_order(mode: ReadMode) -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await fill(router)
        assert all(shards.data.values())
        found = await router.search(ask(30, 7), mode, 5)
        # equal distances are ordered by id
        assert found.batch.ids == ["doc-030", "doc-029", "doc-031", "doc-028", "doc-032", "doc-027", "doc-033"]
        assert (found.fanout, found.missing, found.gaps) == (4, {}, [])
        assert found.applied == shards.log
        batch = await router.get("default", ["doc-059", "none", "doc-001"], True, mode, 5)
        assert batch.ids == ["doc-059", "doc-001"]
        assert batch.vectors == vector(59) + vector(1)
        assert sum((await router.counts(mode, 5))["default"].values()) == 60
        deleted = await router.delete("default", ["doc-030", "doc-001", "none"], 5)
        assert (deleted.count, deleted.existed) == (2, True)
        assert (await router.search(ask(30, 1), mode, 5)).batch.ids == ["doc-029"]

    virtually(work())


@given(st.integers(0, 2**32), st.sampled_from(MODES))
@settings(max_examples=60, deadline=None)
def test_while_ranges_move_no_search_misses_or_doubles_and_no_write_goes_astray(seed: int, mode: ReadMode) -> None:
    rng = random.Random(seed)

    async def work() -> None:
        shards = FakeShards(strategy=rng.choice([RANGE, HASH]))
        router = Router(shards)
        await fill(router, 30)

        def sometimes_move(_: int) -> None:
            if rng.random() < 0.15 and moves:
                moves.pop()
                start = rng.choice([b"", b"doc-010", b"doc-020", (1).to_bytes(2, "big"), (3).to_bytes(2, "big")])
                shards.move((start, None), rng.randrange(4))

        moves = [None] * 6
        shards.before_answer = sometimes_move
        written = 30

        async def write() -> None:
            nonlocal written
            for n in range(30, 40):
                sometimes_move(0)
                await router.insert("default", f"doc-{n:03}", vector(n), b"", None, 20)
                written = n + 1

        async def search() -> None:
            for _ in range(15):
                before = written
                found = await router.search(ask(0, 100), mode, 20)
                assert len(set(found.batch.ids)) == len(found.batch.ids)
                assert {f"doc-{n:03}" for n in range(before)} <= set(found.batch.ids)
                await asyncio.sleep(0.001)

        await asyncio.gather(write(), search())
        for shard, held in shards.data.items():
            for name in held:
                assert shards.real.map is not None
                assert shards.real.map.owner(routing_key(shards.real.map.strategy, 4, name)) == shard

    virtually(work())


def test_an_answer_on_other_ranges_is_not_used() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await fill(router)
        shards.lies[2] = 1
        for mode in MODES:
            with pytest.raises(DeadlineExceeded, match="shard map"):
                await router.search(ask(1), mode, 0.5)
        del shards.lies[2]
        assert (await router.search(ask(1), ReadMode.STRONG, 0.5)).batch.ids[0] == "doc-001"

    virtually(work())


def test_a_dead_shard_is_an_error_or_an_explicit_gap() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await fill(router)
        whole = await router.search(ask(0, 60), ReadMode.STRONG, 5)
        shards.dead.add(1)
        for mode in MODES:
            with pytest.raises(Unavailable):
                await router.search(ask(0, 60), mode, 1)
            found = await router.search(ask(0, 60), mode, 1, partial=True)
            assert list(found.missing) == [1]
            assert uncovered([*found.gaps, *(r for s in (0, 2, 3) for r in shards.owned().ranges(s))]) == []
            assert found.gaps == shards.owned().ranges(1)
            assert set(whole.batch.ids) - set(found.batch.ids) == set(shards.data[1])
        before = dict(router.seen)  # a session does not forget what it has seen of a shard that is left out
        part = await router.search(ask(0, 60), ReadMode.EVENTUAL, 1, session=True, partial=True)
        assert list(part.missing) == [1] and before[1] > 0 and router.seen == before
        there = next(f"new-{n}" for n in range(99) if router.shard_of(f"new-{n}") != 1)
        gone = next(f"new-{n}" for n in range(99) if router.shard_of(f"new-{n}") == 1)
        outcomes = await router.insert_batch("default", [there, gone], memoryview(vector(1) * 2), [b"", b""], 1)
        assert isinstance(outcomes[0].outcome, WriteResult)
        assert isinstance(outcomes[1].outcome, NoQuorum)
        with pytest.raises(InvalidArgument):
            await router.search(ask(0, 60, Filter.eq("a", 1)).__class__(collection="default", vector=b"", k=1,
                filter=b'{"a": {"$no": 1}}'), ReadMode.STRONG, 1, partial=True)  # fmt: skip

    virtually(work())


def test_a_filter_on_the_shard_key_asks_its_owners_only() -> None:
    async def work() -> None:
        shards = FakeShards(strategy=ShardStrategy.custom("tenant"))
        router = Router(shards)
        for n in range(40):
            metadata = msgspec.json.encode({"tenant": n % 10})
            await router.insert("default", f"doc-{n:03}", vector(n), metadata, None, 5)
        found = await router.search(ask(0, 40, Filter.eq("tenant", 3.0)), ReadMode.STRONG, 5)
        assert (found.fanout, len(found.batch.ids)) == (1, 4)
        either = await router.search(ask(0, 40, Filter.in_("tenant", [3, 4])), ReadMode.STRONG, 5)
        assert either.fanout <= 2
        assert len(either.batch.ids) == 8
        others = await router.search(ask(0, 40, Filter.ne("tenant", 3)), ReadMode.STRONG, 5)
        assert (others.fanout, len(others.batch.ids)) == (4, 36)
        assert (await router.get("default", ["doc-005"], False, ReadMode.STRONG, 5)).ids == ["doc-005"]
        assert (await router.delete("default", ["doc-005", "doc-006"], 5)).count == 2
        outcome = await router.insert_batch(
            "default", ["x", "y"], memoryview(vector(1) * 2), [b"{}", b'{"tenant":1}'], 5
        )
        assert [list(part.rows) for part in outcome] == [[0], [1]]
        assert isinstance(outcome[0].outcome, InvalidArgument)
        assert isinstance(outcome[1].outcome, WriteResult)

    virtually(work())


def test_a_collection_made_anew_is_found_and_a_dropped_one_is_not() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        with pytest.raises(CollectionNotFound, match="'other'"):
            await router.search(SearchRequest(collection="other", vector=vector(1), k=1), ReadMode.STRONG, 5)
        old = msgspec.structs.replace(shards.real.collections[0], id=3)
        shards.known = msgspec.structs.replace(shards.real, version=shards.real.version - 1, collections=(old,))
        await fill(router)
        assert (await router.search(ask(1), ReadMode.STRONG, 5)).batch.ids[0] == "doc-001"
        shards.real = msgspec.structs.replace(shards.real, collections=())
        shards.known = msgspec.structs.replace(shards.real, collections=(old,))
        with pytest.raises(CollectionNotFound, match="'default'"):
            await router.insert("default", "x", vector(1), b"", None, 5)

    virtually(work())


def test_a_collection_is_not_said_to_be_missing_because_nobody_could_be_asked() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await fill(router)
        shards.known = msgspec.structs.replace(shards.real, collections=())
        shards.catalog_dead = shards.cut_off = True
        with pytest.raises(NoQuorum):
            await router.search(ask(1), ReadMode.STRONG, 1)
        shards.cut_off = False  # any node tells, also without a catalog that can confirm it
        assert (await router.search(ask(1), ReadMode.STRONG, 1)).batch.ids

    virtually(work())


def test_a_shard_that_does_not_have_a_collection_yet_is_waited_for() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await fill(router)
        shards.behind = 9
        assert (await router.search(ask(1), ReadMode.STRONG, 5)).batch.ids
        shards.behind = 1 << 30
        with pytest.raises(DeadlineExceeded, match="does not have collection 'default'"):
            await router.search(ask(1), ReadMode.STRONG, 1)

    virtually(work())


def test_large_parts_are_split_and_doubled_ids_keep_their_order() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards, batch_bytes_max=100)
        await fill(router)
        assert sum(shards.log.values()) > 10
        ids = ["same"] * 20
        rows = memoryview(b"".join(vector(n) for n in range(20)))
        await router.insert_batch("default", ids, rows, [b""] * 20, 5)
        assert shards.data[router.shard_of("same")]["same"][1] == vector(19)

    virtually(work())


_values = st.one_of(st.integers(-3, 3), st.booleans(), st.none(), st.sampled_from(["a", "b", 1.0, 2.5]))
_times = st.sampled_from(["2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00"])
_asked = st.one_of(_values, _times, _times.map(lambda text: {"$date": text}))
_values = st.one_of(_values, _times)
_documents = st.fixed_dictionaries({"a": _values, "b": _values})
_leaf = st.one_of(
    st.builds(Filter.eq, st.sampled_from(["a", "b", "c"]), _asked),
    st.builds(Filter.ne, st.sampled_from(["a", "b"]), _asked),
    st.builds(Filter.in_, st.sampled_from(["a", "b"]), st.lists(_asked, max_size=3)),
)
_filters = st.recursive(
    _leaf,
    lambda inner: st.one_of(
        st.builds(lambda x, y: x & y, inner, inner),
        st.builds(lambda x, y: x | y, inner, inner),
        st.builds(Filter.not_, inner),
    ),
    max_leaves=6,
)


@given(_filters, st.lists(_documents, max_size=12))
@settings(max_examples=400, deadline=None)
def test_pruning_never_loses_a_match(condition: Filter, documents: list[dict[str, object]]) -> None:
    for strategy in (ShardStrategy.custom("a"), ShardStrategy.custom("a", "b")):
        keys = pinned_keys(strategy, condition.to_json())
        for document in documents:
            if keys is not None and condition.matches(document):
                assert routing_key(strategy, 4, "id", document) in keys


@pytest.mark.parametrize("strategy", [ShardStrategy.CONSISTENT_HASH, ShardStrategy.HASH, ShardStrategy.RANGE], ids=str)
def test_a_filter_by_ids_asks_the_shards_that_own_them(strategy: ShardStrategy) -> None:
    ids = [f"d{n}" for n in range(8)]
    for condition in (Filter.ids(ids), Filter.ids(ids) & Filter.eq("a", 1), Filter.ids(ids[:3]) | Filter.ids(ids)):
        keys = pinned_keys(strategy, condition.to_json(), 4)
        assert keys is not None and set(keys) == {routing_key(strategy, 4, one) for one in ids}
    assert pinned_keys(strategy, Filter.ids([]).to_json(), 4) == []
    for condition in (~Filter.ids(ids), Filter.ids(ids) | Filter.eq("a", 1), Filter.ids([f"d{n}" for n in range(99)])):
        assert pinned_keys(strategy, condition.to_json(), 4) is None
    assert pinned_keys(ShardStrategy.custom("a"), Filter.ids(ids).to_json(), 4) is None


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.text("abc", min_size=1, max_size=3)), max_size=6), max_size=4))
@settings(max_examples=100, deadline=None)
def test_merging_is_sorting_everything(parts: list[list[tuple[int, str]]]) -> None:
    batches = [
        HitBatch([n for _, n in p], [float(d) for d, _ in p], [0] * len(p), [b""] * len(p), b"", i)
        for i, p in enumerate(map(sorted, parts))
    ]
    merged = merge_hits(batches, 6)  # one batch alone has no more than 6
    everything = sorted((float(d), n) for p in parts for d, n in p)
    assert list(zip(merged.distances, merged.ids, strict=True)) == everything[:6]


def test_what_is_late_follows_recent_answers() -> None:
    seen = Latencies()
    assert seen.late == DELAY_UNKNOWN
    for n in range(100):
        seen.add(0.01 if n % 10 else 0.5)
    assert seen.late == 0.5
    for n in range(128):
        seen.add(0.01 if n % 10 else 0.02)
    assert seen.late == pytest.approx(0.03)  # where all take about as long, none is late for being the last of them
    for _ in range(128):
        seen.add(1e-5)
    assert seen.late == DELAY_MIN


def test_an_eventual_read_that_a_broken_disk_refuses_is_answered_by_another_replica() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = Router(shards)
        await router.insert_batch("default", ["a"], memoryview(b"\0" * 8), [b"{}"], 5)
        refused: list[int] = []

        def broken(shard: int) -> None:
            if shard not in refused:
                refused.append(shard)
                raise DiskFailed("input/output error")

        shards.before_answer = broken
        found = await router.get("default", ["a"], False, ReadMode.EVENTUAL, 5)
        assert found.ids == ["a"]
        assert refused

    virtually(work())


def test_a_long_filter_is_not_read_to_know_whom_to_ask() -> None:
    strategy = ShardStrategy.custom("a")
    assert pinned_keys(strategy, (Filter.eq("a", 1) & Filter.in_("b", ["x"] * 100)).to_json())
    assert pinned_keys(strategy, (Filter.eq("a", 1) & Filter.in_("b", ["x" * 10] * 9_000)).to_json()) is None
