"""One shard is split, or one replica moved, by name: that moves, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from catalog.planning.planned_world import MIB, World, cluster, info, join, world
from catalog.planning.test_planner import carried_out
from needle.base.errors import InvalidArgument, NeedleError
from needle.catalog.planning.planner import plan
from needle.catalog.state import execute
from needle.protocol.catalog_commands import AddShard, DrainNode, RegisterNode, StartRebalance, ZoneNode, decode, encode
from needle.routing.jobs import RebalanceConfig
from needle.routing.planned_moves import FoundShard, MoveRange, MoveReplicas
from needle.routing.plans import Plan, ReplicaMove, ShardSplit, Wish
from needle.routing.strategy import CONSISTENT_HASH, HASH, RANGE, ShardStrategy, parse_strategy
from needle.routing.topology import Topology


def split(shard: int, into: int) -> Wish:
    return Wish(split=ShardSplit(shard=shard, into=into))


def move(shard: int, source: int, target: int) -> Wish:
    return Wish(move=ReplicaMove(shard=shard, source=f"node-{source}", target=f"node-{target}"))


def uneven(made: World) -> World:
    """Two nodes more, one to be emptied: a rebalance would have much to do."""
    join(made, info(7), info(8))
    made.topology = execute(made.topology, 900, DrainNode("node-6", True))[0]
    assert len(plan(made.topology, made.stats()).moves) >= 2
    return made


@pytest.mark.parametrize("strategy", [CONSISTENT_HASH, HASH, parse_strategy("strategy", "custom:tenant")])
@pytest.mark.parametrize("documents", [1200, 0])
def test_half_of_a_shard_goes_to_a_new_one_and_nothing_else_moves(strategy: ShardStrategy, documents: int) -> None:
    made = uneven(world(documents=documents, strategy=strategy))
    before, holders = made.sizes(), {one.shard: one.replicas for one in made.topology.serving}
    assert made.topology.map is not None
    owned = {shard: made.topology.map.ranges(shard) for shard in (0, 1, 3)}
    first = carried_out(made, split(2, 4))
    assert isinstance(first.moves[0], FoundShard)
    assert all(isinstance(one, MoveRange) and (one.source, one.target) == (2, 4) for one in first.moves[1:])
    assert first.ratio < 1.1
    after = made.sizes()
    assert abs(after[4] - before[2] / 2) <= 0.05 * before[2]
    assert {shard: made.topology.map.ranges(shard) for shard in (0, 1, 3)} == owned
    assert {one.shard: one.replicas for one in made.topology.serving if one.shard != 4} == holders
    assert len(made.topology.shards[4].replicas) == 3 and "node-6" not in made.topology.shards[4].replicas


def test_a_split_shard_is_split_again() -> None:
    made = world(shards=1, nodes=3)
    for into in (1, 2, 3):
        carried_out(made, split(0, into))
    total, sizes = sum(made.sizes().values()), made.sizes()
    assert [round(8 * sizes[shard] / total) for shard in range(4)] == [1, 4, 2, 1]


def test_a_split_of_which_nothing_is_left_to_take_is_not_done() -> None:
    """The new shard was added, and then what should have gone to it was deleted: it owns nothing."""
    made = World(cluster(2, 1, [info(1), info(2)], RANGE), [(b"user-1", 4 * MIB), (b"user-2", 4 * MIB)])
    assert made.topology.map is not None
    made.topology = execute(made.topology, 901, AddShard(2, ["node-1"]))[0]
    made.documents.clear()
    left = plan(made.topology, made.stats(), split(1, 2))
    assert left.moves == () and "nothing of shard 1 can go to another one" in left.unmet[0]


def test_ids_that_nobody_knows_are_not_cut() -> None:
    ids = [f"user-{n:05d}".encode() for n in range(1000)]
    made = World(cluster(2, 1, [info(1), info(2)], RANGE), [(key, 4 * MIB) for key in ids])
    first = plan(made.topology, made.stats(), split(1, 2))
    assert first.moves == ()
    assert first.unmet == (
        "nothing of shard 1 can go to another one: under the strategy range it is not known where its ids could be cut",
    )
    made.edges = ids[::20]
    heavy = max(made.sizes(), key=lambda shard: made.sizes()[shard])
    carried_out(made, split(heavy, 2))
    assert abs(made.sizes()[2] - 2000 * MIB) < 200 * MIB


def test_one_replica_goes_to_another_node_and_nothing_else_moves() -> None:
    made = uneven(world())
    before = [one.replicas for one in made.topology.serving]
    source = before[1][0]
    first = carried_out(made, move(1, int(source[-1]), 7))
    assert [type(one) for one in first.moves] == [MoveReplicas]
    assert first.bytes == made.sizes()[1]
    assert first.ratio == 1
    assert made.topology.shards[1].replicas == ("node-7", *before[1][1:])
    assert [one.replicas for one in made.topology.serving if one.shard != 1] == [*before[:1], *before[2:]]


def test_a_replica_of_a_dead_node_is_moved_and_none_to_a_dead_one() -> None:
    made = world(nodes=4, shards=1)
    held = made.topology.shards[0].replicas
    (spare,) = {f"node-{n}" for n in range(1, 5)} - set(held)
    wish = move(0, int(held[1][-1]), int(spare[-1]))
    made.dead = {spare}
    assert plan(made.topology, made.stats(), wish).unmet == (f"{spare} does not answer",)
    assert plan(made.topology, made.stats(), wish).moves == ()
    made.dead = {held[1]}
    carried_out(made, wish)
    assert set(made.topology.shards[0].replicas) == {*held, spare} - {held[1]}


def test_no_replica_is_moved_where_it_has_no_room_or_shares_a_zone() -> None:
    made = world(shards=1, nodes=3)
    join(made, info(4, "rack-1"), info(5, "rack-5"), *(info(n, f"rack-{n}") for n in (1, 2, 3)))
    held = made.topology.shards[0].replicas
    shared = plan(made.topology, made.stats(), move(0, 2, 4))
    assert shared.moves == ()
    assert "node-4 is in a zone with another replica, while zone rack-" in shared.unmet[0]
    assert plan(made.topology, made.stats(), move(0, 1, 4)).unmet == ()  # it takes the place of the one there
    made.capacity = {"node-5": 100 * MIB}
    full = plan(made.topology, made.stats(), move(0, 2, 5))
    assert full.moves == () and "node-5 has no room for" in full.unmet[0]
    assert made.topology.shards[0].replicas == held


def refused(now: Topology, wish: Wish, made: World) -> str:
    with pytest.raises(InvalidArgument) as caught:
        plan(now, made.stats(), wish)
    return caught.value.message


def test_what_cannot_be_meant_is_refused() -> None:
    made = world(nodes=4, shards=2)
    now = made.topology
    held = now.shards[0].replicas
    (spare,) = {f"node-{n}" for n in range(1, 5)} - set(held)
    there, away = int(held[0][-1]), int(spare[-1])
    assert "one of 0, 1" in refused(now, split(7, 2), made)
    assert "the next number, 2" in refused(now, split(0, 3), made)
    assert "one of 0, 1" in refused(now, move(7, there, away), made)
    assert "a node of this cluster" in refused(now, move(0, 9, away), made)
    assert "a node that holds shard 0: " in refused(now, move(0, away, away), made)
    assert "does not hold shard 0" in refused(now, move(0, there, int(held[1][-1])), made)
    assert plan(now, made.stats(), move(0, away, there)).moves == ()  # it is there
    drained = execute(now, 900, DrainNode(spare, True))[0]
    assert "is to be emptied" in refused(drained, move(0, there, away), made)
    for more in ({"shards": 3}, {"retire": (1,)}, {"drain": (spare,)}, {"replicas": 2}, {"zones": {spare: "z"}}):
        assert "one of them alone" in refused(now, msgspec.structs.replace(split(0, 2), **more), made)
    both = msgspec.structs.replace(split(0, 2), move=move(0, there, away).move)
    assert "one of them alone" in refused(now, both, made)


def test_a_split_is_into_a_shard_that_is_not_there_when_it_is_decided() -> None:
    now = world(nodes=3).topology
    started = execute(now, 900, decode(encode(StartRebalance(split(0, 4), RebalanceConfig()))))
    assert started[0].rebalance is not None and started[0].rebalance.wish == split(0, 4)
    late = execute(now, 900, StartRebalance(split(0, 3), RebalanceConfig()))[1]
    assert isinstance(late, NeedleError) and "the next number, 4" in late.message


# --- zones -----------------------------------------------------------------------------------------------------------
def test_a_zone_that_was_said_counts_until_the_nodes_own_does_again() -> None:
    now = world(nodes=3).topology
    said = execute(now, 900, decode(encode(ZoneNode("node-2", "rack-9"))))[0]
    again = execute(said, 901, RegisterNode(info(2, "rack-2")))[0]
    known = again.node("node-2")
    assert known is not None and (known.zone, known.zoned) == ("rack-9", True)
    own = execute(execute(again, 902, ZoneNode("node-2", None))[0], 903, RegisterNode(info(2, "rack-2")))[0]
    known = own.node("node-2")
    assert known is not None and (known.zone, known.zoned) == ("rack-2", False)
    assert execute(own, 904, ZoneNode("node-2", None))[0] is own
    for node, zone, why in (("node-9", "z", "a node of this cluster"), ("node-1", "z" * 300, "at most 256")):
        unchanged, error = execute(now, 905, ZoneNode(node, zone))
        assert unchanged is now and isinstance(error, NeedleError) and why in error.message


def test_after_zones_were_said_replicas_are_in_different_ones() -> None:
    made = world(nodes=6)
    for n in range(1, 7):
        made.topology = execute(made.topology, 900 + n, ZoneNode(f"node-{n}", f"rack-{n % 3}"))[0]
    dry: Plan = carried_out(made)
    assert dry.unmet == ()
    for one in made.topology.serving:
        assert len({int(node[-1]) % 3 for node in one.replicas}) == 3
