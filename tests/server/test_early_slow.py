"""Searches that begin without a task, where slow requests are told: a slow one is told when it has ended."""

from __future__ import annotations

import asyncio

import pytest

from needle.base.errors import Overloaded, Unavailable
from needle.base.model import ReadMode
from needle.base.request import current
from server.test_early import THE_LONG_WAY, Node, applied_of, hits


def slow_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of slow requests, as people read them."""
    return [record.getMessage() for record in caplog.records if "took" in record.getMessage()]


async def test_where_slow_requests_are_told_a_search_begins_without_a_task_and_is_told_when_it_was_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It cost every search its task, where only the slow ones were to be known."""
    node = Node(slow=1.0)
    for seconds in (0.5, 2.0):
        answer = node.begun()
        node.time += seconds / 2
        node.rounds[-1].set_result(7)
        await asyncio.sleep(0)
        node.time += seconds / 2
        node.searches[-1].set_result(hits())
        assert await applied_of(node, answer) == 7
    [line] = slow_lines(caplog)
    assert line.startswith("shard_search took 2000.0 ms: shard 0, term 3, collection books, k 4")
    assert "parts (confirm 1000.0 ms, search 2000.0 ms)" in line and "key somebody" in line
    assert current.get() is None


async def test_a_slow_one_that_fails_or_goes_the_long_way_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(slow=1.0)
    answer = node.begun(mode=ReadMode.EVENTUAL)
    node.time = 2.0
    node.searches[0].set_exception(Overloaded("too much"))
    with pytest.raises(Overloaded):
        await answer
    assert len(slow_lines(caplog)) == 1 and "code overloaded" in slow_lines(caplog)[0]
    answer = node.begun()
    node.time = 4.0
    node.rounds[-1].set_result(7)
    node.searches[1].set_result(hits(applied=6))
    assert await answer == THE_LONG_WAY  # which took no time, and tells nothing
    assert len(slow_lines(caplog)) == 2
    node.long_way_ends.clear()
    answer = node.begun()
    node.rounds[-1].set_result(7)
    node.searches[2].set_result(hits(applied=6))
    await asyncio.sleep(0)
    node.time = 8.0  # the long way is slow itself, and tells it
    node.long_way_ends.set()
    assert await answer == THE_LONG_WAY and len(slow_lines(caplog)) == 2


async def test_a_slow_one_whose_caller_has_gone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """These are the slowest: their caller had no more time for them."""
    node = Node(slow=1.0)
    answer = node.begun()
    node.time = 30.0
    answer.cancel()
    assert len(slow_lines(caplog)) == 1 and "code unavailable" in slow_lines(caplog)[0]
    with pytest.raises(Unavailable):
        await answer


@pytest.mark.parametrize("gone", [False, True])
async def test_one_that_fails_on_the_long_way_or_is_given_up_there_is_told_with_why(
    gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its line said nothing of the failure, as if it had been answered."""
    node = Node(slow=1.0)
    node.long_way_ends.clear()
    node.fails = Overloaded("too much")
    answer = node.begun()
    node.time = 4.0
    node.rounds[-1].set_result(7)
    node.searches[-1].set_result(hits(applied=6))
    await asyncio.sleep(0)
    if gone:
        answer.cancel()
    else:
        node.long_way_ends.set()
    with pytest.raises(Unavailable if gone else Overloaded):
        await answer
    for _ in range(5):  # its caller is answered before its task has ended
        await asyncio.sleep(0)
    [line] = slow_lines(caplog)
    assert f"code {'unavailable' if gone else 'overloaded'}" in line
