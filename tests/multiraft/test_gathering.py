"""The engine's turn waits for requests that were read, and not for long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from multiraft.harness import FAST, Cluster, put
from needle.multiraft.gathering import LOOP_TURNS_MAX, Gathering

CALM = replace(FAST, election_timeout=1.0, heartbeat_interval=0.05)


async def _run_after(more: list[bool]) -> int:
    """In which turn of the event loop from now on the engine's turn runs, while `more` is the answer in each."""
    ran: list[int] = []
    turn, answers = 0, iter(more)
    gathering = Gathering(lambda: ran.append(turn))
    gathering.more = lambda: next(answers, False)
    loop = asyncio.get_running_loop()
    loop.call_soon(gathering.due, loop)
    while not ran:
        await asyncio.sleep(0)
        turn += 1
    return ran[0]


@pytest.mark.parametrize(("more", "turn"), [([], 0), ([True], 1), ([True, True], 2), ([True] * 100, LOOP_TURNS_MAX)])
async def test_a_turn_runs_once_no_request_waits_and_never_waits_longer_than_the_bound(
    more: list[bool], turn: int
) -> None:
    assert await _run_after(more) == turn


async def test_every_turn_has_a_bound_of_its_own() -> None:
    runs: list[int] = []
    gathering = Gathering(lambda: runs.append(1))
    gathering.more = lambda: True
    loop = asyncio.get_running_loop()
    for count in (1, 2, 3):
        gathering.due(loop)
        for _ in range(LOOP_TURNS_MAX):
            assert len(runs) == count - 1
            await asyncio.sleep(0)
        assert len(runs) == count


async def test_writes_that_begin_in_several_turns_of_the_event_loop_are_one_append(tmp_path: Path) -> None:
    """Each append more costs every replica a frame, a write of its log, an answer and an apply."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        await cluster.put("first", 0)
        await cluster.converged()
        waiting = True
        leader.host.engine.gathering.more = lambda: waiting
        before = leader.store.commits
        writes = [asyncio.ensure_future(leader.host.propose(0, put("k0", 0), 5))]
        await asyncio.sleep(0)  # it is proposed; alone its turn would run in the next one
        leader.host.engine._on_alarm()  # heartbeats are due every few milliseconds: it cut the append in two
        writes += [asyncio.ensure_future(leader.host.propose(0, put(f"k{n}", n), 5)) for n in range(1, 20)]
        await asyncio.sleep(0)
        assert leader.store.commits == before
        waiting = False
        await asyncio.gather(*writes)
        assert leader.store.commits == before + 1
        waiting = True  # whoever keeps asking: writes go on
        await leader.host.propose(0, put("last", 1), 5)
