"""Beats: one timer for all who look at the same moment; who has nothing to do is asked, and not woken."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from needle.base.errors import Unavailable
from needle.server.beats import Beats
from proof.sim.event_loop import SimLoop


def virtually(work: Coroutine[Any, Any, None]) -> None:
    loop = SimLoop(random.Random(1))
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


class Clock:
    """The event loop's time, or one that runs a little faster or slower."""

    def __init__(self, factor: float = 1.0) -> None:
        self._loop, self._factor = asyncio.get_running_loop(), factor

    def now(self) -> float:
        return self._loop.time() * self._factor


def test_what_looks_at_the_same_pace_wakes_the_loop_once() -> None:
    """Whenever it began, and however long its work took."""
    woken: dict[float, set[str]] = {}

    async def all_of_them() -> None:
        now = Clock().now
        beats = Beats(now)

        async def look(name: str, first: float, every: float, took: float) -> None:
            await asyncio.sleep(first)
            while now() < 10:
                await beats.next(every)
                woken.setdefault(round(now(), 6), set()).add(name)
                await asyncio.sleep(took)

        await asyncio.gather(look("a", 0.013, 0.1, 0.0), look("b", 0.047, 0.1, 0.001), look("c", 0.031, 0.5, 0.3))

    virtually(all_of_them())
    assert len(woken) <= 103, "ten times a second, not twenty-two"
    assert sum("a" in names for names in woken.values()) >= 98
    assert sum("c" in names for names in woken.values()) >= 9


def test_all_who_wait_for_a_moment_share_one_timer() -> None:
    async def work() -> None:
        loop, clock = asyncio.get_running_loop(), Clock()
        beats, set_for, call_later = Beats(clock.now), list[float](), loop.call_later

        def counted(delay: float, *rest: Any, **options: Any) -> asyncio.TimerHandle:
            set_for.append(delay)
            return call_later(delay, *rest, **options)

        await beats.next(0.1)
        loop.call_later = counted  # type: ignore[method-assign]
        await asyncio.gather(*(beats.next(every) for every in (0.1, 0.1, 0.05, 0.1)))
        assert len(set_for) == 2, "one for 0.05, one for 0.1"

    virtually(work())


@pytest.mark.parametrize("factor", (0.99, 1.0, 1.01))
def test_who_has_nothing_to_do_sleeps_until_it_has(factor: float) -> None:
    """And then no longer than to the next beat of its clock."""

    async def work() -> None:
        clock, rests, asked = Clock(factor), True, 0
        beats = Beats(clock.now)

        def nothing() -> bool:
            nonlocal asked
            asked += 1
            return rests

        waiting = asyncio.ensure_future(beats.next(0.2, nothing))
        await asyncio.sleep(10.05 / factor)
        assert not waiting.done() and 48 <= asked <= 52
        rests = False
        began = clock.now()
        await waiting
        assert clock.now() - began <= 0.31

    virtually(work())


def test_who_looks_often_is_not_late_by_who_looks_seldom_when_the_machine_has_slept() -> None:
    """The node's clock has gone on then, and timers that were set before are late by as much."""

    async def work() -> None:
        loop, asleep = asyncio.get_running_loop(), 0.0
        beats, longest = Beats(lambda: loop.time() + asleep), 0.0
        seldom = asyncio.ensure_future(beats.next(10.0))
        while not seldom.done():
            began = loop.time()
            await beats.next(0.1)
            longest = max(longest, loop.time() - began)
            if asleep == 0.0 and began > 3:
                asleep = 5.0
        assert longest <= 0.16
        assert loop.time() < 5.2, "who looks seldom is asked at that moment, too"

    virtually(work())


def test_what_its_question_raises_reaches_who_waits_and_nobody_else() -> None:
    async def work() -> None:
        beats, failed = Beats(Clock().now), Unavailable("it is closed")

        def closed() -> bool:
            raise failed

        first = asyncio.ensure_future(beats.next(0.1, closed))
        second = asyncio.ensure_future(beats.next(0.1))
        await second
        assert first.exception() is failed

    virtually(work())


def test_who_was_cancelled_is_not_asked_any_more_and_no_timer_stays() -> None:
    async def work() -> None:
        beats, asked = Beats(Clock().now), 0

        def nothing() -> bool:
            nonlocal asked
            asked += 1
            return True

        waiting = asyncio.ensure_future(beats.next(0.1, nothing))
        await asyncio.sleep(1.0)
        waiting.cancel()
        before = asked
        await asyncio.sleep(1.0)
        assert asked == before and not beats._waiting

    virtually(work())


def test_a_node_that_stops_wakes_everybody() -> None:
    async def work() -> None:
        stopped = False
        beats = Beats(Clock().now, lambda: stopped)
        waiting = asyncio.ensure_future(beats.next(0.1, lambda: True))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        stopped = True
        await asyncio.wait_for(waiting, 0.2)

    virtually(work())
