"""Calls of several replicas in one turn of the loop: together while they are short, and each with its own answer."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from needle.base.errors import Unavailable
from needle.shard.joined_calls import JOB_SECONDS, JoinedCalls
from needle.system import ThreadPool


class Pool:
    """Runs a job when it is told to. jobs: the calls of each."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, Any, Any]] = []
        self.seconds = 0.0
        self.closed = self.alone = False

    def now(self) -> float:
        return self.seconds

    def call(self, done: Any, fn: Callable[..., Any], /, *args: Any, quick: bool = False) -> None:
        if self.closed:
            raise Unavailable("stopped")
        if quick:
            done(fn(*args), None)
        else:
            self.jobs.append((done, fn, args))

    def run(self) -> int:
        """The jobs that there were."""
        jobs, self.jobs = self.jobs, []
        for done, fn, args in jobs:
            done(fn(*args), None)
        return len(jobs)

    def takes(self, seconds: float) -> str:
        self.seconds += seconds
        return "done"


async def asked(pool: Pool, joined: JoinedCalls, count: int, seconds: float) -> int:
    """How many jobs `count` calls became, all of which are answered."""
    answers: list[Any] = []
    for _ in range(count):
        joined.call(lambda result, error: answers.append((result, error)), pool.takes, seconds)
    await asyncio.sleep(0)
    jobs = pool.run()
    assert answers == [("done", None)] * count
    return jobs


async def test_short_calls_go_together_and_long_ones_each_alone() -> None:
    pool = Pool()
    joined = JoinedCalls(pool, pool.now, lambda: pool.alone)
    assert await asked(pool, joined, 4, JOB_SECONDS / 10) == 4, "nothing is known yet of how short they are"
    for _ in range(30):
        await asked(pool, joined, 4, JOB_SECONDS / 10)
    assert await asked(pool, joined, 8, JOB_SECONDS / 10) == 1
    assert await asked(pool, joined, 25, JOB_SECONDS / 10) == 3
    for _ in range(30):
        await asked(pool, joined, 4, 3 * JOB_SECONDS)
    assert await asked(pool, joined, 8, 3 * JOB_SECONDS) == 8


async def test_each_gets_its_own_result_or_error() -> None:
    pool = Pool()
    joined = JoinedCalls(pool, pool.now, lambda: pool.alone)
    for _ in range(20):
        await asked(pool, joined, 2, 0.0)
    answers: dict[str, Any] = {}
    for name in ("a", "x", "b"):

        def done(result: Any, error: BaseException | None, name: str = name) -> None:
            answers[name] = result if error is None else type(error)

        joined.call(done, {"a": 1, "b": 2}.__getitem__, name)
    await asyncio.sleep(0)
    assert pool.run() == 1 and answers == {"a": 1, "x": KeyError, "b": 2}


async def test_what_a_failed_call_held_is_freed_with_its_error() -> None:
    """It may be a view of all vectors: it cannot wait for the garbage collector."""

    class View:
        pass

    def refused(view: View) -> None:
        raise Unavailable("no")

    pool = ThreadPool("reads")
    joined, views = JoinedCalls(pool, time.monotonic, lambda: False), list[weakref.ref[View]]()
    gc.disable()
    try:
        for _ in range(2):
            view = View()
            views.append(weakref.ref(view))
            with suppress(Unavailable):
                await joined.run(partial(refused, view))
            del view
        await asyncio.sleep(0)
        assert [view() for view in views] == [None, None]
    finally:
        gc.enable()
        pool.close()


async def test_a_quick_call_and_that_of_the_only_replica_wait_for_nothing() -> None:
    pool, answers = Pool(), list[Any]()
    joined = JoinedCalls(pool, pool.now, lambda: pool.alone)
    joined.call(lambda result, _: answers.append(result), lambda: 7, quick=True)
    assert answers == [7]
    pool.alone = True
    joined.call(lambda result, _: answers.append(result), lambda: 8)
    assert pool.run() == 1 and answers == [7, 8]


async def test_who_asks_stopped_threads_is_told() -> None:
    pool, errors = Pool(), list[Any]()
    joined = JoinedCalls(pool, pool.now, lambda: pool.alone)
    pool.closed = True
    for _ in range(3):
        joined.call(lambda _, error: errors.append(type(error)), lambda: 7)
    await asyncio.sleep(0)
    assert errors == [Unavailable] * 3
