"""The operations guide's tables on real nodes: each row of "Alerting Rules" holds under its fault with the guide's
severity, and no condition before and after; `health_check()` and `/metrics` say what "Health Checks" and "Key Metrics"
show.

"Cluster Topology" is held in tests/cluster/test_guide_topology.py, "Cluster Sizing" in tests/client/test_sizing.py,
"Network Configuration" in tests/cli/test_doctor.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from needle import Client
from needle.client.health import ClusterHealth
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

Fault = Callable[[ProcessCluster, Client], Awaitable[None]]
VECTOR = [1.0] * 8
MINE, THEIRS = 3000, 1200
"""Documents of the two shards: one holds 43 % more than the mean."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    sharding = {"shards": 2, "replicas": 3, "strategy": "range", "boundaries": ["m"]}
    async with ProcessCluster(module_path, linked=True, sharding=sharding) as made:
        yield made


async def follower(cluster: ProcessCluster, client: Client) -> str:
    """A node that leads neither shard 0 nor the catalog: the others go on without it."""
    leaders = {await client.leader(0), await client.catalog_leader()}
    return next(name for name in cluster.nodes if name not in leaders)


# --- faults ----------------------------------------------------------------------------------------------------------
async def nobody_hears_the_others(cluster: ProcessCluster, client: Client) -> None:
    for link in cluster.links.values():
        link.cut()


async def two_are_killed(cluster: ProcessCluster, client: Client) -> None:
    cluster.kill("node-2", "node-3")


async def one_is_killed(cluster: ProcessCluster, client: Client) -> None:
    cluster.kill("node-3")


async def one_stands_still(cluster: ProcessCluster, client: Client) -> None:
    cluster.pause(await follower(cluster, client))
    await client.insert("a", VECTOR, timeout=60)


async def one_shard_has_more(cluster: ProcessCluster, client: Client) -> None:
    for first, count in (("a", MINE), ("z", THEIRS)):
        for begin in range(0, count, 300):
            ids = [f"{first}{n}" for n in range(begin, begin + 300)]
            await client.insert_batch(ids=ids, vectors=[VECTOR] * 300, timeout=60)


class Row(NamedTuple):
    """condition, severity: as the guide has them. fault: what causes it. where: part of the subject."""

    condition: str
    severity: str
    alert: str
    fault: Fault
    where: str


ROWS = (
    Row("Leader election in progress", "Warning", "NeedleElection", nobody_hears_the_others, "shard "),
    Row("Shard has no leader", "Critical", "NeedleShardNoLeader", two_are_killed, "1 of 3 nodes answer"),
    Row("Replication lag > 1s", "Warning", "NeedleReplicationLag", one_stands_still, "shard 0: "),
    Row("Replication lag > 10s", "Critical", "NeedleReplicationLagLong", one_stands_still, "shard 0: "),
    Row("Shard imbalance > 20%", "Warning", "NeedleShardsUneven", one_shard_has_more, "shard 0 has 3000 documents"),
    Row("Node unreachable", "Critical", "NeedleNodeUnreachable", one_is_killed, "node-3 at "),
)


async def heal(cluster: ProcessCluster, client: Client) -> None:
    cluster.heal()
    for name, node in cluster.nodes.items():
        if node.running():
            cluster.resume(name)
        else:
            cluster.restart(name)
    await cluster.ready()

    async def emptied() -> bool:
        await client.delete_where({}, timeout=60)
        return await client.count() == 0

    await wait_for(emptied, 90, "no documents")


async def well(client: Client) -> ClusterHealth:
    """Waits until no condition holds."""

    async def look() -> ClusterHealth | None:
        seen = await client.health_check()
        return seen if seen.healthy and not seen.conditions else None

    found: ClusterHealth = await wait_for(look, 90, "a cluster without conditions")
    return found


async def published(cluster: ProcessCluster, line: str) -> None:
    """A node publishes this sample."""

    async def scraped() -> bool:
        texts = [await cluster.http(name, "/metrics") for name, node in cluster.nodes.items() if node.running()]
        return any(line in of_one_cluster(text).splitlines() for _, text in texts)

    await wait_for(scraped, 60, line)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.condition)
async def test_a_row_of_the_alert_table_holds_under_its_fault_and_only_then(cluster: ProcessCluster, row: Row) -> None:
    async with cluster.connect() as client:
        await well(client)
        await published(cluster, "needle_cluster_healthy 1.0")
        try:
            await row.fault(cluster, client)

            async def told() -> str:
                seen = await client.health_check(timeout=1.0)
                found = (one for one in seen.conditions if one.alert == row.alert and row.where in one.subject)
                return next((one.severity for one in found), "")

            assert await wait_for(told, 90, row.alert) == row.severity.lower()
            if row.fault is not one_shard_has_more:
                await published(cluster, "needle_cluster_healthy 0.0")
        finally:
            await heal(cluster, client)
        await well(client)


async def test_the_health_check_says_what_the_guide_prints(cluster: ProcessCluster) -> None:
    async with cluster.connect() as client:
        health = await well(client)
        for number, status in health.shards.items():
            assert (status.state, status.leader) == ("healthy", await client.leader(number))
            assert (status.healthy_followers, status.total_followers) == (2, 2)
            await published(cluster, f'needle_shard_followers{{shard="{number}"}} 2.0')
            await published(cluster, f'needle_shard_leader{{node="{status.leader}",shard="{number}"}} 1.0')
        assert list(health.shards) == [0, 1]
