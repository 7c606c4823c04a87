"""ReadIndex and leadership transfer (raft.md, sections 1 and 6)."""

from __future__ import annotations

import pytest

from needle.base.errors import InvalidArgument, NotLeader, TransferFailed
from needle.raft.messages import ConfChange, MessageType
from needle.raft.raft import Role
from raft.harness import Cluster, T
from raft.solo import Solo


def test_a_new_leader_answers_reads_only_after_its_no_op_is_committed() -> None:
    solo = Solo(1, 1, term=1)
    solo.pass_time(1.6 * T)
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 2)
    solo.settle()
    solo.receive(MessageType.VOTE_RESP, "b", 2)
    solo.raft.read_index(1, solo.now)
    solo.settle()
    solo.receive(MessageType.HEARTBEAT_RESP, "b", 2, round=solo.raft._s.round)
    assert not solo.raft.ready().reads
    solo.ack("b", 3)
    solo.now += 0.001
    ready = solo.raft.ready()
    assert not ready.reads and ready.messages  # only now its round begins
    solo.receive(MessageType.HEARTBEAT_RESP, "b", 2, round=ready.messages[-1].round)
    assert [(r.context, r.index) for r in solo.raft.ready().reads] == [(1, 3)]


def test_a_round_counts_only_if_it_began_after_the_read_and_was_acked_by_voters() -> None:
    solo = Solo(learners=("l",))
    solo.become_leader("b")
    old = solo.raft._s.round
    solo.raft.read_index(7, solo.now)
    solo.raft.read_index(8, solo.now)
    beats = {m.to: m.round for m in solo.settle() if m.type == MessageType.HEARTBEAT}
    assert set(beats.values()) == {old + 1}  # one round for the batch
    for frm, round_id in (("b", old), ("l", old + 1), ("x", old + 1)):
        solo.receive(MessageType.HEARTBEAT_RESP, frm, solo.raft.term, round=round_id)
        assert not solo.raft.ready().reads
    solo.receive(MessageType.HEARTBEAT_RESP, "c", solo.raft.term, round=old + 1)
    assert [r.context for r in solo.raft.ready().reads] == [7, 8]


def test_a_lone_voter_answers_reads_at_once() -> None:
    solo = Solo(voters=("a",))
    solo.pass_time(0)
    solo.raft.read_index(1, solo.now)
    assert [(r.context, r.index) for r in solo.raft.ready().reads] == [(1, 1)]


def test_reads_are_dropped_when_the_leader_steps_down_and_refused_elsewhere() -> None:
    solo = Solo()
    solo.become_leader("b")
    solo.raft.read_index(5, solo.now)
    solo.receive(MessageType.HEARTBEAT, "b", solo.raft.term + 1)
    assert solo.raft.ready().dropped_reads == (5,)
    with pytest.raises(NotLeader):
        solo.raft.read_index(6, solo.now)


def test_an_old_leader_that_was_replaced_answers_no_read() -> None:
    cluster = Cluster(5)
    old = cluster.leader()
    cluster.isolate(old.id)
    context = old.read_index()
    cluster.run(1.0)
    assert context not in old.read_results and context in old.reads_dropped


def test_a_transfer_moves_leadership_without_waiting_for_a_timeout() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    cluster.run(1.0)  # long idle: no disk was written lately, which must not look like a stalled one
    started = cluster.time
    target = leader.core().transfer_leadership(None, leader.now())
    leader.pump()
    cluster.run_until(lambda: cluster[target].core().role is Role.LEADER)
    assert cluster.time - started < T / 2
    cluster.put(b"x")


def test_a_transfer_waits_until_the_target_has_caught_up_and_blocks_proposals() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    index, _ = solo.raft.propose(b"x", solo.now)
    solo.settle()
    solo.raft.transfer_leadership("c", solo.now)
    assert not [m for m in solo.settle() if m.type == MessageType.TIMEOUT_NOW]
    with pytest.raises(TransferFailed):
        solo.raft.propose(b"y", solo.now)
    solo.ack("c", index)
    assert [m.to for m in solo.settle() if m.type == MessageType.TIMEOUT_NOW] == ["c"]


def test_a_transfer_ends_by_timeout_and_by_step_down() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    solo.raft.transfer_leadership("c", solo.now)
    for _ in range(8):
        solo.receive(MessageType.HEARTBEAT_RESP, "b", solo.raft.term)
        solo.pass_time(0.05)
    solo.raft.propose(b"x", solo.now)
    solo.raft.transfer_leadership("c", solo.now)
    solo.receive(MessageType.HEARTBEAT, "b", solo.raft.term + 1)
    solo.settle()
    solo.become_leader("b", "c")
    solo.raft.propose(b"x", solo.now)  # the flag did not survive


def test_a_transfer_ends_when_its_target_is_removed() -> None:
    cluster = Cluster(4)
    leader = cluster.leader()
    a, b, c = [n.id for n in cluster.nodes.values() if n is not leader]
    leader.core().propose_conf_change(ConfChange(voters=(leader.id, a, b)), leader.now())
    leader.core().transfer_leadership(c, leader.now())
    cluster.drop = lambda m: m.type == MessageType.TIMEOUT_NOW
    leader.pump()
    cluster.run_until(lambda: leader.core().conf.voters_outgoing != ())
    assert c not in leader.core().conf.voters
    leader.propose(b"x")


@pytest.mark.parametrize("to", ["a", "l", "x"])
def test_only_another_voter_can_be_the_target(to: str) -> None:
    solo = Solo(learners=("l",))
    solo.become_leader("b", "c")
    with pytest.raises(InvalidArgument):
        solo.raft.transfer_leadership(to, solo.now)


def test_a_lone_voter_has_nobody_to_hand_over_to() -> None:
    solo = Solo(voters=("a",))
    solo.pass_time(0)
    with pytest.raises(TransferFailed):
        solo.raft.transfer_leadership(None, solo.now)
