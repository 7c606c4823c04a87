"""Eventual reads ask one replica, and another one when the first is late or fails: on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.fake_shards import FakeShards, ask, fill, virtually
from needle.base.errors import ConnectionLost
from needle.base.model import ReadMode
from needle.client.router.router import Router


def test_a_late_replica_is_hedged_and_a_dead_one_passed_over() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        shards = FakeShards(shards=1)
        router = Router(shards)
        await fill(router)
        for _ in range(32):
            await router.search(ask(1), ReadMode.EVENTUAL, 5)
        assert router._routes.fan_out.latencies.late < 0.01
        shards.delay["0/a"] = 3.0
        shards.asked.clear()
        start = loop.time()
        assert (await router.search(ask(1), ReadMode.EVENTUAL, 5)).batch.ids[0] == "doc-001"
        assert loop.time() - start < 0.02
        assert [address for _, address in shards.asked] == ["0/a", "0/b"]  # the second one when the first is late
        shards.delay.update({"0/a": -1.0, "0/b": -1.0})
        start = loop.time()
        assert (await router.search(ask(1), ReadMode.EVENTUAL, 5)).batch.ids[0] == "doc-001"
        assert loop.time() - start < 0.02
        shards.asked.clear()
        shards.delay.clear()
        await router.search(ask(1), ReadMode.EVENTUAL, 5)
        assert len(shards.asked) == 1  # none in time: no second one is asked

    virtually(work())


def test_an_eventual_read_that_is_answered_in_time_takes_no_task_of_its_own() -> None:
    """Each one's hops of the event loop cut apart what many ask and get in one turn: it cost a third of the rate."""

    async def work() -> None:
        loop, made = asyncio.get_running_loop(), list[str]()
        router = Router(FakeShards(shards=1))
        await fill(router)

        def factory(loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> asyncio.Task[Any]:
            made.append(work.__qualname__)
            return asyncio.Task(work, loop=loop, **named)

        loop.set_task_factory(factory)
        for n in range(20):
            await router.search(ask(n), ReadMode.EVENTUAL, 5)
        assert made == []

    virtually(work())


@pytest.mark.parametrize("first", [-1.0, 0.2, 9.0])
def test_of_a_late_replica_and_the_next_one_whoever_answers_first_is_heard(first: float) -> None:
    """first: seconds that the first one takes; -1: it fails at once. The second one takes 0.4 s, the third none."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        shards = FakeShards(shards=1)
        router = Router(shards)
        await fill(router)
        for _ in range(32):
            await router.search(ask(1), ReadMode.EVENTUAL, 5)
        shards.delay.update({"0/a": first, "0/b": 0.4})
        shards.asked.clear()
        start = loop.time()
        assert (await router.search(ask(1), ReadMode.EVENTUAL, 5)).batch.ids[0] == "doc-001"
        took = loop.time() - start
        # Two at once at most: the third one is asked if the first one fails, and the second one is late.
        third = [(0, "0/c")] if first < 0 else []
        assert shards.asked == [(0, "0/a"), (0, "0/b"), *third]
        assert took == pytest.approx(0.01 if first < 0 else min(first, 0.41), abs=0.01)
        await asyncio.sleep(10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtually(work())


def test_a_late_replica_that_fails_makes_place_for_the_third() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        shards = FakeShards(shards=1)
        router = Router(shards)
        await fill(router)
        for _ in range(32):
            await router.search(ask(1), ReadMode.EVENTUAL, 5)
        group = type(shards.group(0))
        asked = group.ask_replica

        async def fails_late(self: Any, address: str, method: str, body: bytes, timeout: float) -> bytes:
            if address != "0/a":
                return await asked(self, address, method, body, timeout)
            shards.asked.append((0, address))
            await asyncio.sleep(0.1)
            raise ConnectionLost("it ended")

        shards.delay["0/b"] = 3.0
        shards.asked.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(group, "ask_replica", fails_late)
            start = loop.time()
            assert (await router.search(ask(1), ReadMode.EVENTUAL, 5)).batch.ids[0] == "doc-001"
        assert loop.time() - start < 0.15
        assert [address for _, address in shards.asked] == ["0/a", "0/b", "0/c"]
        await asyncio.sleep(10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtually(work())
