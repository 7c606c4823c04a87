"""Placement: the guide's table, zones, weights, spread leaders, and as few moves as possible."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.catalog.planning.placement import Assignment, Need, PlacementNode, arrange, check_invariants, place


def nodes(count: int, zones: int = 1, first: int = 1) -> list[PlacementNode]:
    return [PlacementNode(id=f"node-{n}", zone=f"z{n % zones}") for n in range(first, first + count)]


def test_twelve_nodes_give_the_guides_table() -> None:
    assert place(4, 3, nodes(12), {}) == {
        0: ("node-1", "node-2", "node-3"),
        1: ("node-4", "node-5", "node-6"),
        2: ("node-7", "node-8", "node-9"),
        3: ("node-10", "node-11", "node-12"),
    }


def test_fewer_nodes_serve_several_shards_with_leaders_spread() -> None:
    placed = place(8, 3, nodes(4), {})
    assert Counter(n for replicas in placed.values() for n in replicas) == {f"node-{n}": 6 for n in range(1, 5)}
    assert Counter(replicas[0] for replicas in placed.values()) == {f"node-{n}": 2 for n in range(1, 5)}


def test_replicas_take_different_zones_while_there_are() -> None:
    placed = place(6, 3, nodes(9, zones=3), {})
    for replicas in placed.values():
        assert len({int(node.split("-")[1]) % 3 for node in replicas}) == 3


def test_a_crowded_zone_is_left_when_another_appears() -> None:
    two = [PlacementNode(id="a", zone="x"), PlacementNode(id="b", zone="x")]
    before = place(1, 2, two, {})
    after = place(1, 2, [*two, PlacementNode(id="c", zone="y")], before)
    assert "c" in after[0]


def test_a_node_of_double_weight_holds_about_twice_as_much() -> None:
    heavy = [PlacementNode(id="big", zone="z0", weight=2.0), *nodes(4)]
    load = Counter(n for replicas in place(12, 2, heavy, {}).values() for n in replicas)
    assert load["big"] == 8
    assert sorted(load.values()) == [4, 4, 4, 4, 8]


def test_leaders_stay_where_they_are_when_that_is_even() -> None:
    before = place(10, 2, nodes(7, zones=3), {})
    dead = {"node-1", "node-2", "node-5", "node-7"}
    known = [PlacementNode(id=n.id, zone=n.zone, usable=n.id not in dead) for n in nodes(7, zones=3)]
    known += nodes(2, zones=3, first=8)
    after = place(10, 2, known, before)
    assert place(10, 2, known, after) == after


def test_a_lost_node_moves_its_own_replicas_and_at_most_one_other_for_balance() -> None:
    all_nodes = nodes(6)
    before = place(8, 3, all_nodes, {})
    without = [PlacementNode(id=n.id, usable=n.id != "node-2") for n in all_nodes]
    after = place(8, 3, without, before)
    lost = sum("node-2" in replicas for replicas in before.values())
    added = sum(len(set(after[shard]) - set(replicas)) for shard, replicas in before.items())
    assert not any("node-2" in replicas for replicas in after.values())
    assert added <= lost + 1


def test_fewer_nodes_than_the_factor_give_one_replica_each() -> None:
    assert {len(replicas) for replicas in place(4, 3, nodes(2), {}).values()} == {2}
    with pytest.raises(InvalidArgument, match="usable"):
        place(1, 1, [PlacementNode(id="n", usable=False)], {})


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 10), st.integers(1, 4), st.integers(0, 4), st.data())
@settings(max_examples=150, deadline=None)
def test_any_change_keeps_the_invariants_and_settles(
    shards: int, factor: int, count: int, zones: int, added: int, data: st.DataObject
) -> None:
    known = nodes(count, zones)
    placed = place(shards, factor, known, {})
    check_invariants(placed, known)
    dead = data.draw(st.sets(st.sampled_from([n.id for n in known]), max_size=count - 1))
    known = [PlacementNode(id=n.id, zone=n.zone, usable=n.id not in dead) for n in known]
    known += nodes(added, zones, first=count + 1)
    again = place(shards, factor, known, placed)
    check_invariants(again, known)
    assert not dead & {node for replicas in again.values() for node in replicas}
    assert _leaders_even(again)
    assert place(shards, factor, known, again) == again


def _leaders_even(placed: Assignment) -> bool:
    """No single hand-over could make two nodes' numbers of leads more even."""
    leads = Counter(replicas[0] for replicas in placed.values())
    return all(leads[r[0]] - leads[other] <= 1 for r in placed.values() for other in r[1:])


def test_where_shards_differ_leaders_are_spread_by_what_they_have_to_do() -> None:
    """A node that leads the one shard that everybody calls leads no other, though that is fewer than the rest lead."""
    held = dict.fromkeys(range(5), ("node-1", "node-2"))
    needs = {shard: Need(replicas=2, lead=lead) for shard, lead in enumerate((100, 30, 25, 25, 20))}
    placed = arrange(needs, nodes(2), held, goal=0.02)
    assert {shard for shard, replicas in placed.items() if replicas[0] == placed[0][0]} == {0}
    assert arrange(needs, nodes(2), placed, goal=0.02) == placed
    a_bit_different = {shard: Need(replicas=2, lead=need.lead + (shard == 1)) for shard, need in needs.items()}
    assert arrange(a_bit_different, nodes(2), placed, goal=0.02) == placed


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.integers(1, 6), st.integers(1, 3), st.data())
@settings(max_examples=150, deadline=None)
def test_leaders_of_any_shards_are_even_and_settle(
    leads: list[int], count: int, factor: int, data: st.DataObject
) -> None:
    known = [PlacementNode(id=f"node-{n}", weight=data.draw(st.sampled_from([0.5, 1, 2]))) for n in range(count)]
    needs = {shard: Need(replicas=factor, lead=lead) for shard, lead in enumerate(leads)}
    goal = data.draw(st.sampled_from([0.0, 0.02]))
    placed = arrange(needs, known, {}, goal=goal)
    load = {node.id: sum(needs[s].lead for s, r in placed.items() if r[0] == node.id) / node.weight for node in known}
    weight = {node.id: node.weight for node in known}
    gain = goal * sum(leads) / sum(weight.values()) + 1e-6
    for shard, replicas in placed.items():
        busy, lead = replicas[0], needs[shard].lead
        for other in replicas[1:]:
            fuller = max(load[busy] - lead / weight[busy], load[other] + lead / weight[other])
            assert fuller >= load[busy] - gain, (placed, load)
    assert arrange(needs, known, placed, goal=goal) == placed


def test_a_node_short_of_memory_gets_nothing_new_keeps_what_it_has_and_may_lead() -> None:
    """Also if it is the emptiest, or the only one in its zone."""
    known = [*nodes(3), PlacementNode(id="node-4", zone="z9", tight=True), *nodes(2, first=5)]
    current = {0: ("node-1", "node-2", "node-3"), 1: ("node-1", "node-2", "node-3"), 2: ("node-4", "node-2", "node-3")}
    needs = {shard: Need(replicas=3, size=10) for shard in range(3)}
    placed = arrange(needs, known, current)
    assert [shard for shard, replicas in placed.items() if "node-4" in replicas] == [2] and placed[2][0] == "node-4"
    assert {"node-5", "node-6"} <= {node for replicas in placed.values() for node in replicas}
    alone = [*nodes(2), PlacementNode(id="node-4", tight=True)]
    only = {0: ("node-1", "node-2")}
    assert set(arrange({0: Need(replicas=3)}, alone, only)[0]) == {"node-1", "node-2"}
