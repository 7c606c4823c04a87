"""Messages that no working peer sends: whatever comes in, nothing raises, and the state stays one that can go on."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.raft.membership import encode_conf
from needle.raft.messages import (
    NUMBER_MAX,
    ConfState,
    DoubtKind,
    Entry,
    HardState,
    Message,
    MessageType,
    SnapshotMeta,
)
from needle.raft.plausible import TERM_JUMP_MAX
from needle.raft.raft import Role
from raft.harness import T
from raft.solo import Solo, entries

NAMES = st.sampled_from(["a", "b", "c", "d", ""])
NUMBERS = st.one_of(
    st.integers(0, 9),
    st.integers(0, 9).map(lambda n: NUMBER_MAX - n),
    st.sampled_from([-1, TERM_JUMP_MAX, NUMBER_MAX + 1, 2**63, 2**64 - 1]),
)
SMALL = st.integers(0, 9)
CONFS = st.builds(ConfState, st.sampled_from([(), ("a",), ("a", "b", "c"), ("d",)]))
DATA = st.one_of(st.binary(max_size=3), CONFS.map(encode_conf))
ENTRIES = st.lists(st.builds(Entry, st.one_of(SMALL, NUMBERS), st.one_of(SMALL, NUMBERS), st.integers(-1, 2), DATA))
RUNS = st.builds(lambda first, terms: entries(*sorted(terms), start=first), SMALL, st.lists(SMALL, max_size=4))
METAS = st.one_of(st.none(), st.builds(SnapshotMeta, NUMBERS, NUMBERS, CONFS))
MESSAGES = st.builds(
    Message,
    st.one_of(st.sampled_from([*map(int, MessageType)]), st.integers(-1, 99)),
    to=NAMES,
    frm=NAMES,
    term=st.one_of(SMALL, SMALL, NUMBERS),
    log_term=st.one_of(SMALL, NUMBERS),
    index=st.one_of(SMALL, NUMBERS),
    commit=st.one_of(SMALL, NUMBERS),
    entries=st.one_of(st.just(()), RUNS, ENTRIES.map(tuple)),
    reject=st.booleans(),
    hint=st.one_of(SMALL, NUMBERS),
    hint_term=st.one_of(SMALL, NUMBERS),
    round=st.one_of(SMALL, NUMBERS),
    force=st.booleans(),
    snapshot=METAS,
)
STEPS = st.lists(st.one_of(MESSAGES, MESSAGES, st.sampled_from(["tick", "lead", "propose", "settle"])), max_size=25)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_no_message_raises_or_leads_into_a_state_that_cannot_be_encoded(steps: list[Message | str]) -> None:
    solo = Solo(1, 1, 2, term=2, commit=2)
    raft = solo.raft
    for step in steps:
        term, commit = raft.term, raft.commit
        if isinstance(step, Message):
            refusal = raft.step(step, solo.now)
            if refusal:
                assert (raft.term, raft.commit) == (term, commit)
        elif step == "tick":
            solo.now += 2 * T
            raft.tick(solo.now)
        elif step == "lead" and raft.role is Role.FOLLOWER:
            solo.become_leader("b")
        elif step == "propose" and raft.role is Role.LEADER:
            raft.propose(b"x", solo.now)
        for message in solo.settle():
            sent = msgspec.msgpack.encode(message)
            assert msgspec.msgpack.decode(sent, type=Message) == message  # within the bounds that a peer checks
        assert raft.term >= term and raft.commit >= commit
        assert raft.applied <= raft.commit <= raft.last_index < NUMBER_MAX + 1
        msgspec.msgpack.decode(msgspec.msgpack.encode(HardState(raft.term, raft.vote, raft.commit)), type=HardState)


def test_a_term_out_of_reach_is_refused_and_the_next_election_works() -> None:
    solo = Solo(1, term=1)
    for term in (2**64 - 1, NUMBER_MAX + 1, NUMBER_MAX, TERM_JUMP_MAX + 2):
        refusal = solo.raft.step(Message(MessageType.APPEND_RESP, to="a", frm="b", term=term), solo.now)
        assert refusal
    assert solo.raft.term == 1
    solo.become_leader("b")
    assert (solo.raft.role, solo.raft.term) == (Role.LEADER, 2)


@pytest.mark.parametrize("kind", [MessageType.HEARTBEAT, MessageType.APPEND])
def test_a_second_leader_of_a_term_is_refused_by_the_leader_and_by_its_followers(kind: MessageType) -> None:
    leader = Solo(1, term=1)
    leader.become_leader("b")
    assert "another leader" in leader.raft.step(Message(kind, to="a", frm="c", term=2), leader.now)
    assert leader.raft.role is Role.LEADER
    follower = Solo(1, term=1)
    follower.receive(MessageType.HEARTBEAT, "b", 2)
    assert "another leader" in follower.raft.step(Message(kind, to="a", frm="c", term=2), follower.now)
    assert follower.raft.leader == "b"


def test_a_leader_believes_no_match_that_it_cannot_vouch_for() -> None:
    solo = Solo(1, term=1)
    solo.become_leader("b")
    last = solo.raft.last_index
    solo.receive(MessageType.APPEND_RESP, "c", 2, index=last + 5, log_term=1)
    doubt = solo.raft.take_doubt()
    assert doubt is not None and (doubt.kind, doubt.peer, doubt.index) == (DoubtKind.UNKNOWN_MATCH, "c", last + 5)
    solo.receive(MessageType.APPEND_RESP, "c", 2, index=last, log_term=1)
    doubt = solo.raft.take_doubt()
    assert doubt is not None and doubt.kind == DoubtKind.UNKNOWN_MATCH
    assert solo.raft.progress()["c"].match == 0
    solo.ack("c", last)
    assert solo.raft.progress()["c"].match == last


def test_a_follower_doubts_a_leader_that_contradicts_what_is_committed_here() -> None:
    solo = Solo(1, 1, 1, term=1, commit=3)
    solo.receive(MessageType.APPEND, "b", 3, index=1, log_term=1, entries=entries(2, start=2))
    doubt = solo.raft.take_doubt()
    assert doubt is not None and (doubt.kind, doubt.index, doubt.term) == (DoubtKind.COMMITTED, 2, 1)
    (answer,) = solo.settle()  # the leader hears what is committed here, and can tell that it lacks it
    assert (answer.index, answer.log_term, answer.reject) == (3, 1, False)
    assert solo.storage.term(2) == 1
    solo.receive(MessageType.APPEND, "b", 3, index=3, log_term=2)
    doubt = solo.raft.take_doubt()
    assert doubt is not None and doubt.kind == DoubtKind.COMMITTED


def test_a_member_that_no_longer_has_what_it_acknowledged_is_doubted() -> None:
    solo = Solo(1, term=1)
    solo.become_leader("b")
    held = solo.raft.progress()["b"].match
    solo.raft.propose(b"x", solo.now)
    solo.settle()
    round_id = max(m.round for m in solo.out)
    solo.receive(MessageType.APPEND_RESP, "b", 2, index=held, reject=True, round=round_id)
    doubt = solo.raft.take_doubt()
    assert doubt is not None and (doubt.kind, doubt.peer, doubt.index) == (DoubtKind.LOST_MATCH, "b", held)


def test_a_follower_on_which_its_leader_counts_for_more_than_it_has_doubts_itself() -> None:
    solo = Solo(1, term=1)
    solo.receive(MessageType.HEARTBEAT, "b", 1, commit=4)
    doubt = solo.raft.take_doubt()
    assert doubt is not None and (doubt.kind, doubt.index) == (DoubtKind.LOST_OWN, 4)
    assert solo.raft.commit < 4


def test_a_retired_replica_says_and_does_nothing_more() -> None:
    solo = Solo(1, term=1)
    solo.become_leader("b")
    solo.raft.read_index(7, solo.now)
    solo.raft.retire(solo.now)
    assert solo.raft.ready().dropped_reads == (7,)
    assert solo.raft.step(Message(MessageType.VOTE, to="a", frm="b", term=9, index=99, log_term=9), solo.now)
    solo.now += 9.0
    solo.raft.tick(solo.now)
    solo.raft.campaign(solo.now)
    assert not solo.raft.has_ready() and solo.raft.role is Role.FOLLOWER and solo.raft.term == 2
