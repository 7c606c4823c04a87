"""SQLite's files of a replica: their unsynced tail is lost with the power, or they are deleted or damaged.

The tail comes back from the Raft log, on one node and on all at once; whole files come back from the peers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harness.calm import CALM
from harness.damage import cut_documents_wal, documents, flip_bit
from harness.marked_documents import complete, fill, follower_of
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = pytest.mark.campaign

Lose = Callable[[ProcessCluster, random.Random], Awaitable[list[str]]]


async def one_node(cluster: ProcessCluster, rng: random.Random) -> list[str]:
    return [rng.choice(list(cluster.nodes))]


async def all_nodes(cluster: ProcessCluster, rng: random.Random) -> list[str]:
    return list(cluster.nodes)


@pytest.mark.parametrize("who", [one_node, all_nodes])
async def test_the_power_takes_the_tail_of_the_documents_and_the_log_brings_it_back(who: Lose, tmp_path: Path) -> None:
    rng = random.Random(11)
    count = 0
    settings: dict[str, Any] = {"snapshot_threshold": 40, "limits": {"commit_rows_max": 5}, **CALM}
    async with ProcessCluster(tmp_path, **settings) as cluster:
        for _ in range(3):
            async with cluster.connect() as client:
                await fill(client, count, 30)
                count += 30
            names = await who(cluster, rng)
            for name in names:
                cluster.nodes[name].signal(9)
            cuts = []
            for name in names:
                cluster.nodes[name].wait()
                wal = documents(cluster.nodes[name].data_dir).with_name("documents.db-wal")
                if wal.exists() and wal.stat().st_size:
                    cuts.append(cut_documents_wal(cluster.nodes[name].data_dir, rng))
            assert cuts, "no node had anything to lose"
            for name in names:
                cluster.restart(name)
            await complete(cluster, count)


@pytest.mark.parametrize("damage", ["deleted", "first page", "tables"])
async def test_documents_that_are_gone_or_damaged_come_back_from_the_peers(damage: str, tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, snapshot_threshold=20, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        assert await asyncio.to_thread(cluster.terminate, hurt) == 0
        path = documents(node.data_dir)
        if damage == "deleted":
            for file in path.parent.glob("documents.db*"):
                file.unlink()
        else:
            size = path.stat().st_size
            first, last = (0, 100) if damage == "first page" else (16384, size)
            with path.open("r+b") as file:
                file.seek(first)
                file.write(random.Random(5).randbytes(last - first))
        cluster.restart(hurt)
        await complete(cluster)
        if damage != "deleted":
            assert "is damaged" in node.output() and "is whole again" in node.output()


@pytest.mark.parametrize("who", ["leader", "follower"])
async def test_bits_that_flip_under_a_running_node_are_found_and_never_served(who: str, tmp_path: Path) -> None:
    segments = {"scrub_interval": 0.2}
    async with ProcessCluster(tmp_path, segments=segments, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        leader = await cluster.leader()
        hurt = leader if who == "leader" else await follower_of(cluster)
        node = cluster.nodes[hurt]
        await asyncio.to_thread(cluster.terminate, hurt)  # so that everything is in the main file, and in no cache
        cluster.restart(hurt)
        await complete(cluster)
        path = documents(node.data_dir)
        for page in range(1, path.stat().st_size // 4096):
            flip_bit(path, page * 4096 + 1234)
        await wait_for(lambda: "is whole again" in node.output(), 60, f"{hurt} finding and mending the damage")
        assert node.running()
        await complete(cluster)
