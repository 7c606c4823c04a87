"""Health is about the shards that serve."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from catalog.catalog_util import topology
from client.test_conditions import view
from needle.catalog.state import execute
from needle.client.cluster_conditions import of_shards as shard_conditions
from needle.client.cluster_conditions import views
from needle.client.health import LAG_ENTRIES_MAX, ReplicaStatus, judge
from needle.protocol.catalog_commands import (
    AddShard,
    AssignReplicas,
    ConfirmReplicas,
    DrainNode,
    RetireShard,
    StartRebalance,
)
from needle.routing.jobs import RebalanceConfig
from needle.routing.plans import Wish


def test_a_retired_shard_is_not_missed() -> None:
    made, _ = execute(topology(), 2, AddShard(4, ["node-1"]))
    gone, _ = execute(made, 3, RetireShard(4))
    before, after = judge(topology(), []), judge(gone, [])
    assert after == before
    assert sorted(judge(made, []).shards) == [0, 1, 2, 3, 4]


def test_what_is_under_way_is_told() -> None:
    made, _ = execute(topology(), 2, StartRebalance(Wish(), RebalanceConfig()))
    made, _ = execute(made, 3, DrainNode("node-2", True))
    told = " ".join(judge(made, []).warnings)
    assert "rebalance 2 is pending" in told
    assert "node-2 is to be emptied" in told


def test_a_shard_that_was_given_fewer_replicas_than_the_cluster_has_lacks_them() -> None:
    """It served as healthy with two of three, and nobody was told but who had asked for that."""
    now = topology()
    info = now.shards[1]
    assert now.settings is not None and len(info.wanted) == now.settings.replication_factor == 3
    now, _ = execute(now, 2, AssignReplicas(2, list(info.wanted), list(info.wanted[:2])))
    now, _ = execute(now, 3, ConfirmReplicas(2, 2))
    two = now.shards[1].wanted
    replicas = []
    for node in two:
        status = view(node, "Leader" if node == two[0] else "Follower").status
        assert status is not None
        status = msgspec.structs.replace(status, voters=list(two), leader=two[0])
        replicas.append(ReplicaStatus(shard=1, node=node, address="", status=status))
    health = judge(now, replicas)
    assert health.shards[1].missing_replicas == 1 and 1 in health.under_replicated
    assert health.shards[1].state == "healthy"  # all that it has serve: a rolling restart may go on
    assert "shards 1 were given fewer than 3 replicas: `needle rebalance` gives them more" in health.warnings
    told = [one for one in shard_conditions(now, health, replicas, "") if one.subject.startswith("shard 1 ")]
    assert [one.subject for one in told] == ["shard 1 has 2 of 3 replicas"]
    assert "`needle rebalance`" in told[0].action


def test_what_waits_is_told_with_the_reason() -> None:
    made, _ = execute(topology(), 2, StartRebalance(Wish(), RebalanceConfig()))
    assert judge(made, []).waiting == []
    job = made.rebalance
    assert job is not None
    made = msgspec.structs.replace(made, rebalance=msgspec.structs.replace(job, why="no leader of shard 3 answers"))
    status = view("node-1", "Leader").status
    assert status is not None
    waits_for = "node-4 (in maintenance) does not answer, is lost, or is short of memory"
    leader = msgspec.structs.replace(status, waits_for=waits_for)
    found = judge(made, [ReplicaStatus(shard=1, node="node-1", address="", status=leader)]).waiting
    assert found == [
        "rebalance 2: no leader of shard 3 answers",
        "shard 1: node-4 (in maintenance) does not answer, is lost, or is short of memory",
    ]


class Counted(list[ReplicaStatus]):
    """How often somebody goes through all of them."""

    rounds = 0

    def __iter__(self) -> Iterator[ReplicaStatus]:
        self.rounds += 1
        return super().__iter__()


def test_the_replicas_are_gone_through_as_often_for_many_shards_as_for_few() -> None:
    def rounds(shards: int) -> int:
        now = topology()
        for number in range(len(now.shards), shards):
            now, _ = execute(now, number, AddShard(number, ["node-1"]))
        status = view("node-1", "Leader").status
        replicas = Counted(
            ReplicaStatus(shard=number, node="node-1", address="", status=status) for number in range(shards)
        )
        assert len(judge(now, replicas).shards) == shards == len(views(replicas))
        return replicas.rounds

    assert rounds(64) == rounds(8)


def test_a_catalog_on_one_node_of_several_is_told() -> None:
    """It was, where more nodes could hold it; of nodes that were emptied but one, nobody was told."""
    several = topology(nodes=3, factor=1)
    one = msgspec.structs.replace(several, catalog=("node-2",), catalog_leaving=(), catalog_assigned=1)
    told = "not redundant: only node-2 holds the catalog; a lost disk loses the cluster's shape"
    assert told in judge(one, []).warnings
    assert told not in judge(several, []).warnings
    alone = judge(topology(nodes=1, factor=1), []).warnings
    assert not any("catalog" in warning for warning in alone), "its shards are told, and it is all there is"


def test_who_lags_behind_a_leader_that_leaves_is_no_replica_that_was_never_wanted() -> None:
    """Health knew that it is missing, and the condition said that `needle rebalance` would give the shard more."""
    now = topology()
    wanted, leaving = now.shards[0].wanted, next(one for one in now.addresses() if one not in now.shards[0].wanted)
    info = msgspec.structs.replace(now.shards[0], replicas=(*wanted, leaving), leaving=(leaving,))
    now = msgspec.structs.replace(now, shards=(info, *now.shards[1:]))
    replicas = []
    for node in (*wanted, leaving):
        status = view(node, "Leader" if node == leaving else "Follower").status
        assert status is not None
        applied = 0 if node == wanted[2] else 10 * LAG_ENTRIES_MAX
        status = msgspec.structs.replace(
            status, voters=[*wanted, leaving], leader=leaving, commit_index=10 * LAG_ENTRIES_MAX, last_applied=applied
        )
        replicas.append(ReplicaStatus(shard=0, node=node, address="", status=status))
    health = judge(now, replicas)
    assert health.shards[0].missing_replicas == 1
    told = [one.action for one in shard_conditions(now, health, replicas, now.addresses()) if "shard 0" in one.subject]
    assert told and all("bring its nodes back" in one and "if so few are meant" not in one for one in told)
