"""What a write, a read and a start cost follows what they touch: not how many collections there are, nor how often
documents were replaced. Work is counted, never timed."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest

from needle.base.errors import InvalidArgument
from needle.base.filters.builder import Filter
from needle.base.model import SearchRequest, WriteResult
from needle.protocol.commands import CreateCollection, Delete, DropCollection
from needle.protocol.move_commands import Forget, Freeze, PrepareMove, Release
from needle.routing.strategy import RANGE
from needle.shard.documents import store
from needle.shard.effects import ABSENT, LEFT, WRITTEN, Effect, EffectLog
from needle.shard.live_collection import LiveCollection
from needle.shard.segments.keeper import SegmentKeeper
from shard.replica_util import Log, floats, open_replica, put, spec


def work(run: Callable[[], Any]) -> int:
    """Lines of Python executed, and calls of functions written in C."""
    count = 0

    def lines(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return lines

    def calls(_: FrameType, event: str, __: Any) -> None:
        nonlocal count
        count += event == "c_call"

    sys.settrace(lines)
    sys.setprofile(calls)
    try:
        run()
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    return count


def test_what_leaves_with_a_range_costs_the_same_however_many_collections_it_has() -> None:
    """What is held of all of them was counted again for each: with thousands, seconds of apply."""
    measured, rng = list[int](), random.Random(1)
    for count in (10, 400):
        effects = EffectLog(memory_max=512 * 2 * count)
        effects.add([Effect(at, WRITTEN, at, at, 0, (ABSENT,) * 4) for at in range(1, count + 1)])
        effects.add([Effect(count + 1, LEFT, at, olds=(1,), vectors=(0,)) for at in range(1, count)])
        last = Effect(count + 2, LEFT, count, olds=(1,), vectors=(0,))
        measured.append(work(lambda one=last, of=effects: of.add([one])))  # type: ignore[misc]
        assert effects.hold(10**6) == 2 * count
        for _ in range(3 * count):  # it is counted right, whatever comes and goes
            at = rng.randrange(1, count + 1)
            effects.add([Effect(count + 3, LEFT, at, olds=(rng.randrange(4),), vectors=(rng.randrange(4),))])
            found = effects.hold(rng.choice([10**6, rng.randrange(2 * count)]))
            assert found == effects._moved.count == sum(one.count() for one in effects._moved._moved.values())
    assert measured[0] == measured[1], measured


def with_collections(directory: Path, count: int) -> tuple[Any, Log]:
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(*[CreateCollection(spec(f"c{at}")) for at in range(count)]))
    replica.apply(log.add(put(["a", "b"], [[1, 2, 3], [4, 5, 6]], collection="c3")))
    replica.save()  # a commit has as many rows as have waited for it
    return replica, log


def test_no_call_costs_more_because_there_are_many_collections(tmp_path: Path) -> None:
    measured: dict[str, list[int]] = {}
    for count in (10, 400):
        replica, log = with_collections(tmp_path / str(count), count)
        query = SearchRequest(collection="c3", vector=floats([1, 2, 3]), k=1)
        calls: dict[str, Callable[[], Any]] = {
            "insert": lambda r=replica, g=log: r.apply(g.add(put(["x"], [[1, 1, 1]], collection="c3"))),
            "replace": lambda r=replica, g=log: r.apply(g.add(put(["x"], [[1, 1, 2]], collection="c3"))),
            "delete": lambda r=replica, g=log: r.apply(g.add(Delete("c3", ["x"]))),
            "create": lambda r=replica, g=log: r.apply(g.add(CreateCollection(spec("new")))),
            "drop": lambda r=replica, g=log: r.apply(g.add(DropCollection("new"))),
            "search": lambda r=replica, q=query: r.search(q),
            "count": lambda r=replica: r.count(),
        }
        replica.search(query)
        for name, call in calls.items():
            measured.setdefault(name, []).append(work(call))
        replica.close()
    for name, (few, many) in measured.items():
        assert many <= few + 25, f"{name}: {few} steps with 10 collections, {many} with 400"


def test_steps_of_a_move_cost_the_same_however_many_collections_it_does_not_touch(tmp_path: Path) -> None:
    """Each of its deletions, of which there are as many as it moved documents, went through all collections."""
    measured: dict[str, list[int]] = {}
    for count in (10, 400):
        replica, log = with_collections(tmp_path / str(count), count)
        ids = [f"m{n}" for n in range(6)]
        replica.apply(log.add(put(ids, [[1, 2, n] for n in range(6)], collection="c7")))
        told = [PrepareMove(1, 1, False, [(b"m", None)], [(b"", None)], RANGE, 2), Freeze(1), Release(1)]
        for command in told:
            assert isinstance(replica.apply(log.add(command))[-1], WriteResult)
        replica.save()
        for n in range(2):
            applied, forget = list[Any](), log.add(Forget(1, 2))
            steps = work(lambda r=replica, f=forget, into=applied: into.extend(r.apply(f)))
            measured.setdefault(f"forget {n}", []).append(steps)
            assert applied[-1].count == 2
        replica.close()
        replica = open_replica(tmp_path / str(count))
        assert replica.apply(log.add(Forget(1, 500)))[-1].count == 2  # what was hidden is known again after a start
        replica.close()
    for name, (few, many) in measured.items():
        assert many <= few + 25, f"{name}: {few} steps with 10 collections, {many} with 400"


@pytest.mark.parametrize("operator", ["$in", "$nin"])
def test_judging_a_document_does_not_cost_more_because_there_are_many_values(operator: str) -> None:
    document = {"f": [*range(50), "a", None, True, "2024-01-01T00:00:00Z"]}
    values = [1.5, "b", False, {"$date": "2025-01-01T00:00:00Z"}]
    measured = []
    for count in (10, 5_000):
        found = Filter.parse({"f": {operator: [*values, *range(1000, 1000 + count)]}})
        found.matches(document)
        measured.append(work(lambda f=found: f.matches(document)))  # type: ignore[misc]
    assert measured[1] <= measured[0] + 25, measured


def with_ordinals_used(directory: Path, used: int) -> None:
    """A collection of 100 documents whose ordinals were used up by replacing them: what so many updates leave."""
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(CreateCollection(spec())))
    names = [f"d{at}" for at in range(100)]
    rows = [[at, 1, 1] for at in range(100)]
    replica.apply(log.add(put(names, rows, [{"n": 1}] * 100)))
    replica.checkpoint()
    replica.close()
    with closing(store.connect(str(directory / "state-1" / "documents.db"))) as database:
        database.execute("UPDATE collections SET next_ordinal = ?", (used - 50,))
    replica = open_replica(directory)
    replica.apply(log.add(put(names[:50], rows[:50], [{"n": 2}] * 50)))
    replica.checkpoint()
    replica.close()


def test_start_and_updates_do_not_cost_more_because_ordinals_were_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: Counter[str] = Counter()
    connect = store.connect

    def traced(*args: Any) -> apsw.Connection:
        connection = connect(*args)
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.update([event["sql"].split()[0]]))
        return connection

    monkeypatch.setattr(store, "connect", traced)
    measured: dict[str, list[int]] = {}
    for used in (1_000, 4_000_000_000):
        directory = tmp_path / str(used)
        with_ordinals_used(directory, used)
        statements.clear()
        opened: list[Any] = []
        measured.setdefault("open", []).append(work(lambda d=directory, o=opened: o.append(open_replica(d))))
        measured.setdefault("statements", []).append(statements.total())
        replica, log = opened[0], Log()
        assert replica.held.worn() == ([("c", used / (2**32 - 1))] if used > 2**31 else [])
        log.add(None, None, None)
        assert replica.count() == 100 and replica.view.collections["c"].record.next_ordinal == used
        change = log.add(put(["d1"], [[1, 1, 1]], [{"n": 3}]))
        measured.setdefault("replace", []).append(work(lambda r=replica, c=change: r.apply(c)))
        held = replica.view.collections["c"].live
        assert len(held) == 100 and held.bitmap().serialize().__sizeof__() < 1_000
        query = SearchRequest(collection="c", vector=floats([0, 1, 1]), k=200, exact=True)
        assert len(replica.search(query).ids) == 100
        replica.close()
    for name, (few, many) in measured.items():
        assert many <= 1.5 * few, f"{name}: {few} steps after 1,000 ordinals, {many} after 4,000,000,000"


class InlinePool:
    async def run(self, fn: Callable[..., Any], /, *args: object) -> Any:
        return fn(*args)


class StillClock:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0


def keeper_of(replica: Any) -> SegmentKeeper:
    async def nothing(*_: object) -> Any:
        raise AssertionError("nothing is built or fetched here")

    return SegmentKeeper(
        replica.held, is_leader=lambda: True, publish=nothing,
        ask_building=nothing, ask_staged=nothing, fetch_chunk=nothing, peers=list,
        build_pool=InlinePool(), file_pool=InlinePool(), clock=StillClock(),
    )  # fmt: skip


async def test_the_keeper_looks_at_what_changed(tmp_path: Path) -> None:
    looked: dict[int, list[int]] = {}
    for count in (10, 400):
        replica, log = with_collections(tmp_path / str(count), count)
        keeper = keeper_of(replica)
        seen = looked[count] = []
        asked = replica.held.vectors_of
        replica.held.vectors_of = lambda id_, asked=asked, seen=seen: (seen.append(id_), asked(id_))[1]
        keeper.kick()
        await keeper._build_pass()
        await keeper._files_pass()
        assert len(seen) == 2 * count, "at the start, at all of them"
        seen.clear()
        replica.apply(log.add(put(["x"], [[1, 1, 1]], collection="c3"), DropCollection("c5")))
        keeper.kick()
        await keeper._build_pass()
        await keeper._files_pass()
        keeper.kick()
        await keeper._build_pass()
        await keeper._files_pass()
        replica.close()
    assert looked[10] == looked[400] == [4, 6, 4, 6]


async def test_a_pass_over_many_collections_lets_others_run(tmp_path: Path) -> None:
    replica, _ = with_collections(tmp_path, 400)
    keeper, turns = keeper_of(replica), 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    keeper.kick()
    await keeper._build_pass()
    await keeper._files_pass()
    task.cancel()
    assert turns >= 2 * (400 // 32)
    replica.close()


async def test_the_files_of_a_dropped_collection_go(tmp_path: Path) -> None:
    replica, log = with_collections(tmp_path, 6)
    keeper, directory = keeper_of(replica), Path(replica.held.segment_directory)
    mine, others = f"4-0-1-{'a' * 32}.seg", f"5-0-1-{'a' * 32}.seg"
    keeper.kick()
    await keeper._files_pass()
    for name in (mine, others):
        (directory / name).write_bytes(b"x")
        keeper._files.added(str(directory / name))
    replica.apply(log.add(DropCollection("c3")))
    keeper.kick()
    await keeper._files_pass()
    assert not (directory / mine).exists() and (directory / others).exists()
    replica.close()


def test_a_dropped_collection_leaves_memory_at_once(tmp_path: Path) -> None:
    """Not when the collector of reference cycles comes, which may be an hour later."""

    def held() -> int:
        return sum(type(one) is LiveCollection for one in gc.get_objects())

    replica, log = with_collections(tmp_path, 6)
    before = held()
    gc.disable()
    try:
        replica.apply(log.add(put(["x"], [[1, 1, 1]], collection="c3")))
        replica.apply(log.add(DropCollection("c3"), DropCollection("c4")))
        assert held() == before - 2
    finally:
        gc.enable()
    replica.close()


def test_a_collection_that_is_used_up_refuses_writes_and_goes_on_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_ordinals_used(tmp_path, 2**32 - 2)
    assert "document versions" in caplog.text
    replica, log = open_replica(tmp_path), Log()
    log.add(None, None, None)
    ok, refused = replica.apply(log.add(put(["d1"], [[1, 1, 1]]), put(["d2"], [[1, 1, 1]])))
    assert ok.existed and isinstance(refused, InvalidArgument) and refused.details["collection"] == "c"
    (gone,) = replica.apply(log.add(Delete("c", ["d3"])))
    assert gone.count == 1 and replica.count("c") == 99
    replica.close()


def test_the_total_is_the_sum_of_the_collections(tmp_path: Path) -> None:
    replica, log = with_collections(tmp_path, 5)
    ids, rows = [f"d{at}" for at in range(7)], [[1, 1, 1]] * 7
    for commands in (
        [put(ids, rows, collection="c1"), put(ids[:3], rows[:3], collection="c2")],
        [put(ids[2:5], rows[2:5], collection="c1"), Delete("c2", ["d0", "d9"])],
        [DropCollection("c1"), put(ids[:1], rows[:1], collection="c4")],
        [CreateCollection(spec("c1")), put(ids[:2], rows[:2], collection="c1"), DropCollection("c2")],
        [CreateCollection(spec("c2")), DropCollection("c2"), DropCollection("c1"), CreateCollection(spec("c1"))],
    ):
        replica.apply(log.add(*commands))
        assert replica.count() == sum(count for _, count in replica.counts()) > 0
    total = replica.count()
    replica.close()
    again = open_replica(tmp_path)
    assert again.count() == total == 3
    again.close()
