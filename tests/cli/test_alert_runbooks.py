"""Sections of docs/alerts.md: each alert is caused on real nodes, `needle status` tells it, the commands that its
section names are run, and it is gone. What troubleshooting.md is the runbook of is in test_troubleshooting.py."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from harness.alert_page import Alerts
from harness.calm import CALM
from harness.commands import Run
from harness.sick import NEARLY_FULL
from needle import backup as backups
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import NoteBackup
from proof.sick_nodes import fall_ill

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
]

HOUR = 3_600_000_000
FULL = NEARLY_FULL.replace("3 * (64 << 20)", "(64 << 20)")
"""Half of what has to stay free."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    async with ProcessCluster(module_path, sharding={"shards": 1, "replicas": 3}, **CALM) as made:
        yield made


@pytest.fixture
def page(cluster: ProcessCluster, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Alerts:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return Alerts(cluster, tmp_path, run)


async def test_backups_that_are_too_old(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    now = int(time.time() * 1e6)
    async with cluster.connect() as client:
        await backups.create(client, backups.open_store(str(tmp_path / "target")))  # the one of 27 hours ago
        await client.forget_backups()
        await client.change_catalog(NoteBackup(now - 27 * HOUR, now - 2 * HOUR))
    await page.until("NeedleBackupTooOld", "NeedleArchiveBehind")
    await page.command_of("NeedleBackupTooOld", "needle backup create", str(tmp_path / "target"))
    assert set(await page.told()) == {"NeedleArchiveBehind"}
    assert (
        "nothing can be restored"
        in await page.command_of("NeedleArchiveBehind", "needle backup list", str(tmp_path / "target"))
        or not (tmp_path / "target" / "archive").exists()
    )
    await page.command_of("NeedleArchiveBehind", "needle backup forget")
    await page.until()


async def test_a_disk_that_fills(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    node = cluster.nodes["node-2"]
    for how, alert in ((NEARLY_FULL, "NeedleDiskNearlyFull"), (FULL, "NeedleDiskFull")):
        fall_ill(node, tmp_path / alert, how)
        await page.line("ssh 10.0.0.2 systemctl restart needle@node-2")
        assert (await page.until(alert))[alert].startswith("node-2: ")
    async with cluster.connect() as client:  # deletes go on, on whatever leads
        await client.delete(["nobody"], timeout=60)
    node.source = None
    await page.line("ssh 10.0.0.2 systemctl restart needle@node-2")
    await page.until()


async def test_a_majority_that_is_down(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    async with cluster.connect() as client:
        leader = str(await client.catalog_leader())
    others = [name for name in cluster.nodes if name != leader]
    cluster.kill(leader, others[0])
    told = await page.until("NeedleShardNoLeader", "NeedleCatalogNoLeader", "NeedleNodeUnreachable")
    assert "1 of 3 nodes answer" in told["NeedleShardNoLeader"]
    said = await page.command_of("NeedleCatalogNoLeader", "needle shard list", expect=None)
    assert all(name in said for name in cluster.nodes), said
    for name in (leader, others[0]):
        cluster.restart(name)
    await page.until()


async def test_a_node_that_is_gone_for_good(
    page: Alerts, cluster: ProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await page.until()
    async with cluster.connect() as client:
        await client.insert("a", [1.0] * 8, timeout=60)
        cluster.kill("node-3")
        told = await page.until("NeedleNodeUnreachable", "NeedleUnderReplicated")
        assert "node-3" in told["NeedleNodeUnreachable"] and "2 of 3 replicas" in told["NeedleUnderReplicated"]
        cluster.restart(cluster.add(sharding={"join": [cluster.addresses["node-1"]]}))
        await wait_for(lambda: cluster.http("node-4", "/livez"), 60, "node-4")

        async def replaced() -> bool:
            await page.command_of("NeedleUnderReplicated", "needle node replace", "node-3 node-4 --timeout 120")
            return True

        await wait_for(replaced, 150, "a node in its place")
        # The address of the node that is gone is still in NEEDLE_CLUSTER.
        told = await page.until("NeedleNotAMember")
        assert told.keys() == {"NeedleNotAMember"}
        rest = [address for name, address in cluster.addresses.items() if name != "node-3"]
        monkeypatch.setenv("NEEDLE_CLUSTER", ",".join(rest))
        await page.until()
        assert await client.count() == 1
