"""What docs/operations.md says between its blocks of commands: an upgrade, weights and zones, shards that are split, a
rebalance that is held up, a backup by hand. The blocks are run by test_runbooks.py and cluster/test_recover.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import needle
from harness.alert_page import Alerts
from harness.calm import CALM
from harness.commands import Run
from harness.page_commands import between_blocks, chapter
from harness.sick import FORMER_VERSION
from needle.base.versions import KNOWN
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.sick_nodes import fall_ill

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
    pytest.mark.runbook,
]

VECTOR = [1.0] * 8
UPGRADE = "needle rolling-restart "


class Page(Alerts):
    """Runs what the page names."""

    async def says(self, command: str, more: str = "", expect: int | None = 0) -> str:
        """What a command prints that the page names, with what it leaves to the reader."""
        assert command in between_blocks("operations.md"), command
        return await self.line(f"{command} {more}", expect)

    async def well(self) -> None:
        """Waits until `needle status` tells no condition."""
        await self.until()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    """Of nodes of the release before."""
    made = ProcessCluster(module_path, sharding={"shards": 2, "replicas": 3}, **CALM)
    for node in made.nodes.values():
        fall_ill(node, module_path / "former", FORMER_VERSION)
    async with made:
        async with made.connect() as client:
            await client.insert_batch(ids=[f"d{n}" for n in range(300)], vectors=[VECTOR] * 300, timeout=60)
        yield made


@pytest.fixture
def page(cluster: ProcessCluster, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return Page(cluster, tmp_path, run)


async def version(client: needle.Client) -> int:
    return (await client.refresh_topology(confirmed=True, timeout=5)).cluster_version


async def test_an_upgrade(page: Page, cluster: ProcessCluster) -> None:
    await page.well()
    async with cluster.connect() as client:
        assert await version(client) == KNOWN - 1
        cluster.nodes["node-1"].source = None
        await page.line("ssh 10.0.0.1 systemctl restart needle@node-1")
        assert "for the sake of node-2, node-3" in (await page.until("NeedleVersionsDiffer"))["NeedleVersionsDiffer"]
        for node in cluster.nodes.values():
            node.source = None
        assert "versions differ" in await page.says("needle status", expect=None)
        (upgrade,) = (one for one in between_blocks("operations.md") if one.startswith(UPGRADE))
        await page.says(upgrade)
        assert sorted(page.verbs[1:]) == ["restart node-1", "restart node-2", "restart node-3"]

        async def risen() -> bool:
            return await version(client) == KNOWN

        await wait_for(risen, 60, "the version")
        said = await page.says("needle node list")
        assert f"the cluster is at version {KNOWN}" in said, said
        assert await client.count() == 300
    await page.well()


async def test_what_looks_on(page: Page) -> None:
    await page.well()
    assert "shards" in await page.says("needle plan --vectors 50M --dimensions 768 --memory-per-node 32GiB")
    assert "cluster_nodes" in await page.says("needle config schema")
    assert "shard" in await page.says("needle cluster stats")
    assert "node-3" in await page.says("needle top", "--once")
    assert "node-1" in await page.says("needle doctor", "--links", None)


async def test_weights_and_zones(page: Page, cluster: ProcessCluster) -> None:
    await page.well()
    await page.says("needle node weight node-2 2")
    await page.says("needle node zone node-2 rack-2")
    async with cluster.connect() as client:
        topology = await client.refresh_topology(confirmed=True, timeout=5)
        assert [(one.weight, one.zone) for one in topology.nodes if one.id == "node-2"] == [(2.0, "rack-2")]
        assert "weight node-2 own" in chapter("operations.md", "Add, replace and remove nodes")
        await page.line("needle node weight node-2 own")
        await page.line("needle node zone node-2 --own")
        topology = await client.refresh_topology(confirmed=True, timeout=5)
        assert [(one.weight, one.zone) for one in topology.nodes if one.id == "node-2"] == [(1.0, "")]
    await page.well()


async def test_leadership_and_maintenance(page: Page, cluster: ProcessCluster) -> None:
    await page.well()
    async with cluster.connect() as client:
        before = await client.leader(0)
        await page.says("needle step-down", "--shard 0")
        assert await client.leader(0) != before
    await page.line("needle maintenance enter node-2")
    assert "node-2" in await page.says("needle maintenance status")
    await page.says("needle maintenance exit", "node-2")
    await page.well()


async def test_shards_that_are_split_and_removed_and_a_rebalance_that_is_held_up(
    page: Page, cluster: ProcessCluster
) -> None:
    await page.well()
    async with cluster.connect() as client:
        await page.says("needle shard split 0")
        await page.well()
        assert len(client.topology().serving) >= 2 and await client.count() == 300
        await page.says("needle shard remove 2")
        await page.well()
        assert await client.count() == 300
    assert "`--resume` and `--cancel`" in chapter("operations.md", "Add, replace and remove nodes")
    await page.says("needle rebalance")
    await page.line("needle shard add --no-wait --batch 1 --throttle 1")
    await page.says("needle rebalance --pause")
    assert "paused" in await page.says("needle rebalance --status")
    await page.line("needle rebalance --resume")
    await page.line("needle rebalance --cancel", None)
    assert "cancel" in await page.says("needle rebalance --status", expect=None)
    async with cluster.connect() as client:
        assert await client.count() == 300


async def test_a_backup_by_hand(page: Page, cluster: ProcessCluster, tmp_path: Path) -> None:
    """All nodes are stopped, all directories copied; later all copies are put back, together."""
    await page.well()
    await page.says("needle backup create", str(tmp_path / "target"))
    nodes = cluster.nodes.values()
    await stop_all(page)
    for node in nodes:
        shutil.copytree(node.data_dir, tmp_path / "copies" / node.name)
    await start_all(page)
    async with cluster.connect() as client:
        await client.insert("later", VECTOR, timeout=60)
        await stop_all(page)
        for node in nodes:
            shutil.rmtree(node.data_dir)
            (tmp_path / "copies" / node.name).rename(node.data_dir)
        await start_all(page)
        assert await client.count(timeout=60) == 300 and await client.get("later", timeout=60) is None


async def stop_all(page: Page) -> None:
    for name in page.cluster.nodes:
        await page.line(f"ssh 10.0.0.{name[-1]} systemctl stop needle@{name}")


async def start_all(page: Page) -> None:
    for name in page.cluster.nodes:
        await page.line(f"ssh 10.0.0.{name[-1]} systemctl start needle@{name}")
    await page.cluster.ready()
    await page.well()
