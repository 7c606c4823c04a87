"""The replication factor of a cluster: set as a whole with its rebalance, or not at all, and judged by from then on."""

from __future__ import annotations

import msgspec
import pytest

from catalog.catalog_util import topology
from client.test_replacing import Catalog, at_version
from needle.base.errors import ClusterTooOld, InvalidArgument, Unavailable
from needle.catalog.planning.planner import plan
from needle.client.everywhere import raise_factor
from needle.client.health import judge
from needle.client.replication import not_replicated
from needle.protocol.catalog_commands import (
    EMPTIES,
    AskRebalance,
    AssignReplicas,
    ConfirmReplicas,
    DrainNode,
    SetReplication,
    StartRebalance,
    WeighNode,
)
from needle.routing.jobs import RebalanceConfig
from needle.routing.planned_moves import MoveReplicas
from needle.routing.plans import Wish
from needle.routing.stats import ClusterStats, NodeStats, ShardStats
from needle.routing.topology import Topology


def made(shards: int = 2, factor: int = 3, nodes: int = 6) -> Catalog:
    return Catalog(at_version(topology(shards, factor, nodes)))


def planned(now: Topology, wish: Wish | None = None) -> list[MoveReplicas]:
    nodes = tuple(NodeStats(node=info.id, alive=True, free=1 << 40) for info in now.nodes)
    shards = tuple(ShardStats(shard=info.shard, documents=10, bytes=1000) for info in now.serving)
    found = plan(now, ClusterStats(nodes=nodes, shards=shards), wish)
    assert not found.unmet
    return [move for move in found.moves if isinstance(move, MoveReplicas) and move.group]


def carried_out(catalog: Catalog) -> None:
    """All that a plan has to move now, as the cluster would; then there is nothing left."""
    for move in planned(catalog.now):
        catalog.tell(AssignReplicas(move.group, list(move.before), list(move.after)))
        catalog.tell(ConfirmReplicas(move.group, catalog.now.version))
    assert planned(catalog.now) == []


async def test_replicas_are_added_and_taken_away_and_health_judges_by_the_new_number() -> None:
    catalog = made()
    client = catalog.client()
    assert catalog.now.replication_factor == 3
    for number, told in ((5, True), (4, False), (2, False), (3, True)):
        expected = await client.plan_replication_factor(number)
        id_ = await client.set_replication_factor(number)
        assert catalog.now.replication_factor == number and catalog.now.rebalance is not None
        assert (catalog.now.rebalance.id, catalog.now.rebalance.wish) == (id_, Wish(replicas=number))
        assert len(catalog.done) == 1 and isinstance(catalog.done.pop(), StartRebalance)  # both by one entry
        assert planned(catalog.now) == [m for m in expected.moves if isinstance(m, MoveReplicas) and m.group]
        assert bool(judge(catalog.now, []).shards[0].missing_replicas - len(catalog.now.shards[0].wanted)) is told
        carried_out(catalog)
        assert {len(info.wanted) for info in catalog.now.serving} == {number}
        catalog.tell(AskRebalance(id_, "cancel"))


async def test_a_cluster_made_smaller_on_purpose_is_told_its_new_number_and_nothing_moves() -> None:
    catalog = made(shards=1, factor=3, nodes=3)
    catalog.tell(AssignReplicas(1, ["node-1", "node-2", "node-3"], ["node-1", "node-2"]))
    catalog.tell(ConfirmReplicas(1, catalog.now.version))
    catalog.tell(AssignReplicas(0, ["node-1", "node-2", "node-3"], ["node-1", "node-2"]))
    catalog.tell(ConfirmReplicas(0, catalog.now.version))
    catalog.tell(DrainNode("node-3", True))
    warnings = judge(catalog.now, []).warnings
    assert any("`needle cluster replication-factor 2`" in one for one in warnings)
    assert await catalog.client().set_replication_factor(2) is None
    assert [type(one) for one in catalog.done] == [SetReplication] and catalog.now.rebalance is None
    health = judge(catalog.now, [])
    assert health.shards[0].missing_replicas == 2  # nobody answers here; nothing is missed beyond those
    assert not any("were given fewer" in one for one in health.warnings)
    version = catalog.now.version
    catalog.tell(SetReplication(2))  # it may be repeated
    assert catalog.now.version == version


async def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    catalog = made(nodes=4)
    client, before = catalog.client(), catalog.now
    for wrong, told in ((5, "at most 4, one on each node that takes replicas: node-1"), (8, "1 to 7"), (0, "1")):
        with pytest.raises(InvalidArgument, match=f"replicas = .*{told}"):
            await client.set_replication_factor(wrong)
    for wrong in (5, 0, 8):
        with pytest.raises(InvalidArgument, match="replication_factor = "):  # whoever sends it
            catalog.tell(SetReplication(wrong))
        with pytest.raises(InvalidArgument, match="replication_factor = "):
            catalog.tell(StartRebalance(Wish(), RebalanceConfig(), first=SetReplication(wrong)))
    catalog.silent = {"node-4"}  # it counts, and gets nothing now
    with pytest.raises(Unavailable, match="the replication factor stays 3: shard 0 gets 3 of 4 replicas"):
        await client.set_replication_factor(4)
    assert catalog.now is before
    catalog.tell(StartRebalance(Wish(), RebalanceConfig()))
    with pytest.raises(InvalidArgument, match="is about to begin"):
        await client.set_replication_factor(2)
    assert catalog.now.replication_factor == 3 and not catalog.done


async def test_nodes_that_take_no_replicas_do_not_count() -> None:
    catalog = made(nodes=5)
    catalog.tell(WeighNode("node-5", 0.0))
    catalog.tell(DrainNode("node-4", True))
    with pytest.raises(InvalidArgument, match="at most 3, "):
        await catalog.client().set_replication_factor(4)


async def test_nodes_of_the_release_before_are_asked_nothing_that_they_do_not_know() -> None:
    catalog = Catalog(at_version(topology(2, 3, 5), EMPTIES - 1))
    with pytest.raises(ClusterTooOld):
        await catalog.client().set_replication_factor(5)
    with pytest.raises(ClusterTooOld):
        await catalog.client().plan_replication_factor(5)
    assert not catalog.done


def test_what_an_operator_said_counts_whatever_all_shards_have_by_now() -> None:
    grown = topology(shards=2, factor=1, nodes=3)
    for info in grown.shards:
        after = [*info.wanted, *({"node-1", "node-2", "node-3"} - set(info.wanted))]
        holders = msgspec.structs.replace(grown.holders(info.shard + 1), wanted=tuple(after))  # type: ignore[type-var]
        grown = grown.with_holders(info.shard + 1, holders)  # type: ignore[arg-type]
    assert planned(grown) == []  # it began with one replica, and was given more node by node
    catalog = Catalog(at_version(grown))
    catalog.tell(SetReplication(1))
    assert len(planned(catalog.now)) == 2
    catalog.tell(SetReplication(2))
    carried_out(catalog)
    assert {len(info.wanted) for info in catalog.now.serving} == {2}


def test_a_shard_that_nobody_leads_gets_no_replicas_now_so_the_number_stays() -> None:
    """It was only waited for: the number was set, and the rebalance stayed open."""
    now = made().now
    nodes = tuple(NodeStats(node=info.id, alive=True, free=1 << 40) for info in now.nodes)
    found = plan(now, ClusterStats(nodes=nodes, unknown=(0,)), Wish(replicas=5))
    assert not found.unmet
    assert "no leader of shard 0" in not_replicated(now, 5, found)
    assert not_replicated(now, 2, plan(now, ClusterStats(nodes=nodes, unknown=(0,)), Wish(replicas=2))) == ""


@pytest.mark.parametrize(("draining", "raised"), [(None, 4), ("node-3", 3), ("node-2", 3)])
async def test_a_node_more_for_all_shards_raises_the_number_as_far_as_nodes_take_replicas(
    draining: str | None, raised: int
) -> None:
    """It was refused for the node that is to be emptied, which the dry run did not say."""
    catalog = made(shards=1, nodes=4)
    catalog.tell(SetReplication(3))
    if draining:
        catalog.tell(DrainNode(draining, True))

    class Asking:
        async def refresh_topology(self, *, confirmed: bool, timeout: float) -> Topology:
            return catalog.now

        async def change_catalog(self, command: SetReplication, *, timeout: float) -> None:
            catalog.tell(command)

    await raise_factor(Asking(), [AssignReplicas(1, [], ["node-1", "node-2", "node-3", "node-4"])])  # type: ignore[arg-type]
    assert catalog.now.replication_factor == raised
