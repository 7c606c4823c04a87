"""A node dies for good with its directory, and another one takes its replicas by one command while clients write."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, OutcomeUnknown, Unavailable
from needle.client.client import Client
from needle.local.process_cluster import wait_for

DIMENSIONS = 8


async def _write(client: Client, acknowledged: set[str], ending: asyncio.Event) -> None:
    rng, number = random.Random(5), 0
    while not ending.is_set():
        await asyncio.sleep(0.002)
        key, number = f"doc-{number}", number + 1
        try:
            await client.insert(key, np.array([rng.gauss(0, 1) for _ in range(DIMENSIONS)], np.float32), timeout=20)
        except (OutcomeUnknown, ConnectionLost, Unavailable):
            continue
        acknowledged.add(key)


async def test_another_node_takes_the_replicas_of_one_that_is_gone(tmp_path: Path) -> None:
    acknowledged, ending = set[str](), asyncio.Event()
    async with ShardedProcesses(tmp_path, nodes=4, snapshot_threshold=50) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=DIMENSIONS, metric="l2")
            writing = asyncio.create_task(_write(client, acknowledged, ending))
            await wait_for(lambda: _many(writing, acknowledged, 100), 120, "writes")
            now = client.topology()
            gone, shard = next(
                (node, info)
                for info in now.shards
                for node in info.replicas
                if node in now.catalog and node != "node-1"
            )
            fresh = next(node for node in now.addresses() if node not in shard.replicas)
            processes.kill(gone)
            shutil.rmtree(tmp_path / gone)
            for info in now.shards:
                if gone in info.replicas:
                    other = next(node for node in now.addresses() if node not in info.replicas)
                    nodes = [other if n == gone else n for n in info.replicas]
                    moving = asyncio.create_task(client.set_replicas(info.shard, nodes, timeout=120))
                    # Whoever drives it may die at any time: another leader goes on.
                    await wait_for(lambda shard=info.shard: _leaving(client, shard), 60, "the decision")
                    leader = await wait_for(lambda shard=info.shard: client.leader(shard), 60, "a leader")
                    if leader != gone:
                        processes.kill(leader)
                        processes.restart(leader)
                    await moving
            await client.set_catalog_nodes([fresh if n == gone else n for n in now.catalog], timeout=120)
            await client.remove_node(gone)
            assert (await healthy(client)).healthy
            # The new replica counts: with another one away the shard goes on.
            away = next(node for node in shard.replicas if node != gone)
            processes.kill(away)
            written = len(acknowledged)
            await wait_for(lambda: _many(writing, acknowledged, written + 30), 120, "writes with the new replica")
            processes.restart(away)
            ending.set()
            await writing
            await healthy(client)
            await _nothing_is_lost(client, acknowledged)


async def test_replicas_go_to_nodes_of_the_cluster_only(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=2) as processes:
        await processes.create(1, 1)
        async with processes.connect() as client:
            await healthy(client)
            for nodes in ([], ["node-9"], ["node-1", "node-1"]):
                with pytest.raises(InvalidArgument):
                    await client.set_replicas(0, nodes)
            await client.set_replicas(0, ["node-2"])
            assert client.topology().shards[0].replicas == ("node-2",)
            assert await client.leader(0) == "node-2"


async def test_a_node_deletes_what_it_has_given_up_and_takes_it_again_empty(tmp_path: Path) -> None:
    """It founded the shard alone. Its return is no damage, and its log does not say so."""
    async with ShardedProcesses(tmp_path, nodes=2, snapshot_threshold=50) as processes:
        await processes.create(1, 1)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=DIMENSIONS, metric="l2")
            names = [f"doc-{number}" for number in range(200)]
            for name in names:
                await client.insert(name, np.ones(DIMENSIONS, np.float32), timeout=20)
            first = client.topology().shards[0].replicas[0]
            other = "node-2" if first == "node-1" else "node-1"
            for holder, free in ((other, first), (first, other), (other, first)):
                await client.set_replicas(0, [holder], timeout=60)
                await wait_for(lambda free=free: _empty(tmp_path / free), 60, f"{free} to delete its files")
                assert len(await client.get(names, timeout=30)) == len(names)
    told = [(tmp_path / f"{node}.log").read_text() for node in ("node-1", "node-2")]
    assert not [line for text in told for line in text.splitlines() if "WARNING" in line and "shard 0: the log" in line]
    assert sum(text.count("all of it again, and votes") for text in told) == 2


async def _empty(data_dir: Path) -> bool:
    return os.listdir(data_dir / "shards") == []


async def _leaving(client: Client, shard: int) -> bool:
    """Whether it is decided, or done already."""
    info = client.topology().shards[shard]
    return bool(info.leaving or info.assigned)


async def _many(writing: asyncio.Task[None], acknowledged: set[str], count: int) -> bool:
    if writing.done():
        await writing
        raise AssertionError("the writer has ended")
    return len(acknowledged) >= count


async def _nothing_is_lost(client: Client, acknowledged: set[str]) -> None:
    names = sorted(acknowledged)
    assert len(await client.get(names, timeout=30)) == len(names)

    async def equal() -> bool:
        try:
            digests = [await client.digests(info.shard) for info in client.topology().shards]
        except NeedleError:
            return False
        by_shard = [{(answer.applied_index, answer.digest) for answer in found.values()} for found in digests]
        return [len(found) for found in digests] == [3, 3] and all(len(found) == 1 for found in by_shard)

    await wait_for(equal, 60, "equal digests")
