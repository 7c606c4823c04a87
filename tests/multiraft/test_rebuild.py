"""A state machine that finds itself damaged: its replica keeps its log and its vote, and gets its data again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from multiraft.harness import FAST, Cluster, Node, until
from needle.base.errors import CorruptDocuments, DiskFailed, OutcomeUnknown, ReplicaDamaged
from needle.multiraft import rebuild
from needle.multiraft.rebuild import STATE_METHOD

TINY = replace(FAST, snapshot_threshold=8, snapshot_chunk_bytes=64)
CALM = replace(TINY, election_timeout=0.6, heartbeat_interval=0.1)
"""Who leads goes on leading, also on a busy machine."""


def damage(node: Node) -> None:
    """As a read finds it: the next apply fails, and a restart finds it again."""
    node.disks[0].damage = node.machines[0].damage = CorruptDocuments("a page fails its checksum")


def forget(node: Node) -> None:
    """What a state machine knows that cannot read what it holds."""
    node.disks[0].saved = {"index": 0, "term": 0, "conf": "", "data": {}}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_damaged_follower_keeps_its_log_and_gets_its_data_again(tmp_path: Path, restarted: bool) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        term, last = hurt.host.term(0), hurt.host.status(0).last_index
        if restarted:
            await hurt.down()
            forget(hurt)
            hurt.disks[0].damage = CorruptDocuments("a page fails its checksum")
            await hurt.start()
        else:
            damage(hurt)
        assert hurt.host.damage(0)
        assert hurt.host.term(0) >= term and hurt.host.status(0).last_index == last  # nothing acknowledged is lost
        assert hurt.host.engine.find(0).may_vote  # it votes
        for number in range(30, 60):
            await cluster.put(f"k{number}", number)
        await until(lambda: not hurt.host.damage(0))
        state.update({f"k{number}": number for number in range(30, 60)})
        assert await cluster.converged() == state
        assert not hurt.fatal
        await hurt.restart()
        assert await cluster.converged() == state


async def test_a_damaged_replica_lends_its_vote_and_its_log(tmp_path: Path) -> None:
    """With one other node left there is still a majority, which commits what only they hold."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        hurt, third = (node for node in cluster.running() if node is not leader)
        cluster.network.drop_call = lambda frm, to: frm == hurt.name  # it can fetch nothing
        damage(hurt)
        await third.down()
        for number in range(20):
            await cluster.put(f"k{number}", number)
        assert hurt.host.damage(0)
        cluster.network.drop_call = lambda frm, to: False
        await until(lambda: not hurt.host.damage(0))
        await third.start()
        assert (await cluster.converged())["k19"] == 19


async def test_a_damaged_leader_hands_over_and_answers_nothing_meanwhile(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(20):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        hurt = await cluster.leader()
        damage(hurt)
        with pytest.raises((ReplicaDamaged, OutcomeUnknown)):
            await hurt.host.propose(0, b'["x", 1]', 5.0)
        successor = await cluster.leader(but=hurt.name)
        assert successor is not hurt
        await until(lambda: not hurt.host.damage(0))
        await cluster.put("after", 1)
        found = await cluster.converged()
        found.pop("x", None)
        assert found == {**state, "after": 1}


async def test_a_follower_that_is_damaged_and_far_behind_takes_the_offered_snapshot(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        await hurt.down()
        for number in range(40):
            await cluster.put(f"k{number}", number)
        while not all(node.host.status(0).first_index > 20 for node in cluster.running()):
            await cluster.put("k39", 39)
        forget(hurt)
        hurt.disks[0].damage = CorruptDocuments("a page fails its checksum")
        await hurt.start()
        assert (await cluster.converged())["k39"] == 39
        assert not hurt.host.damage(0)


async def test_a_damaged_follower_whose_log_cannot_catch_up_takes_the_offer_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetched the leader's state, which its own log must reach first; but the leader's log begins behind it."""
    monkeypatch.setattr(rebuild, "CATCH_UP_TIMEOUTS", 10**6)
    calm = replace(TINY, election_timeout=1.0, heartbeat_interval=0.1)
    async with Cluster(str(tmp_path), config=calm) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        group = hurt.host.engine.groups[0]
        cluster.network.cut = {(leader.name, hurt.name)}  # it can ask, but hears nothing
        group.raft._s.election_deadline += 60  # nor does it campaign
        for number in range(40):
            await cluster.put(f"k{number}", number)
        while leader.host.status(0).first_index <= 20:
            await cluster.put("k39", 39)
        damage(hurt)
        group.rebuild.look()
        await until(lambda: group.rebuild._waits_for_log)
        cluster.network.heal()
        assert (await cluster.converged())["k39"] == 39
        assert not hurt.host.damage(0)


async def test_a_snapshot_that_the_state_machine_refuses_is_asked_for_again(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        away = next(node for node in cluster.running() if node is not leader)
        await away.down()
        for number in range(40):
            await cluster.put(f"k{number}", number)
        while not all(node.host.status(0).first_index > 20 for node in cluster.running()):
            await cluster.put("k39", 39)
        await away.start()
        away.machines[0].refused = True
        await until(lambda: away.machines[0].checked >= 2)
        assert not away.fatal  # nothing bad that a peer sends ends a node
        away.machines[0].refused = False
        assert (await cluster.converged())["k39"] == 39
        # The leader made another one, for the first could have been bad.
        assert sum(node.reached.count("snapshot.after_export") for node in cluster.running()) >= 2


async def test_a_damaged_leader_that_is_to_offer_a_snapshot_goes_on(tmp_path: Path) -> None:
    """Who lags asks for one before the leadership has gone elsewhere."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        other = next(node for node in cluster.running() if node is not leader)
        damage(leader)
        snapshots = leader.host.engine.groups[0].snapshots
        snapshots.requested([other.name])
        await until(lambda: not snapshots.offering)
        assert not leader.fatal
        await cluster.put("more", 1)
        await until(lambda: not leader.host.damage(0))
        assert await cluster.converged() == {**state, "more": 1}


async def test_a_damaged_leader_finds_the_one_replica_that_is_whole(tmp_path: Path) -> None:
    """Two of three are damaged, each in its own way; the third holds everything, and is to lead whichever it is."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(20):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        for whole in sorted((node for node in cluster.running() if node is not leader), key=lambda node: node.name):
            leader = await cluster.leader()
            if whole is leader:
                continue
            hurt = [node for node in cluster.running() if node is not whole]
            for node in hurt:
                damage(node)
            await until(lambda hurt=hurt: not any(node.host.damage(0) for node in hurt))
            assert await cluster.converged() == state


async def test_an_answer_that_never_comes_is_not_waited_for_once_another_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replace(TINY, snapshot_chunk_timeout=1e6)
    async with Cluster(str(tmp_path), config=patient) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        asked, inner = asyncio.Event(), leader.host.engine.on_call

        async def lost(frm: str, method: str, body: bytes) -> bytes:
            if method == STATE_METHOD:
                asked.set()
                await asyncio.Event().wait()
            answer: bytes = await inner(frm, method, body)
            return answer

        monkeypatch.setattr(leader.host.engine, "on_call", lost)
        damage(hurt)
        await cluster.put("more", 1)
        await asked.wait()
        await leader.down()
        await until(lambda: hurt.machines[0].damage is None)
        assert await cluster.converged() == {**state, "more": 1}


def lose_answers(node: Node, count: int, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The first `count` answers of a node about its snapshots never come. One item for each question: whether it was
    answered."""
    asked: list[bool] = []
    inner = node.host.engine.on_call

    async def on_call(frm: str, method: str, body: bytes) -> bytes:
        if method != STATE_METHOD:
            return await inner(frm, method, body)
        number = len(asked)
        asked.append(False)
        if number < count:
            await asyncio.Event().wait()
        answer: bytes = await inner(frm, method, body)
        asked[number] = True
        return answer

    monkeypatch.setattr(node.host.engine, "on_call", on_call)
    return asked


async def test_an_answer_that_never_comes_is_asked_for_again_while_the_same_node_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a link that lets through one direction only; the leader may even have been restarted, and lead again."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        asked = lose_answers(leader, 1, monkeypatch)
        damage(hurt)
        await cluster.put("more", 1)
        await until(lambda: hurt.machines[0].damage is None)
        assert asked == [False, True]
        assert await cluster.converged() == {**state, "more": 1}


async def test_who_asks_again_while_a_snapshot_is_made_has_no_other_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        asked, finish, export = lose_answers(leader, 0, monkeypatch), threading.Event(), leader.machines[0]
        export_snapshot = export.export_snapshot

        def slow(directory: str) -> object:
            finish.wait()
            return export_snapshot(directory)

        monkeypatch.setattr(export, "export_snapshot", slow)
        hurt.machines[0].damage = hurt.disks[0].damage = CorruptDocuments("a page fails its checksum")
        hurt.host.engine.groups[0].rebuild.look()
        try:
            await until(lambda: len(asked) == 3)
        finally:
            finish.set()
        await until(lambda: hurt.machines[0].damage is None and all(asked))
        assert leader.reached.count("snapshot.after_export") == 1
        assert await cluster.converged() == state


async def test_what_is_fetched_of_a_leader_that_is_gone_is_fetched_of_the_next_one(tmp_path: Path) -> None:
    """Its files are asked for again and again, for it may only be slow; but not once another one leads."""
    stubborn = replace(TINY, snapshot_attempts_max=10**6)
    async with Cluster(str(tmp_path), config=stubborn) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state = await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        cluster.network.drop_call = lambda frm, to: to == leader.name
        calls = cluster.network.calls
        damage(hurt)
        await cluster.put("more", 1)
        await until(lambda: cluster.network.calls > calls)
        await leader.down()
        await until(lambda: hurt.machines[0].damage is None)
        assert await cluster.converged() == {**state, "more": 1}


async def test_that_a_snapshot_is_bad_is_said_again_if_it_was_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await cluster.put("a", 1)
        await cluster.converged()
        leader = await cluster.leader()
        away = next(node for node in cluster.running() if node is not leader)
        await away.down()
        for number in range(40):
            await cluster.put(f"k{number}", number)
        while leader.host.status(0).first_index <= 20:
            await cluster.put("k39", 39)
        asked = lose_answers(leader, 1, monkeypatch)
        await away.start()
        away.machines[0].refused = True
        await until(lambda: len(asked) >= 2)
        away.machines[0].refused = False
        assert (await cluster.converged())["k39"] == 39
        assert not away.fatal


@pytest.mark.parametrize(
    "answer", [DiskFailed("cannot read a file. Check the disk"), b"\x94\x05\x01\x94\x91\xa2\xff\xff"]
)
async def test_what_the_leader_answers_ends_no_damaged_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: DiskFailed | bytes
) -> None:
    """That its disk has failed says nothing of this node's; nor does what cannot be read."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        state, asked = await cluster.converged(), 0
        hurt = next(node for node in cluster.running() if not node.host.is_leader(0))

        def bad(inner: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
            async def on_call(frm: str, method: str, body: bytes) -> bytes:
                nonlocal asked
                if method == STATE_METHOD and asked < 2:
                    asked += 1
                    if isinstance(answer, DiskFailed):
                        raise answer
                    return answer
                return await inner(frm, method, body)

            return on_call

        for node in cluster.running():
            monkeypatch.setattr(node.host.engine, "on_call", bad(node.host.engine.on_call))
        damage(hurt)
        await until(lambda: asked == 2 and not hurt.host.damage(0))
        assert not hurt.fatal
        assert await cluster.converged() == state


async def test_nothing_is_installed_for_a_group_that_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one may have been opened since, on the same files."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        asked, go_on, inner = asyncio.Event(), asyncio.Event(), leader.host.engine.on_call

        async def late(frm: str, method: str, body: bytes) -> bytes:
            if method == STATE_METHOD:
                asked.set()
                await go_on.wait()
            return await inner(frm, method, body)

        monkeypatch.setattr(leader.host.engine, "on_call", late)
        damage(hurt)
        await asked.wait()
        group = hurt.host.engine.groups[0]
        await hurt.host.engine.close_group(0)
        go_on.set()
        task = group.rebuild._task
        assert task is not None
        await until(task.done)
        assert hurt.machines[0].damage is not None and not hurt.fatal


async def test_a_group_is_closed_once_what_it_fetched_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that is opened on the same files may fetch again: none of that may be removed."""
    async with Cluster(str(tmp_path), config=TINY) as cluster:
        for number in range(30):
            await cluster.put(f"k{number}", number)
        await cluster.converged()
        leader = await cluster.leader()
        hurt = next(node for node in cluster.running() if node is not leader)
        removing, go_on, inner = asyncio.Event(), asyncio.Event(), hurt.host.engine.fetcher.discard_others
        done: list[str] = []
        asked = list[object]()

        async def late(group: int, *keep: str) -> None:
            if asked and hurt.machines[0].damage is None:  # it is installed
                removing.set()
                await go_on.wait()
                done.append("removed")
            await inner(group, *keep)

        monkeypatch.setattr(hurt.host.engine.fetcher, "discard_others", late)
        damage(hurt)
        asked.append(hurt)
        await removing.wait()
        group = hurt.host.engine.groups[0]
        closing = asyncio.create_task(hurt.host.engine.close_group(0))
        closing.add_done_callback(lambda _: done.append("closed"))
        await until(lambda: group.closed)
        await asyncio.wait([closing], timeout=4 * TINY.heartbeat_interval)
        assert not done
        go_on.set()
        await closing
        assert done == ["removed", "closed"]
        await group.discard_staged()
        assert done == ["removed", "closed"]
