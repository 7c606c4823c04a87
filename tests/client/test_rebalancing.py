"""What a cluster holds is asked again while leadership goes from one node to another."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.catalog_util import topology
from cluster.fake_shards import virtually
from needle.base.errors import Unavailable
from needle.client import rebalancing
from needle.client.measuring import Measured
from needle.client.rebalancing import RebalanceMethods
from needle.routing.stats import ClusterStats, ShardStats
from needle.routing.topology import Topology

NOW = topology(shards=1)


class Shards:
    async def confirmed(self, timeout: float) -> Topology:
        return NOW


class Client(RebalanceMethods):
    _caller: Any = None
    _shards: Any = Shards()


@pytest.mark.parametrize(("silent", "known"), [(2, True), (10_000, False)])
def test_a_shard_between_two_leaders_is_asked_again(silent: int, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def measure(caller: Any, now: Topology, timeout: float, *, hot: bool) -> Measured:
        nonlocal asked
        asked += 1
        if asked <= silent:
            return Measured(stats=ClusterStats(), leaders={}, silent=(0,))
        return Measured(stats=ClusterStats(shards=(ShardStats(shard=0, documents=7, bytes=9),)), leaders={})

    monkeypatch.setattr(rebalancing, "measure", measure)

    async def work() -> None:
        if known:
            assert (await Client().get_stats()).shard_sizes[0].documents == 7
        else:
            with pytest.raises(Unavailable, match="what shard 0 holds is not known"):
                await Client().get_stats()

    virtually(work())
    assert asked == 3 if known else 50 < asked < 70
