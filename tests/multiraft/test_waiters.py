"""Who waits for an index or a term: in order, in time, and at no cost to the others."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from multiraft.harness import FAST, Cluster
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.multiraft.waiters import NEVER, Waiters


class Number(int):
    """Counts how often it is compared."""

    compared = 0

    def __le__(self, other: int) -> bool:
        Number.compared += 1
        return int(self) <= int(other)

    def __lt__(self, other: int) -> bool:
        Number.compared += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


def add(waiters: Waiters, number: int, deadline: float) -> asyncio.Future[int]:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiters.add(number, future, deadline, lambda: DeadlineExceeded(f"at {deadline:g}"))
    return future


@pytest.mark.parametrize("seed", range(10))
async def test_each_is_answered_when_its_number_is_reached_or_its_deadline_passes(seed: int) -> None:
    rng, waiters = random.Random(seed), Waiters()
    number, now = 0, 0.0
    waiting: list[tuple[int, float, asyncio.Future[int]]] = []
    for _ in range(600):
        wanted, deadline = number + rng.randint(1, 50), now + rng.randint(1, 50)
        waiting.append((wanted, deadline, add(waiters, wanted, deadline)))
        if rng.random() < 0.2:
            rng.choice(waiting)[2].cancel()
        if rng.random() < 0.3:
            number += rng.randint(1, 5)
            waiters.reached(number)
        if rng.random() < 0.3:
            now += rng.randint(1, 5)
            waiters.expire(now)
        left = []
        for wanted, deadline, future in waiting:
            if not future.done():
                assert wanted > number
                assert deadline > now or waiters.next_deadline <= now
                left.append((wanted, deadline, future))
            elif not future.cancelled():
                if (error := future.exception()) is not None:
                    assert (
                        deadline <= now and isinstance(error, DeadlineExceeded) and error.message == f"at {deadline:g}"
                    )
                else:
                    assert future.result() == wanted <= number
        waiting = left
        assert waiters.next_deadline == min((deadline for _, deadline, _ in waiting), default=NEVER)
    waiters.fail_all(Unavailable("over"))
    assert all(isinstance(future.exception(), Unavailable) for _, _, future in waiting)
    assert not waiters.waiting and waiters.next_deadline == NEVER


async def test_a_step_costs_nothing_for_those_that_go_on_waiting() -> None:
    """Every applied batch looked at each of them: 100,000 that wait for an index far away took 7 ms of each write."""
    waiters = Waiters()
    far = [add(waiters, Number(1 << 60), 100.0) for _ in range(1000)]
    near = add(waiters, Number(5), 100.0)
    Number.compared = 0
    waiters.reached(4)
    waiters.reached(5)
    assert near.done() and not any(future.done() for future in far)
    assert Number.compared <= 40


async def test_of_those_that_gave_up_nothing_piles_up() -> None:
    waiters = Waiters()
    for _ in range(10_000):
        add(waiters, 1 << 60, 86_400.0).cancel()
    assert len(waiters.waiting) <= 64
    assert len(waiters._by_deadline) <= 64


async def test_who_waits_for_a_later_leader_is_not_asked_about_in_each_turn(tmp_path: Path) -> None:
    calm = replace(FAST, election_timeout=1.0, heartbeat_interval=0.05)
    async with Cluster(str(tmp_path), nodes=1, config=calm) as cluster:
        node = await cluster.leader()
        term, host = Number(1 << 40), node.host
        waiting = [asyncio.ensure_future(host.leader_after(0, term, 60)) for _ in range(200)]
        await asyncio.sleep(0)
        Number.compared = 0
        for turn in range(5):
            await cluster.put("a", turn)
        assert Number.compared <= 40
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
