"""Plans under the strategy `range`, where shards are cut at ids that are known, and none is added that stays empty."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.planning.planned_world import MIB, World, cluster, info
from needle.base.model import RaftStatus
from needle.catalog.planning.heat import calls_of
from needle.catalog.planning.planner import plan
from needle.client.measuring import _sizes
from needle.routing.planned_moves import FoundShard, MoveRange
from needle.routing.plans import ShardSplit, Wish
from needle.routing.stats import ClusterStats, ShardStats
from needle.routing.strategy import ShardStrategy
from needle.server.known_parts import parts_of

RANGE = ShardStrategy(kind="range")
WHERE = "under the strategy range ids are given away, and none is known at which more could be cut"


def by_ids(shards: int, count: int, size: int = MIB) -> World:
    """All ids begin with the same letter, so at first one shard holds them all."""
    topology = cluster(shards, 1, [info(n) for n in range(1, 5)], RANGE)
    return World(topology, [(f"user-{n:05d}".encode(), size) for n in range(count)])


def known(made: World, parts: int = 64) -> None:
    """What the leaders would tell of where ids lie."""
    assert made.topology.map is not None
    made.edges = []
    keys = [key.decode() for key, _ in made.documents]
    told = [part for one in made.topology.serving for part in parts_of(keys, 1, made.topology.map.ranges(one.shard))]
    made.edges = sorted({part[0] for part in told if part[0]})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.sampled_from([0, 1, 2, 3, 10, 200, 1000]), st.integers(1, 3))
def test_shards_are_added_as_far_as_there_are_ids_to_cut_at(shards: int, count: int, more: int) -> None:
    made = by_ids(shards, count)
    wish = Wish(shards=shards + more)
    told: tuple[str, ...] = ()
    for _ in range(5):
        known(made)
        one = plan(made.topology, made.stats(), wish)
        told = one.unmet
        if not one.moves:
            break
        made.run(one.moves)
    else:
        raise AssertionError("it does not end")
    assert made.topology.map is not None
    serving = {one.shard for one in made.topology.serving}
    assert serving <= set(made.topology.map.owners), "a shard is empty"
    assert bool(told) == (len(serving) < shards + more)
    assert len(serving) >= min(shards + more, count)
    sizes = made.sizes()
    if count >= 200:
        assert not told
        assert max(sizes.values()) < 1.25 * sum(sizes.values()) / len(sizes) + MIB


def test_where_nothing_is_known_no_shard_is_added_and_it_says_why() -> None:
    made = by_ids(1, 1)
    one = plan(made.topology, made.stats(), Wish(shards=3))
    assert one.moves == ()
    assert one.unmet == tuple(f"shard {n} cannot be added: {WHERE}" for n in (1, 2))


def test_a_shard_whose_documents_are_gone_before_they_came_is_not_called_done() -> None:
    made = by_ids(1, 1000)
    known(made)
    first = plan(made.topology, made.stats(), Wish(shards=2))
    assert isinstance(first.moves[0], FoundShard)
    made.run(first.moves[:1])
    made.documents, made.edges = [], []
    assert plan(made.topology, made.stats(), Wish(shards=2)).unmet == (f"shard 1 owns nothing: {WHERE}",)
    assert plan(made.topology, made.stats()).unmet == ()  # nobody wished for it now


def test_a_shard_is_split_at_an_id() -> None:
    made = by_ids(2, 1000)
    known(made)
    full = max(made.sizes(), key=lambda shard: made.sizes()[shard])
    made.run(plan(made.topology, made.stats(), Wish(split=ShardSplit(shard=full, into=2))).moves)
    assert made.sizes()[2] == pytest.approx(500 * MIB, rel=0.05)


def test_calls_go_to_the_ids_that_are_in_the_range() -> None:
    made = by_ids(1, 1000)
    known(made)
    stats = ClusterStats(shards=(ShardStats(shard=0, writes=100.0),))
    made.calls = calls_of(made.topology, stats)
    first = plan(made.topology, made.stats(), Wish(heat=1.0, shards=2))
    assert sum(move.documents for move in first.moves if isinstance(move, MoveRange)) == pytest.approx(500, rel=0.1)


def test_parts_share_what_the_shard_holds_now() -> None:
    status = RaftStatus(
        node_id="n", group=1, state="Leader", current_term=1, leader="n", commit_index=1, last_applied=1, first_index=1,
        last_index=1, peers=[], voters=["n"], learners=[], lease_remaining=0.0, leader_changes=0, documents=1001,
        live_bytes=5000, parts=[(b"", b"b", 300), (b"b", b"m", 300), (b"m", None, 300)],
    )  # fmt: skip
    found = _sizes(0, status)
    assert [part.documents for part in found.ranges] == [333, 334, 334]
    assert sum(part.bytes for part in found.ranges) == 5000
    status = msgspec.structs.replace(status, parts=[(b"", b"b", 0), (b"b", None, 0)])
    assert _sizes(0, status).ranges == (), "it was empty when they were looked for"
