"""Rules that bugs planted on purpose (proof.mutants) showed to be unguarded by the other tests."""

from __future__ import annotations

import pytest

from needle.base.errors import CorruptLog
from needle.raft.config import CoreConfig
from needle.raft.messages import ConfState, HardState, MessageType, SnapshotMeta
from needle.raft.raft import Raft, Role
from raft.harness import HEARTBEAT, MemoryStorage, T
from raft.solo import Solo, entries

VOTERS = ConfState(voters=("a", "b", "c"))


def test_an_older_snapshot_does_not_move_the_commit_index_back() -> None:
    solo = Solo(1, 1, 1, term=1, commit=3)
    solo.receive(MessageType.SNAPSHOT, "b", 1, snapshot=SnapshotMeta(2, 1, VOTERS))
    (answer,) = solo.settle()
    assert (solo.raft.commit, answer.index) == (3, 3)


@pytest.mark.parametrize("applied", [3, 8])
def test_a_state_that_the_log_does_not_continue_is_refused_at_start(applied: int) -> None:
    storage = MemoryStorage()
    storage.reset(5, 1)
    storage.write(entries(1, 1, start=6))
    with pytest.raises(CorruptLog):
        Raft(
            CoreConfig(node_id="a", election_timeout=T, heartbeat_interval=HEARTBEAT),
            storage,
            hard_state=HardState(1, "", 6),
            conf=VOTERS,
            applied=applied,
            now=0.0,
            random_timeout=lambda: 0.5,
        )


def test_an_acknowledgement_covers_what_the_append_showed_to_match_and_no_more() -> None:
    solo = Solo(1, 2, 2, term=3)
    solo.receive(MessageType.APPEND, "b", 3, index=1, log_term=1, commit=9)
    (answer,) = solo.settle()
    assert (answer.index, answer.reject, solo.raft.commit) == (1, False, 1)


def test_a_candidate_that_everybody_refuses_does_not_lead() -> None:
    solo = Solo(1, term=1)
    solo.pass_time(1.6 * T)
    for voter in ("b", "c"):
        solo.receive(MessageType.PRE_VOTE_RESP, voter, 2)
    solo.settle()
    assert solo.raft.role is Role.CANDIDATE
    for voter in ("b", "c"):
        solo.receive(MessageType.VOTE_RESP, voter, 2, reject=True)
    solo.settle()
    assert solo.raft.role is Role.FOLLOWER
