"""Ring, strategies and shard map: properties of consistent hashing, and routing that never changes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.routing.ring import SPACE, Ring
from needle.routing.shard_map import ShardMap, initial_map, uncovered
from needle.routing.strategy import CONSISTENT_HASH, HASH, RANGE, ShardStrategy, key_hash, register, routing_key

VECTORS = json.loads((Path(__file__).parent / "routing_vectors.json").read_text())


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['strategy']}-{case['id'][:12]}")
def test_routing_keys_and_owners_never_change(case: dict[str, object]) -> None:
    named = {"consistent_hash": CONSISTENT_HASH, "hash": HASH, "range": RANGE}
    strategy = named.get(str(case["strategy"])) or ShardStrategy.custom("region", "tenant")
    key = routing_key(strategy, 8, str(case["id"]), case["metadata"])
    assert key.hex() == case["key"]
    assert initial_map(strategy, 8).owner(key) == case["shard"]


@given(st.sampled_from([CONSISTENT_HASH, HASH, RANGE]), st.lists(st.text(max_size=40)), st.integers(1, 9))
def test_many_ids_have_the_owners_of_each(strategy: ShardStrategy, ids: list[str], shards: int) -> None:
    now = initial_map(strategy, shards)
    assert now.owners_of(ids) == [now.owner(routing_key(strategy, shards, one)) for one in ids]


@given(st.integers(1, 20), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_adding_a_shard_moves_keys_only_to_it(shards: int, virtual_nodes: int) -> None:
    before, after = Ring(range(shards), virtual_nodes), Ring(range(shards + 1), virtual_nodes)
    for n in range(500):
        hashed = key_hash(f"key-{n}")
        assert after.owner(hashed) in (before.owner(hashed), shards)


@given(st.integers(1, 31))
@settings(max_examples=31, deadline=None)
def test_adding_a_shard_moves_about_its_fair_share(shards: int) -> None:
    fair = 1 / (shards + 1)
    assert Ring(range(shards + 1)).shares()[shards] <= fair * 1.35


@given(st.integers(2, 64))
@settings(max_examples=63, deadline=None)
def test_balance_at_100_virtual_nodes_is_within_the_published_bound(shards: int) -> None:
    shares = Ring(range(shards), 100).shares()
    assert max(shares.values()) * shards <= 1.35
    assert min(shares.values()) * shards >= 0.65


@given(st.integers(1, 12), st.integers(1, 50), st.lists(st.integers(0, SPACE - 1), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_arcs_cover_the_space_and_agree_with_owner(shards: int, virtual_nodes: int, hashes: list[int]) -> None:
    ring = Ring(range(shards), virtual_nodes)
    arcs = ring.arcs()
    assert arcs[0][0] == 0
    assert arcs[-1][1] == SPACE
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in itertools.pairwise(arcs))
    built = initial_map(CONSISTENT_HASH, shards, virtual_nodes)
    edges = [low for low, _, _ in arcs] + [high - 1 for _, high, _ in arcs]
    for hashed in hashes + edges:
        arc_owner = next(shard for low, high, shard in arcs if low <= hashed < high)
        assert arc_owner == ring.owner(hashed) == built.owner(hashed.to_bytes(8, "big"))


def test_hash_strategy_is_the_hash_modulo_the_shard_count() -> None:
    built = initial_map(HASH, 7)
    for n in range(1000):
        assert built.owner(routing_key(HASH, 7, f"id-{n}")) == key_hash(f"id-{n}") % 7


def test_range_strategy_keeps_neighbouring_ids_together() -> None:
    built = initial_map(RANGE, 3, boundaries=["g", "p"])
    owners = {name: built.owner(routing_key(RANGE, 3, name)) for name in ("apple", "fig", "g", "kiwi", "p", "pear")}
    assert owners == {"apple": 0, "fig": 0, "g": 1, "kiwi": 1, "p": 2, "pear": 2}
    with pytest.raises(InvalidArgument, match="boundaries"):
        initial_map(RANGE, 3, boundaries=["g"])


def test_custom_strategy_routes_by_field_by_composite_key_and_by_callable() -> None:
    strategy = ShardStrategy.custom("region")
    keys = {routing_key(strategy, 4, f"id-{n}", {"region": "us-east"}) for n in range(20)}
    assert len(keys) == 1
    with pytest.raises(InvalidArgument, match="shard key"):
        routing_key(strategy, 4, "id", {"other": 1})
    by_prefix = register("test-prefix", lambda name, _: name.split("/")[0])
    prefix = ShardStrategy.custom(by_prefix)
    assert routing_key(prefix, 4, "a/1") == routing_key(prefix, 4, "a/2") != routing_key(prefix, 4, "b/1")
    with pytest.raises(InvalidArgument, match="registered"):
        ShardStrategy.custom(lambda name, metadata: name)


_key = st.binary(max_size=3)


@given(st.integers(1, 6), st.lists(st.tuples(_key, _key, st.integers(0, 9)), max_size=8), st.lists(_key, max_size=20))
@settings(max_examples=150, deadline=None)
def test_moving_ranges_keeps_one_owner_a_key(
    shards: int, moves: list[tuple[bytes, bytes, int]], keys: list[bytes]
) -> None:
    built: ShardMap = initial_map(RANGE, shards)
    expected = {key: built.owner(key) for key in keys}
    for low, high, shard in moves:
        end = high if high > low else None
        built = built.with_owner((low, end), shard)
        built.check_invariants()
        expected.update({key: shard for key in keys if key >= low and (end is None or key < end)})
    assert {key: built.owner(key) for key in keys} == expected
    assert uncovered(r for shard in set(built.owners) for r in built.ranges(shard)) == []
    for shard, count in Counter(built.owners).items():
        assert len(built.ranges(shard)) == count


@given(st.lists(st.tuples(_key, _key), max_size=6), st.lists(_key, max_size=20))
@settings(max_examples=150, deadline=None)
def test_uncovered_names_exactly_the_missing_keys(pairs: list[tuple[bytes, bytes]], keys: list[bytes]) -> None:
    ranges = [(low, high if high > low else None) for low, high in pairs]
    gaps = uncovered(ranges)
    for key in keys:
        inside = any(low <= key and (high is None or key < high) for low, high in ranges)
        missing = any(low <= key and (high is None or key < high) for low, high in gaps)
        assert inside != missing


def test_documents_that_an_equality_filter_finds_together_have_one_custom_key() -> None:
    strategy = ShardStrategy.custom("tenant.id")

    def key(tenant: object) -> bytes:
        return routing_key(strategy, 4, "id", {"tenant": tenant})

    assert key({"id": 7}) == key({"id": 7.0}) == key({"id": [7]}) == key([{"id": 7}])
    assert len({key({"id": value}) for value in (1, True, "1", None, 1.5, 2**63, -1e30)}) == 7
    for unusable in ({}, {"id": []}, {"id": [1, 2]}, {"id": {"deeper": 1}}, "text"):
        with pytest.raises(InvalidArgument, match="shard key"):
            key(unusable)


def test_a_ring_that_no_node_could_make_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match="at most 128 for 4096 shards"):
        initial_map(CONSISTENT_HASH, 4096, 10_000)
    assert len(initial_map(CONSISTENT_HASH, 52, 10_000).starts) > 500_000
