"""Membership changes and snapshots (raft.md, sections 1 and 6)."""

from __future__ import annotations

import pytest

from needle.base.errors import CorruptLog, InvalidArgument, MembershipChangePending
from needle.raft import membership
from needle.raft.messages import ConfChange, ConfState, Entry, MessageType, SnapshotMeta
from needle.raft.quorum import Verdict, count_votes, quorum_value
from needle.raft.raft import Role
from raft.harness import Cluster, Node
from raft.solo import Solo, entries


def change(cluster: Cluster, voters: tuple[str, ...], learners: tuple[str, ...] = ()) -> None:
    leader = cluster.leader()
    leader.core().propose_conf_change(ConfChange(voters, learners), leader.now())
    leader.pump()
    cluster.run_until(
        lambda: any(n.core().conf == ConfState(tuple(sorted(voters)), learners) for n in cluster.nodes.values())
    )


def test_a_joint_configuration_needs_both_majorities() -> None:
    conf = ConfState(voters=("a", "b", "c"), voters_outgoing=("c", "d", "e"))
    match = {"a": 9, "b": 9, "c": 1, "d": 5, "e": 4}
    assert quorum_value(conf, match.__getitem__) == 4
    assert count_votes(conf, {"a": True, "b": True, "c": True}) is Verdict.PENDING
    assert count_votes(conf, {"a": True, "b": True, "d": False, "e": False}) is Verdict.LOST
    assert count_votes(conf, {"a": True, "b": True, "d": True, "e": True}) is Verdict.WON


@pytest.mark.parametrize(
    ("values", "reached"), [([5], 5), ([5, 7], 5), ([1, 5, 7], 5), ([1, 2, 3, 4], 2), ([1, 2, 3, 4, 5], 3)]
)
def test_a_majority_is_more_than_half(values: list[int], reached: int) -> None:
    nodes = tuple(f"n{i}" for i in range(len(values)))
    assert quorum_value(ConfState(voters=nodes), dict(zip(nodes, values, strict=True)).__getitem__) == reached


def test_three_nodes_become_five_and_three_again_while_writing() -> None:
    cluster = Cluster(3, spares=2)
    cluster.put(b"1")
    change(cluster, ("n1", "n2", "n3", "n4", "n5"))
    cluster.put(b"2")
    change(cluster, ("n1", "n4", "n5"))
    cluster.put(b"3")
    cluster.converge()


def test_removing_the_leader_hands_over_at_once() -> None:
    cluster = Cluster(3, spares=1)
    leader = cluster.leader()
    rest = tuple(n for n in ("n1", "n2", "n3", "n4") if n != leader.id)
    change(cluster, rest)
    started = cluster.time
    cluster.run_until(lambda: any(n.id in rest for n in cluster.leaders()))
    assert cluster.time - started < 0.1
    assert leader.core().role is Role.FOLLOWER
    cluster.put(b"x")


def test_a_removed_leader_with_the_longest_log_does_not_block_the_others() -> None:
    cluster = Cluster(2)
    leader = cluster.leader()
    (other,) = [n for n in cluster.nodes.values() if n is not leader]
    leader.core().propose_conf_change(ConfChange(voters=(other.id,)), leader.now())
    leader.pump()
    cluster.run_until(lambda: leader.core().conf.voters_outgoing != ())
    cluster.run_until(lambda: other.disk.storage.last_index() == leader.core().last_index)
    cluster.drop = lambda m: m.to == other.id  # holds the second half, never learns that it is committed
    leader.propose(b"more that nobody else has")
    cluster.run_until(lambda: leader.core().role is Role.FOLLOWER)
    cluster.heal()
    cluster.run_until(lambda: other.core().role is Role.LEADER)


def test_one_change_at_a_time() -> None:
    solo = Solo()
    solo.become_leader("b")
    solo.raft.propose_conf_change(ConfChange(voters=("a", "b")), solo.now)
    with pytest.raises(MembershipChangePending):
        solo.raft.propose_conf_change(ConfChange(voters=("a", "c")), solo.now)


def test_a_new_leader_assumes_that_its_tail_holds_a_change() -> None:
    solo = Solo(1, 1, term=1)
    solo.become_leader()
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 2)
    solo.settle()
    solo.receive(MessageType.VOTE_RESP, "b", 2)
    solo.settle()
    with pytest.raises(MembershipChangePending):
        solo.raft.propose_conf_change(ConfChange(voters=("a", "b")), solo.now)
    solo.ack("b", 3)
    solo.settle()
    solo.raft.propose_conf_change(ConfChange(voters=("a", "b")), solo.now)


def test_no_campaign_with_a_committed_unapplied_change() -> None:
    solo = Solo(term=1)
    conf = ConfState(voters=("a", "b", "c", "d", "e"))
    entry = Entry(1, 1, 1, membership.encode_conf(conf))
    solo.receive(MessageType.APPEND, "b", 1, entries=(entry,), commit=1)
    solo.write(solo.raft.ready(apply=False))
    solo.now += 5
    solo.raft.campaign(solo.now)  # a tick would come late, and a node that was away listens first
    assert solo.raft.role is Role.FOLLOWER
    solo.settle()
    solo.raft.campaign(solo.now)
    assert solo.raft.role is Role.PRE_CANDIDATE


@pytest.mark.parametrize(
    "bad", [ConfChange(), ConfChange(("a", "a")), ConfChange(("a",), ("a",)), ConfChange(leave=True), ConfChange(("",))]
)
def test_a_configuration_that_cannot_work_is_refused(bad: ConfChange) -> None:
    solo = Solo()
    solo.become_leader("b")
    with pytest.raises(InvalidArgument):
        solo.raft.propose_conf_change(bad, solo.now)


def test_a_joining_node_that_replays_from_the_start_gets_the_same_configuration() -> None:
    cluster = Cluster(1, spares=2)
    cluster.put(b"x")
    change(cluster, ("n1", "n2", "n3"))
    cluster.converge()
    assert len({n.core().conf for n in cluster.nodes.values()}) == 1


# --- snapshots ----------------------------------------------------------------------------------------------------
def snapshot(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, ConfState(voters=("a", "b", "d")))


def test_a_snapshot_at_or_below_the_commit_index_is_ignored() -> None:
    solo = Solo(1, 1, 1, term=1, commit=3)
    solo.receive(MessageType.SNAPSHOT, "b", 1, snapshot=snapshot(3, 1))
    (answer,) = solo.settle()
    assert answer.index == 3 and solo.storage.base_index == 0


def test_a_snapshot_that_the_log_contains_only_fast_forwards() -> None:
    solo = Solo(1, 1, 1, term=1, commit=1)
    solo.receive(MessageType.SNAPSHOT, "b", 1, snapshot=snapshot(2, 1))
    assert not solo.raft.is_restoring  # nothing will be installed: who waits for that waits for good
    assert solo.raft.ready().snapshot is None
    assert (solo.raft.commit, solo.raft.last_index) == (2, 3)


def test_any_other_snapshot_replaces_log_and_configuration() -> None:
    solo = Solo(1, 1, 1, term=2, commit=1)
    solo.receive(MessageType.SNAPSHOT, "b", 2, snapshot=snapshot(9, 2))
    ready = solo.raft.ready(apply=False)
    assert ready.snapshot == snapshot(9, 2) and not ready.messages
    assert [m.index for m in ready.messages_after_persist] == [9]
    assert solo.raft.is_restoring
    solo.write(ready)
    assert not solo.raft.is_restoring
    assert (solo.raft.applied, solo.raft.commit, solo.raft.last_index) == (9, 9, 9)
    assert solo.raft.conf == snapshot(9, 2).conf
    solo.receive(MessageType.APPEND, "b", 2, index=9, log_term=2, entries=entries(2, start=10), commit=10)
    assert solo.settle()[-1].index == 10


def test_a_snapshot_is_installed_neither_under_an_apply_nor_before_its_end() -> None:
    solo = Solo(1, 1, term=1, commit=2)
    assert solo.raft.ready().committed
    solo.receive(MessageType.SNAPSHOT, "b", 1, snapshot=snapshot(9, 1))
    assert solo.raft.ready().snapshot is None
    assert solo.raft.conf.voters == ("a", "b", "c")  # entries of before the snapshot still change this one
    solo.raft.applied_to(2)
    assert solo.raft.ready().snapshot is not None


def test_a_follower_behind_the_compacted_log_is_served_by_snapshot_and_goes_on() -> None:
    cluster = Cluster(3, snapshot_retry=0.2)
    leader = cluster.leader()
    slow: Node = next(n for n in cluster.nodes.values() if n is not leader)
    slow.crash()
    for i in range(20):
        cluster.put(b"%d" % i)
    leader.compact()
    slow.start()
    cluster.converge()
    assert slow.disk.storage.base_index > 0
    cluster.put(b"after")
    cluster.converge()


def test_a_lost_snapshot_is_sent_again() -> None:
    cluster = Cluster(3, snapshot_retry=0.2)
    leader = cluster.leader()
    slow = next(n for n in cluster.nodes.values() if n is not leader)
    slow.crash()
    cluster.put(b"x")
    leader.compact()
    slow.start()
    cluster.drop = lambda m: m.type == MessageType.SNAPSHOT
    cluster.run(1.0)
    assert len([m for m in leader.sent if m.type == MessageType.SNAPSHOT]) >= 3
    cluster.heal()
    cluster.converge()


def test_a_gap_between_snapshot_and_log_is_refused_at_start() -> None:
    with pytest.raises(CorruptLog):
        Solo(1, 1, term=1, commit=5)
