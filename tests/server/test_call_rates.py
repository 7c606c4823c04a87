"""Calls a second of a shard, and of its keys: counted whole, in bounded memory."""

from __future__ import annotations

import pytest

from catalog.catalog_util import topology
from needle.protocol.calls import QUERIES_MAX
from needle.protocol.commands import Delete
from needle.routing.key_space import KeySpace
from needle.routing.ranges import KeySet
from needle.routing.shard_map import ShardMap
from needle.routing.strategy import CONSISTENT_HASH, HASH, RANGE, ShardStrategy, routing_key
from needle.server.call_rates import HOT_MAX, SAMPLES, CallRates, Rate


def map_of(strategy: ShardStrategy) -> ShardMap:
    made = topology(shards=2, factor=1, nodes=1, strategy=strategy).map
    assert made is not None
    return made


def test_a_rate_is_of_the_last_half_minute() -> None:
    rate = Rate()
    assert rate.per_second(5.0) == 0
    for second in range(1000, 1060):
        rate.note(second, 10)
        assert 9 <= rate.per_second(second + 0.999) <= 12
    assert 0 < rate.per_second(1075) < 7
    assert rate.per_second(1100) == 0
    rate.note(1e6, 3)
    assert rate.per_second(1e6) <= 3


@pytest.mark.parametrize("strategy", [CONSISTENT_HASH, HASH, RANGE])
def test_keys_that_everybody_writes_are_the_hottest(strategy: ShardStrategy) -> None:
    shard_map, calls = map_of(strategy), CallRates()
    hot, now = "m-everybody", 0.0
    owner = shard_map.owner(routing_key(strategy, 2, hot))
    cold = [f"m{n:05}" for n in range(4000) if shard_map.owner(routing_key(strategy, 2, f"m{n:05}")) == owner]
    for n in range(4000):
        now += 0.01
        name = hot if n % 10 < 8 else cold[n % len(cold)]
        calls.wrote(now, shard_map, Delete("c", [name]))
        calls.read(now, shard_map, [name])
        if n % 2:
            calls.searched(now)
    key = routing_key(strategy, 2, hot)
    owned = shard_map.ranges(shard_map.owner(key))
    found = calls.sampled(now).hot(shard_map, owned)
    assert len(found) <= HOT_MAX
    hottest = max(found, key=lambda one: one[2])
    assert key in KeySet([(hottest[0], hottest[1])])
    assert 60 < hottest[2] < 110
    assert 60 < hottest[3] < 170
    assert sum(one[2] for one in found) == pytest.approx(calls.writes(now), rel=0.3)
    assert calls.writes(now) == pytest.approx(100, rel=0.25)
    assert calls.searches(now) == pytest.approx(150, rel=0.25)
    if strategy != RANGE:
        assert KeySpace(shard_map).share([(hottest[0], hottest[1])]) < 0.05
    assert calls._writes.samples.maxlen == SAMPLES // 2


def test_a_shard_that_is_only_searched_has_its_keys_called_evenly() -> None:
    shard_map, calls = map_of(CONSISTENT_HASH), CallRates()
    for n in range(100):
        calls.searched(n / 10)
    found = calls.sampled(10.0).hot(shard_map, shard_map.ranges(0))
    assert len(found) == HOT_MAX
    assert all(writes == 0 and searches > 0 for _, _, writes, searches in found)
    assert calls.sampled(10.0).hot(shard_map, []) == []
    assert calls.writes(10.0) == 0


def test_a_call_counts_for_no_more_than_it_can_be() -> None:
    calls = CallRates()
    for count in (-(10**9), 2**63 - 1):
        calls.searched(1.0, count)
    assert calls.searches(2.0) == 1 + QUERIES_MAX


def test_custom_keys_are_not_told_apart() -> None:
    shard_map, calls = map_of(ShardStrategy.custom("tenant")), CallRates()
    for n in range(100):
        calls.wrote(n / 10, shard_map, Delete("c", ["a"]))
    assert calls.writes(10.0) == pytest.approx(10, rel=0.2)
    assert calls.sampled(10.0).hot(shard_map, shard_map.ranges(0)) == []
