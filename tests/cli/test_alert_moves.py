"""Sections of docs/alerts.md on what the cluster has decided and cannot do now, and on nodes that are no cluster yet;
otherwise as test_alert_runbooks.py."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness.alert_page import Alerts
from harness.calm import CALM
from harness.commands import Run
from needle.local.process_cluster import ProcessCluster

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
    pytest.mark.runbook,
]

VECTOR = [1.0] * 8
HOLDERS = {"0": "node-1 node-2 node-3", "1": "node-2 node-3 node-4", "catalog": "node-1 node-2 node-3"}
"""So with node-3 and node-4 down the catalog goes on, and shard 0, but not shard 1."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    ranges = {"shards": 2, "replicas": 3, "strategy": "range", "boundaries": ["m"]}
    async with ProcessCluster(module_path, 4, sharding=ranges, **CALM) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def page(cluster: ProcessCluster, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Alerts:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    page = Alerts(cluster, tmp_path, run)
    await page.until()
    for held, nodes in HOLDERS.items():
        await page.line(f"needle shard replicas {held} {nodes}")
    await page.until()
    return page


async def back(cluster: ProcessCluster, *names: str) -> None:
    for name in names:
        cluster.restart(name)
    await cluster.ready(*names)


async def test_replicas_whose_nodes_do_not_answer(page: Alerts, cluster: ProcessCluster) -> None:
    cluster.kill("node-3", "node-4")
    await page.line("needle shard replicas 0 node-1 node-3 node-4 --timeout 1", None)
    told = await page.until("NeedleReplicasNotInPlace")
    assert "shard 0: " in told["NeedleReplicasNotInPlace"], told
    await page.command_of("NeedleReplicasNotInPlace", "needle status", expect=None)
    await back(cluster, "node-3", "node-4")
    await page.until()
    await page.line("needle shard replicas 0 node-1 node-3 node-4")  # as it was decided: it went on by itself
    async with cluster.connect() as client:
        assert set(client.topology().shards[0].replicas) == {"node-1", "node-3", "node-4"}


async def test_files_that_nobody_may_need_any_more(page: Alerts, cluster: ProcessCluster) -> None:
    cluster.kill("node-2")
    await page.line("needle shard replicas 0 node-1 node-3 node-4")
    cluster.kill("node-4", "node-3")
    cluster.restart("node-2")
    told = await page.until("NeedleFilesNotDeleted")
    assert "node-2 holds shard 0 no more" in told["NeedleFilesNotDeleted"], told
    files = cluster.nodes["node-2"].data_dir / "shards" / "0"
    assert files.exists()
    await page.command_of("NeedleFilesNotDeleted", "needle status", expect=None)
    await back(cluster, "node-3", "node-4")
    await page.until()
    assert not files.exists()


async def test_nodes_that_are_no_cluster_and_a_move_that_documents_are_in_the_way_of(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under custom routing an id under two values of the field is two documents, as long as it is in two shards."""
    one = ProcessCluster(tmp_path / "nodes", 1, sharding={})
    (tmp_path / "nodes").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", one.cluster)
    page = Alerts(one, tmp_path, run)
    async with one:
        await page.until("NeedleNoCluster")
        said = f"--shards 2 --replicas 1 --strategy custom:tenant --dimensions 8 node-1={one.addresses['node-1']}"
        await page.command_of("NeedleNoCluster", "needle cluster create", said)
        await page.until()
        async with one.connect() as client:
            for n in range(20):
                await client.insert("same", VECTOR, {"tenant": f"t{n}"}, timeout=60)
            assert await client.count() == 2, "one in each shard"
            await page.line("needle shard remove 1 --no-wait")
            assert "same" in (await page.until("NeedleMoveWaits"))["NeedleMoveWaits"]
            assert await page.metric("node-1", "needle_rebalance_waits") == 1, "the rule fires, too"
            assert "same" in await page.command_of("NeedleMoveWaits", "needle rebalance --status", expect=None)
            await page.command_of("NeedleMoveWaits", "needle rebalance --cancel", expect=None)
            await page.until()
            assert await client.count() == 2
