"""How many nodes hold the catalog, and which: of a new cluster, and after each plan while nodes come and go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.planning.planned_world import World, cluster, info, join
from needle.catalog.planning.catalog_nodes import catalog_count, catalog_voters
from needle.catalog.planning.planner import plan
from needle.catalog.state import execute
from needle.protocol.catalog_commands import DrainNode, MaintainNode, RemoveNode
from needle.routing.plans import Wish
from needle.routing.replication import catalog_size


def made_of(nodes: int, catalog: int, shards: int = 2, factor: int = 3) -> World:
    return World(cluster(shards, factor, [info(n) for n in range(1, nodes + 1)], catalog=catalog), [])


def carried_out(made: World, wish: Wish) -> tuple[str, ...]:
    """Each step is legal, and a second plan is empty; what was left unmet."""
    made.closed |= {*wish.drain, *wish.lost}
    first = plan(made.topology, made.stats(), wish)
    made.run(first.moves)
    assert plan(made.topology, made.stats(), wish).moves == ()
    return first.unmet


@pytest.mark.parametrize(
    ("nodes", "replicas", "size"),
    [
        *[(1, 1, 1), (1, 3, 1), (2, 1, 1), (2, 2, 2), (2, 3, 2)],
        *[(3, 1, 3), (4, 3, 3), (5, 3, 3), (8, 3, 3), (9, 3, 5), (24, 3, 5), (25, 3, 7), (1000, 3, 7)],
        *[(4, 4, 3), (5, 4, 3), (5, 5, 5), (6, 6, 5), (7, 6, 5), (7, 7, 7), (6, 7, 5)],
    ],
)
def test_how_many_nodes_hold_the_catalog(nodes: int, replicas: int, size: int) -> None:
    assert catalog_size(nodes, replicas) == size


@pytest.mark.parametrize("founders", [4, 5, 6])
@pytest.mark.parametrize("wish", [Wish(drain=("node-1",), balance=False), Wish(lost=("node-1",), balance=False)])
def test_of_any_founders_one_can_go(founders: int, wish: Wish) -> None:
    made = made_of(founders, founders)
    made.dead = set(wish.lost)
    assert carried_out(made, wish) == ()
    assert "node-1" not in made.topology.catalog
    assert len(made.topology.catalog) == (5 if founders == 6 else 3)


@pytest.mark.parametrize("founders", [4, 6, 7])
def test_a_plan_brings_a_catalog_of_any_founders_to_what_the_cluster_needs(founders: int) -> None:
    made = made_of(founders, founders)
    assert carried_out(made, Wish()) == ()
    assert len(made.topology.catalog) == 3


def test_nine_nodes_go_one_by_one_down_to_three() -> None:
    made, sizes = made_of(9, 5), []
    for n in range(1, 7):
        node = f"node-{n}"
        made.topology = execute(made.topology, made.index, DrainNode(node, True))[0]
        made.index += 1
        assert carried_out(made, Wish(drain=(node,), balance=False)) == ()
        made.index += 1
        made.topology = execute(made.topology, made.index, RemoveNode(node))[0]
        assert node not in made.topology.addresses()  # refused while it holds anything
        sizes.append(len(made.topology.catalog))
    assert sizes == [5, 5, 5, 5, 3, 3]


def test_a_rebalance_has_the_catalog_follow_the_number_of_nodes_up_and_down() -> None:
    made = made_of(8, 3)
    join(made, info(9))
    carried_out(made, Wish())
    assert len(made.topology.catalog) == 5
    made.topology = execute(made.topology, made.index, DrainNode("node-9", True))[0]
    made.closed = {"node-9"}
    assert carried_out(made, Wish(balance=False)) == ()
    assert len(made.topology.catalog) == 5  # to empty a node takes no more away than it must
    carried_out(made, Wish())
    assert len(made.topology.catalog) == 3


def test_a_node_that_is_only_silent_keeps_the_catalog() -> None:
    made = made_of(9, 5)
    made.dead = {"node-1"}
    assert carried_out(made, Wish()) == ()
    assert len(made.topology.catalog) == 5 and "node-1" in made.topology.catalog


def test_where_nobody_can_take_the_catalog_now_but_could_later_it_waits() -> None:
    made = made_of(4, 3)
    made.topology = execute(made.topology, made.index, MaintainNode("node-4", True))[0]
    unmet = carried_out(made, Wish(drain=("node-1",), balance=False))
    assert "node-1 keeps its replica of the catalog: no other node can take it" in unmet
    assert made.topology.catalog == ("node-1", "node-2", "node-3")


def test_of_two_nodes_that_stay_both_hold_it_unless_shards_have_one_replica() -> None:
    made = made_of(3, 3, factor=2)
    assert carried_out(made, Wish(drain=("node-3",), balance=False)) == ()
    assert set(made.topology.catalog) == {"node-1", "node-2"}
    made = made_of(2, 2, factor=1)
    carried_out(made, Wish())
    assert len(made.topology.catalog) == 1


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.data())
def test_any_catalog_comes_to_an_odd_number_on_nodes_that_stay(nodes: int, factor: int, data: st.DataObject) -> None:
    """Whoever held it, and whoever goes, as long as a majority answers: no step is illegal (World), nothing is left."""
    factor = min(factor, nodes)
    made = made_of(nodes, data.draw(st.integers(1, min(7, nodes))), factor=factor)
    names = sorted(made.topology.addresses())
    going = data.draw(st.sets(st.sampled_from(names), max_size=nodes - factor))
    lost = data.draw(st.sets(st.sampled_from(sorted(going)))) if going else set()
    held = set(made.topology.catalog)
    made.dead = lost if 2 * len(held & lost) < len(held) else set()
    lost = lost & made.dead
    wish = Wish(drain=tuple(going - lost), lost=tuple(lost), balance=data.draw(st.booleans()))
    unmet = carried_out(made, wish)
    catalog, stay = made.topology.catalog, nodes - len(going)
    if any("no majority answers" in why for why in unmet):  # of a shard
        return
    assert unmet == ()
    assert not set(catalog) & going
    assert len(catalog) % 2 or (len(catalog), stay) == (2, 2)
    assert len(catalog) >= min(3, stay - (stay == 2 and factor == 1))
    if wish.balance:
        assert len(catalog) == catalog_size(stay, factor)


@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 30), st.integers(1, 7), st.booleans())
def test_a_count_is_one_that_stays(now: int, staying: int, able: int, replicas: int, balance: bool) -> None:
    able = min(able, staying)
    count = catalog_count(now, staying=staying, able=max(able, 1), replicas=replicas, balance=balance)
    assert 1 <= count <= max(now, min(staying, 7))
    assert count % 2 or count == 2
    again = catalog_count(count, staying=staying, able=max(able, 1), replicas=replicas, balance=balance)
    assert again == count


def test_a_new_catalog_is_spread_over_zones() -> None:
    zones = ["a", "a", "a", "b", "b", "c"]
    infos = [info(n, zone) for n, zone in enumerate(zones, 1)]
    assert catalog_voters(infos, 3) == ["node-1", "node-4", "node-6"]
    assert catalog_voters(infos, 3, silent={"node-6"}) == ["node-1", "node-2", "node-4"]
    assert catalog_voters(infos, 5) == ["node-1", "node-2", "node-4", "node-5", "node-6"]
    assert catalog_voters(infos[:2], 2) == ["node-1", "node-2"]
    light = [info(1, "a", weight=0.0), *infos[1:]]
    assert "node-1" not in catalog_voters(light, 3)
