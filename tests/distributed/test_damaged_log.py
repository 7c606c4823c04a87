"""Damage to the Raft log of a stopped node, and to SQLite's unsynced tail: repaired from peers, replayed, or refused.

Never a wrong answer, never a lost acknowledged write (docs/data-on-disk.md, design/raft.md §4).
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness.damage import (
    cut_documents_wal,
    documents,
    find_in_log,
    flip_bit,
    lose_last_commit,
    record_before,
    tear_tail,
)
from harness.process_cluster import ProcessCluster, wait_for
from needle.client import Client

DOCUMENTS = 60
CALM = {"election_timeout": 0.5, "heartbeat_interval": 0.1}


def vector(n: int) -> list[float]:
    rng = random.Random(n)
    return [rng.random() for _ in range(8)]


def marker(n: int) -> str:
    return f"marker-of-document-{n:04d}"


async def fill(client: Client, first: int = 0, count: int = DOCUMENTS) -> None:
    for n in range(first, first + count):
        await client.insert(f"d{n}", vector(n), {"m": marker(n)})


async def complete(cluster: ProcessCluster, count: int = DOCUMENTS) -> None:
    """Every document is on every replica, as it was written."""
    await cluster.ready()
    await cluster.equal_digests()
    async with cluster.connect() as client:
        found = await client.get([f"d{n}" for n in range(count)], with_vectors=False)
        assert [(d.id, d.metadata["m"]) for d in found] == [(f"d{n}", marker(n)) for n in range(count)]


async def follower_of(cluster: ProcessCluster) -> str:
    leader = await cluster.leader()
    return next(name for name in cluster.nodes if name != leader)


async def ended(cluster: ProcessCluster, name: str) -> int:
    """The exit code of a node that is expected to give up."""
    node = cluster.nodes[name]
    await wait_for(lambda: not node.running(), 15, f"{name} giving up")
    return node.wait()


async def test_a_torn_tail_is_dropped(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster:
        async with cluster.connect() as client:
            await fill(client)
        for name, node in cluster.nodes.items():
            cluster.kill(name)
            tear_tail(node.data_dir)
        for name in cluster.nodes:
            cluster.restart(name)
        await complete(cluster)
        for node in cluster.nodes.values():
            assert "which was never finished" in node.output()


async def test_a_flipped_bit_in_an_entry_is_repaired_from_the_documents(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        cluster.kill(hurt)
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bit(path, at + 3)
        cluster.restart(hurt)
        await complete(cluster)
        assert "fails its checksum; its values are checked" in node.output()
        assert "the state machine has it, so the log goes on after it" in node.output()


async def test_a_flipped_bit_in_an_entry_that_was_not_yet_applied_is_repaired_from_peers(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        cluster.kill(hurt)
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bit(path, at + 3)
        cut_documents_wal(node.data_dir, random.Random(1), at=0)  # with it, nothing here has that document any more
        cluster.restart(hurt)
        await complete(cluster)
        assert "this replica does not vote until it has fetched" in node.output()
        await client.insert("one more", vector(1))
        await client.step_down()  # a new term's no-op is what ends the repair at the latest
        await wait_for(lambda: "this replica votes again" in node.output(), 10, "the end of the repair")
        cluster.kill(next(name for name in cluster.nodes if name != hurt))
        await client.insert("with its vote", vector(2))


@pytest.mark.parametrize("damage", ["framing", "lost commit"])
async def test_damage_that_could_hide_a_vote_is_refused_and_the_node_can_be_replaced(
    damage: str, tmp_path: Path
) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await fill(client)
        hurt = await follower_of(cluster)
        node = cluster.nodes[hurt]
        cluster.kill(hurt)
        if damage == "framing":
            path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
            flip_bit(path, record_before(path, at) + 5)
        else:
            lose_last_commit(node.data_dir)
        before = {path: path.read_bytes() for path in (node.data_dir / "log").glob("*.wal")}
        cluster.restart(hurt)
        assert await ended(cluster, hurt) == 1
        said = node.output().splitlines()[-1]
        assert "[corrupt_log]" in said
        assert "Remove this node from the cluster, delete its data directory" in said
        assert "Traceback" not in node.output()
        assert {path: path.read_bytes() for path in before} == before, "refusing changed the log"
        await fill(client, DOCUMENTS, 5)  # the others go on


async def test_a_flipped_bit_on_the_only_node_is_refused_or_harmless(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        async with cluster.connect() as client:
            await fill(client)
        node = cluster.nodes["node-1"]
        cluster.kill("node-1")
        path, at = find_in_log(node.data_dir, marker(DOCUMENTS - 20).encode())
        flip_bit(path, at + 3)
        cut_documents_wal(node.data_dir, random.Random(1), at=0)
        cluster.restart("node-1")
        assert await ended(cluster, "node-1") == 1
        assert "Remedy: restore a backup" in node.output()


Lose = Callable[[ProcessCluster, random.Random], Awaitable[list[str]]]


async def one_node(cluster: ProcessCluster, rng: random.Random) -> list[str]:
    return [rng.choice(list(cluster.nodes))]


async def all_nodes(cluster: ProcessCluster, rng: random.Random) -> list[str]:
    return list(cluster.nodes)


@pytest.mark.parametrize("who", [one_node, all_nodes])
async def test_the_power_takes_the_tail_of_the_documents_and_the_log_brings_it_back(who: Lose, tmp_path: Path) -> None:
    rng = random.Random(11)
    count = 0
    async with ProcessCluster(tmp_path, snapshot_threshold=40, **CALM) as cluster:
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
        if damage != "deleted":
            assert await ended(cluster, hurt) == 1
            said = node.output().splitlines()[-1]
            assert "is damaged" in said
            assert "start the node again: it gets the data from the other replicas" in said
            shutil.rmtree(node.data_dir / "shards")  # as the line and docs/troubleshooting.md say
            cluster.restart(hurt)
        await complete(cluster)
