"""What the nodes of a real cluster publish is what happens in it."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
import urllib.request
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from cluster.processes import ShardedProcesses, healthy
from needle.client import Client
from needle.connecting import system_caller
from needle.local.process_cluster import wait_for
from needle.protocol.catalog_commands import MaintainNode
from needle.server.metrics.row import CLUSTER_LABEL
from needle.server.metrics.table import BACKED_UP, METRICS, TLS
from proof.plain_client import PlainClient

SEARCHES = 7


class Scraped:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.names = {name for name in re.findall(r"^# HELP (\S+)", text, re.M) if not name.endswith("_created")}
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        self.clusters = {sample.labels.pop(CLUSTER_LABEL, "") for sample in samples}
        self._samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}

    def get(self, name: str, **labels: object) -> float | None:
        return self._samples.get((name, frozenset((key, str(value)) for key, value in labels.items())))


async def scrape(processes: ShardedProcesses, node: str) -> Scraped:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://{processes.nodes[node].http}/metrics", timeout=20) as answer:
            text: str = answer.read().decode()
            return text

    return Scraped(await asyncio.to_thread(fetch))


async def test_the_metrics_of_a_sharded_cluster_are_measurements(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        topology = await processes.create(2, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=8)
            rows = np.random.default_rng(1).normal(size=(300, 8)).astype("f4")
            await client.insert_batch(ids=[f"doc-{n}" for n in range(300)], vectors=rows)
            await _documented_and_healthy(processes)
            await _of_one_cluster(processes)
            await _documents_and_leaders(processes, client)
            await _the_catalog_is_a_group_like_shards(processes, client)
            await _searches(processes, rows)

            stopped = topology.shards[0].replicas[2]
            processes.nodes[stopped].signal(signal.SIGSTOP)
            try:
                await _lag_is_seen(processes, client, stopped)
            finally:
                processes.nodes[stopped].signal(signal.SIGCONT)
            await client.exit_maintenance_mode(stopped, timeout=30)
            await wait_for(lambda: _healthy_everywhere(processes), 60, "health on all nodes after the pause")


async def _healthy_everywhere(processes: ShardedProcesses) -> bool:
    return all([(await scrape(processes, node)).get("needle_cluster_healthy") == 1 for node in processes.nodes])


async def _documented_and_healthy(processes: ShardedProcesses) -> None:
    await wait_for(lambda: _healthy_everywhere(processes), 60, "health on all nodes")
    assert (await scrape(processes, "node-2")).names == {
        name for name, row in METRICS.items() if row.only not in (TLS, BACKED_UP)
    }


async def _documents_and_leaders(processes: ShardedProcesses, client: Client) -> None:
    counts = await client.counts()
    assert sum(counts.values()) == 300

    async def led_and_counted() -> bool:
        shards = (await client.health_check(timeout=1.0)).shards
        told = {node: await scrape(processes, node) for node in processes.nodes}
        return all(
            told[node].get("needle_shard_vector_count", shard=shard) == counts[shard]
            and told[node].get("needle_shard_leader", shard=shard, node=node) == (info.leader == node)
            and told[node].get("needle_shard_followers", shard=shard) == (2 if info.leader == node else None)
            for shard, info in shards.items()
            for node in processes.nodes
        )

    await wait_for(led_and_counted, 60, "documents and leaders on /metrics")


async def _the_catalog_is_a_group_like_shards(processes: ShardedProcesses, client: Client) -> None:
    """Its replicas have the series of consensus; and what the cluster says of it, counts missing ones."""

    async def told() -> bool:
        leader = (await client.catalog_status(timeout=1.0)).node_id
        seen = {node: await scrape(processes, node) for node in processes.nodes}
        return all(
            seen[node].get("needle_shard_leader", shard="catalog", node=node) == (leader == node)
            and seen[node].get("needle_shard_followers", shard="catalog") == (2 if leader == node else None)
            and seen[node].get("needle_replicas_waiting", shard="catalog") == (0 if leader == node else None)
            and seen[node].get("needle_shard_missing_replicas", shard="catalog") == 0
            and all(
                seen[node].get(name, shard="catalog") == 0 for name in ("needle_replica_damaged", "needle_replica_lost")
            )
            and seen[node].get("needle_elections_total", shard="catalog", reason="leader_silent") is not None
            and seen[node].get("raft_term", shard="catalog")
            and seen[node].get("needle_documents", shard="catalog") is None
            for node in processes.nodes
        )

    await wait_for(told, 60, "series of the catalog's replicas")


async def _of_one_cluster(processes: ShardedProcesses) -> None:
    """All series of all nodes name the same cluster, not only as people call it."""
    named = {frozenset((await scrape(processes, node)).clusters) for node in processes.nodes}
    ((cluster,),) = named
    assert re.fullmatch("needle-[0-9a-f]{8}", cluster)


async def _searches(processes: ShardedProcesses, rows: np.ndarray) -> None:
    """Through one node: that one counts the fan-out, the leaders count the searches of their shards."""
    names = ("needle_search_fanout_count", "needle_search_merge_time_ms", "needle_search_seconds")
    before = {node: await scrape(processes, node) for node in processes.nodes}
    caller = system_caller("needle")
    begun = time.monotonic()
    try:
        plain = PlainClient(caller, [processes.nodes["node-3"].address], rng=random.Random(1))
        for n in range(SEARCHES):
            assert (await plain.search(rows[n], 3, exact=True))[0].id == f"doc-{n}"
        await plain.insert("one", rows[0])
    finally:
        await caller.close()
    took = time.monotonic() - begun
    after = {node: await scrape(processes, node) for node in processes.nodes}

    def grew(node: str, name: str) -> float:
        return (after[node].get(name) or 0) - (before[node].get(name) or 0)

    fanned = {node: tuple(grew(node, f"{name}_count") for name in names[:2]) for node in processes.nodes}
    assert fanned == {"node-1": (0, 0), "node-2": (0, 0), "node-3": (SEARCHES, SEARCHES)}
    assert grew("node-3", f"{names[0]}_sum") == 2 * SEARCHES
    assert 0 < grew("node-3", f"{names[1]}_sum") < 1000 * took
    assert sum(grew(node, f"{names[2]}_count") for node in processes.nodes) == 2 * SEARCHES
    assert sum(grew(node, "needle_writes_total") for node in processes.nodes) == 2  # the session of its shard, too


async def _lag_is_seen(processes: ShardedProcesses, client: Client, stopped: str) -> None:
    others = [node for node in processes.nodes if node != stopped]
    await client.insert_batch(ids=[f"late-{n}" for n in range(50)], vectors=np.ones((50, 8), "f4"), timeout=20)

    async def late() -> bool:
        health = await client.health_check(timeout=1.0)
        leader = health.shards[0].leader
        if leader in (None, stopped):
            return False
        told = await scrape(processes, str(leader))
        unhealthy = [(await scrape(processes, node)).get("needle_cluster_healthy") == 0 for node in others]
        lag = told.get("needle_replication_lag_ms", shard=0, follower=stopped) or 0.0
        return (
            lag > 500
            and told.get("needle_shard_missing_replicas", shard="catalog") == 1
            and all(unhealthy)
            and told.get("needle_shard_followers", shard=0) == 1
        )

    await wait_for(late, 60, "the paused follower's lag")
    await client.change_catalog(MaintainNode(stopped, on=True), timeout=30)  # planned work pages nobody

    async def left_out() -> bool:
        told = await scrape(processes, str((await client.health_check(timeout=1.0)).shards[0].leader))
        seconds = told.get("raft_replication_lag_seconds", shard=0, follower=stopped) or 0.0
        return seconds > 0.5 and told.get("needle_replication_lag_ms", shard=0, follower=stopped) is None

    await wait_for(left_out, 30, "the lag of a node that is stopped in maintenance being left out")
