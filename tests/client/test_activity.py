"""What `needle top` counts, by looks made up; of real nodes: tests/cli/test_top.py."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.catalog_util import topology
from client.test_conditions import view
from needle.client.activity import Activity, Look, activity, quantile
from needle.client.cluster_conditions import Seen
from needle.client.health import ReplicaStatus, judge
from needle.protocol.probe_calls import Facts, LoadAnswer
from needle.routing.stats import ClusterStats, summarize

INF = float("inf")
BOUNDS = (0.001, 0.01, 0.1, INF)


def load(node: str, at: float, counts: tuple[int, ...] = (0, 0, 0, 0), life: int = 1, cpu: float = 0.0) -> LoadAnswer:
    calls = {"shard_search": list(zip(BOUNDS, map(float, counts), strict=True)), "topology": [(INF, 99.0)]}
    return LoadAnswer(node, at, life, Facts(cpu_seconds=cpu, cpus=2, resident=10**8), calls, errors=at)


def looked(*loads: LoadAnswer) -> Look:
    now = topology(shards=1, nodes=3)
    replicas = []
    for node in now.shards[0].replicas:
        status = view(node, "Leader" if node == "node-1" else "Follower").status
        assert status is not None
        status = msgspec.structs.replace(status, leader="node-1", voters=list(now.shards[0].replicas))
        replicas.append(ReplicaStatus(shard=0, node=node, address="", status=status))
    seen = Seen(health=judge(now, replicas), replicas=replicas, told={})
    stats = summarize(now, ClusterStats())
    return Look(topology=now, seen=seen, stats=stats, loads={one.node_id: one for one in loads}, progress=None)


def now(first: Look, last: Look) -> Activity:
    return activity(last, first)


def test_rates_are_of_the_time_between_by_each_nodes_clock() -> None:
    found = now(
        looked(load("node-1", 100.0, (5, 5, 5, 5)), load("node-2", 7.0)),
        looked(load("node-1", 102.0, (5, 15, 25, 25), cpu=1.0), load("node-2", 8.0, (0, 3, 3, 3))),
    )
    (search,) = found.calls
    assert (search.kind, search.rate) == ("search", 20 / 2 + 3 / 1)
    assert search.p50 == pytest.approx(0.001 + 0.009 * 11.5 / 13)
    assert search.p99 is not None and 0.01 < search.p99 <= 0.1
    by_name = {one.node: one for one in found.nodes}
    assert (by_name["node-1"].calls, by_name["node-1"].cpu) == (10.0, 0.5)
    assert by_name["node-3"].calls is None and not by_name["node-3"].answers
    assert found.errors == 2.0, "one a second of each"


def test_a_node_that_was_started_anew_has_no_rate_and_not_one_below_zero() -> None:
    found = now(looked(load("node-1", 100.0, (5, 5, 5, 5))), looked(load("node-1", 3.0, (1, 1, 1, 1), life=2)))
    assert found.calls == [] and found.errors is None
    assert found.nodes[0].answers and found.nodes[0].calls is None and found.nodes[0].cpu is None


def test_the_first_look_knows_no_rates() -> None:
    found = activity(looked(load("node-1", 1.0)), None)
    assert found.calls == [] and found.nodes[0].calls is None
    assert [(one.shard, one.leader, one.healthy, one.replicas) for one in found.shards] == [(0, "node-1", 3, 3)]


def test_nothing_called_has_no_latency() -> None:
    (search,) = now(looked(load("node-1", 1.0)), looked(load("node-1", 2.0))).calls
    assert (search.rate, search.p50, search.p99) == (0.0, None, None)


@given(st.lists(st.floats(0, 0.099), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_in_the_bucket_of_the_true_one(times: list[float], share: float) -> None:
    buckets: dict[float, float] = {bound: float(sum(time <= bound for time in times)) for bound in BOUNDS}
    found: Any = quantile(buckets, share)
    true = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = max([0.0, *(bound for bound in BOUNDS if bound < upper)])
    assert lower <= found <= upper * (1 + 1e-9)


def test_what_took_longer_than_all_bounds_counts_as_the_last_one() -> None:
    assert quantile({0.1: 0.0, INF: 5.0}, 0.5) == 0.1
    assert quantile({}, 0.5) is None
