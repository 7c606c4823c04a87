"""The alert table: each condition holds exactly when its cause is there."""

import msgspec

from needle.base.model import PeerStatus, RaftStatus
from needle.client.alerts import Condition
from needle.client.conditions import NodeView, conditions, lag_of, leader_of


def peer(node: str, lag_ms: float = 0.0, lag_entries: int = 0) -> PeerStatus:
    return PeerStatus(
        id=node,
        address=f"{node}:1",
        match_index=10,
        state="Replicate",
        recently_active=True,
        is_learner=False,
        lag_entries=lag_entries,
        lag_ms=lag_ms,
    )


def view(node: str, state: str = "Follower", term: int = 3, peers: list[PeerStatus] | None = None) -> NodeView:
    status = RaftStatus(
        node_id=node,
        group=1,
        state=state,
        current_term=term,
        leader="a",
        commit_index=10,
        last_applied=10,
        first_index=1,
        last_index=10,
        peers=peers or [],
        voters=["a", "b", "c"],
        learners=[],
        lease_remaining=0.1,
        leader_changes=1,
    )
    return NodeView(node=node, address=f"{node}:1", status=status)


def down(node: str) -> NodeView:
    return NodeView(node=node, address=f"{node}:1", error="connection refused")


def names(found: list[Condition]) -> list[tuple[str, str]]:
    return [(condition.severity, condition.name) for condition in found]


def test_a_healthy_cluster_has_none() -> None:
    assert conditions([view("a", "Leader", peers=[peer("b"), peer("c", lag_ms=999)]), view("b"), view("c")]) == []


def test_no_leader_is_critical() -> None:
    found = conditions([view("a"), view("b"), down("c")])
    assert names(found) == [("critical", "no leader"), ("critical", "node unreachable")]
    assert "2 of 3 nodes answer" in found[0].subject
    assert "c at c:1" in found[1].subject and "connection refused" in found[1].action


def test_who_answers_need_not_be_started() -> None:
    found = conditions([view("a"), down("b"), down("c")])
    assert found[0].action.startswith("start nodes")
    found = conditions([view("a"), view("b"), down("c")])
    assert found[0].name == "no leader" and "start nodes" not in found[0].action and "Election" in found[0].action


def damaged(node: str) -> NodeView:
    whole = view(node)
    assert whole.status is not None
    return msgspec.structs.replace(whole, status=msgspec.structs.replace(whole.status, damage="page 7 is not"))


def test_a_damaged_replica_fetches_its_data_only_where_another_one_may_have_it() -> None:
    found = conditions([damaged("a"), down("b")])
    assert found[0].name == "damaged data" and "from the other replicas" in found[0].action
    alone = conditions([damaged("a")])
    assert [(one.name, one.action) for one in alone] == [
        ("damaged data", "no replica is left to fetch the data from: restore a backup; check the disk"),
        ("no leader", "no replica is left to fetch the data from: restore a backup; check the disk"),
    ]
    assert alone[0].subject == "a: page 7 is not"


def test_an_election_is_a_warning_after_the_critical_ones() -> None:
    found = conditions([view("a"), view("b", "PreCandidate"), view("c", "Candidate")])
    assert names(found) == [("critical", "no leader"), ("warning", "leader election in progress")]
    assert found[1].subject == "b, c"


def test_who_cannot_be_elected_is_not_waited_for() -> None:
    found = conditions([view("a", "PreCandidate"), down("b"), down("c")])
    assert names(found) == [("critical", "no leader"), *[("critical", "node unreachable")] * 2]


def test_a_replica_that_did_not_answer_this_leader_yet_may_lack_nothing() -> None:
    unknown = msgspec.structs.replace(
        peer("b", lag_ms=348_000.0, lag_entries=486), match_index=0, recently_active=False
    )
    lag = conditions([view("a", "Leader", peers=[unknown]), down("b"), view("c")])[-1]
    assert lag.severity == "critical"
    assert lag.subject.startswith("b has not answered since a leads") and "at most 486 entries" in lag.subject


def test_who_is_stopped_in_maintenance_is_behind_on_purpose() -> None:
    """It was a critical alert after ten seconds of any planned work."""
    silent = msgspec.structs.replace(peer("c", lag_ms=348_000.0, lag_entries=486), recently_active=False)
    views = [view("a", "Leader", peers=[peer("b"), silent]), view("b"), down("c")]
    assert names(conditions(views, maintenance=("c",))) == [("warning", "node unreachable")]
    assert ("critical", "replication lag > 10 s") in names(conditions(views))
    slow = msgspec.structs.replace(silent, recently_active=True)
    views = [view("a", "Leader", peers=[peer("b"), slow]), view("b"), view("c")]
    assert names(conditions(views, maintenance=("c",))) == [("critical", "replication lag > 10 s")]


def test_who_is_about_to_leave_is_not_missed_and_a_shard_is_named_if_there_are_several() -> None:
    views = [view("a", "Leader"), view("b"), down("c")]
    assert conditions(views, leaving=("c",)) == []
    assert conditions([view("a"), view("b")], shard=3)[0].subject == "shard 3: 2 of 2 nodes answer"


def test_what_the_leader_cannot_go_on_with_is_said() -> None:
    leader = view("a", "Leader")
    assert leader.status is not None
    told = msgspec.structs.replace(
        leader.status, held_moves=["move 7 waits"], waits_for="d does not answer", unknown_collections=["x@1", "y@2"]
    )
    found = conditions([msgspec.structs.replace(leader, status=told)])
    assert [(one.name, one.subject) for one in found] == [
        ("move of key ranges waits", "move 7 waits"),
        ("replicas not in place", "d does not answer"),
        ("unknown collections", "x@1, y@2"),
    ]


def test_lag_has_two_thresholds() -> None:
    leader = view("a", "Leader", peers=[peer("b", 1000.1, 5), peer("c", 10_000.1, 50)])
    found = conditions([leader, view("b"), view("c")])
    assert names(found) == [("critical", "replication lag > 10 s"), ("warning", "replication lag > 1 s")]
    assert "c is 50 entries, 10.0 s behind" in found[0].subject


def test_a_deposed_leader_does_not_count() -> None:
    old, new = view("a", "Leader", term=3), view("b", "Leader", term=4)
    assert leader_of([old, new]) is new.status
    assert leader_of([old, view("b", term=4)]) is None
    assert leader_of([down("a")]) is None


def test_lag_of_a_node_is_what_the_leader_says() -> None:
    views = [view("a", "Leader", peers=[peer("b", 20.0, 2)]), view("b")]
    assert lag_of("a", views) == (0, 0.0)
    assert lag_of("b", views) == (2, 20.0)
    assert lag_of("z", views) is None
    assert lag_of("b", views[1:]) is None


def test_an_empty_node_lags_by_what_it_says_itself_even_if_the_leader_does_not_know_yet() -> None:
    empty = view("b")
    assert empty.status is not None
    empty = msgspec.structs.replace(empty, status=msgspec.structs.replace(empty.status, last_applied=1))
    assert lag_of("b", [view("a", "Leader", peers=[peer("b")]), empty]) == (9, 0.0)


def test_a_replica_that_does_not_go_on_is_critical_whoever_says_so() -> None:
    lost = view("b", "Lost")
    assert lost.status is not None
    lost = msgspec.structs.replace(lost, status=msgspec.structs.replace(lost.status, lost="its directory is empty"))
    leader = view("a", "Leader", peers=[peer("b"), peer("c")])
    assert names(conditions([leader, lost, view("c")])) == [("critical", "replica lost state")]
    assert leader.status is not None
    told = msgspec.structs.replace(leader, status=msgspec.structs.replace(leader.status, refused={"c": "it forgot"}))
    assert ("critical", "replica lost state") in names(conditions([told, view("b"), view("c")]))


def test_a_worn_collection_is_told_once_by_the_replica_that_is_the_furthest() -> None:
    views = [view("a", "Leader", peers=[peer("b"), peer("c")]), view("b"), view("c")]
    shares = ({"books": 0.51}, {"books": 0.62, "cars": 0.5}, {})
    told = [
        msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, worn=share))
        for one, share in zip(views, shares, strict=True)
        if one.status is not None
    ]
    found = conditions(told, shard=2)
    assert names(found) == [("warning", "collection worn")] * 2
    assert [one.subject for one in found] == [
        "shard 2: books: 62% of its versions",
        "shard 2: cars: 50% of its versions",
    ]
