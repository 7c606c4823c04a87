"""Health is about the shards that serve."""

from __future__ import annotations

from cluster.catalog_util import topology
from needle.catalog.state import execute
from needle.client.health import judge
from needle.protocol.catalog_commands import AddShard, DrainNode, RetireShard, StartRebalance
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
