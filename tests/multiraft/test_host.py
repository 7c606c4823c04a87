"""Hosts together: elections, commits, reads, membership, back-pressure, restarts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from harness.told import told
from multiraft.harness import FAST, Cluster, DictMachine, Disk, Node, put, until
from multiraft.test_apply_steps import SLOW, led
from needle.base.errors import (
    DeadlineExceeded,
    DiskFailed,
    InvalidArgument,
    MembershipChangePending,
    NeedleError,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    TransferFailed,
    Unavailable,
)
from needle.multiraft.codec import encode_frame
from needle.multiraft.ports import Applied
from needle.raft.messages import Message, MessageType
from needle.raft.state import Role

CALM = replace(FAST, election_timeout=1.0, heartbeat_interval=0.05)
"""For tests in which a leader must stay, however busy the machine is."""


async def test_three_hosts_commit_and_apply_everywhere(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        index = await cluster.put("a", 1)
        assert await cluster.put("b", 2) == index + 1
        assert await cluster.converged() == {"a": 1, "b": 2}
        leader = await cluster.leader()
        with pytest.raises(InvalidArgument, match="c is refused"):
            await leader.host.propose(0, put("c", "refuse"), 5)


async def test_a_single_voter_commits_alone(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        await cluster.put("a", 1)
        assert cluster.nodes["n1"].machines[0].data == {"a": 1}
        assert await cluster.nodes["n1"].host.read_index(0, 1) >= 2
        await cluster.nodes["n1"].restart()
        await cluster.put("b", 1)


async def test_what_takes_long_to_apply_keeps_no_other_group_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(str(tmp_path), nodes=1, groups=2, config=CALM) as cluster:
        await cluster.put("a", 1, 0)
        await cluster.put("a", 1, 1)
        machine, begun, go_on = cluster.nodes["n1"].machines[0], threading.Event(), threading.Event()
        apply = machine.apply

        def gated(entries: Sequence[Applied]) -> list[object]:
            begun.set()
            assert go_on.wait(60)
            return apply(entries)

        monkeypatch.setattr(machine, "apply", gated)
        waiting = asyncio.create_task(cluster.put("takes long", 1, 0))
        await until(begun.is_set)
        try:
            await cluster.put("b", 2, 1, 10.0)
            assert not waiting.done()
        finally:
            go_on.set()
        await waiting


async def test_fifty_groups_elect_and_share_transactions_and_frames(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=50, config=CALM) as cluster:
        for group in cluster.groups:
            await cluster.leader(group)
        before = {
            n.name: (n.store.commits, n.host.engine.counters.frames_out, n.host.engine.counters.messages_out)
            for n in cluster.running()
        }
        await asyncio.gather(*(cluster.put("k", group, group) for group in cluster.groups))
        for name, (commits, _, _) in before.items():
            # 50 writes, each to be durable on each node: far fewer transactions than writes.
            assert cluster.nodes[name].store.commits - commits < 30
        await until(
            lambda: all(n.host.engine.counters.messages_out - before[n.name][2] > 500 for n in cluster.running())
        )
        for n in cluster.running():
            assert (
                n.host.engine.counters.frames_out - before[n.name][1]
                < (n.host.engine.counters.messages_out - before[n.name][2]) / 2
            )


async def test_failover_keeps_acknowledged_writes(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        for number in range(20):
            await cluster.put(f"k{number}", number)
        old = await cluster.leader()
        await old.down()
        await cluster.leader(but=old.name)
        await cluster.put("after", 1)
        await old.start()
        state = await cluster.converged()
        assert state == {**{f"k{number}": number for number in range(20)}, "after": 1}


async def test_not_leader_names_the_leader(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        leader = await cluster.leader()
        follower = next(n for n in cluster.running() if n is not leader)
        with pytest.raises(NotLeader) as refused:
            await follower.host.propose(0, put("a", 1), 1)
        assert refused.value.details["leader"] == leader.name
        with pytest.raises(NotLeader):
            await follower.host.read_index(0, 1)
        with pytest.raises(Unavailable, match="no replica"):
            await leader.host.propose(99, b"", 1)


async def test_a_write_of_an_isolated_leader_is_never_answered_not_leader(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        old = await cluster.leader()
        await cluster.put("a", 1)
        cluster.network.isolate(old.name)
        lost = asyncio.ensure_future(old.host.propose(0, put("lost", 1), 8))
        unknown = asyncio.ensure_future(old.host.propose(0, put("late", 1), 0.2))
        with pytest.raises(OutcomeUnknown):
            await unknown
        await until(lambda: any(n.host.is_leader(0) for n in cluster.running() if n is not old))
        new = next(n for n in cluster.running() if n is not old and n.host.is_leader(0))
        for number in range(4):
            await new.host.propose(0, put(f"new{number}", 1), 5)
        assert not lost.done()
        cluster.network.heal()
        with pytest.raises(NeedleError) as dropped:
            await lost
        assert dropped.value.code == "proposal_dropped"
        assert "lost" not in await cluster.converged()


async def test_isolated_leader_serves_neither_strong_nor_expired_leased_reads(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path)) as cluster:
        old = await cluster.leader()
        await cluster.put("a", 1)
        await old.host.read_leased(0, 1)
        cluster.network.isolate(old.name)
        with pytest.raises(NeedleError) as strong:
            await old.host.read_index(0, 0.5)
        assert strong.value.code in ("no_quorum", "not_leader")
        assert old.host.status(0).lease_remaining == 0
        with pytest.raises(NeedleError):
            await old.host.read_leased(0, 0.3)


async def test_a_leader_that_stepped_down_serves_no_leased_read(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        old = await cluster.leader()
        await old.host.read_leased(0, 1)
        target = await old.host.transfer(0, None, 2)
        assert target != old.name
        assert old.host.status(0).lease_remaining == 0
        with pytest.raises(NotLeader):
            await old.host.read_leased(0, 0.5)
        assert (await cluster.leader()).name == target


async def test_strong_reads_share_a_round_and_see_acknowledged_writes(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        index = await cluster.put("a", 1)
        frames = cluster.network.frames
        answers = await asyncio.gather(*(leader.host.read_index(0, 2) for _ in range(200)))
        assert all(answer >= index for answer in answers)
        assert cluster.network.frames - frames < 40


async def test_overload_is_refused_clearly(tmp_path: Path) -> None:
    config = replace(FAST, proposals_max=8, uncommitted_bytes_max=1000)
    async with Cluster(str(tmp_path), config=config) as cluster:
        leader = await cluster.leader()
        cluster.network.isolate(leader.name)
        waiting = [asyncio.ensure_future(leader.host.propose(0, put("k", 1), 0.5)) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="8 writes wait"):
            await leader.host.propose(0, put("k", 1), 0.5)
        for future in waiting:
            with pytest.raises(OutcomeUnknown):
                await future
        cluster.network.heal()
        leader = await cluster.leader()
        cluster.network.isolate(leader.name)
        first = asyncio.ensure_future(leader.host.propose(0, put("k", "x" * 900), 0.2))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1000 bytes"):
            await leader.host.propose(0, put("k", "x" * 900), 0.2)
        with pytest.raises(OutcomeUnknown):
            await first


async def test_fsync_error_is_fatal_for_all_groups_and_acknowledges_nothing(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=4) as cluster:
        for group in cluster.groups:
            await cluster.put("a", 1, group)
        leader = await cluster.leader(0)
        leader.store.error = DiskFailed("fsync failed")
        with pytest.raises(OutcomeUnknown):
            await leader.host.propose(0, put("b", 2), 5)
        assert [error.code for error in leader.fatal] == ["disk_failed"]
        leader.store.error = None
        before = leader.host.engine.counters.frames_out
        for group in cluster.groups:
            with pytest.raises(Unavailable, match="fsync failed"):
                await leader.host.propose(group, put("c", 3), 1)
        for group in cluster.groups:
            assert await cluster.leader(group, but=leader.name) is not leader
            await cluster.put("d", 4, group)
        assert leader.host.engine.counters.frames_out == before
        assert len(leader.fatal) == 1


async def test_a_leader_whose_disk_stalls_loses_leadership(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=2) as cluster:
        old = await cluster.leader(1)
        gate = threading.Event()
        old.store.gate = lambda: (gate.wait(60), None)[1]
        try:
            waiting = asyncio.ensure_future(old.host.propose(1, put("a", 1), 10))
            new = await cluster.leader(1, but=old.name)
            await new.host.propose(1, put("b", 1), 5)
        finally:
            gate.set()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await cluster.converged(1))["b"] == 1


async def test_a_leader_whose_disk_hangs_loses_what_nobody_writes_to(tmp_path: Path) -> None:
    """It kept it until somebody wrote, who then waited for two seconds more."""
    async with Cluster(str(tmp_path), config=replace(FAST, disk_probe=0.2)) as cluster:
        await cluster.put("a", 1)
        old = await cluster.leader()
        gate = threading.Event()
        old.store.gate = lambda: (gate.wait(60), None)[1]
        try:
            new = await cluster.leader(but=old.name, seconds=30)
            await new.host.propose(0, put("b", 1), 5)
        finally:
            gate.set()
        assert (await cluster.converged())["b"] == 1


async def test_a_disk_that_hangs_under_one_group_hangs_under_the_others(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=4, config=replace(FAST, disk_probe=1e9)) as cluster:
        old = await cluster.leader(1)
        gate = threading.Event()
        old.store.gate = lambda: (gate.wait(60), None)[1]
        waiting = asyncio.ensure_future(old.host.propose(1, put("a", 1), 10))
        try:
            for group in range(4):
                await cluster.leader(group, but=old.name)
        finally:
            gate.set()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_disk_that_answers_is_asked_only_while_nothing_is_written(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=replace(CALM, disk_probe=0.2)) as cluster:
        leader = await cluster.leader()
        await cluster.put("a", 1)
        term, before = leader.host.term(0), {node.name: node.store.commits for node in cluster.running()}
        await until(lambda: leader.store.commits >= before[leader.name] + 5)
        others = [node for node in cluster.running() if node is not leader]
        assert all(node.store.commits <= before[node.name] + 1 for node in others), "they lead nothing"
        assert (await cluster.leader(), leader.host.term(0)) == (leader, term)


async def test_restart_replays_what_the_state_machine_lost(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), nodes=1) as cluster:
        node = cluster.nodes["n1"]
        await node.down()
        node.lazy = True
        await node.start()
        for number in range(30):
            await cluster.put(f"k{number}", number)
        await node.down()
        assert node.disks[0].saved["index"] < 3
        await node.start()
        await cluster.leader()
        await until(lambda: len(node.machines[0].data) == 30)


async def test_membership_change_and_a_joining_replica(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "needle")
    async with Cluster(str(tmp_path)) as cluster:
        for number in range(5):
            await cluster.put(f"k{number}", number)
        joiner = cluster.nodes["n4"] = Node(cluster, "n4")
        await joiner.start(voters=[])
        leader = await cluster.leader()
        await leader.host.change_membership(0, ["n1", "n2", "n3"], ["n4"], 5)
        await until(lambda: joiner.machines[0].data.get("k4") == 4)
        assert joiner.host.status(0).state == "Learner"
        await leader.host.change_membership(0, ["n1", "n2", "n4"], [], 5)
        status = leader.host.status(0)
        assert status.voters == ["n1", "n2", "n4"]
        await cluster.put("z", 1)
        await until(lambda: joiner.machines[0].data.get("z") == 1)
        await until(lambda: len(told(caplog, "members_changed")) >= 6)  # of each change: those who were there before
        assert joiner.host.status(0).voters == ["n1", "n2", "n4"]
        with pytest.raises(InvalidArgument):
            (await cluster.leader()).host.engine.open_group(0, DictMachine(Disk()), voters=[])
    changes = {(one["group"], one["voters"], one["learners"]) for one in told(caplog, "members_changed")}
    assert {("the catalog", "n1, n2, n3", "n4"), ("the catalog", "n1, n2, n4", "none")} <= changes
    assert len(told(caplog, "replica_opened")) == 4
    assert {one["leader"] for one in told(caplog, "leader_changed")} >= {leader.name}


async def test_voters_without_a_live_majority_are_refused_and_dead_ones_can_be_removed(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=replace(FAST, election_timeout=0.4)) as cluster:
        leader = await cluster.leader()
        dead, alive = (node for node in cluster.names if node != leader.name)

        async def change(*voters: str) -> None:
            async with asyncio.timeout(60):
                while True:
                    try:
                        return await leader.host.change_membership(0, voters, [], 5)
                    except MembershipChangePending:
                        await asyncio.sleep(0.01)

        await change(*cluster.names)  # all answer
        await cluster.nodes[dead].down()
        await until(lambda: not {p.id: p.recently_active for p in leader.host.status(0).peers}[dead])
        for voters, missing in (
            ([leader.name, dead], dead),
            ([leader.name, "n4"], "n4"),
            ([leader.name, alive, dead, "n4"], f"{dead}, n4"),
        ):
            with pytest.raises(InvalidArgument, match=f"{missing} did not") as refused:
                await change(*voters)
            assert refused.value.details["field"] == "voters"
            assert leader.host.status(0).voters == cluster.names
        await cluster.put("a", 1)  # nothing was begun
        await change(leader.name, alive)
        await change(leader.name, alive, "n4")  # a majority does without n4
        await cluster.put("b", 1)
        await cluster.nodes[dead].start()


async def test_maintenance_drains_and_takes_no_leadership(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=6) as cluster:
        for group in cluster.groups:
            await cluster.leader(group)
        node = await cluster.leader(0)
        node.host.set_maintenance(True)
        await until(lambda: not any(node.host.is_leader(group) for group in cluster.groups))
        with pytest.raises(Unavailable):
            node.host.force_election(0)
        for group in cluster.groups:
            await cluster.put("a", 1, group)
        assert node.host.status(0).maintenance
        node.host.set_maintenance(False)
        node.host.force_election(0)
        await cluster.put("b", 1)


async def test_leadership_is_offered_to_those_in_turn_who_may_lead(tmp_path: Path) -> None:
    """Two of three are in maintenance, and the furthest of the others is one of them: the third one takes over."""
    async with Cluster(str(tmp_path)) as cluster:
        leader = await cluster.leader()
        resting, free = (node for node in cluster.running() if node is not leader)
        resting.host.set_maintenance(True)
        leader.host.heirs.best = lambda group, but=(): next(
            (n for n in (resting.name, free.name) if n not in but), None
        )  # type: ignore[method-assign]
        leader.host.set_maintenance(True)  # has not heard of the other one
        await until(lambda: free.host.is_leader(0))


async def test_nothing_is_offered_to_who_is_in_maintenance_and_writes_go_on(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        others = [node for node in cluster.running() if node is not leader]
        for node in others:
            node.host.set_maintenance(True)
        leader.host.heirs.resting = frozenset(node.name for node in others)
        leader.host.set_maintenance(True)
        for n in range(20):
            assert not leader.host.engine.groups[0].raft.is_transferring
            await cluster.put("a", n)
        assert leader.host.is_leader(0)
        leader.host.heirs.resting = frozenset({others[0].name})
        others[1].host.set_maintenance(False)
        await until(lambda: others[1].host.is_leader(0))


async def test_status_shows_lag(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        away = next(n for n in cluster.running() if n is not leader)
        cluster.network.isolate(away.name)
        for number in range(7):
            await cluster.put(f"k{number}", number)
        peer = next(p for p in leader.host.status(0).peers if p.id == away.name)
        assert peer.lag_entries >= 7
        assert peer.lag_ms > 0

        def active() -> dict[str, bool]:
            return {p.id: p.recently_active for p in leader.host.status(0).peers}

        await until(lambda: not active()[away.name])
        await until(lambda: sum(active().values()) == 1)
        other = next(p for p in leader.host.status(0).peers if p.id not in (away.name, leader.name))
        await until(lambda: next(p for p in leader.host.status(0).peers if p.id == other.id).lag_entries == 0)
        cluster.network.heal()
        await until(lambda: next(p for p in leader.host.status(0).peers if p.id == away.name).lag_ms == 0)


async def test_a_transfer_to_a_node_that_does_not_answer_says_so_in_time_and_then_at_once(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await cluster.put("a", 1)
        leader = await cluster.leader()
        away = next(n for n in cluster.running() if n is not leader)
        cluster.network.isolate(away.name)
        with pytest.raises(TransferFailed, match=f"{away.name} did not take over .*: it does not answer"):
            await leader.host.transfer(0, away.name, 60)
        with pytest.raises(InvalidArgument, match=f"{away.name} has not answered {leader.name}"):
            await leader.host.transfer(0, away.name, 60)
        assert not leader.host.engine.groups[0].raft.is_transferring
        await cluster.put("b", 2)


async def test_a_caller_can_wait_for_the_leader_of_a_later_term(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        other = next(n for n in cluster.running() if n is not leader)
        term = other.host.term(0)
        await other.host.leader_after(0, term - 1, 10)  # known already
        waiting = asyncio.ensure_future(other.host.leader_after(0, term, 10))
        await other.host.leader_after(0, term, 0.01)  # nobody leads it
        assert not waiting.done()
        cluster.network.isolate(leader.name)
        await waiting
        assert other.host.term(0) > term and other.host.leader(0) not in (None, leader.name)


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_follower_reads_its_sockets_before_it_takes_its_leader_for_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop stood still until just after the deadline, and timers come before sockets in the turn that follows."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        await cluster.put("a", 1)
        other = next(n for n in cluster.running() if n is not leader)
        raft, term = other.host.engine.groups[0].raft, leader.host.term(0)
        cluster.network.isolate(other.name)

        def idle() -> bool:  # who writes while the clock jumps has a stalled disk
            engine = other.host.engine
            return not engine.groups[0].busy and not engine._writer.busy and raft._s.writing is None

        await until(idle)
        late = raft.next_deadline() + CALM.heartbeat_interval / 2
        monkeypatch.setattr(other.host.engine, "clock", SimpleNamespace(monotonic=lambda: late))
        other.host.engine._tick([0], read=False)
        assert raft.role is Role.FOLLOWER, "it waits for two turns of the loop"
        heartbeat = Message(MessageType.HEARTBEAT, to=other.name, frm=leader.name, term=term)
        other.host.engine.on_raft(leader.name, encode_frame(leader.host.engine.lives.nonce, 0, [(0, heartbeat)]))
        await turns()
        assert (raft.role, raft.leader, raft.term) == (Role.FOLLOWER, leader.name, term)
        await until(idle)
        later = raft.next_deadline() + CALM.heartbeat_interval / 2
        monkeypatch.setattr(other.host.engine, "clock", SimpleNamespace(monotonic=lambda: later))
        other.host.engine._tick([0], read=False)
        await turns()
        assert raft.role is Role.PRE_CANDIDATE, "nothing lay in its sockets"


async def test_followers_of_a_node_that_ended_its_connection_campaign_sooner(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        leader = await cluster.leader()
        other = next(n for n in cluster.running() if n is not leader)
        raft = other.host.engine.groups[0].raft
        before = raft.next_deadline()
        other.host.disconnected("n9")
        assert raft.next_deadline() == before, "does not lead"
        hints = []
        for _ in range(20):
            other.host.disconnected(leader.name)
            hints.append(raft.next_deadline())
        assert hints == sorted(hints, reverse=True) and hints[-1] < before


async def test_a_closed_group_answers_its_callers_and_can_be_opened_again(tmp_path: Path) -> None:
    async with Cluster(str(tmp_path), groups=2) as cluster:
        await cluster.put("a", 1, 1)
        leader = await cluster.leader(1)
        cluster.network.isolate(leader.name)
        waiting = asyncio.ensure_future(leader.host.propose(1, put("b", 1), 20))
        await asyncio.sleep(0)
        await leader.host.engine.close_group(1)
        with pytest.raises(OutcomeUnknown):
            await waiting
        assert leader.host.groups() == [0]
        cluster.network.heal()
        await cluster.put("a", 2, 0)
        machine = DictMachine(leader.disks[1])
        leader.machines[1] = machine
        leader.host.engine.open_group(1, machine, voters=[])
        await cluster.put("c", 1, 1)
        assert (await cluster.converged(1))["c"] == 1


async def test_nothing_is_acknowledged_before_its_fsync(tmp_path: Path) -> None:
    """Followers whose disks hang hold an entry in memory only: it must not count, nor may the leader alone answer."""
    async with Cluster(str(tmp_path), config=CALM) as cluster:
        await cluster.put("a", 1)
        leader = await cluster.leader()
        await cluster.converged()
        gate = threading.Event()
        for hung in ([n for n in cluster.running() if n is not leader], [leader]):
            gate.clear()
            for node in hung:
                node.store.gate = lambda: (gate.wait(60), None)[1]
            try:
                writing = asyncio.ensure_future(leader.host.propose(0, put("b", 1), 60))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(writing), 0.3)
                followers = [n for n in cluster.running() if n is not leader]
                for peer in leader.host.status(0).peers:
                    durable = next(n for n in followers if n.name == peer.id).host.engine.groups[0].log.last_index()
                    assert peer.match_index <= durable
            finally:
                gate.set()
            assert await writing > 2
            for node in hung:
                node.store.gate = lambda: None
            await cluster.converged()


async def test_an_answer_to_a_heartbeat_takes_a_turn_only_where_there_is_something_to_do(tmp_path: Path) -> None:
    """Most only say that a follower is there. What else needs one is not put off until the next heartbeat."""
    async with Cluster(str(tmp_path), config=SLOW) as cluster:
        leader, (follower, _) = await led(cluster)
        host, engine, name = leader.host, leader.host.engine, follower.name
        await host.propose(0, put("a", 1), 60)
        group = engine.find(0)
        answer = Message(MessageType.HEARTBEAT_RESP, to=leader.name, frm=name, term=group.raft.term)

        def stirs(message: Message) -> bool:
            engine._dirty.clear()
            engine.hear(name, [(0, message)])
            return 0 in engine._dirty

        def all_have_all() -> bool:
            return all(one.match == group.raft.last_index for one in group.raft.progress().values())

        await until(lambda: all_have_all() and not engine._scheduled and not stirs(answer))
        future = group.conditions.until(lambda: False, engine.clock.monotonic() + 60, lambda: DeadlineExceeded("late"))
        assert stirs(answer)  # somebody waits for what it may bring about
        future.cancel()
        group.conditions.check()
        assert not stirs(answer)
        cluster.network.isolate(name)
        await host.propose(0, put("b", 2), 60)
        assert stirs(answer)  # it lacks an entry, and is to get it
        assert stirs(msgspec.structs.replace(answer, term=group.raft.term + 1))  # somebody else leads
        assert not host.is_leader(0)
