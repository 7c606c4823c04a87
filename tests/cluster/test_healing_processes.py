"""A node of a cluster of real processes is killed for good: the others are whole again by themselves, under load; and
when it comes back after all, it holds nothing and is of use again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from cluster.processes import ShardedProcesses, healthy
from needle.client.client import Client
from needle.local.process_cluster import wait_for
from needle.routing.jobs import JobState
from needle.routing.topology import Topology

ROWS = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
SOON = 3.0


async def _write(client: Client, there: list[str], ending: asyncio.Event) -> None:
    while not ending.is_set():
        name = f"live-{len(there)}"
        await client.insert(name, ROWS[len(there) % 400], timeout=20)
        there.append(name)


async def _rebuilt_elsewhere(processes: ShardedProcesses, client: Client) -> None:
    await healthy(client)
    await client.create_collection("default", dimensions=8, metric="l2")
    await client.insert_batch(ids=[f"doc-{n}" for n in range(400)], vectors=ROWS, timeout=30)
    now = await client.refresh_topology(confirmed=True)
    leader = await client.catalog_leader()
    gone = next(name for name in now.catalog if name != leader and now.hosted_by(name))
    there, ending = list[str](), asyncio.Event()
    load = asyncio.create_task(_write(client, there, ending))
    processes.kill(gone)

    async def replaced() -> Topology | None:
        found = await client.refresh_topology(confirmed=True)
        left = gone in found.catalog or found.hosted_by(gone)
        return None if left or found.rebalance is None or not found.rebalance.over else found

    found = await wait_for(replaced, 60, f"others in the place of {gone}")
    assert found.rebalance.state is JobState.DONE and found.rebalance.healing
    assert [len(info.wanted) for info in found.serving] == [3, 3] and len(found.catalog) == 3
    await healthy(client)
    processes.restart(gone)

    async def told() -> bool:
        who = await client.describe_node(gone)
        return who.version >= found.version and not who.lost

    await wait_for(told, 30, f"{gone} hearing what it holds")
    await wait_for(
        lambda: "deletes its files of shard" in processes.nodes[gone].output(), 30, "its shards being given up"
    )
    ending.set()
    await load
    assert set(there) <= {hit.id for hit in await client.search(ROWS[0], 9999, exact=True)}
    job = (await client.refresh_topology(confirmed=True)).rebalance
    assert job is not None and job.id == found.rebalance.id  # nothing was begun twice
    other = next(name for name in found.addresses() if name not in (gone, leader))
    await client.drain_node(other)  # it takes replicas again

    async def holds() -> bool:
        return bool((await client.refresh_topology(confirmed=True)).hosted_by(gone))

    await wait_for(holds, 60, f"{gone} holding replicas again")


async def test_the_replicas_of_a_node_that_is_gone_are_rebuilt_and_it_is_told_when_it_is_back(tmp_path: Path) -> None:
    processes = ShardedProcesses(tmp_path, nodes=4, replace_after=SOON)
    async with processes:
        await processes.create(2, 3)  # waits for nodes that start slowly
        async with processes.connect() as client:
            await _rebuilt_elsewhere(processes, client)


async def test_a_node_that_dies_while_it_takes_the_place_of_a_dead_one_is_replaced_too(tmp_path: Path) -> None:
    """The rebalance waited for it for good, beside a node that had nothing to do."""
    processes = ShardedProcesses(tmp_path, nodes=5, replace_after=SOON, replace_throttle=600.0)
    async with processes:
        await processes.create(1, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=8, metric="l2")
            await client.insert_batch(ids=[f"doc-{n}" for n in range(400)], vectors=ROWS, timeout=30)
            before = await client.refresh_topology(confirmed=True)
            leader = await client.catalog_leader()
            held = before.shards[0].wanted
            processes.kill(next(name for name in held if name != leader))

            async def copying() -> str | None:
                """The node that is to hold the shard, and rests for minutes while it fetches it."""
                now = await client.refresh_topology(confirmed=True)
                new = [name for name in now.shards[0].wanted if name not in held]
                return new[0] if new else None

            target = await wait_for(copying, 60, "a node for the dead one's replica")
            processes.kill(target)

            async def whole() -> bool:
                now = await client.refresh_topology(confirmed=True)
                return target not in now.shards[0].wanted and bool(set(now.shards[0].wanted) - set(held))

            await wait_for(whole, 60, "another node for the one that died")
            assert {f"doc-{n}" for n in range(400)} == {hit.id for hit in await client.search(ROWS[0], 999, exact=True)}
