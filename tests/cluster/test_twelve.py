"""4 shards of 3 replicas on 12 processes: all hits, through the loss of one node of each shard and of two of one.

Small here; `make twelve` is the full size: the whole corpus and 100,000 x 256-d vectors.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses, healthy
from cluster.twelve import Twelve, corpus, drawn
from needle.base.errors import NoQuorum, Unavailable
from needle.local.process_cluster import wait_for

COUNT = int(os.environ.get("NEEDLE_TWELVE_VECTORS", "4000"))
DIMENSIONS = int(os.environ.get("NEEDLE_TWELVE_DIMENSIONS", "64"))
PASSAGES = int(os.environ.get("NEEDLE_TWELVE_PASSAGES", "1000"))
"""0: all of them."""
INDEXED_FROM = 50_000
QUESTIONS = ("compress a file", "parse a date", "split a string into shell words", "run a command in another process")


@pytest.mark.campaign
async def test_twelve_processes(tmp_path: Path) -> None:
    collections = [corpus("docs", PASSAGES, QUESTIONS), drawn("default", COUNT, DIMENSIONS, queries=50)]
    async with ShardedProcesses(tmp_path, nodes=12, election_timeout=2.0, heartbeat_interval=0.3) as processes:
        topology = await processes.create(4, 3)
        assert [info.replicas for info in topology.shards] == [
            tuple(f"node-{3 * shard + n}" for n in (1, 2, 3)) for shard in range(4)
        ]
        async with processes.connect() as client:
            await healthy(client, 60)
            twelve = Twelve(processes, client, collections)
            await twelve.load()
            if COUNT >= INDEXED_FROM:
                await twelve.indexed(600)
            await twelve.exact_is_one_index()
            await twelve.recall(0.95)
            await _one_of_each_dies(twelve)
            await _two_of_one_die(twelve)
            await _they_come_back(twelve)


async def _one_of_each_dies(twelve: Twelve) -> None:
    """The leaders of all shards at once; everything goes on."""
    client, query = twelve.client, twelve.collections[1].queries[0]
    start = time.monotonic()
    for shard in range(4):
        twelve.processes.kill(f"node-{3 * shard + 1}")
    await wait_for(lambda: client.search(query, 1, timeout=5), 60, "searches without one node of each shard")
    twelve.say(f"searched again {time.monotonic() - start:.1f} s after the death of all four leaders")
    await twelve.exact_is_one_index()
    await twelve.recall(0.95)
    await client.insert("late", query, timeout=30)
    assert (await client.search(query, 1, exact=True, timeout=30))[0].id == "late"
    await client.delete("late", timeout=30)


async def _two_of_one_die(twelve: Twelve) -> None:
    """A shard without a majority says so; the others go on."""
    client, query = twelve.client, twelve.collections[1].queries[0]
    twelve.processes.kill("node-2")

    async def told() -> str:
        with pytest.raises(Unavailable) as error:  # nothing else, from the first search on
            await client.search(query, 10, timeout=3)
        return error.value.message if isinstance(error.value, NoQuorum) and "shard 0" in error.value.message else ""

    twelve.say(f"a search of all shards then says: {await wait_for(told, 60, 'an error that names the lost quorum')}")
    await twelve.partial_is_the_rest(0)
    router = client.documents  # type: ignore[attr-defined]
    names = {router.shard_of(f"new-{n}"): f"new-{n}" for n in range(200)}
    with pytest.raises(Unavailable):
        await client.insert(names[0], query, timeout=2)
    for shard in (1, 2, 3):
        await client.insert(names[shard], query, timeout=20)
        assert await client.get(names[shard], timeout=20) is not None
    await client.delete([names[shard] for shard in (1, 2, 3)], timeout=20)
    wanted = {0: "unavailable", 1: "degraded", 2: "degraded", 3: "degraded"}

    async def states() -> bool:
        health = await client.health_check(timeout=2.0)
        return {shard: info.state for shard, info in health.shards.items()} == wanted

    await wait_for(states, 60, "only the lost shard being unavailable")


async def _they_come_back(twelve: Twelve) -> None:
    """One suffices for its shard to serve; with all of them the cluster is healthy. Nobody does anything."""
    client = twelve.client
    start = time.monotonic()
    twelve.processes.restart("node-2")
    await wait_for(
        lambda: client.search(twelve.collections[1].queries[0], 10, timeout=5), 60, "the lost shard with one node back"
    )
    twelve.say(f"the lost shard searched again {time.monotonic() - start:.1f} s after one node came back")
    await twelve.exact_is_one_index()
    start = time.monotonic()
    for name, node in twelve.processes.nodes.items():
        if not node.running():
            twelve.processes.restart(name)
    await healthy(client, 120)
    twelve.say(f"healthy {time.monotonic() - start:.1f} s after the other nodes came back")
    await twelve.exact_is_one_index()
    await twelve.recall(0.95)
