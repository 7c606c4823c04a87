"""Plans by calls a second: legal at each step, even by what was wished to count, and empty when made again."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.planning.planned_world import MIB, World, world
from catalog.planning.test_any_plan import clusters
from needle.catalog.planning.heat import calls_of, warmed
from needle.catalog.planning.planner import plan
from needle.routing.key_space import KeySpace
from needle.routing.planned_moves import MoveRange, MoveReplicas, PreferLeader
from needle.routing.plans import Wish
from needle.routing.ranges import intersection
from needle.routing.shard_map import KeyRange
from needle.routing.stats import ClusterStats, RangeStats, summarize


def called(made: World, rates: dict[int, tuple[float, float]], hot: dict[int, list[RangeStats]]) -> ClusterStats:
    """As measured: writes and searches of shards, and of some of their ranges."""
    stats = made.stats()
    shards = [
        msgspec.structs.replace(
            one,
            writes=rates[one.shard][0],
            searches=rates[one.shard][1],
            ranges=tuple(sorted(hot.get(one.shard, []), key=lambda part: part.span)),
        )
        for one in stats.shards
    ]
    return msgspec.structs.replace(stats, shards=tuple(shards))


@st.composite
def hot_worlds(draw: st.DrawFn) -> tuple[World, ClusterStats]:
    """Any cluster, of which some ranges are called a lot."""
    made = draw(clusters())
    rate = st.floats(0, 1000, allow_nan=False)
    rates = {one.shard: (draw(rate), draw(rate)) for one in made.topology.serving}
    assert made.topology.map is not None
    hot: dict[int, list[RangeStats]] = {}
    for shard in rates:
        owned = made.topology.map.ranges(shard)
        for at in draw(st.sets(st.integers(0, len(owned) - 1), max_size=4)):
            part = RangeStats(span=owned[at], documents=0, bytes=0, writes=draw(rate), searches=draw(rate))
            hot.setdefault(shard, []).append(part)
    return made, called(made, rates, hot)


def calls_in(space: KeySpace, calls: tuple[RangeStats, ...], spans: list[KeyRange]) -> float:
    """Calls a second of some keys, if those of each range lie evenly over it."""
    total = 0.0
    for one in calls:
        inside = intersection([one.span], spans)
        total += one.heat * sum(map(space.length, inside)) / max(1, space.length(one.span))
    return total


def weights(made: World, heat: float) -> list[float]:
    """What each shard weighs, where calls count so much."""
    assert made.topology.map is not None
    space, sizes = KeySpace(made.topology.map), summarize(made.topology, made.stats()).shard_sizes
    total = sum(size.bytes for size in sizes.values()) + 256 * MIB
    calls = {shard: calls_in(space, made.calls, made.topology.map.ranges(shard)) for shard in sizes}
    everywhere = sum(calls.values())
    return [
        (1 - heat) * (size.bytes + size.share * 256 * MIB)
        + (heat * total * calls[shard] / everywhere if everywhere else 0)
        for shard, size in sizes.items()
    ]


@settings(max_examples=100, deadline=None)
@given(hot_worlds())
def test_calls_are_told_of_all_keys_once_and_no_call_is_lost(given_world: tuple[World, ClusterStats]) -> None:
    made, stats = given_world
    assert made.topology.map is not None
    space, calls = KeySpace(made.topology.map), calls_of(made.topology, stats)
    assert all(one.span[1] is not None and one.span[1] <= other.span[0] for one, other in pairwise(calls))
    for one in stats.shards:
        counted = max(one.writes, sum(part.writes for part in one.ranges))
        counted += max(one.searches, sum(part.searches for part in one.ranges))
        owned = made.topology.map.ranges(one.shard)
        if len(one.ranges) < len(owned):  # else there is no key that the rest could be told of
            assert calls_in(space, calls, owned) == pytest.approx(counted)
        parts = [RangeStats(span=span, documents=70, bytes=1001) for span in owned]
        warm = warmed(space, parts, calls)
        assert sum(part.heat for part in warm) == pytest.approx(calls_in(space, calls, owned))
        assert sum(part.bytes for part in warm) == 1001 * len(owned)
        assert sum(part.documents for part in warm) == 70 * len(owned)


def hottest(made: World) -> float:
    """What the most called document weighs: it cannot be cut."""
    calls = sum(one.heat for one in made.calls)
    total = sum(made.sizes().values()) + 256 * MIB
    return max(
        (total * one.heat / calls / max(1, made.inside(one.span)[0]) for one in made.calls if calls), default=0.0
    )


@settings(max_examples=100, deadline=None)
@given(hot_worlds(), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 2))
def test_any_plan_by_calls_is_legal_evens_them_out_and_is_the_last(
    given_world: tuple[World, ClusterStats], heat: float, more: int
) -> None:
    made, stats = given_world
    made.calls = calls_of(made.topology, stats)
    wish = Wish(heat=heat, shards=len(made.topology.serving) + more)
    for _ in range(5):  # documents are where they are, not evenly over the keys: later plans mend what was estimated
        made_now = plan(made.topology, made.stats(), wish)
        if not made_now.moves:
            break
        made.run(made_now.moves)
    else:
        raise AssertionError(f"it does not end: {made_now.in_words()}")
    found, step = weights(made, heat), max((size for _, size in made.documents), default=0)
    mean = sum(found) / len(found)
    assert max(found) <= 1.21 * mean + 8 * step + 2 * heat * hottest(made), (found, mean)


def test_where_nothing_is_called_sizes_count() -> None:
    made = world(shards=2, nodes=3)
    first = plan(made.topology, made.stats(), Wish(heat=1.0, shards=3))
    made.run(first.moves)
    assert min(made.sizes().values()) > 0


def test_calls_that_one_shard_gets_go_to_the_others_as_well() -> None:
    made = world(shards=4, nodes=4, factor=1)
    made.calls = calls_of(made.topology, called(made, {n: (1000.0 if n == 0 else 10.0, 0.0) for n in range(4)}, {}))
    assert plan(made.topology, made.stats()).moves == ()  # nobody wished that they count
    first = plan(made.topology, made.stats(), Wish(heat=1.0))
    assert {move.source for move in first.moves if isinstance(move, MoveRange)} == {0}
    made.run(first.moves)
    assert max(weights(made, 1.0)) < 1.1 * sum(weights(made, 1.0)) / 4
    assert plan(made.topology, made.stats(), Wish(heat=1.0)).moves == ()


def test_a_shard_that_cannot_be_cut_leaves_its_node_to_itself() -> None:
    """Replicas are spread by calls, too."""
    made = world(shards=4, nodes=2, factor=1)
    rates = {n: (400.0 if n == 0 else 200.0 if n == 2 else 1.0, 0.0) for n in range(4)}
    made.calls = calls_of(made.topology, called(made, rates, {}))
    home = {one.shard: one.replicas[0] for one in made.topology.serving}
    assert home[0] == home[2]
    first = plan(made.topology, made.stats(), Wish(heat=1.0, range_threshold=1000.0))
    assert [move for move in first.moves if isinstance(move, MoveReplicas)]
    made.run(first.moves)
    after = {one.shard: one.replicas[0] for one in made.topology.serving}
    assert after[0] != after[2]


def test_leaders_are_evened_out_by_calls_where_these_count() -> None:
    made = world(shards=4, nodes=2, factor=2)
    rates = {n: (300.0 if n == 0 else 100.0, 0.0) for n in range(4)}
    made.calls = calls_of(made.topology, called(made, rates, {}))
    assert sorted(Counter(one.replicas[0] for one in made.topology.serving).values()) == [2, 2]
    assert plan(made.topology, made.stats()).moves == ()
    wish = Wish(heat=1.0, range_threshold=1000.0)
    first = plan(made.topology, made.stats(), wish)
    assert {type(move) for move in first.moves} == {PreferLeader}
    made.run(first.moves)
    leader = {one.shard: one.replicas[0] for one in made.topology.serving}
    assert {shard for shard, node in leader.items() if node == leader[0]} == {0}
    assert plan(made.topology, made.stats(), wish).moves == ()
