"""Copies beside calls rest twice as long as they took; on virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from needle.server.upkeep.copy_turn import REST_SECONDS_MAX, CopyTurn
from proof.sim.event_loop import SimLoop


def spans(takes: float, calls: float, count: int = 4) -> list[tuple[float, float]]:
    """When batches that take so long began and ended, on a node that is called so often a second."""
    loop, found = SimLoop(random.Random(1)), list[tuple[float, float]]()
    turn = CopyTurn(lambda: calls)

    async def copy() -> None:
        for _ in range(count):
            async with turn.batch():
                began = loop.time()
                await asyncio.sleep(takes)
                found.append((began, loop.time()))

    loop.run_until_complete(copy())
    loop.close()
    return found


@pytest.mark.parametrize("takes", [0.01, 0.4, 0.6, 0.9])
def test_beside_calls_a_third_of_the_time_is_copied(takes: float) -> None:
    told = spans(takes, calls=100.0)
    copied = sum(end - began for began, end in told[:-1])
    assert copied / (told[-1][0] - told[0][0]) == pytest.approx(1 / 3, rel=0.01)


def test_a_batch_that_waited_long_for_somebody_is_followed_by_a_bounded_rest() -> None:
    (_, end), (began, _) = spans(30.0, calls=100.0, count=2)
    assert began - end == pytest.approx(REST_SECONDS_MAX)


def test_without_calls_nothing_rests() -> None:
    (_, end), (began, _) = spans(0.5, calls=0.5, count=2)
    assert began == end
