"""Large writes beside searches and small writes: they give way, and none starves. On virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle.server.service.bulk_turns import WAIT_SECONDS_MAX, BulkTurns
from needle.server.service.shares import CALLS_SECONDS, WEIGHTS, Shares, Work
from proof.sim.event_loop import SimLoop

LEFT = 60.0
SOON = 1e-6


class _Node:
    """Turns on virtual time; `spans` of the writes as they were executed, in that order."""

    def __init__(self) -> None:
        self.loop = SimLoop(random.Random(1))
        self.turns = BulkTurns(self.loop.time)
        self.spans: list[tuple[float, float]] = []
        self.waited: list[float] = []

    async def write(self, takes: float, left: float = LEFT) -> None:
        came = self.loop.time()
        async with self.turns.turn(left):
            began = self.loop.time()
            waited = began - came
            assert waited <= min(left / 2, WAIT_SECONDS_MAX) + SOON
            self.waited.append(waited)
            await asyncio.sleep(takes)
        self.spans.append((began, self.loop.time()))

    async def search(self, seconds: float) -> None:
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            self.turns.called(Work.SEARCH)
            await asyncio.sleep(0.001)

    def run(self, *work: Coroutine[Any, Any, None]) -> None:
        async def together() -> None:
            await asyncio.gather(*work)

        self.loop.run_until_complete(together())


def test_large_writes_alone_run_side_by_side_and_wait_for_nothing() -> None:
    node = _Node()
    node.run(*(node.write(0.1) for _ in range(8)))
    assert node.waited == [0.0] * 8
    assert node.loop.time() == pytest.approx(0.1)


def test_beside_searches_they_are_executed_one_at_a_time_and_have_the_share_of_their_weight() -> None:
    node = _Node()

    async def writer() -> None:
        while node.loop.time() < 1.0:
            await node.write(0.01)

    node.run(node.search(1.0), writer(), writer(), writer())
    assert all(first[1] <= then[0] for first, then in zip(node.spans[1:], node.spans[2:], strict=False))
    busy = sum(end - began for began, end in node.spans) / 1.0
    share = WEIGHTS[Work.BULK] / (WEIGHTS[Work.BULK] + WEIGHTS[Work.SEARCH])
    assert share * 0.9 <= busy <= share * 1.1


def test_small_writes_count_as_well_and_both_count_more() -> None:
    shares = Shares()
    shares.called(Work.SMALL_WRITE, 1.0)
    shares.ended(Work.BULK, 1.0, 1.01)
    assert shares.rest(Work.BULK, 1.01) == pytest.approx(0.02)
    shares.called(Work.SEARCH, 1.01)
    shares.ended(Work.BULK, 1.0, 1.01)
    assert shares.rest(Work.BULK, 1.01) == pytest.approx(0.04)
    assert shares.rest(Work.BULK, 1.01 + CALLS_SECONDS + SOON) == 0


def test_large_writes_are_no_reason_for_large_writes_to_rest() -> None:
    shares = Shares()
    shares.called(Work.BULK, 1.0)
    shares.ended(Work.BULK, 1.0, 1.1)
    assert shares.rest(Work.BULK, 1.1) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.001, 4), st.floats(0.01, 30)),  # comes, takes, its caller waits
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_none_starves_however_many_there_are(writes: list[tuple[float, float, float]]) -> None:
    """Each begins within a second and half of its time (`write` looks)."""
    node = _Node()

    async def one(comes: float, takes: float, left: float) -> None:
        await asyncio.sleep(comes)
        await node.write(takes, left)

    node.run(node.search(10.0), *(one(*write) for write in writes))
    assert len(node.spans) == len(writes)


def test_one_behind_a_long_one_waits_for_a_second_or_half_of_its_time() -> None:
    node = _Node()

    async def later(left: float) -> None:
        await asyncio.sleep(0.01)
        await node.write(0.01, left)

    node.run(node.search(5.0), node.write(5.0), later(LEFT), later(0.5))
    assert node.waited == pytest.approx([0.0, 0.25, WAIT_SECONDS_MAX])


def test_who_gives_up_while_it_waits_leaves_the_turn_to_the_next() -> None:
    node = _Node()

    async def both() -> None:
        node.turns.called(Work.SEARCH)
        first = asyncio.ensure_future(node.write(0.5))
        await asyncio.sleep(0)
        second, third = asyncio.ensure_future(node.write(0.1)), asyncio.ensure_future(node.write(0.1))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(first, third)
        assert second.cancelled()

    node.run(both())
    assert len(node.spans) == 2
    node.run(node.search(0.5), node.write(0.01))  # and the lock is free again
    assert len(node.spans) == 3
