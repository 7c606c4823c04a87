"""Elections: pre-vote, votes, check-quorum (raft.md, sections 1 and 6)."""

from __future__ import annotations

import pytest

from needle.raft.causes import Cause
from needle.raft.messages import MessageType
from needle.raft.raft import Role
from needle.raft.state import FAR
from raft.harness import HEARTBEAT, Cluster, T
from raft.solo import Solo


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
def test_every_cluster_size_elects_one_leader_and_commits(voters: int) -> None:
    cluster = Cluster(voters)
    index = cluster.put(b"x")
    cluster.converge()
    assert [e.data for e in cluster.checkers.committed][index - 1] == b"x"
    assert len(cluster.leaders()) == 1


@pytest.mark.parametrize(
    ("voters", "down", "works"), [(2, 1, False), (3, 1, True), (4, 2, False), (5, 2, True), (5, 3, False)]
)
def test_half_of_an_even_cluster_commits_nothing(voters: int, down: int, works: bool) -> None:
    cluster = Cluster(voters)
    leader = cluster.leader()
    before = len(cluster.checkers.committed)
    for node in [n for n in cluster.nodes.values() if n is not leader][:down]:
        node.crash()
    leader.propose(b"x")
    cluster.run(1.0)
    assert (len(cluster.checkers.committed) > before) is works
    assert bool(cluster.leaders()) is works  # check-quorum


@pytest.mark.parametrize(
    ("own", "index", "log_term", "granted"),
    [((1, 1), 2, 1, True), ((1, 1), 1, 1, False), ((1, 2), 5, 1, False), ((1, 2), 1, 3, True), ((), 0, 0, True)],
)
def test_a_vote_goes_only_to_a_log_that_is_as_complete(
    own: tuple[int, ...], index: int, log_term: int, granted: bool
) -> None:
    solo = Solo(*own, term=3)
    solo.now += 1
    solo.receive(MessageType.VOTE, "b", 4, index=index, log_term=log_term)
    assert [m.reject for m in solo.settle()] == [not granted]
    assert solo.raft.vote == ("b" if granted else "")


def test_one_vote_per_term_also_after_a_restart() -> None:
    solo = Solo(term=4, vote="b")
    solo.now += 1
    for candidate, reject in (("c", True), ("b", False)):
        solo.receive(MessageType.VOTE, candidate, 4)
        assert [m.reject for m in solo.settle()] == [reject]


def test_a_pre_vote_changes_nothing_at_the_voter() -> None:
    solo = Solo(term=4)
    solo.now += 1
    solo.receive(MessageType.PRE_VOTE, "c", 9)
    (answer,) = solo.settle()
    assert (answer.reject, answer.term) == (False, 9)
    assert (solo.raft.term, solo.raft.vote) == (4, "")


def test_a_vote_is_sent_only_after_it_is_durable() -> None:
    solo = Solo()
    solo.receive(MessageType.VOTE, "b", 1)
    assert not solo.raft.ready(persist=False).messages_after_persist
    ready = solo.ready()
    assert ready.must_sync and ready.hard_state is not None and ready.hard_state.vote == "b"
    assert not ready.messages and len(ready.messages_after_persist) == 1


def test_a_lone_voter_leads_only_when_its_own_vote_is_durable() -> None:
    solo = Solo(voters=("a",))
    solo.raft.tick(solo.now)
    ready = solo.ready()
    assert solo.raft.role is Role.CANDIDATE
    solo.write(ready)
    assert solo.raft.role is Role.LEADER
    assert solo.raft.commit == 0  # and commits only what is on its disk
    solo.settle()
    assert solo.raft.commit == 1


def test_an_answer_of_a_higher_term_is_no_granted_vote() -> None:
    solo = Solo(term=1)
    solo.pass_time(1.6 * T)
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 2)
    solo.settle()
    assert solo.raft.role is Role.CANDIDATE
    solo.receive(MessageType.VOTE_RESP, "b", 7)
    assert (solo.raft.role, solo.raft.term) == (Role.FOLLOWER, 7)


def test_answers_of_non_voters_do_not_elect() -> None:
    solo = Solo(term=1)
    solo.pass_time(1.6 * T)
    for node in ("x", "y", "z"):
        solo.receive(MessageType.PRE_VOTE_RESP, node, 2)
    assert solo.raft.role is Role.PRE_CANDIDATE


def test_a_leader_that_ended_its_connection_is_followed_up_soon_after_the_promise() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    solo.settle()
    heard = solo.now
    assert solo.raft.next_deadline() == pytest.approx(heard + 1.5 * T)
    solo.now += T / 2
    solo.raft.report_disconnected("b", solo.now)
    assert solo.raft.next_deadline() == pytest.approx(heard + 1.25 * T), "half a timeout x the random 0.5"
    assert not solo.pass_time(T / 2 - 0.001), "never within the promise"
    assert {m.type for m in solo.pass_time(T / 4 + 0.002)} == {MessageType.PRE_VOTE}


def test_a_disconnected_leader_that_is_heard_again_is_followed_as_before() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    solo.raft.report_disconnected("b", solo.now)
    solo.now += T / 2
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    assert solo.raft.next_deadline() == pytest.approx(solo.now + 1.5 * T)
    solo.settle()
    solo.raft.report_disconnected("c", solo.now)
    assert solo.raft.next_deadline() == pytest.approx(solo.now + 1.5 * T), "c does not lead"


def test_a_hint_late_in_the_timeout_does_not_put_the_election_off() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    heard = solo.now
    solo.now += 1.4 * T
    solo.raft.report_disconnected("b", solo.now)
    assert solo.raft.next_deadline() == pytest.approx(heard + 1.5 * T)


def test_the_end_of_a_followers_connection_does_not_concern_the_leader() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    due = solo.raft.next_deadline()
    for node in "abc":
        solo.raft.report_disconnected(node, solo.now)
    assert solo.raft.next_deadline() == due and solo.raft.role is Role.LEADER


@pytest.mark.parametrize("stall", [1.95 * T, 3 * T, 60.0])
def test_a_node_that_was_kept_from_running_hears_its_leader_before_it_campaigns(stall: float) -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    solo.settle()
    assert not solo.pass_time(stall)
    assert (solo.raft.role, solo.raft.leader) == (Role.FOLLOWER, "b")
    solo.now += HEARTBEAT
    solo.receive(MessageType.HEARTBEAT, "b", 2)  # it lay in the socket
    assert solo.raft.next_deadline() == pytest.approx(solo.now + 1.5 * T)


def test_a_node_that_is_always_late_campaigns_all_the_same_when_its_leader_is_gone() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 2)
    solo.settle()
    assert not solo.pass_time(10 * T)
    assert {m.type for m in solo.pass_time(10 * T)} == {MessageType.PRE_VOTE}


def test_a_leader_that_was_kept_from_running_hears_the_others_before_it_steps_down() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    term = solo.raft.term
    assert {m.type for m in solo.pass_time(3 * T)} == {MessageType.HEARTBEAT}, "it says at once that it lives"
    assert solo.raft.role is Role.LEADER and solo.raft.read_lease(solo.now) is None
    solo.receive(MessageType.HEARTBEAT_RESP, "b", term, round=solo.out[-1].round)
    solo.pass_time(HEARTBEAT)
    solo.pass_time(HEARTBEAT)
    assert solo.raft.role is Role.LEADER
    solo.pass_time(3 * T)
    for _ in range(2):
        solo.pass_time(3 * T)  # always late, and now nobody answers
    assert solo.raft.role is Role.FOLLOWER


@pytest.mark.parametrize("node", ["b", "c"])
def test_voters_refuse_for_an_election_timeout_unless_their_leaders_connection_ended(node: str) -> None:
    solo = Solo(term=1, lease_timeout=T / 3)
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    solo.settle()
    solo.now += T / 2
    solo.raft.report_disconnected(node, solo.now)
    solo.receive(MessageType.PRE_VOTE, "c", 2)
    assert [m.reject for m in solo.settle()] == ([False] if node == "b" else [])


def test_a_lost_election_is_repeated_soon_and_one_without_answers_is_not() -> None:
    solo = Solo(term=1, lease_timeout=T / 3)
    solo.pass_time(T / 2)  # after the start
    assert solo.raft.next_deadline() == pytest.approx(solo.now + T / 2), "pre-votes cost nothing"
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 2)
    solo.settle()
    assert solo.raft.role is Role.CANDIDATE
    assert solo.raft.next_deadline() == pytest.approx(solo.now + 1.5 * T), "slow voters get the time to answer"
    solo.receive(MessageType.VOTE_RESP, "b", 2, reject=True)
    assert solo.raft.next_deadline() == pytest.approx(solo.now + T / 2), "b has voted for itself, and c is dead"


def test_a_learner_never_campaigns_but_votes_when_asked() -> None:
    solo = Solo(term=1, voters=("b", "c"), learners=("a",))
    solo.now += 5.0
    solo.raft.campaign(solo.now)
    assert solo.raft.role is Role.FOLLOWER and not solo.settle()
    solo.receive(MessageType.VOTE, "b", 2)
    assert [m.reject for m in solo.settle()] == [False]


def test_a_partitioned_follower_does_not_disturb_the_leader_when_it_comes_back() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    other = next(n for n in cluster.nodes.values() if n is not leader)
    cluster.isolate(other.id)
    cluster.run(3.0)
    term = leader.core().term
    assert other.core().term == term  # pre-vote did not raise it
    cluster.heal()
    cluster.run(1.0)
    assert leader.core().role is Role.LEADER and leader.core().term == term


def test_a_node_stranded_in_a_higher_term_is_freed() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    stuck = next(n for n in cluster.nodes.values() if n is not leader)
    stuck.crash()
    stuck.disk.hard_state = type(stuck.disk.hard_state)(leader.core().term + 5, stuck.id, 0)
    stuck.start()
    cluster.run_until(lambda: len({n.core().term for n in cluster.nodes.values()}) == 1 and bool(cluster.leaders()))
    assert cluster.leader().core().term > stuck.disk.hard_state.term - 1
    cluster.put(b"works again")


def test_a_leader_without_contact_to_a_quorum_steps_down() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    cluster.isolate(leader.id)
    cluster.run(T + 0.06)
    assert leader.core().role is Role.FOLLOWER


def test_voters_help_the_ex_leader_they_made_their_promise_to() -> None:
    solo = Solo(term=1)
    solo.now += 1
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    solo.settle()
    solo.receive(MessageType.PRE_VOTE, "c", 2)
    assert solo.settle() == []
    solo.receive(MessageType.PRE_VOTE, "b", 2)
    assert [m.reject for m in solo.settle()] == [False]


def test_a_leader_whose_disk_stalls_loses_leadership_and_does_not_campaign() -> None:
    cluster = Cluster(3)
    sick = cluster.leader()
    sick.disk_stalled = True
    sick.propose(b"x")
    cluster.run(sick.config.disk_stall_timeout + 0.8)
    assert sick.core().role is not Role.LEADER
    assert sick.core().causes.stepdowns == {Cause.DISK_STALLED: 1}
    assert cluster.leader() is not sick
    cluster.put(b"y")
    sick.disk_stalled = False
    cluster.converge()


def test_a_disk_that_is_busy_for_a_second_costs_no_leadership() -> None:
    """Of three nodes whose disks were busy, as by a flood of other writes, each lost office after 0.3 s of it."""
    cluster = Cluster(3)
    leader, term = cluster.leader(), cluster.leader().core().term
    for node in cluster.nodes.values():
        node.disk_stalled = True
    leader.propose(b"x")
    cluster.run(1.0)
    for node in cluster.nodes.values():
        node.disk_stalled = False
    cluster.put(b"y")
    assert cluster.leader() is leader and leader.core().term == term


def test_each_election_and_each_end_of_leadership_has_its_cause() -> None:
    cluster = Cluster(3)
    first = cluster.leader()
    assert first.core().causes.elections == {Cause.LEADER_SILENT: 1}
    target = next(node for node in cluster.nodes.values() if node is not first)
    first.core().transfer_leadership(target.id, first.now())
    first.pump()
    cluster.run_until(lambda: target.core().role is Role.LEADER)
    cluster.run(0.1)
    assert target.core().causes.elections[Cause.HANDED_OVER] == 1
    assert first.core().causes.stepdowns == {Cause.HANDED_OVER: 1}
    cluster.isolate(target.id)
    cluster.run(1.0)
    assert target.core().causes.stepdowns == {Cause.NO_QUORUM: 1}


@pytest.mark.parametrize("heard_again", [False, True])
def test_a_leader_whose_connection_ended_is_the_cause_until_it_is_heard_again(heard_again: bool) -> None:
    solo = Solo(term=1)
    solo.now += 1
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    solo.raft.report_disconnected("b", solo.now)
    if heard_again:
        solo.receive(MessageType.HEARTBEAT, "b", 1)
    while solo.raft.role is Role.FOLLOWER:
        solo.pass_time(solo.raft.next_deadline() - solo.now)
    assert solo.raft.causes.last is (Cause.LEADER_SILENT if heard_again else Cause.LEADER_GONE)
    for voter in ("b", "c"):
        solo.receive(MessageType.PRE_VOTE_RESP, voter, 2)
    solo.settle()
    assert solo.raft.causes.elections == {solo.raft.causes.last: 1}


def test_a_node_in_maintenance_follows_and_votes_but_never_leads() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    resting, other = [n for n in cluster.nodes.values() if n is not leader]
    resting.core().set_quiesced(False, resting=True)
    leader.core().transfer_leadership(resting.id, leader.now())
    leader.pump()
    cluster.run(0.6)
    assert cluster.leader() is leader
    leader.crash()
    cluster.run_until(lambda: other.core().role is Role.LEADER)
    cluster.converge()


@pytest.mark.parametrize("voters", [3, 5])
def test_a_node_in_maintenance_leads_only_if_no_other_live_voter_has_what_is_committed(voters: int) -> None:
    """Else a majority lives and has no leader: who may lead lacks entries, and who has them may not."""
    cluster = Cluster(voters)
    leader = cluster.leader()
    resting, behind, *_ = [n for n in cluster.nodes.values() if n is not leader]
    resting.core().set_quiesced(False, resting=True)
    cluster.isolate(behind.id)
    cluster.put(b"x")
    leader.crash()
    cluster.heal()
    cluster.run_until(lambda: any(node is not leader for node in cluster.leaders()))
    assert (cluster.leader() is resting) is (voters == 3)
    cluster.run(20 * T)
    assert sum(resting.core().causes.elections.values()) == (1 if voters == 3 else 0)
    cluster.put(b"y")


def test_a_node_in_maintenance_first_lets_others_try_who_have_what_it_has() -> None:
    solo = Solo(1, 1, term=1)
    solo.raft.set_quiesced(False, resting=True)
    solo.now += 1
    began = solo.now
    while solo.raft.role is Role.FOLLOWER:
        assert solo.now - began < 6 * T
        solo.receive(MessageType.PRE_VOTE, "b", 2, index=1, log_term=1)
        solo.settle()
        solo.pass_time(T / 10)
    assert solo.now - began > 2 * T


def test_a_node_in_maintenance_does_not_go_by_who_was_refused_before_somebody_led() -> None:
    """By the next time that nobody leads, others may have all that it has, and are let try first, as ever."""
    solo = Solo(1, 1, term=1)
    solo.raft.set_quiesced(False, resting=True)
    solo.now += 1
    for _ in range(15):
        solo.receive(MessageType.PRE_VOTE, "b", 2, index=1, log_term=1)
        assert all(m.reject for m in solo.settle())
        solo.pass_time(T / 10)
    solo.receive(MessageType.HEARTBEAT, "c", 2)
    solo.settle()
    assert solo.raft.leader == "c"
    for _ in range(60):
        solo.pass_time(T / 10)
        assert solo.raft.role is Role.FOLLOWER
    assert not [m for m in solo.out if m.type in (MessageType.PRE_VOTE, MessageType.VOTE)]


def test_who_may_not_lead_at_all_does_not_lead_either_where_others_lack_what_it_has() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    damaged, behind = [n for n in cluster.nodes.values() if n is not leader]
    damaged.core().set_quiesced(True, resting=True)
    cluster.isolate(behind.id)
    cluster.put(b"x")
    leader.crash()
    cluster.heal()
    cluster.run(30 * T)
    assert cluster.leaders() == []


def _followed_since_a_write() -> Solo:
    """A node that led, whose last tick fell into a short write of another group, and that follows b since."""
    solo = Solo(term=1)
    solo.become_leader("b")
    solo.disk_waits_since = solo.now + HEARTBEAT - 0.001
    solo.pass_time(HEARTBEAT)
    solo.disk_waits_since = FAR
    for _ in range(200):
        solo.now += HEARTBEAT
        solo.receive(MessageType.HEARTBEAT, "b", 9, commit=1)
        solo.settle()
    assert solo.raft.role is Role.FOLLOWER
    return solo


def test_a_follower_whose_last_tick_fell_into_a_write_takes_over_when_it_is_asked() -> None:
    """A follower is hardly ever ticked: for good it held the write to be under way that its last tick had seen."""
    solo = _followed_since_a_write()
    solo.receive(MessageType.TIMEOUT_NOW, "b", 9)
    assert solo.raft.role is Role.CANDIDATE


def test_a_follower_whose_last_tick_fell_into_a_write_campaigns_when_it_is_told_to() -> None:
    solo = _followed_since_a_write()
    solo.now += 2 * T
    solo.raft.campaign(solo.now)
    assert solo.raft.role is Role.PRE_CANDIDATE


def test_a_follower_under_whose_other_groups_the_disk_hangs_does_not_take_over() -> None:
    solo = _followed_since_a_write()
    solo.disk_waits_since = solo.now
    for _ in range(100):
        solo.now += HEARTBEAT
        solo.receive(MessageType.HEARTBEAT, "b", 9, commit=1)
        solo.settle()
    solo.receive(MessageType.TIMEOUT_NOW, "b", 9)
    assert solo.raft.role is Role.FOLLOWER
