"""Changes by a filter over shards in memory, on virtual time: shards that are dead, slow, or whose ranges move."""

from __future__ import annotations

import random
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from client.fake_shards import FakeShards, virtually
from needle.base.config import Limits, RaftConfig
from needle.base.errors import InvalidArgument, NoQuorum, OutcomeUnknown, VersionMismatch
from needle.base.model import WriteResult
from needle.client.router.router import Router
from needle.client.where import MakePart, WhereWork
from needle.protocol.calls import WriteCall
from needle.protocol.commands import NO_SESSION, Change, ChangeWhere, OpenSession, Session, encode
from needle.routing.strategy import CONSISTENT_HASH, ShardStrategy, routing_key
from needle.server.service import numbered_writes
from needle.server.service.proxy import Proxy

COUNT = 40
IDS = [f"doc-{n:03}" for n in range(COUNT)]
TAGGED = Change(append=[("tags", b'["x"]')])
MANY_CONDITIONS = msgspec.json.encode({"$or": [{"a": n} for n in range(300)]})


async def filled(shards: FakeShards) -> Router:
    router = Router(shards)
    rows = memoryview(np.arange(2 * COUNT, dtype="<f4").tobytes())
    await router.insert_batch("default", IDS, rows, [b'{"tenant": %d}' % (n % 8) for n in range(COUNT)], 5)
    assert all(shards.data.values())
    return router


def tags(shards: FakeShards) -> dict[str, list[str]]:
    return {
        name: msgspec.json.decode(row[2]).get("tags", []) for held in shards.data.values() for name, row in held.items()
    }


def test_all_parts_of_all_shards_are_done() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        done = await router.change_where(ChangeWhere("default", b"", TAGGED, limit=3, return_ids=True), 5)
        assert done.count == COUNT and sorted(done.ids) == IDS
        assert set(map(tuple, tags(shards).values())) == {("x",)}
        gone = await router.change_where(ChangeWhere("default", b'{"tenant": 3}', None, limit=1), 5)
        assert gone.count == 5 and len(tags(shards)) == COUNT - 5

    virtually(work())


def test_a_node_holds_no_more_ids_for_a_caller_than_an_answer_may_have() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        command = ChangeWhere("default", b"", TAGGED, limit=3, return_ids=True)
        assert len((await router.change_where(command, 5, told_bytes_max=COUNT * 80)).ids) == COUNT
        with pytest.raises(OutcomeUnknown, match="return_ids") as told:
            await router.change_where(command, 5, told_bytes_max=COUNT * 20)
        twice = sum(one == ["x", "x"] for one in tags(shards).values())
        assert 0 < told.value.details["documents_changed"] == twice < COUNT

    virtually(work())


def test_when_a_shard_fails_nothing_is_under_way_any_more_and_what_is_done_is_said() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        shards.dead, shards.delay = {2}, {"0/a": 0.2, "1/a": 0.3, "3/a": 0.45}
        with pytest.raises(OutcomeUnknown, match="documents are changed, others perhaps not") as failed:
            await router.change_where(ChangeWhere("default", b"", None, limit=2), 0.4)
        left, log = len(tags(shards)), dict(shards.log)
        assert failed.value.details["documents_changed"] == COUNT - left > 0
        assert all(len(held) > 2 for held in shards.data.values())  # after the failure no other part was begun
        shards.dead, shards.delay = set(), {}
        again = await router.change_where(ChangeWhere("default", b"", None, limit=2), 5)
        assert again.count == left and not tags(shards) and shards.log != log

    virtually(work())


def test_progress_is_told_part_by_part_and_may_end_the_change() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        told: list[int] = []
        done = await router.change_where(ChangeWhere("default", b"", TAGGED, limit=3), 5, told.append)
        assert told == sorted(told) and told[-1] == done.count == COUNT and len(told) > len(shards.data)

        def enough(count: int) -> None:
            if count > COUNT // 2:
                raise ValueError("that will do")

        with pytest.raises(OutcomeUnknown, match=r"documents are changed, .*that will do") as ended:
            await router.change_where(ChangeWhere("default", b"", None, limit=3), 5, enough)
        left = len(tags(shards))
        assert ended.value.details["documents_changed"] == COUNT - left and 0 < left < COUNT // 2

    virtually(work())


def test_that_nothing_happened_is_said_only_if_it_is_true_of_all_shards() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        shards.dead = {0, 1, 2, 3}
        with pytest.raises(NoQuorum) as failed:
            await router.change_where(ChangeWhere("default", b"", None), 0.2)
        assert failed.value.retryable and failed.value.details["documents_changed"] == 0
        assert len(tags(shards)) == COUNT

    virtually(work())


@pytest.mark.parametrize("strategy", [CONSISTENT_HASH, ShardStrategy.custom("tenant")])
def test_ranges_that_move_are_judged_once(strategy: ShardStrategy) -> None:
    """The router learns of it when shards refuse what it asks; some have done their share by then."""

    async def work() -> None:
        rng = random.Random(5)
        for _ in range(20):
            shards = FakeShards(strategy=strategy)
            router = await filled(shards)
            for shard in rng.sample(range(4), 2):
                moved = rng.choice(shards.owned().ranges(shard))
                shards.move(moved, rng.choice([other for other in range(4) if other != shard]))
            shards.delay = {f"{shard}/a": rng.random() / 50 for shard in range(4)}
            done = await router.change_where(ChangeWhere("default", b"", TAGGED), 5)
            assert done.count == COUNT
            assert set(map(tuple, tags(shards).values())) == {("x",)}

    virtually(work())


async def test_what_a_routing_node_had_done_is_said_to_its_client() -> None:
    work = WhereWork(ChangeWhere("default", b"", None))

    async def write(make: MakePart) -> WriteResult:
        assert make("default", NO_SESSION, 0, []).after == -1
        raise OutcomeUnknown("7 documents are changed", documents_changed=7)

    work.begin("default")
    await work.run(write)
    with pytest.raises(OutcomeUnknown) as failed:
        work.result()
    assert failed.value.details["documents_changed"] == 7


def test_ids_that_a_routing_node_keeps_for_a_session_count() -> None:
    async def work() -> None:
        shards = FakeShards()
        config = RaftConfig(node_id="n", cluster_nodes=["n=h:1"], data_dir="unused")

        async def at_once(_size: int, fn: object, *arguments: object) -> object:
            assert callable(fn)
            return fn(*arguments)

        node = SimpleNamespace(config=config, router=await filled(shards), topology=shards.real)
        proxy = Proxy(node, random.Random(1), at_once)
        session = (await proxy.write(WriteCall(1, encode(OpenSession(1)), 1.0))).index
        command = ChangeWhere("default", b"", None, return_ids=True, session=Session(session, 1, 1))
        done = await proxy.write(WriteCall(1, encode(command), 1.0))
        assert sorted(done.ids) == IDS
        assert await proxy.write(WriteCall(1, encode(command), 1.0)) == done  # not executed again
        assert proxy.numbered.kept == 1 + COUNT // numbered_writes.ROWS_KEPT

    virtually(work())


@pytest.mark.parametrize("strategy", [CONSISTENT_HASH, ShardStrategy.custom("tenant")])
def test_each_document_gets_its_own_vector_wherever_it_is(strategy: ShardStrategy) -> None:
    async def work() -> None:
        shards = FakeShards(strategy=strategy)
        router = await filled(shards)
        names = [*IDS[3:9], "absent"]
        rows = [f"{n:08}".encode() for n in range(len(names))]
        done = await router.update_vectors("default", names, b"".join(rows), None, b"", 5)
        assert done.count == len(names) - 1
        held = {name: row[1] for data in shards.data.values() for name, row in data.items()}
        assert [held[name] for name in names[:-1]] == rows[:-1] and len(held) == COUNT

    virtually(work())


def test_under_a_custom_strategy_the_version_is_asked_of_the_shard_that_has_the_document() -> None:
    async def work() -> None:
        shards = FakeShards(strategy=ShardStrategy.custom("tenant"))
        router = await filled(shards)
        version = next(held["doc-003"][0] for held in shards.data.values() if "doc-003" in held)
        done = await router.patch("default", ["doc-003"], TAGGED, version, b"", 5)
        assert done.count == 1 and tags(shards)["doc-003"] == ["x"]
        with pytest.raises(VersionMismatch) as failed:
            await router.patch("default", ["absent"], TAGGED, version, b"", 5)
        assert failed.value.details["actual"] == 0
        with pytest.raises(VersionMismatch) as failed:  # and not that nobody knows, as other shards have none to judge
            await router.patch("default", ["doc-003"], TAGGED, version + 1000, b"", 5)
        assert failed.value.details["actual"] == done.version
        with pytest.raises(InvalidArgument, match="not an object"):
            await router.patch("default", ["doc-003"], Change(append=[("tenant.x", b"[1]")]), None, b"", 5)
        with pytest.raises(InvalidArgument, match="if_version"):
            await router.patch("default", IDS[:2], TAGGED, version, b"", 5)

    virtually(work())


@pytest.mark.parametrize(("many", "rest"), [(1100, 100), (600, 500)])
def test_a_change_of_too_many_documents_changes_none_however_many_each_shard_has(many: int, rest: int) -> None:
    async def work() -> None:
        shards = FakeShards(shards=2)
        shards.limits = Limits()
        router = Router(shards)
        owned, held = shards.owned(), dict[int, list[str]]({0: [], 1: []})
        for n in range(5000):
            held[owned.map.owner(routing_key(CONSISTENT_HASH, 2, f"d{n}", None))].append(f"d{n}")
        names = held[0][:many] + held[1][:rest]
        for shard, data in shards.data.items():
            data.update({name: (1, bytes(8), b"{}") for name in held[shard]})
        ask = (
            lambda: router.patch("default", names, TAGGED, None, b"", 5),
            lambda: router.update_vectors("default", names, np.ones(2 * len(names), "<f4").tobytes(), None, b"", 5),
            lambda: router.delete("default", names, 5, b'{"a": 1}'),
            lambda: router.patch("default", names[-500:], TAGGED, None, MANY_CONDITIONS, 5),
        )
        for one in ask:
            before = {shard: dict(data) for shard, data in shards.data.items()}
            with pytest.raises(InvalidArgument, match="at most"):
                await one()
            assert shards.data == before

    virtually(work())


def test_what_one_shard_is_sure_to_refuse_is_done_by_none() -> None:
    async def work() -> None:
        shards = FakeShards()
        router = await filled(shards)
        shards.limits = Limits()
        before = {shard: dict(data) for shard, data in shards.data.items()}
        long, zero = [*IDS, "x" * 513], np.ones((COUNT, 2), "<f4")
        zero[7] = 0
        for asked in (
            router.patch("default", long, TAGGED, None, b"", 5),
            router.delete("default", long, 5),
            router.update_vectors("default", IDS, zero.tobytes(), None, b"", 5),
        ):
            with pytest.raises(InvalidArgument, match=r"512 bytes|all zeros"):
                await asked
            assert shards.data == before

    virtually(work())
