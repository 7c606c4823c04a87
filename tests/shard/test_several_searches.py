"""Searches of several replicas: which go together, in how many parts, and what is left when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import Overloaded, Unavailable
from needle.base.model import Claim, SearchRequest
from needle.shard.search_costs import KEPT, SHARED_EVERY, WHOLE_EVERY
from needle.shard.several import Members, Several
from needle.shard.several_searches import (
    COSTS_MAX,
    HITS_MAX,
    KNOWN_MAX,
    LONG_SECONDS,
    PART_SECONDS,
    SHORT_REPLICAS,
    SHORT_SECONDS,
    SeveralSearches,
)

CLAIM = Claim(1, 0)
GROUPS = range(1, 9)


class Pool:
    """Jobs wait until they are let go."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, ...]] = []
        self.quick: list[bool] = []
        self.stopped = False

    def call(self, done: Any, fn: Callable[..., Any], /, *args: Any, quick: bool = False) -> None:
        if self.stopped:
            raise Unavailable("stopped")
        self.jobs.append((done, fn, args))
        self.quick.append(quick)

    def asked(self) -> list[list[Several]]:
        return [args[0] for _, _, args in self.jobs]

    def run(self) -> None:
        jobs, self.jobs = self.jobs, []
        for done, fn, args in jobs:
            done(fn(*args), None)


class Replica:
    """It answers nothing, after some processor time of each job."""

    stopping, takes, spent = False, 0.0, 0.0

    @property
    def replica(self) -> Any:
        return self

    def reads(self) -> Any:
        Replica.spent += Replica.takes
        raise Unavailable("closed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "takes", 0.0)


def made(threads: int = 1) -> tuple[SeveralSearches, Pool]:
    pool = Pool()
    return SeveralSearches(pool, threads, lambda: Replica.spent), pool


REPLICAS: dict[int, Any] = {group: Replica() for group in GROUPS}


def members(searches: SeveralSearches, by: object = "a map", of: Any = REPLICAS) -> Members:
    return searches.members(by, of, lambda group: Claim(group, 0))


def request(name: str = "c", k: int = 10) -> SearchRequest:
    return SearchRequest(collection=name, vector=b"", k=k)


async def turn() -> None:
    await asyncio.sleep(0)


async def learn(searches: SeveralSearches, pool: Pool, together: int = 1) -> None:
    """How long jobs of so many searches take."""
    for _ in range(100):
        for _ in range(together):
            searches.begin([request()], members(searches), 5.0)
        while searches._batcher._count or pool.jobs:
            await turn()
            pool.run()


async def test_all_replicas_of_all_searches_of_one_turn_go_in_one_job() -> None:
    searches, pool = made()
    parts = [searches.begin([request(), request()], members(searches), 5.0) for _ in range(3)]
    await turn()
    assert [len(job) for job in pool.asked()] == [6] and not any(one.found[0].done() for [one] in parts)
    pool.run()
    for [part] in parts:
        assert [(await one).applied for one in part.found] == [[None] * 8] * 2


async def test_what_took_long_goes_in_parts_which_searches_share() -> None:
    searches, pool = made()
    Replica.takes = 1.5 * PART_SECONDS / len(GROUPS)
    await learn(searches, pool)
    calls = [searches.begin([request()], members(searches), 5.0) for _ in range(3)]
    assert [[(part.first, len(part.members)) for part in call] for call in calls] == [[(0, 4), (4, 4)]] * 3
    assert [part.members for part in calls[0]] == [part.members for part in calls[2]]
    assert len(searches.begin([request("quick")], members(searches), 5.0)) == 1  # each collection takes its own time
    await turn()
    for _ in range(3):
        pool.run()
    assert all(part.found[0].done() for call in calls for part in call)


async def test_a_job_of_many_searches_says_how_long_one_of_them_takes() -> None:
    searches, pool = made()
    Replica.takes = 10 * PART_SECONDS / len(GROUPS)
    await learn(searches, pool, together=16)
    assert len(searches.begin([request()], members(searches), 5.0)) == 1


async def test_idle_workers_share_what_takes_longer_than_a_hand_over() -> None:
    searches, pool = made(threads=4)
    Replica.takes = 0.9 * PART_SECONDS / len(GROUPS)
    await learn(searches, pool)
    first = searches.begin([request()], members(searches), 5.0)
    second = searches.begin([request()], members(searches), 5.0)
    assert (len(first), len(second)) == (4, 1)


async def shared(searches: SeveralSearches, pool: Pool, *, dearer: float, count: int = 20 * SHARED_EVERY) -> float:
    """The share of so many searches that is shared, if a job takes so many times as long beside another."""
    alone, several = Replica.takes, 0
    for _ in range(count):
        parts = searches.begin([request()], members(searches), 5.0)
        several += len(parts) > 1
        await turn()
        if len(parts) == 1:
            pool.run()
            continue
        Replica.takes = dearer * alone
        with searches._took(Several(request("other"), members(searches)), 1):
            while pool.jobs:
                pool.run()
                await turn()
        Replica.takes = alone
    return several / count


@pytest.mark.parametrize("whole", [0.9 * PART_SECONDS, 0.6 * LONG_SECONDS])
async def test_what_takes_longer_beside_other_jobs_is_shared_seldom_and_again_when_that_has_changed(
    whole: float,
) -> None:
    """Small scans hold the interpreter: 8 of them took 1.6 times the processor time in two threads."""
    searches, pool = made(threads=4)
    Replica.takes = whole / len(GROUPS)
    await shared(searches, pool, dearer=1.6)
    assert await shared(searches, pool, dearer=1.6, count=SHARED_EVERY) == 1 / SHARED_EVERY
    await shared(searches, pool, dearer=1.1)
    assert await shared(searches, pool, dearer=1.1, count=WHOLE_EVERY) == 1 - 1 / WHOLE_EVERY


async def test_what_takes_long_is_always_shared() -> None:
    """To learn what it takes alone, one of so many callers would wait for all of it."""
    searches, pool = made(threads=4)
    Replica.takes = 1.1 * LONG_SECONDS / len(GROUPS)
    for dearer in (1.1, 1.6):
        await shared(searches, pool, dearer=dearer)
        assert await shared(searches, pool, dearer=dearer, count=SHARED_EVERY) == 1


async def test_of_too_many_collections_only_one_is_forgotten_at_a_time() -> None:
    searches, _ = made()
    for n in range(COSTS_MAX + 2):
        with searches._took(Several(request(f"c{n}"), members(searches)), 1):
            pass
    assert [*searches._costs] == [f"c{n}" for n in range(2, COSTS_MAX + 2)]


async def test_a_job_in_which_another_began_and_ended_was_not_alone() -> None:
    searches, _ = made()
    one = Several(request(), members(searches))
    for takes, beside in ((1.0, False), (1.6, True)):
        for _ in range(KEPT + 1):
            with searches._took(one, 1):
                if beside:
                    with searches._took(Several(request("other"), members(searches)), 1):
                        pass
                Replica.spent += takes
    assert not searches._costs["c"].pays


async def test_what_does_not_pay_in_parts_goes_in_larger_ones_beside_others() -> None:
    searches, pool = made(threads=2)
    Replica.takes = 1.5 * PART_SECONDS / len(GROUPS)
    await shared(searches, pool, dearer=1.1)
    calls = [searches.begin([request()], members(searches), 5.0) for _ in range(2)]
    assert len(calls[1]) == 2  # no worker is idle any more
    await turn()
    while pool.jobs:
        pool.run()
        await turn()
    await shared(searches, pool, dearer=1.6)
    calls = [searches.begin([request()], members(searches), 5.0) for _ in range(2)]
    assert len(calls[1]) == 1


@pytest.mark.parametrize(("k", "parts"), [(10, 1), (HITS_MAX // 4, 2), (HITS_MAX, 8), (2 * HITS_MAX, 8)])
async def test_a_part_holds_a_bounded_number_of_hits(k: int, parts: int) -> None:
    searches, _ = made()
    assert len(searches.begin([request(k=k)], members(searches), 5.0)) == parts


async def test_members_are_the_same_until_a_replica_or_the_map_is_another() -> None:
    searches, _ = made()
    of = members(searches)
    assert members(searches) is of and [one.claim.fingerprint for one in of.each] == [*GROUPS]
    assert members(searches, of={group: REPLICAS[group] for group in (1, 2)}) is not of
    assert members(searches, "another map") is not of
    other = members(searches, "another map", {**REPLICAS, 3: Replica()})
    assert other is not members(searches, "another map") and len(other) == 8


async def test_what_is_remembered_has_a_bound_and_holds_no_replica_that_is_closed() -> None:
    searches, _ = made()
    for group in range(3 * KNOWN_MAX):
        members(searches, of={group: Replica()})
    assert len(searches._known) <= KNOWN_MAX
    await searches.passed()
    assert not searches._known


async def test_many_replicas_are_searched_in_a_thread_whatever_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred that had next to nothing held the event loop for a tenth of a second when they were read first."""
    monkeypatch.setattr(Replica, "reads", lambda _: SimpleNamespace(short_bytes=lambda _: 0))
    searches, pool = made()
    for count in (SHORT_REPLICAS, SHORT_REPLICAS + 1):
        searches.begin([request()], members(searches, of={group: Replica() for group in range(count)}), 5.0)
        await turn()
        pool.jobs[-1][0](None, None)
    assert pool.quick == [True, False]


async def test_what_takes_long_is_not_searched_on_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, pool = made()
    Replica.takes = 1.5 * SHORT_SECONDS / len(GROUPS)
    await learn(searches, pool)
    monkeypatch.setattr(Replica, "reads", lambda _: SimpleNamespace(short_bytes=lambda _: 0))
    pool.quick.clear()
    for name in ("c", "another"):
        searches.begin([request(name)], members(searches), 5.0)
        await turn()
        pool.jobs[-1][0](None, None)
    assert pool.quick[-1] and not any(pool.quick[:-1])


async def test_who_does_not_wait_any_more_takes_no_room() -> None:
    searches, pool = made()
    for way in ("forgotten", "cancelled"):
        parts = searches.begin([request(), request()], members(searches), 5.0)
        if way == "cancelled":  # as a task is that waits for it
            parts[0].found[0].cancel()
        searches.forget("c", parts)
        assert all(one.cancelled() for one in parts[0].found) and not searches._batcher._count
    await turn()
    assert not pool.jobs


async def test_without_room_nothing_has_begun() -> None:
    searches, pool = made()
    searches._batcher._waiting_max = 5
    with pytest.raises(Overloaded):
        searches.begin([request()] * 6, members(searches), 5.0)
    assert not searches._batcher._count
    searches.begin([request()] * 2, members(searches), 5.0)
    await turn()
    assert [len(job) for job in pool.asked()] == [2]


async def test_a_replica_that_is_about_to_be_closed_waits_for_the_jobs_that_run_and_no_others() -> None:
    searches, pool = made()
    searches.begin([request()], members(searches), 5.0)
    await turn()
    running = pool.jobs[:]
    passed = asyncio.ensure_future(searches.passed())
    await turn()
    assert not passed.done()
    later = searches.begin([request()], members(searches), 5.0)
    pool.run()  # the next one begins as soon as this one has ended
    assert len(running) == len(pool.jobs) == 1 and not later[0].found[0].done()
    await asyncio.wait_for(passed, 5)
    pool.run()


async def test_a_node_that_stops_refuses_what_waits_and_ends_what_runs() -> None:
    searches, pool = made()
    first = searches.begin([request()], members(searches), 5.0)
    await turn()
    second = searches.begin([request()], members(searches), 5.0)
    closed = asyncio.ensure_future(searches.close())
    await turn()
    assert isinstance(second[0].found[0].exception(), Overloaded) and not closed.done()
    pool.run()
    await asyncio.wait_for(closed, 5)
    assert first[0].found[0].result().applied == [None] * 8


async def test_threads_that_are_stopped_leave_nobody_waiting() -> None:
    searches, pool = made()
    pool.stopped = True
    [part] = searches.begin([request()], members(searches), 5.0)
    await turn()
    assert isinstance(part.found[0].exception(), Unavailable)
