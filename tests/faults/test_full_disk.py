"""Nodes whose disks run full: reads go on, deletes too, and writes again once there is room, without a restart."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import DiskFull, NeedleError, OutcomeUnknown, Unavailable
from needle.client import Client
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = pytest.mark.campaign

DIMENSIONS = 256
DISK = 160 << 20
RESERVE = 64 << 20
BATCH = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def resize(disk: Path, size: int, more: str = "") -> None:
    """Give the file system so many bytes. more: options."""
    subprocess.run(["mount", "-o", f"remount,size={size}{more}", str(disk)], check=True)


async def fill(client: Client, *, sure: bool = False) -> int:
    """Insert until it is refused; how many documents were accepted. sure: the refusal is raised."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSIONS)).astype(np.float32)
    for batch in range(10_000):
        try:
            await client.insert_batch(ids=[f"d{batch}-{n}" for n in range(BATCH)], vectors=vectors)
        except DiskFull:
            if sure:
                raise
            return batch * BATCH
    raise AssertionError("the disk did not get full")


def eat(path: Path) -> None:
    """Take what is left of the file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass


async def full(cluster: ProcessCluster, disk: Path) -> None:
    """Data is refused, reads and deletes are served."""
    query = [1.0] * DIMENSIONS
    async with cluster.connect() as client:
        assert await fill(client) >= BATCH
        eat(disk / "others")  # others take what is left, to the last byte
        with pytest.raises(DiskFull):
            await client.insert("more", query)
        assert len(await client.search(query, k=5)) == 5
        assert await client.get("d0-0") is not None
        # A delete needs the log and the documents' file: what was reserved is for it.
        await client.delete([f"d0-{n}" for n in range(100)])
        assert await client.get("d0-0") is None


async def still_full(cluster: ProcessCluster) -> None:
    """What was acknowledged is there."""
    async with cluster.connect() as client:
        assert await client.get("d0-0") is None
        assert await client.get(f"d0-{BATCH - 1}") is not None
        assert len(await client.search([1.0] * DIMENSIONS, k=5)) == 5
        with pytest.raises(DiskFull):
            await client.insert("more", [1.0] * DIMENSIONS)


async def test_full_disks_take_no_data_and_lose_none(small_disk: Path, tmp_path: Path) -> None:
    nodes = 3
    resize(small_disk, nodes * DISK)
    settings = {"dimensions": DIMENSIONS, "disk_reserve_bytes": RESERVE, "snapshot_threshold": 200}
    async with ProcessCluster(small_disk, nodes=nodes, **settings) as cluster:
        for node in cluster.nodes.values():
            node.directory = tmp_path  # its log file, not its data
        await full(cluster, small_disk)
        for node in cluster.nodes.values():  # a restart on the full disk
            assert node.running(), node.output()[-3000:]
            node.signal(signal.SIGKILL)
            node.wait()
        eat(small_disk / "more")
        for node in cluster.nodes.values():
            node.start()
        await cluster.ready()
        await still_full(cluster)
        resize(small_disk, 2 * nodes * DISK)  # room again: nobody restarts anything
        async with cluster.connect() as client:

            async def taken() -> bool:
                try:
                    await client.insert("more", [1.0] * DIMENSIONS)
                except NeedleError:
                    return False
                return True

            await wait_for(taken, 60, "a write")
            assert await client.get("more") is not None
        await cluster.equal_digests()
        for node in cluster.nodes.values():
            assert node.running(), node.output()[-3000:]


async def test_a_file_system_without_inodes_takes_no_data_and_is_read(small_disk: Path, tmp_path: Path) -> None:
    """It has bytes enough. Without a look at its inodes the log's next file was missing: no shard had a leader."""
    resize(small_disk, 4 * DISK, ",nr_inodes=300")
    async with ProcessCluster(small_disk, nodes=1, dimensions=DIMENSIONS, disk_reserve_bytes=RESERVE) as cluster:
        (node,) = cluster.nodes.values()
        node.directory = tmp_path  # its log file, not its data
        async with cluster.connect() as client:
            await client.insert("a", [1.0] * DIMENSIONS)
            (small_disk / "others").mkdir()
            with contextlib.suppress(OSError):
                for n in range(1000):
                    (small_disk / "others" / f"{n}").touch()
            with pytest.raises(DiskFull, match="more files"):
                await fill(client, sure=True)
            node.signal(signal.SIGKILL)
            node.wait()
            node.start()
            await cluster.ready()
            assert await client.get("a") is not None
            await client.delete(["a"])
            shutil.rmtree(small_disk / "others")

            async def taken() -> bool:
                with contextlib.suppress(DiskFull):
                    await client.insert("more", [1.0] * DIMENSIONS)
                    return True
                return False

            await wait_for(taken, 60, "a write")


async def test_a_disk_without_a_byte_ends_no_node_of_a_sharded_cluster(small_disk: Path) -> None:
    """Its catalog, its shards and its own small files: without the reserve, what finds no room waits."""
    cluster = DistributedCluster(ClusterConfig(shard_count=2, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(small_disk / "node-1"))
        await cluster.start()
        await cluster.insert("doc-1", [1, 0])
        client, node = await cluster.client(), cluster.local_nodes()[0]
        node.space.disk._configured = 0
        node.space.disk._volume.shrink(0)
        eat(small_disk / "others")
        for n in range(200):  # until the catalog's file would have to grow
            try:
                await client.create_collection(f"c{n:0200}", dimensions=2, timeout=1.0)
            except NeedleError as error:
                assert isinstance(error, OutcomeUnknown | Unavailable), error
                break
        else:
            raise AssertionError("there was room for everything")
        assert node.alive()
        (small_disk / "others").unlink()

        async def made() -> bool:
            with contextlib.suppress(NeedleError):
                await client.create_collection("after", dimensions=2, if_absent=True, timeout=1.0)
                return True
            return False

        await wait_for(made, 60, "a collection")
        await client.insert("doc-2", [1, 0], collection="after")
        assert await cluster.get("doc-1") is not None
        assert node.alive()
    finally:
        await cluster.stop()
