"""Leases (raft.md, section 2), on a clock driven by hand."""

from __future__ import annotations

import pytest

from needle.raft.messages import ConfChange, MessageType
from needle.raft.raft import Role
from raft.harness import HEARTBEAT, Cluster, T
from raft.solo import Solo


def test_an_isolated_leader_stops_leased_reads_before_another_can_be_elected() -> None:
    cluster = Cluster(3)
    old = cluster.leader()
    cluster.run(0.2)
    assert old.core().read_lease(old.now()) is not None
    cluster.isolate(old.id)
    lease_end = cluster.time + old.core().lease_remaining(old.now())
    others = [n for n in cluster.nodes.values() if n is not old]
    cluster.run_until(lambda: any(n.core().role is Role.LEADER for n in others))
    assert cluster.time > lease_end
    assert old.core().read_lease(old.now()) is None
    assert cluster.checkers.leased_reads > 0


def test_a_leader_that_hears_nobody_serves_no_leased_read_for_longer_than_the_lease() -> None:
    cluster = Cluster(3)
    old = cluster.leader()
    cluster.isolate(old.id)
    remaining = old.core().lease_remaining(old.now())
    assert 0 < remaining < T
    assert old.core().read_lease(old.now() + remaining - 1e-6) is not None
    assert old.core().read_lease(old.now() + remaining + 1e-6) is None


def test_a_transferred_away_leader_gives_its_lease_up_before_timeout_now_leaves() -> None:
    cluster = Cluster(3)
    old = cluster.leader()
    cluster.run(0.2)
    target = next(n for n in cluster.nodes.values() if n is not old)
    cluster.drop = lambda m: m.to == old.id  # it never hears of its successor
    old.core().transfer_leadership(target.id, old.now())
    assert old.core().read_lease(old.now()) is None  # TIMEOUT_NOW is not even sent yet
    old.pump()
    cluster.run_until(lambda: target.core().role is Role.LEADER)
    assert old.core().role is Role.LEADER and old.core().read_lease(old.now()) is None


def test_the_lease_stays_suspended_for_the_rest_of_the_term_when_a_transfer_fails() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    cluster.drop = lambda m: m.type == MessageType.TIMEOUT_NOW
    term = leader.core().term
    leader.core().transfer_leadership(None, leader.now())
    leader.pump()
    cluster.run(1.0)
    assert (leader.core().role, leader.core().term) == (Role.LEADER, term)
    assert leader.core().read_lease(leader.now()) is None
    context = leader.read_index()
    cluster.run(0.02)
    assert context in leader.read_results  # ReadIndex still works
    cluster.put(b"transfer is over")


@pytest.mark.parametrize("kind", [MessageType.VOTE, MessageType.PRE_VOTE])
def test_votes_and_pre_votes_are_refused_for_an_election_timeout_after_a_leaders_message(kind: MessageType) -> None:
    solo = Solo(term=1)
    solo.now += 1.0
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    solo.settle()
    solo.now += T - 1e-6
    solo.receive(kind, "c", 2)
    assert solo.settle() == [] and solo.raft.term == 1
    solo.now += 2e-6
    solo.receive(kind, "c", 2)
    assert [m.reject for m in solo.settle()] == [False]


def test_votes_are_refused_for_an_election_timeout_after_a_restart() -> None:
    solo = Solo(1, term=1)
    solo.receive(MessageType.VOTE, "c", 2, index=1, log_term=1)
    assert solo.settle() == [] and solo.raft.vote == ""
    solo.now += T
    solo.receive(MessageType.VOTE, "c", 2, index=1, log_term=1)
    assert [m.reject for m in solo.settle()] == [False]


def test_the_end_of_the_connection_leaves_of_a_promise_what_leases_count_on() -> None:
    solo = Solo(term=1, lease_timeout=T / 3)
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    solo.settle()
    heard = solo.now
    solo.raft.report_disconnected("b", solo.now)
    assert solo.raft.next_deadline() == pytest.approx(heard + 1.25 * T / 3), "half a lease x the random 0.5"
    solo.now = heard + T / 3 - 1e-6
    solo.receive(MessageType.VOTE, "c", 2)
    assert solo.settle() == [] and solo.raft.term == 1
    solo.now += 2e-6
    solo.receive(MessageType.VOTE, "c", 2)
    assert [m.reject for m in solo.settle()] == [False]


@pytest.mark.parametrize(("lease", "counted"), [(T / 3, T / 3), (2 * T, T), (0.0, T)])
def test_the_lease_is_as_long_as_what_binds_the_voters(lease: float, counted: float) -> None:
    solo = Solo(lease_timeout=lease)
    solo.become_leader("b")
    (beat, *_) = solo.pass_time(HEARTBEAT + 0.001)
    solo.receive(MessageType.HEARTBEAT_RESP, "b", solo.raft.term, round=beat.round)
    assert solo.raft.lease_remaining(solo.now) == pytest.approx(counted * 0.999 / 1.001 - 0.005)


def test_a_fresh_replica_votes_at_once_for_nobody_can_hold_a_lease() -> None:
    solo = Solo()
    solo.receive(MessageType.VOTE, "c", 1)
    assert [m.reject for m in solo.settle()] == [False]


def test_a_forced_election_neither_breaks_the_own_promise_nor_that_of_others() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    term = leader.core().term
    cluster.run(0.1)
    for node in cluster.nodes.values():
        node.core().campaign(node.now())
        node.pump()
    cluster.run(0.5)
    assert leader.core().role is Role.LEADER and leader.core().term == term


def test_a_forced_election_happens_as_soon_as_the_promise_has_ended() -> None:
    solo = Solo(term=3)
    solo.now += 1
    solo.receive(MessageType.HEARTBEAT, "b", 3)
    solo.settle()
    solo.raft.campaign(solo.now)
    assert solo.raft.next_deadline() == pytest.approx(solo.now + T)
    sent = solo.pass_time(T)
    assert {m.type for m in sent} == {MessageType.PRE_VOTE}


def test_the_lease_runs_from_the_send_time_of_the_round_that_a_quorum_answered() -> None:
    solo = Solo()
    solo.become_leader("b")
    (beat, *_) = [m for m in solo.pass_time(0.06) if m.to == "b" and m.type == MessageType.HEARTBEAT]
    sent_at = solo.now
    solo.now += 0.04
    solo.receive(MessageType.HEARTBEAT_RESP, "b", solo.raft.term, round=beat.round)
    expected = sent_at + T * 0.999 / 1.001 - 0.005 - solo.now
    assert solo.raft.lease_remaining(solo.now) == pytest.approx(expected)


def test_there_is_no_lease_before_an_entry_of_the_term_is_committed() -> None:
    solo = Solo(1, term=1)
    solo.pass_time(1.6 * T)
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 2)
    solo.settle()
    solo.receive(MessageType.VOTE_RESP, "b", 2)
    solo.settle()
    solo.ack("b", 1, round_id=solo.out[-1].round)  # answers the round, but does not hold the no-op
    assert solo.raft.role is Role.LEADER and solo.raft.read_lease(solo.now) is None
    solo.ack("b", 2, round_id=solo.out[-1].round)
    assert solo.raft.read_lease(solo.now) == 2


def test_a_membership_change_starts_the_lease_anew_and_blocks_the_next_until_it_covers_the_old_one() -> None:
    solo = Solo(learners=())
    solo.become_leader("b")
    beat = next(m for m in solo.pass_time(0.06) if m.to == "b")
    solo.receive(MessageType.HEARTBEAT_RESP, "b", solo.raft.term, round=beat.round)
    assert solo.raft.lease_remaining(solo.now) > 0
    index, _ = solo.raft.propose_conf_change(ConfChange(voters=("a", "b", "d")), solo.now)
    solo.settle()
    solo.ack("b", index)
    solo.settle()
    assert solo.raft.conf.voters_outgoing == ("a", "b", "c")
    assert solo.raft.lease_remaining(solo.now) == 0
    assert solo.raft.last_index == index  # the second half waits for the new quorum's lease
    beat = next(m for m in solo.pass_time(0.06) if m.to == "b")
    solo.ack("b", index, round_id=beat.round)
    solo.settle()
    assert solo.raft.lease_remaining(solo.now) > 0 and solo.raft.last_index == index + 1


def test_only_the_campaign_that_a_leader_asked_for_may_disregard_promises() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    leader.crash()
    cluster.leader()
    asked = [m for n in cluster.nodes.values() for m in n.sent if m.type in (MessageType.VOTE, MessageType.PRE_VOTE)]
    assert asked and not any(m.force for m in asked)
    target = cluster.elect(next(n.id for n in cluster.nodes.values() if n.raft and n.core().role is not Role.LEADER))
    assert [m.force for m in target.sent if m.type == MessageType.VOTE and m.term == target.core().term] == [True, True]
