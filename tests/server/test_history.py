"""What is kept of the last hour: moments by their distance, bounded, with the p99 of the calls between two of them."""

from __future__ import annotations

import math

import pytest

from needle.base.model import PeerStatus, RaftStatus
from needle.client.health import ReplicaStatus
from needle.protocol.probe_calls import Facts, LoadAnswer
from needle.server.history import COUNTED_MIN, EVERY_SECONDS, MOMENTS, History


def replica(node: str, shard: int = 0, state: str = "Follower", lag: float = 0.0, **more: object) -> ReplicaStatus:
    peer = PeerStatus(
        id="b", address="b:1", match_index=1, state="Replicate", recently_active=True, is_learner=False, lag_entries=1,
        lag_ms=lag * 1000,
    )  # fmt: skip
    status = RaftStatus(
        node_id=node, group=1, state=state, current_term=1, leader="a", commit_index=5, last_applied=5, first_index=1,
        last_index=5, peers=[peer] if state == "Leader" else [], voters=["a", "b"], learners=[], lease_remaining=0.0,
        leader_changes=1, **more,
    )  # fmt: skip
    return ReplicaStatus(shard=shard, node=node, address=f"{node}:1", status=status)


def test_a_moment_is_of_the_whole_cluster() -> None:
    history = History()
    silent = ReplicaStatus(shard=1, node="c", address="c:1", status=None, error="it does not answer")
    replicas = [
        replica("a", state="Leader", lag=2.5, writes=10.0, documents=7),
        replica("b", searches=4.0, documents=6),
        replica("a", 1),
        silent,
    ]
    history.note(100.0, replicas, {})
    (one,) = history.since(0)
    assert (one.writes, one.searches, one.documents) == (10.0, 4.0, 7), "documents are counted once, by the leader"
    assert (one.lag, one.unled, one.silent) == (2.5, 1, 1)
    assert one.search_p99 is one.write_p99 is None
    history.note(105.0, [silent], {})
    assert history.since(100.0)[0].lag is None, "without a leader nobody can say"


def test_it_is_bounded_and_regular() -> None:
    history = History()
    for n in range(MOMENTS + 10):
        at = n * EVERY_SECONDS
        assert history.due(at)
        history.note(at, [], {})
        assert not history.due(at + EVERY_SECONDS / 2)
    kept = history.since(0)
    assert len(kept) == MOMENTS and kept[-1].at == (MOMENTS + 9) * EVERY_SECONDS
    assert history.since(kept[-2].at) == kept[-1:]


def test_a_clock_that_is_put_back_begins_anew() -> None:
    history = History()
    history.note(1000.0, [], {})
    assert history.due(500.0)
    assert history.since(0) == [], "moments stay ascending"


def load(node: str, at: float, quick: float, all_: float, life: int = 1) -> dict[str, LoadAnswer]:
    counts = [(0.01, quick), (1.0, all_), (math.inf, all_)]
    return {node: LoadAnswer(node, at, life, Facts(), {"shard_search": counts})}


def test_only_calls_since_the_moment_before_count() -> None:
    history = History()
    for n, (quick, all_) in enumerate([(1000, 1000), (1000, 1100), (1000, 1100), (1000 + COUNTED_MIN - 1, 1100)]):
        history.note(5.0 * n, [], load("a", n, quick, all_))
    first, second, third, fourth = [one.search_p99 for one in history.since(-1)]
    assert first is None, "nothing is known of before"
    assert second == pytest.approx(0.99, abs=0.01), "all of them were slow"
    assert third is fourth is None, "too few"


def test_the_p99_is_of_all_nodes_that_go_on() -> None:
    history = History()
    history.note(0.0, [], load("a", 0, 0, 0) | load("b", 0, 0, 0) | load("c", 0, 500, 500))
    history.note(5.0, [], load("a", 1, 990, 990) | load("b", 1, 0, 20) | load("c", 1, 0, 900, life=2))
    found = history.since(0)[0].search_p99
    assert found is not None and 0.3 < found < 0.7, "b's slow ones count, and not those of c, which began again"


def test_no_moment_is_of_later_than_it_was_looked_at() -> None:
    """What a page has not reached yet it does not show."""
    history, at = History(), 1_795_851_237.7748928
    assert history.due(at)
    history.note(at, [], {})
    assert history.since(0.0)[0].at <= history.seen
