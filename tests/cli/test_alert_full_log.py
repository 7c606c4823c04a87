"""The section of docs/alerts.md on a log that is nearly full, otherwise as test_alert_runbooks.py: on nodes of which it
may take 4 MiB, written until it is full."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import needle
from harness.alert_page import Alerts
from harness.calm import CALM
from harness.commands import Run
from needle.base.errors import Overloaded
from needle.client.alerts import LOG_FULL_RATIO
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.sick_nodes import fall_ill, unsaved_by

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
    pytest.mark.runbook,
]

LOG_MAX = 4 << 20
REFUSED = LOG_MAX // 4 * 3
VECTOR = [1.0] * 8
ROWS, ROW_BYTES = 16, 4 << 10
ENTRIES_MAX = 4 * LOG_MAX // (ROWS * ROW_BYTES)
"""Enough to fill a log that is not cut, four times."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    made = ProcessCluster(module_path, sharding={"shards": 1, "replicas": 3}, log_bytes_max=LOG_MAX, **CALM)
    for name, node in made.nodes.items():
        fall_ill(node, module_path / "ill" / name, unsaved_by(no_room(made, name)))
    async with made:
        yield made


@pytest.fixture
def page(cluster: ProcessCluster, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Alerts:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return Alerts(cluster, tmp_path, run)


def no_room(cluster: ProcessCluster, node: str) -> Path:
    """While this file is there, the node's disk has no room for checkpoints."""
    return cluster.directory / f"no-room-{node}"


async def write(client: needle.Client, ids: str, entries: int = 1, seconds: float = 60.0) -> None:
    """So many entries of 64 KiB, about, each over the one before."""
    for _ in range(entries):
        rows = [{"text": os.urandom(ROW_BYTES // 2).hex()} for _ in range(ROWS)]
        names = [f"{ids}-{n}" for n in range(ROWS)]
        await client.insert_batch(ids=names, vectors=[VECTOR] * ROWS, metadatas=rows, timeout=seconds)


async def fill(client: needle.Client, ids: str) -> Overloaded:
    """With what a write is refused in the end, at most once the log would have been filled four times."""
    with pytest.raises(Overloaded) as refused:
        await write(client, ids, ENTRIES_MAX, seconds=10.0)
    return refused.value


async def test_a_log_that_the_disk_has_no_room_to_cut(page: Alerts, cluster: ProcessCluster) -> None:
    """First of the node that leads, then of all of them: writes are refused, reads go on, and when there is room again
    so do writes, by themselves."""
    await page.until()
    async with cluster.connect() as client:
        await write(client, "before")
        leader = str(await client.leader(0))
        no_room(cluster, leader).touch()
        refused = await fill(client, "leader")
        assert refused.retryable
        assert f"the Raft log of node {leader} takes " in refused.message
        assert f"of log_bytes_max = {LOG_MAX} bytes" in refused.message and "raise log_bytes_max" in refused.message
        told = (await page.until("NeedleLogNearlyFull"))["NeedleLogNearlyFull"]
        assert told.startswith(f"{leader}: ") and told.endswith(" of 4 MB")
        most = await page.metric(leader, "needle_log_bytes_max")
        assert most == LOG_MAX
        assert REFUSED <= await page.metric(leader, "needle_log_bytes") <= most
        assert await page.metric(leader, "needle_log_bytes") > LOG_FULL_RATIO * most, "what the rule asks for"
        assert "the log is not cut now: no space left for " in cluster.nodes[leader].output()
        await reads(client)

        await page.command_of("NeedleLogNearlyFull", "needle step-down", "--shard 0")
        assert await client.leader(0) != leader
        await write(client, "led by another")

        for name in cluster.nodes:
            no_room(cluster, name).touch()
        await fill(client, "all")
        await reads(client)
        for name in cluster.nodes:
            no_room(cluster, name).unlink()
        await write(client, "after")  # tried until it is taken
        await page.until()
        for name in cluster.nodes:
            assert await page.metric(name, "needle_log_bytes") < LOG_FULL_RATIO * LOG_MAX
        await reads(client)
        assert await client.get("after-0", timeout=60) is not None
    await cluster.equal_digests()


async def reads(client: needle.Client) -> None:
    """Of all kinds are served."""
    assert await client.get("before-0", timeout=60) is not None
    assert len(await client.search(VECTOR, k=5, timeout=60)) == 5


async def test_a_replica_that_is_down_does_not_fill_the_log(page: Alerts, cluster: ProcessCluster) -> None:
    """What it lacks is cut off, and it is given a snapshot when it is back."""
    await page.until()
    async with cluster.connect() as client:
        leader = str(await client.leader(0))
        away, *_ = [name for name in cluster.nodes if name != leader]
        cluster.kill(away)
        await write(client, "away", ENTRIES_MAX)

        async def cut() -> bool:
            return await page.metric(leader, "needle_log_bytes") <= LOG_FULL_RATIO * LOG_MAX

        await wait_for(cut, 60, "a log that is cut")
        told = await page.until("NeedleNodeUnreachable")
        assert "NeedleLogNearlyFull" not in told
        cluster.restart(away)
        await cluster.ready(away)
        await page.until()
    await cluster.equal_digests()
