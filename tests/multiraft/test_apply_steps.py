"""A follower applies in larger steps than it acknowledges, and nothing waits that somebody waits for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from multiraft.harness import FAST, Cluster, Node, put, until
from needle.multiraft.apply_steps import ApplySteps
from needle.multiraft.log.log_records import StartRecord
from needle.multiraft.log.log_sizes import LogSizes
from needle.raft.state import FAR, LEADER, Role

SLOW = replace(FAST, election_timeout=900.0, heartbeat_interval=300.0)
"""What is gathered waits for half a minute, and followers hear of commits with appends only."""
CALM = replace(FAST, election_timeout=40.0, heartbeat_interval=1.0)


class Log:
    """Durable up to `last`, each entry of 100 bytes."""

    def __init__(self, last: int) -> None:
        self.sizes = LogSizes()
        self.sizes.append([100] * last)

    @property
    def start(self) -> StartRecord:
        return StartRecord(self.sizes.start, 1)

    def last_index(self) -> int:
        return self.sizes.last


class Standing(msgspec.Struct):
    """Of a core."""

    commit: int = 10
    applied: int = 0
    role: Role = Role.FOLLOWER


def gathers(steps: ApplySteps, now: float, *, last: int = 500, awaited: bool = False, **standing: Any) -> bool:
    return steps.gathers(cast("Any", Standing(**standing)), cast("Any", Log(last)), awaited, now)


def test_what_is_committed_is_gathered_within_bounds() -> None:
    steps, late = ApplySteps(FAST), FAST.apply_delay
    assert gathers(steps, 1.0) and gathers(steps, 1.0 + late * 0.9, commit=20)
    assert steps.next_deadline == 1.0 + late
    assert not gathers(steps, 1.0 + late, commit=20)  # since the first of it
    assert gathers(steps, 2.0) and not gathers(steps, 2.0, commit=FAST.apply_entries)
    assert gathers(steps, 3.0) and not gathers(steps, 3.0, awaited=True)
    assert gathers(steps, 4.0) and not gathers(steps, 4.0, role=LEADER)
    assert gathers(steps, 5.0) and not gathers(steps, 5.0, role=Role.CANDIDATE)
    assert gathers(steps, 6.0) and not gathers(steps, 6.0, last=FAST.apply_waiting_bytes // 100)
    assert steps.next_deadline == FAR


def test_nothing_is_gathered_that_is_not_there() -> None:
    steps = ApplySteps(FAST)
    assert not gathers(steps, 1.0, applied=10) and steps.next_deadline == FAR
    assert not gathers(steps, 1.0, last=5, applied=5)  # committed, and not on this disk yet
    assert gathers(steps, 2.0)
    steps.stop()
    assert steps.next_deadline == FAR


@pytest.mark.parametrize("behind", [0, 3])
def test_what_a_snapshot_holds_is_not_gathered(behind: int) -> None:
    """The log starts behind it as soon as that is durable, and the core hears of it a moment later: a turn of the
    engine in between looked for the bytes of its entries, and the node ended."""
    steps, log = ApplySteps(FAST), Log(0)
    log.sizes = LogSizes(14)
    log.sizes.append([100] * behind)
    standing: Any = Standing(commit=14 + behind, applied=0)
    assert not steps.gathers(standing, cast("Any", log), False, 1.0) and steps.next_deadline == FAR
    standing.applied = 14
    assert steps.gathers(standing, cast("Any", log), False, 1.0) == bool(behind)


async def led(cluster: Cluster) -> tuple[Node, list[Node]]:
    """Who leads, soon the first node and now and then another one, and who follows it."""
    looks = count()

    def leader() -> str | None:
        if next(looks) % 500 == 0:  # a vote may be lost while the nodes do not know each other, and is not asked again
            cluster.nodes["n1"].host.force_election(0)
        named = {node.host.leader(0) for node in cluster.running()}
        return named.pop() if len(named) == 1 else None

    name = await until(leader)
    return cluster.nodes[name], [node for node in cluster.nodes.values() if node.name != name]


def counted(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries each apply of this node has, from now on."""
    machine, sizes = node.machines[0], list[int]()
    apply = machine.apply

    def counts(entries: Any) -> list[Any]:
        sizes.append(len(entries))
        return apply(entries)

    monkeypatch.setattr(machine, "apply", counts)
    return sizes


async def test_a_follower_applies_in_larger_steps_than_it_acknowledges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=SLOW) as cluster:
        leader, followers = await led(cluster)
        alone, steps = counted(leader, monkeypatch), [counted(node, monkeypatch) for node in followers]
        for n in range(SLOW.apply_entries + 20):
            await leader.host.propose(0, put(f"k{n}", n), 60)
        assert len(alone) >= SLOW.apply_entries
        for sizes in steps:
            await until(lambda sizes=sizes: sum(sizes) >= SLOW.apply_entries)
            assert len(sizes) <= 3, sizes


async def test_what_somebody_waits_for_on_a_follower_is_applied_at_once(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=SLOW) as cluster:
        leader, followers = await led(cluster)
        index = await leader.host.propose(0, put("a", 1), 60)
        await leader.host.propose(0, put("b", 2), 60)  # tells the followers that the first is committed
        for node in followers:
            await until(lambda node=node: node.host.applies_at_once(0, index))
            assert not node.host.applies_at_once(0, index + 9)  # nobody wrote it
            assert node.host.applied_index(0) < index
            await node.host.wait_applied(0, index, 20)
            assert not node.host.applies_at_once(0, index)
            assert node.machines[0].data["a"] == 1


async def test_a_follower_gathers_beside_who_gave_up_waiting(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=SLOW) as cluster:
        leader, followers = await led(cluster)
        for node in followers:
            with pytest.raises(TimeoutError):  # for what nobody writes
                await asyncio.wait_for(node.host.wait_applied(0, 1 << 40, 600), 0.01)
            assert node.host.engine.find(0).waiters.waiting
        index = await leader.host.propose(0, put("a", 1), 60)
        await leader.host.propose(0, put("b", 2), 60)
        for node in followers:
            await until(lambda node=node: node.host.has_upto(0, index) == index)
            assert node.host.applied_index(0) < index


async def test_a_follower_that_hears_nothing_more_applies_what_it_has(tmp_path: Path) -> None:
    """Its leader is silent, and it does not campaign for long."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader, followers = await led(cluster)
        index = await leader.host.propose(0, put("a", 1), 60)
        await leader.host.propose(0, put("b", 2), 60)
        await until(lambda: all(node.host.engine.find(0).raft.commit >= index for node in followers))
        cluster.network.isolate(leader.name)
        await until(lambda: all(node.machines[0].data.get("a") == 1 for node in followers), 20)
        assert all(node.host.leader(0) == leader.name for node in followers)
