"""Appends, commitment, durability, flow control and applying (raft.md, sections 1 and 6)."""

from __future__ import annotations

import pytest

from needle.base.errors import Internal, NotLeader, Overloaded
from needle.raft import replication
from needle.raft.messages import MessageType
from needle.raft.progress import ProgressState
from needle.raft.raft import Role
from raft.harness import HEARTBEAT, Cluster
from raft.solo import Solo, entries


@pytest.mark.parametrize(
    ("own", "previous", "previous_term", "sent", "match", "terms"),
    [
        ((1, 1), 2, 1, (1,), 3, (1, 1, 1)),  # appended
        ((1, 1, 1), 1, 1, (1,), 2, (1, 1, 1)),  # an old message truncates nothing
        ((1, 1, 1), 1, 1, (2,), 2, (1, 2)),  # truncated at the conflicting term
        ((1, 1, 1), 0, 0, (1, 1, 2), 3, (1, 1, 2)),
        ((1, 1), 5, 1, (1,), None, (1, 1)),  # a gap
        ((1, 1), 2, 2, (2,), None, (1, 1)),  # another previous term
    ],
)
def test_a_follower_takes_over_what_fits(
    own: tuple[int, ...],
    previous: int,
    previous_term: int,
    sent: tuple[int, ...],
    match: int | None,
    terms: tuple[int, ...],
) -> None:
    solo = Solo(*own, term=2)
    new = entries(*sent, start=previous + 1)
    solo.receive(MessageType.APPEND, "b", 2, index=previous, log_term=previous_term, entries=new)
    (answer,) = solo.settle()
    assert (None if answer.reject else answer.index) == match
    assert tuple(e.term for e in solo.storage.log) == terms


def test_a_conflict_below_the_commit_index_is_a_bug_not_a_truncation() -> None:
    solo = Solo(1, 1, term=2, commit=2)
    solo.receive(MessageType.APPEND, "b", 2, index=2, log_term=1)
    with pytest.raises(Internal):
        solo.raft._s.log.extend(0, entries(2), 2)
    solo.receive(MessageType.APPEND, "b", 2, index=0, entries=entries(2, 2))
    assert solo.settle()[-1].index == 2  # answered with the commit index instead


def test_an_ack_waits_for_the_fsync_and_a_heartbeats_answer_does_not() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.APPEND, "b", 2, entries=entries(2))
    solo.receive(MessageType.HEARTBEAT, "b", 2, round=5)
    ready = solo.ready()
    assert [m.type for m in ready.messages] == [MessageType.HEARTBEAT_RESP]
    assert [m.index for m in ready.messages_after_persist] == [1] and ready.must_sync


def test_a_heartbeats_answer_in_a_new_term_waits_until_the_term_is_durable() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.HEARTBEAT, "b", 3, round=5)
    ready = solo.ready()
    assert not ready.messages and len(ready.messages_after_persist) == 1


def test_the_completion_of_an_overwritten_append_is_not_counted() -> None:
    solo = Solo(term=2)
    solo.receive(MessageType.APPEND, "b", 2, entries=entries(2, 2))
    first = solo.ready()
    solo.receive(MessageType.APPEND, "c", 3, entries=entries(3, 3))
    solo.write(first)
    assert solo.raft._s.log.durable_index == 0
    second = solo.ready()
    assert [e.term for e in second.entries] == [3, 3]
    solo.raft.advance(first)  # again: ignored
    assert solo.raft._s.log.durable_index == 0
    solo.write(second)
    assert solo.raft._s.log.durable_index == 2


def test_a_leader_counts_itself_only_after_its_own_fsync() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    index, _ = solo.raft.propose(b"x", solo.now)
    ready = solo.ready()
    assert [m.type for m in ready.messages] == [MessageType.APPEND] * 2  # sent in parallel with the fsync
    solo.ack("b", index)
    assert solo.raft.commit == index - 1
    solo.write(ready)
    assert solo.raft.commit == index


def test_a_leader_tells_what_is_on_its_own_disk_and_no_more() -> None:
    """It is held to it after its next start, so an entry that it sends before its own fsync does not count."""
    solo = Solo(1, 1, term=1)
    solo.become_leader("b", "c")
    index, _ = solo.raft.propose(b"x", solo.now)
    ready = solo.ready()
    assert [m.type for m in ready.messages] == [MessageType.APPEND] * 2
    assert [(m.entries[-1].index, m.hint) for m in ready.messages] == [(index, index - 1)] * 2
    solo.raft.tick(solo.raft.next_deadline())
    assert {(m.type, m.hint) for m in solo.ready().messages} == {(MessageType.HEARTBEAT, index - 1)}
    solo.write(ready)
    solo.ack("b", index)
    told = solo.pass_time(HEARTBEAT / 10)  # who keeps up hears it as soon as it hears of the commit
    assert {(m.to, m.type, m.hint) for m in told} == {(to, MessageType.HEARTBEAT, index) for to in ("b", "c")}


def test_entries_of_older_terms_are_committed_only_by_one_of_the_own_term() -> None:
    solo = Solo(1, 2, term=3)
    solo.become_leader()  # asks b and c
    solo.receive(MessageType.PRE_VOTE_RESP, "b", 4)
    solo.settle()
    solo.receive(MessageType.VOTE_RESP, "b", 4)
    solo.settle()
    assert (solo.raft.role, solo.raft.last_index) == (Role.LEADER, 3)
    solo.ack("b", 2)
    assert solo.raft.commit == 0
    solo.ack("b", 3)
    assert solo.raft.commit == 3


def test_one_append_per_peer_and_ready_however_many_proposals() -> None:
    solo = Solo()
    solo.become_leader("b", "c")
    for _ in range(256):
        solo.raft.propose(b"x", solo.now)
    appends = [m for m in solo.ready().messages if m.type == MessageType.APPEND]
    assert sorted((m.to, len(m.entries)) for m in appends) == [("b", 256), ("c", 256)]


@pytest.mark.parametrize(("proposals", "told"), [(7, []), (8, ["b", "c"])])
def test_many_committed_entries_are_told_at_once_few_with_the_next_append(proposals: int, told: list[str]) -> None:
    """Members apply many entries while the leader does; for a few, one more round of messages would cost more."""
    solo = Solo()
    solo.become_leader("b", "c")
    solo.pass_time(solo.raft.next_deadline() - solo.now)  # what the election left to be told
    for _ in range(proposals):
        solo.raft.propose(b"x", solo.now)
    solo.settle()
    for member in ("b", "c"):
        solo.ack(member, solo.raft.last_index)
    sent = solo.settle()
    assert [m.to for m in sent if m.commit == solo.raft.last_index] == told
    later = solo.pass_time(HEARTBEAT)
    assert [m.to for m in later if m.commit == solo.raft.last_index] == ["b", "c"]


def test_a_heartbeat_never_carries_a_commit_beyond_the_match() -> None:
    solo = Solo()
    solo.become_leader("b")
    solo.raft.report_unreachable("c", solo.now)
    beats = {m.to: m.commit for m in solo.pass_time(0.06) if m.type == MessageType.HEARTBEAT}
    assert beats == {"b": 1, "c": 0}


def test_a_caught_up_or_full_follower_unsticks_when_everything_in_flight_was_lost() -> None:
    cluster = Cluster(3, inflight_messages_max=2, append_bytes_max=1)
    leader = cluster.leader()
    other = next(n for n in cluster.nodes.values() if n is not leader)
    cluster.converge()
    cluster.drop = lambda m: m.to == other.id and m.type == MessageType.APPEND
    for i in range(10):
        cluster.put(b"%d" % i)
    assert leader.core().progress()[other.id].match < leader.core().last_index
    assert leader.core().progress()[other.id].state is ProgressState.REPLICATE
    cluster.heal()
    cluster.converge(1.0)


def test_flow_control_bounds_messages_and_bytes() -> None:
    solo = Solo(inflight_messages_max=3, append_bytes_max=1, inflight_bytes_max=1000)
    solo.become_leader("b", "c")
    for _ in range(10):
        solo.raft.propose(b"0123456789", solo.now)
    sent = [m for m in solo.settle() if m.to == "b" and m.entries]
    assert [len(m.entries) for m in sent] == [1, 1, 1]
    solo.ack("b", sent[0].entries[-1].index)
    assert len([m for m in solo.settle() if m.to == "b" and m.entries]) == 1


def test_of_what_is_read_from_the_disk_one_append_goes_out_until_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is a read on the event loop; of what is in memory, as many go out as fit."""
    solo = Solo(*[1] * 9, term=1, append_bytes_max=2, inflight_messages_max=64)
    solo.become_leader("b", "c")
    on_disk, reads = 8, []
    monkeypatch.setattr(solo.storage, "in_memory_from", lambda: on_disk + 1)
    read = solo.storage.entries
    monkeypatch.setattr(solo.storage, "entries", lambda low, high, size: reads.append(low) or read(low, high, size))
    member = solo.raft._s.progress["b"]
    member.match = 0
    member.become_replicate()
    solo.raft._s.append_wanted = True
    sent: list[int] = []
    while not sent or sent[-1] < 10:
        reads.clear()
        told = [e.index for m in solo.settle() if m.to == "b" for e in m.entries]
        assert sum(low <= on_disk for low in reads) == (len(sent) < on_disk)
        assert told
        sent += told
        solo.ack("b", sent[-1])
    assert sent == list(range(1, 11))


def test_what_the_disk_gives_in_pieces_is_applied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    solo = Solo(*[1] * 9, term=1, commit=9)
    read = solo.storage.entries
    monkeypatch.setattr(solo.storage, "entries", lambda low, high, size: read(low, min(high, low + 4), size))
    pages = []
    while page := [entry.index for entry in solo.ready().committed]:
        pages.append(page)
        solo.raft.applied_to(page[-1])
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_a_rejection_of_what_was_never_sent_changes_nothing() -> None:
    """A healthy member was sent a snapshot: the leader took it to be beyond the end of its own log."""
    solo = Solo()
    solo.become_leader("b", "c")
    solo.raft.propose(b"x", solo.now)
    solo.settle()
    solo.ack("b", solo.raft.last_index)
    member = solo.raft._s.progress["b"]
    before = (member.state, member.next, member.match)
    assert before == (ProgressState.REPLICATE, 3, 2)
    for index in (3, 1 << 40):
        told = {"index": index, "hint": index, "hint_term": 1, "reject": True}
        solo.receive(MessageType.APPEND_RESP, "b", solo.raft.term, **told)
        assert not solo.raft.ready().snapshot_requests
        assert (member.state, member.next, member.match) == before
    solo.receive(
        MessageType.APPEND_RESP,
        "b",
        solo.raft.term,
        index=2,
        hint=1,
        hint_term=1,
        reject=True,
        round=solo.raft._s.round,
    )
    assert member.state is ProgressState.PROBE


def test_uncommitted_bytes_are_bounded_and_freed() -> None:
    solo = Solo(uncommitted_bytes_max=100)
    solo.become_leader("b")
    index, _ = solo.raft.propose(b"x" * 200, solo.now)  # one is always let in
    with pytest.raises(Overloaded):
        solo.raft.propose(b"y", solo.now)
    solo.settle()
    solo.ack("b", index)
    solo.settle()
    solo.raft.propose(b"y" * 100, solo.now)


def test_committed_entries_come_in_pages_one_at_a_time() -> None:
    solo = Solo(*[1] * 10, term=1, apply_bytes_max=6)
    solo.receive(MessageType.APPEND, "b", 1, index=10, log_term=1, commit=10)
    pages = []
    while solo.raft.has_ready():
        ready = solo.raft.ready()
        if ready.committed:
            pages.append([e.index for e in ready.committed])
            assert not solo.raft.ready().committed
            solo.raft.applied_to(pages[-1][-1])
    assert [i for page in pages for i in page] == list(range(1, 11)) and len(pages) > 3


def test_apply_never_runs_ahead_of_the_own_log() -> None:
    solo = Solo(term=1)
    solo.receive(MessageType.APPEND, "b", 1, entries=entries(1, 1), commit=2)
    ready = solo.ready()
    assert solo.raft.commit == 2 and not ready.committed
    solo.write(ready)
    assert [e.index for e in solo.ready().committed] == [1, 2]


def test_a_follower_refuses_proposals_and_names_the_leader() -> None:
    solo = Solo(term=1)
    solo.receive(MessageType.HEARTBEAT, "b", 1)
    with pytest.raises(NotLeader) as caught:
        solo.raft.propose(b"x", solo.now)
    assert caught.value.details["leader"] == "b"


def test_a_member_that_lost_its_disk_is_brought_up_again() -> None:
    cluster = Cluster(3)
    leader = cluster.leader()
    cluster.put(b"x")
    cluster.converge()
    other = next(n for n in cluster.nodes.values() if n is not leader)
    other.crash()
    other.disk = type(other.disk)(conf=other.disk.conf)
    other.start()
    cluster.put(b"y")
    cluster.converge()


def test_a_leader_sends_many_tiny_entries_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver refuses a message of more entries, so whoever counts bytes alone would send it forever."""
    monkeypatch.setattr(replication, "ENTRIES_MAX", 3)
    solo = Solo()
    solo.become_leader("b", "c")
    for _ in range(10):
        solo.raft.propose(b"", solo.now)
    sent = [m for m in solo.settle() if m.to == "b" and m.entries]
    assert max(len(m.entries) for m in sent) == 3
    assert {e.index for m in sent for e in m.entries} >= set(range(2, 12))
