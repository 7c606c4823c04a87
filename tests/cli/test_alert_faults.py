"""More sections of docs/alerts.md, as in test_alert_runbooks.py: faults of a node's machine, its data, and its network.
Which section is run where, and which alerts `make alerts` alone causes: test_pages.py."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

import needle
from harness.alert_page import Alerts
from harness.calm import CALM
from harness.commands import Run
from harness.damage import documents
from harness.leading import led_by
from harness.sick import FAST_CLOCK, SLOWER_DISK
from needle.client.alerts import HANG_SECONDS, RECALL_MIN, WORN_SHARE
from needle.local.certificates import create_ca, create_node
from needle.local.process_cluster import ProcessCluster, wait_for
from proof.sick_nodes import FEW_VERSIONS, LOST_COLLECTION, OTHER_CATALOG, OTHER_SUMS, fall_ill, hangs_by

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(400),
    pytest.mark.runbook,
]

VECTOR = [1.0] * 8
FILE_OF_LOG = 16 << 20
FSYNC_SECONDS = 0.1
CLOCK_ERROR = 0.005


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    """Of two ranges of ids on three nodes."""
    ranges = {"shards": 2, "replicas": 3, "strategy": "range", "boundaries": ["m"]}
    watched = {"recall_share": 1.0, "seal_rows": 500}
    async with ProcessCluster(module_path, linked=True, sharding=ranges, segments=watched, **CALM) as made:
        yield made


@pytest.fixture
def page(cluster: ProcessCluster, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Alerts:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NEEDLE_CLUSTER", cluster.cluster)
    return Alerts(cluster, tmp_path, run)


async def restart(page: Alerts, node: str, **settings: object) -> None:
    """With other settings; None: as by default."""
    for name, value in settings.items():
        if value is None:
            page.cluster.nodes[node].settings.pop(name, None)
        else:
            page.cluster.nodes[node].settings[name] = value
    await page.line(f"ssh 10.0.0.{node[-1]} systemctl restart needle@{node}")
    await page.cluster.ready(node)


async def test_nodes_that_elect_nobody(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    before = [await elections(page, name) for name in cluster.nodes]
    for link in cluster.links.values():
        link.cut()
    await page.until("NeedleElection")
    await page.command_of("NeedleElection", "needle status", expect=None)
    await page.until("NeedleShardNoLeader")  # a leader that has not stepped down yet would go on
    cluster.heal()
    await page.until()
    assert sum([await elections(page, name) for name in cluster.nodes]) > sum(before)


async def elections(page: Alerts, node: str) -> float:
    """How many the node began, for whatever reason."""
    return await page.metrics(node, "needle_elections_total")


async def test_a_replica_that_is_behind(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    async with cluster.connect() as client:
        (follower, *_) = cluster.nodes.keys() - await leaders(client)
        cluster.pause(follower)
        try:
            await client.insert("behind", VECTOR, timeout=60)
            told = await page.until("NeedleReplicationLag")
            assert follower in told["NeedleReplicationLag"]
            told = await page.until("NeedleReplicationLagLong")
            assert follower in told["NeedleReplicationLagLong"]
        finally:
            cluster.resume(follower)
        await page.until()


async def test_shards_that_are_uneven(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    async with cluster.connect() as client:
        for begin in range(0, 2400, 300):
            ids = [f"a{n:05}" for n in range(begin, begin + 300)]
            await client.insert_batch(ids=ids, vectors=[VECTOR] * 300, timeout=60)
        told = await page.until("NeedleShardsUneven")
        assert "shard 0" in told["NeedleShardsUneven"]
        assert "2401" in await page.command_of("NeedleShardsUneven", "needle cluster stats")
        assert "shard 0" in await page.command_of("NeedleShardsUneven", "needle rebalance --dry-run")
        await page.command_of("NeedleShardsUneven", "needle rebalance")
        await page.until()
        await client.delete_where({}, timeout=60)
        assert await client.count() == 0


async def test_memory_that_gets_short(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    for share, alert in ((1.05, "NeedleMemoryNearlyFull"), (0.8, "NeedleMemoryFull")):
        await wait_for(lambda share=share, alert=alert: short_of_memory(page, share, alert), 90, alert)
    await page.command_of("NeedleMemoryNearlyFull", "needle rebalance")
    await restart(page, "node-2", memory_bytes_max=None)
    await page.until()


async def short_of_memory(page: Alerts, share: float, alert: str) -> bool:
    """Whether a node that may take so much of what it takes tells of it: a node that was just started takes less than a
    little later."""
    taken = await page.metric("node-2", "needle_memory_own_bytes")
    await restart(page, "node-2", memory_bytes_max=int(share * taken))
    told: dict[str, str] = {}
    for _ in range(5):
        told = await page.told()
        if alert in told:
            return told[alert].startswith("node-2: ")
    return False


async def test_a_log_with_too_little_room(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    await restart(page, "node-3", log_bytes_max=3 * FILE_OF_LOG // 2)
    assert (await page.until("NeedleLogNearlyFull"))["NeedleLogNearlyFull"].startswith("node-3: ")
    await restart(page, "node-3", log_bytes_max=None)
    await page.until()


async def test_a_certificate_that_expires(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    create_ca(tmp_path / "ca", "alerts", 1000)
    old = create_node(tmp_path / "old", "node-2", ("127.0.0.1",), 5, tmp_path / "ca")
    files = {"certificate": str(old.certificate), "key": str(old.key), "ca": str(tmp_path / "ca" / "ca.crt")}
    await restart(page, "node-2", tls={"mode": "accept", **files})
    assert "node-2: in 5.0 days" in (await page.until("NeedleCertificateExpires"))["NeedleCertificateExpires"]
    new = tmp_path / "new"
    said = f"node-2 --host 127.0.0.1 --out {new} --ca {tmp_path / 'ca'}"
    await page.command_of("NeedleCertificateExpires", "needle certs create-node", said)
    os.replace(new / "node-2.key", old.key)
    os.replace(new / "node-2.crt", old.certificate)
    await page.until()
    kept = old.certificate.read_bytes()
    other = create_node(tmp_path / "other", "node-3", ("127.0.0.1",), 50, tmp_path / "ca")
    os.replace(other.certificate, old.certificate)  # of another node, and not of this key
    told = (await page.until("NeedleCertificateRefused"))["NeedleCertificateRefused"]
    assert told.startswith("node-2: it does not take the changed tls.certificate")
    assert await page.metric("node-2", "needle_certificate_refused") == 1
    old.certificate.write_bytes(kept)
    await page.until()
    old.key.write_bytes(b"")
    await page.until("NeedleCertificateRefused")
    said = f"node-2 --host 127.0.0.1 --out {tmp_path / 'again'} --ca {tmp_path / 'ca'}"
    await page.command_of("NeedleCertificateRefused", "needle certs create-node", said)
    os.replace(tmp_path / "again" / "node-2.key", old.key)
    os.replace(tmp_path / "again" / "node-2.crt", old.certificate)
    await page.until()
    assert await page.metric("node-2", "needle_certificate_refused") == 0
    await restart(page, "node-2", tls=None)
    await page.until()


async def test_a_disk_that_is_slow(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    fall_ill(cluster.nodes["node-1"], tmp_path / "slow", SLOWER_DISK)
    await restart(page, "node-1")
    async with cluster.connect() as client:
        await led_by(client, "node-1")
        for _ in range(5):
            await client.insert("slow", VECTOR, timeout=60)
        count = await page.metric("node-1", "needle_fsync_seconds_count")
        quick = await page.metric("node-1", f'needle_fsync_seconds_bucket{{le="{FSYNC_SECONDS}"}}')
        assert quick < 0.99 * count, "what the rule asks for"
        await page.command_of("NeedleFsyncSlow", "needle step-down", "--shard 0")
        assert await client.leader(0) != "node-1"
        begun = time.perf_counter()
        await asyncio.gather(*(client.insert(f"slow-{n}", VECTOR, timeout=60) for n in range(3)))
        assert time.perf_counter() - begun < 10
        await client.delete_where({}, timeout=60)  # the next one counts
    cluster.nodes["node-1"].source = None
    await restart(page, "node-1")
    await page.until()


async def test_a_disk_that_hangs(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    hangs = tmp_path / "hangs"
    fall_ill(cluster.nodes["node-1"], tmp_path / "slow", hangs_by(hangs))
    await restart(page, "node-1")
    async with cluster.connect() as client:
        await led_by(client, "node-1")
        await client.insert("before", VECTOR, timeout=60)
        assert await page.metric("node-1", "needle_fsync_under_way_seconds") < HANG_SECONDS
        hangs.touch()
        try:
            writing = asyncio.ensure_future(client.insert("during", VECTOR, timeout=60))
            assert "node-1" in (await page.until("NeedleDiskHangs"))["NeedleDiskHangs"]
            assert await page.metric("node-1", "needle_fsync_under_way_seconds") > HANG_SECONDS, (
                "what the rule asks for"
            )
            await writing

            async def led_by_another() -> bool:
                return await client.leader(0) not in (None, "node-1")

            await wait_for(led_by_another, 60, "another leader of shard 0")
        finally:
            hangs.unlink()
        await page.until()
        assert await client.count(timeout=60) == 2
        await client.delete(["before", "during"], timeout=60)
    cluster.nodes["node-1"].source = None
    await restart(page, "node-1")
    await page.until()


async def test_a_clock_that_runs_fast(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    fall_ill(cluster.nodes["node-3"], tmp_path / "fast", FAST_CLOCK)
    await restart(page, "node-3")

    async def clocks() -> np.ndarray:
        return np.array([await page.metric(name, "needle_clock_monotonic_seconds") for name in ("node-1", "node-3")])

    first = await clocks()
    said = await page.command_of("NeedleClockRateOff", "needle doctor", expect=None)
    assert any("clock-rate" in line and "node-3" in line for line in said.splitlines()), said
    passed = await clocks() - first
    assert passed[1] / passed[0] > 1 + CLOCK_ERROR, "what the rule asks for"
    await page.line("ssh 10.0.0.3 systemctl stop needle@node-3")
    cluster.nodes["node-3"].source = None
    await page.line("ssh 10.0.0.3 systemctl start needle@node-3")
    await page.until()


async def test_a_replica_that_is_damaged(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    async with cluster.connect() as client:
        await client.insert_batch(ids=[f"a{n:05}" for n in range(500)], vectors=[VECTOR] * 500, timeout=60)
        count = await client.count()
    await page.line("ssh 10.0.0.3 systemctl stop needle@node-3")
    path = documents(cluster.nodes["node-3"].data_dir)
    with path.open("r+b") as file:
        file.seek(16384)
        file.write(random.Random(5).randbytes(path.stat().st_size - 16384))
    for name in ("node-1", "node-2"):  # nobody gives it anything yet
        cluster.pause(name)
    try:
        await page.line("ssh 10.0.0.3 systemctl start needle@node-3")
        assert "node-3" in (await page.until("NeedleReplicaDamaged"))["NeedleReplicaDamaged"]
    finally:
        for name in ("node-1", "node-2"):
            cluster.resume(name)
    await page.until()
    async with cluster.connect() as client:
        assert await client.count(timeout=60) == count


async def test_a_directory_of_an_older_copy(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    await page.until()
    directory, older, right = cluster.nodes["node-3"].data_dir, tmp_path / "older", tmp_path / "right"
    await page.line("ssh 10.0.0.3 systemctl stop needle@node-3")
    shutil.copytree(directory, older)
    await page.line("ssh 10.0.0.3 systemctl start needle@node-3")
    await cluster.ready("node-3")
    async with cluster.connect() as client:
        for n in range(20):
            await client.insert(f"b{n}", VECTOR, timeout=60)
        await page.until()
        await page.line("ssh 10.0.0.3 systemctl stop needle@node-3")
        directory.rename(right)
        older.rename(directory)
        await page.line("ssh 10.0.0.3 systemctl start needle@node-3")
        assert "node-3" in (await page.until("NeedleReplicaLost"))["NeedleReplicaLost"]
        await client.insert("goes on", VECTOR, timeout=60)
    await page.line("ssh 10.0.0.3 systemctl stop needle@node-3")
    shutil.rmtree(directory)
    right.rename(directory)
    await page.line("ssh 10.0.0.3 systemctl start needle@node-3")
    await page.until()


async def test_replicas_that_differ(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    """The section's five steps, of which the fifth is for more replicas that differ."""
    await page.until()
    fall_ill(cluster.nodes["node-2"], tmp_path / "other", OTHER_SUMS)
    await restart(page, "node-2")
    async with cluster.connect() as client:
        await client.insert("c", VECTOR, {"right": 1}, timeout=60)
        assert "node-2" in (await page.until("NeedleReplicaDivergence"))["NeedleReplicaDivergence"]
        await page.command_of("NeedleReplicaDivergence", "needle maintenance enter", "node-2")
        for name in cluster.nodes:
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl stop needle@{name}")
            shutil.copytree(cluster.nodes[name].data_dir / "shards", tmp_path / "copies" / name)
            if name == "node-2":
                shutil.rmtree(cluster.nodes[name].data_dir / "shards")
                cluster.nodes[name].source = None
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl start needle@{name}")
            await wait_for(cluster.nodes[name].is_ready if name != "node-2" else lambda: True, 60, name)
        await page.command_of("NeedleReplicaDivergence", "needle maintenance exit", "node-2")
        await page.until()
        found = await client.get("c", timeout=60)
        assert found is not None and found.metadata == {"right": 1}


async def test_catalogs_that_differ(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    """The same section, for a node whose replica of the catalog is made again."""
    await page.until()
    fall_ill(cluster.nodes["node-2"], tmp_path / "other", OTHER_CATALOG)
    await restart(page, "node-2")
    async with cluster.connect() as client:
        await client.create_collection("for-the-catalog", dimensions=8, timeout=60)
        told = (await page.until("NeedleReplicaDivergence"))["NeedleReplicaDivergence"]
        assert told.startswith("catalog: at index") and "node-2 differs from most" in told
        shown = [
            await page.metric(name, 'needle_replica_divergence{shard="catalog"}')
            for name in cluster.nodes
            if name == await client.catalog_leader()
        ]
        assert shown == [1.0], "what the rule asks for"
        await page.line("ssh 10.0.0.2 systemctl stop needle@node-2")
        shutil.rmtree(cluster.nodes["node-2"].data_dir / "catalog")
        cluster.nodes["node-2"].source = None
        await page.line("ssh 10.0.0.2 systemctl start needle@node-2")
        await cluster.ready("node-2")
        await page.until()
        await client.drop_collection("for-the-catalog", timeout=60)
    await page.until()


async def test_a_collection_that_is_worn(page: Alerts, cluster: ProcessCluster, tmp_path: Path) -> None:
    """On nodes on which a collection takes a thousand versions, instead of thousands of millions."""
    await page.until()
    for name, node in cluster.nodes.items():
        fall_ill(node, tmp_path / name, FEW_VERSIONS)
        await restart(page, name)
    async with cluster.connect() as client:
        await client.create_collection("worn", dimensions=8, timeout=60)
        for begin in range(0, 600, 200):
            ids = [f"a{n}" for n in range(begin, begin + 200)]
            await client.insert_batch(ids=ids, vectors=[VECTOR] * 200, collection="worn", timeout=60)
        assert "worn: 60%" in (await page.until("NeedleCollectionWorn"))["NeedleCollectionWorn"]
        series = 'needle_ordinals_used_ratio{collection="worn",shard="0"}'
        assert await page.metric("node-1", series) > WORN_SHARE, "what the rule asks for"
        await client.drop_collection("worn", timeout=60)  # it was copied
    for name, node in cluster.nodes.items():
        node.source = None
        await restart(page, name)
    await page.until()


async def test_collections_that_the_catalog_does_not_know(
    page: Alerts, cluster: ProcessCluster, tmp_path: Path
) -> None:
    """Its replicas are opened as older copies on all nodes; then copies that know the collection are put back."""
    await page.until()
    async with cluster.connect() as client:
        await client.create_collection("lost", dimensions=8, timeout=60)
        await client.insert("a", VECTOR, collection="lost", timeout=60)
        for name in cluster.nodes:
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl stop needle@{name}")
        for name, node in cluster.nodes.items():
            shutil.copytree(node.data_dir / "catalog", tmp_path / "copies" / name)
            fall_ill(node, tmp_path / name, LOST_COLLECTION)
            (node.data_dir / "topology.bin").unlink()  # what it knew last
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl start needle@{name}")
        await cluster.ready()
        assert "lost" in (await page.until("NeedleUnknownCollections"))["NeedleUnknownCollections"]
        published = [await page.metrics(name, "needle_unknown_collections") for name in cluster.nodes]
        assert sum(published) >= 1, "what the rule asks for"
        for name in cluster.nodes:
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl stop needle@{name}")
        for name, node in cluster.nodes.items():
            shutil.rmtree(node.data_dir / "catalog")
            (tmp_path / "copies" / name).rename(node.data_dir / "catalog")
            (node.data_dir / "topology.bin").unlink()
            node.source = None
            await page.line(f"ssh 10.0.0.{name[-1]} systemctl start needle@{name}")
        await cluster.ready()
        await page.until()
        assert await client.count(collection="lost", timeout=60) == 1
        await client.drop_collection("lost", timeout=60)
    await page.until()


async def test_searches_that_find_too_little(page: Alerts, cluster: ProcessCluster) -> None:
    await page.until()
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(3000, 64)).astype(np.float32)
    async with cluster.connect() as client:
        await client.create_collection(
            "narrow", dimensions=64, index=needle.IndexParams(m=8, ef_construction=40, ef_search=1), timeout=60
        )
        for begin in range(0, 3000, 500):
            ids = [f"a{n:05}" for n in range(begin, begin + 500)]
            await client.insert_batch(ids=ids, vectors=vectors[begin : begin + 500], collection="narrow", timeout=60)

        def near() -> np.ndarray:
            return vectors[rng.integers(3000, size=20)] + rng.normal(size=(20, 64)).astype(np.float32)

        async def ask() -> None:
            for one in near():
                await client.search(one, k=10, collection="narrow", timeout=60)

        async def low() -> bool:
            await ask()
            return "NeedleRecallLow" in await page.told()

        await wait_for(low, 120, "a low recall")
        await page.command_of(
            "NeedleRecallLow", "needle collections alter COLLECTION --ef-search 200", COLLECTION="narrow"
        )

        # What is told is the mean of the last two hundred searches, so it takes its time; these find more at once.
        found = []
        for one in near():
            async with cluster.connect() as other:
                hits = [await other.search(one, k=10, collection="narrow", exact=exact) for exact in (False, True)]
            seen, truly = ({hit.id for hit in some} for some in hits)
            found.append(len(seen & truly) / 10)
        assert np.mean(found) >= RECALL_MIN
        await client.drop_collection("narrow", timeout=60)
    await page.until()


async def leaders(client: needle.Client) -> set[str | None]:
    """Of both shards, once they have one."""

    async def both() -> set[str | None]:
        found = {await client.leader(0), await client.leader(1)}
        return found if None not in found else set()

    found: set[str | None] = await wait_for(both, 60, "leaders")
    return found
