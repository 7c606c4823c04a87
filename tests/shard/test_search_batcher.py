"""Searches are batched by what waits, answered in order, and never left hanging."""

# ruff: noqa: ASYNC110 - the condition is a recorded call, which nothing announces
from __future__ import annotations

import asyncio

import pytest

from needle.base.errors import CollectionNotFound, DeadlineExceeded, Internal, Overloaded
from needle.base.model import HitBatch, SearchRequest
from needle.shard.search_batcher import SHORT_MAX, SearchBatcher, Wanted


def request(name: str) -> SearchRequest:
    return SearchRequest(collection=name, vector=b"", k=1)


def answer(name: str) -> HitBatch:
    return HitBatch([name], [0.0], [1], [], b"", 1)


class GatedPool:
    """Runs a batch inline once the gate is open, a quick one at once, and records the batches."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.batches: list[int] = []
        self.quick: list[bool] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.running = 0
        self.running_max = 0

    def call(self, done, fn, /, *args, quick: bool = False) -> None:
        self.quick.append(quick)
        self.batches.append(len(args[0]))
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        if quick:
            self._answer(done, fn, *args)
        else:
            self._tasks.append(asyncio.ensure_future(self._later(done, fn, *args)))

    async def _later(self, done, fn, *args) -> None:
        await self.gate.wait()
        self._answer(done, fn, *args)

    def _answer(self, done, fn, *args) -> None:
        self.running -= 1
        try:
            found = fn(*args)
        except Exception as error:  # noqa: BLE001 - handed on
            done(None, error)
        else:
            done(found, None)

    def close(self) -> None:
        pass


def search_many(requests: list[SearchRequest], wanted: Wanted) -> list:
    return [CollectionNotFound("no") if r.collection == "absent" else answer(r.collection) for r in requests]


async def test_one_turn_is_shared_between_free_workers_and_the_rest_waits_for_them() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool)
    tasks = [asyncio.ensure_future(batcher.search(request(str(i)))) for i in range(20)]
    while len(pool.batches) < 2:
        await asyncio.sleep(0)
    assert pool.batches == [10, 10]
    tasks += [asyncio.ensure_future(batcher.search(request(str(i)))) for i in range(20, 70)]
    await asyncio.sleep(0)
    assert pool.batches == [10, 10]
    pool.gate.set()
    results = await asyncio.gather(*tasks)
    assert [r.ids[0] for r in results] == [str(i) for i in range(70)]
    assert max(pool.batches) == 16 and sum(pool.batches) == 70 and pool.running_max == 2


@pytest.mark.parametrize(
    ("each", "asked", "parts"),
    [
        (0.0002, 4, [4]),
        (0.0002, 8, [8]),
        (0.0002, 15, [15]),
        (0.0002, 16, [8, 8]),
        (0.001, 4, [4]),
        (0.001, 8, [4, 4]),
        (0.05, 4, [2, 2]),
    ],
)
async def test_short_searches_are_not_divided_into_small_parts(each: float, asked: int, parts: list[int]) -> None:
    """Of four searches two workers made two batches of two, which take half as long again together, and so did those
    that came after them."""
    pool, spent = GatedPool(), 0.0
    pool.gate.set()

    def searched(requests: list[SearchRequest], wanted: Wanted) -> list:
        nonlocal spent
        spent += each * len(requests)
        return search_many(requests, wanted)

    batcher = SearchBatcher(searched, pool, spent=lambda: spent)
    await asyncio.gather(*(batcher.search(request("a")) for _ in range(256)))
    pool.batches.clear()
    found = await asyncio.gather(*(batcher.search(request(str(n))) for n in range(asked)))
    assert pool.batches == parts
    assert [one.ids[0] for one in found] == [str(n) for n in range(asked)]


async def test_many_short_searches_do_not_hide_that_others_are_long() -> None:
    """Fifteen of 50 ms went to one worker, behind a batch of short ones of another collection."""
    pool, spent, each = GatedPool(), 0.0, 0.05
    pool.gate.set()

    def searched(requests: list[SearchRequest], wanted: Wanted) -> list:
        nonlocal spent
        spent += each * len(requests)
        return search_many(requests, wanted)

    batcher = SearchBatcher(searched, pool, spent=lambda: spent)
    await asyncio.gather(*(batcher.search(request("long")) for _ in range(15)))
    each = 0.0001
    await asyncio.gather(*(batcher.search(request("short")) for _ in range(64)))
    pool.batches.clear()
    await asyncio.gather(*(batcher.search(request("long")) for _ in range(15)))
    assert pool.batches == [8, 7]


async def test_a_lone_search_goes_at_once() -> None:
    pool = GatedPool()
    pool.gate.set()
    assert (await SearchBatcher(search_many, pool).search(request("x"))).ids == ["x"]
    assert pool.batches == [1]


async def test_short_searches_are_made_at_once_but_not_many_together_nor_beside_long_ones() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, in_flight_max=1, short=lambda asked: asked.collection != "long")
    for n in range(40):  # each ends while it is begun
        assert (await batcher.search(request(f"x{n}"))).ids == [f"x{n}"]
    assert pool.quick == [True] * 40
    several = [asyncio.ensure_future(batcher.search(request("x"))) for _ in range(SHORT_MAX + 1)]
    await begun(pool, 41)
    pool.quick.clear()
    mixed = [asyncio.ensure_future(batcher.search(request(name))) for name in ("x", "long")]
    pool.gate.set()
    await asyncio.gather(*several, *mixed)
    assert pool.quick == [False]


async def test_what_waits_is_begun_when_short_searches_end_and_closing_waits_for_what_runs() -> None:
    pool = GatedPool()
    pool.gate.set()
    batcher = SearchBatcher(search_many, pool, batch_max=1, in_flight_max=1, short=lambda _: True)
    found = await asyncio.gather(*(batcher.search(request(str(n))) for n in range(2000)))
    assert [one.ids for one in found] == [[str(n)] for n in range(2000)]
    assert pool.quick == [False] * 1999 + [True]  # while others wait, the event loop has to get its turn
    pool.gate.clear()
    slow = SearchBatcher(search_many, pool)
    running = asyncio.ensure_future(slow.search(request("x")))
    await begun(pool, 2001)
    closing = asyncio.ensure_future(slow.close())
    await asyncio.sleep(0)
    assert not closing.done()
    pool.gate.set()
    await closing
    assert (await running).ids == ["x"]


async def test_an_error_reaches_only_its_search() -> None:
    pool = GatedPool()
    pool.gate.set()
    batcher = SearchBatcher(search_many, pool, in_flight_max=1)
    good, bad = await asyncio.gather(
        batcher.search(request("x")), batcher.search(request("absent")), return_exceptions=True
    )
    assert isinstance(good, HitBatch) and isinstance(bad, CollectionNotFound)
    assert pool.batches == [2]


async def test_a_failing_call_fails_its_searches_and_later_ones_go_on() -> None:
    pool = GatedPool()
    pool.gate.set()
    fail = [True]

    def sometimes(requests: list[SearchRequest], wanted: Wanted) -> list:
        if fail.pop() if fail else False:
            raise Internal("broken")
        return search_many(requests, wanted)

    batcher = SearchBatcher(sometimes, pool)
    with pytest.raises(Internal):
        await batcher.search(request("x"))
    assert (await batcher.search(request("x"))).ids == ["x"]


async def test_a_cancelled_search_does_not_disturb_its_batch() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, in_flight_max=1)
    tasks = [asyncio.ensure_future(batcher.search(request(str(i)))) for i in range(3)]
    while not pool.batches:
        await asyncio.sleep(0)
    tasks[1].cancel()
    pool.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [r.ids for r in (results[0], results[2])] == [["0"], ["2"]]


async def test_too_many_waiting_are_refused_and_close_answers_the_rest() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, waiting_max=2, in_flight_max=1)
    first = asyncio.ensure_future(batcher.search(request("first")))
    while not pool.batches:
        await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(batcher.search(request("w"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2"):
        await batcher.search(request("x"))
    closing = asyncio.ensure_future(batcher.close())
    await asyncio.sleep(0)
    pool.gate.set()
    await closing
    assert (await first).ids == ["first"]
    assert all(isinstance(r, Overloaded) for r in await asyncio.gather(*waiting, return_exceptions=True))


async def test_a_collection_with_thousands_of_searches_does_not_keep_others_waiting() -> None:
    pool = GatedPool()
    order: list[str] = []

    def noted(requests: list[SearchRequest], wanted: Wanted) -> list:
        order.extend(r.collection for r in requests)
        return search_many(requests, wanted)

    batcher = SearchBatcher(noted, pool, in_flight_max=1)
    crowd = [asyncio.ensure_future(batcher.search(request("crowded"))) for _ in range(200)]
    await asyncio.sleep(0)
    lone = [asyncio.ensure_future(batcher.search(request(name))) for name in ("a", "b")]
    await asyncio.sleep(0)
    pool.gate.set()
    await asyncio.gather(*crowd, *lone)
    assert order.index("a") <= 32 and order.index("b") <= 33, "two batches of the crowd at most"
    assert len(order) == 202 and order.count("crowded") == 200


async def test_a_crowd_leaves_room_for_others_in_the_queue() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, waiting_max=8, in_flight_max=1)
    crowd = [asyncio.ensure_future(batcher.search(request("crowded"))) for _ in range(40)]
    await asyncio.sleep(0)
    other = asyncio.ensure_future(batcher.search(request("other")))
    await asyncio.sleep(0)
    pool.gate.set()
    assert (await other).ids == ["other"]
    results = await asyncio.gather(*crowd, return_exceptions=True)
    assert sum(isinstance(r, Overloaded) for r in results) >= 30


async def test_searches_whose_callers_have_gone_take_no_room() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, in_flight_max=1, waiting_max=8)
    running = asyncio.ensure_future(batcher.search(request("x")))
    await begun(pool, 1)
    gone = [asyncio.ensure_future(batcher.search(request("x"))) for _ in range(6)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    others = [asyncio.ensure_future(batcher.search(request(name))) for name in "xyxyxy"]
    await asyncio.sleep(0)
    pool.gate.set()
    assert [found.ids[0] for found in await asyncio.gather(*others)] == list("xyxyxy")
    assert (await running).ids == ["x"] and sum(pool.batches) == 7


async def begun(pool: GatedPool, batches: int) -> None:
    while len(pool.batches) < batches:
        await asyncio.sleep(0)


async def test_what_is_over_or_abandoned_before_it_begins_costs_no_work() -> None:
    pool = GatedPool()
    batcher = SearchBatcher(search_many, pool, in_flight_max=1)
    first = asyncio.ensure_future(batcher.search(request("first")))
    await begun(pool, 1)
    late = asyncio.ensure_future(batcher.search(request("late"), 0.0))
    gone = asyncio.ensure_future(batcher.search(request("gone")))
    last = asyncio.ensure_future(batcher.search(request("last")))
    await asyncio.sleep(0)
    gone.cancel()
    pool.gate.set()
    assert (await first).ids == ["first"] and (await last).ids == ["last"]
    with pytest.raises(DeadlineExceeded, match="before it could begin"):
        await late
    assert pool.batches == [1, 1]


async def test_a_search_whose_caller_goes_while_its_batch_runs_is_passed_over() -> None:
    pool = GatedPool()
    worked: list[str] = []

    def one_by_one(requests: list[SearchRequest], wanted: Wanted) -> list:
        worked.extend(asked.collection for at, asked in enumerate(requests) if wanted(at))
        return search_many(requests, wanted)

    batcher = SearchBatcher(one_by_one, pool, in_flight_max=1)
    tasks = [asyncio.ensure_future(batcher.search(request(name))) for name in ("here", "gone")]
    await begun(pool, 1)
    tasks[1].cancel()
    await asyncio.sleep(0)
    pool.gate.set()
    await tasks[0]
    assert worked == ["here"]


async def test_a_search_that_cannot_begin_in_its_time_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = GatedPool()
    loop = asyncio.get_running_loop()
    now = [100.0]
    monkeypatch.setattr(loop, "time", lambda: now[0])
    batcher = SearchBatcher(search_many, pool, batch_max=1, in_flight_max=1)
    measured = asyncio.ensure_future(batcher.search(request("measured")))
    await begun(pool, 1)
    now[0] += 0.5
    pool.gate.set()
    await measured
    pool.gate.clear()
    running = asyncio.ensure_future(batcher.search(request("running"), 10.0))
    await begun(pool, 2)
    waiting = [asyncio.ensure_future(batcher.search(request(f"w{n}"), 10.0)) for n in range(20)]
    await asyncio.sleep(0)
    refused = asyncio.ensure_future(batcher.search(request("x"), 9.5))
    await asyncio.sleep(0)
    assert refused.done()
    assert "20 searches wait already, for about 10.0 s" in str(refused.exception())
    for none in (0.0, -3.5):  # of many searches in one call, the last ones
        with pytest.raises(DeadlineExceeded, match="time was over before it could begin"):
            batcher.begin(request("x"), none)
    patient = asyncio.ensure_future(batcher.search(request("patient"), 11.0))
    await asyncio.sleep(0)
    pool.gate.set()
    assert [found.ids for found in await asyncio.gather(running, *waiting, patient)][-1] == ["patient"]


async def test_one_slow_search_alone_does_not_have_those_after_it_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = GatedPool()
    now = [100.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    batcher = SearchBatcher(search_many, pool, batch_max=16, in_flight_max=1)
    alone = asyncio.ensure_future(batcher.search(request("c")))
    await begun(pool, 1)
    now[0] += 7.0
    pool.gate.set()
    await alone
    pool.gate.clear()
    crowd = [asyncio.ensure_future(batcher.search(request("c"), 14.0)) for _ in range(30)]
    await begun(pool, 2)
    pool.gate.set()
    assert len([found for found in await asyncio.gather(*crowd) if found.ids == ["c"]]) == 30


async def test_what_others_wait_for_is_not_counted_by_each_search_that_comes() -> None:
    """With thousands in thousands of turns that held the event loop for milliseconds, for each part of a call."""
    looked_at = 0

    class Asked:
        def __init__(self, turn: int) -> None:
            self.turn = turn

        @property
        def collection(self) -> str:
            nonlocal looked_at
            looked_at += 1
            return f"c{self.turn % 3}"

    batcher = SearchBatcher(
        lambda asked, wanted: asked, GatedPool(), in_flight_max=1, waiting_max=400, turn=lambda asked: asked.turn
    )
    begun = [batcher.begin(Asked(turn), 9) for turn in range(390)]
    looked_at = 0
    begun.append(batcher.begin(Asked(390), 9))
    assert looked_at < 10
    for turn, answer in enumerate(begun):
        batcher.forget(turn, answer)
    assert batcher.idle_workers == 1 and not batcher._of
