"""A cluster of real processes that began as three nodes and one shard becomes six nodes and four shards, and goes back,
while clients that were connected before work on: no call fails, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import InvalidArgument
from needle.client.client import Client
from needle.distributed import RebalanceConfig, RebalanceCoordinator, RebalanceHandle
from needle.local.process_cluster import wait_for
from needle.routing.jobs import JobState

LOADED = 2000
CONFIG = RebalanceConfig(throttle_rate=0.0)
ROWS = np.random.default_rng(1).normal(size=(LOADED, 8)).astype(np.float32)


class Load:
    """One client that writes, reads and searches all the time; any error of it fails the test."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.there = {f"doc-{n}": n for n in range(LOADED)}
        self.calls = 0
        self.ending = False

    async def run(self) -> None:
        await asyncio.gather(self._write(), self._batch(), self._search())

    async def _write(self) -> None:
        while not self.ending:
            name, row = f"live-{self.calls}", self.calls % LOADED
            await self._client.insert(name, ROWS[row], {"even": row % 2 == 0}, timeout=20)
            self.there[name] = row
            found = await self._client.get(name, timeout=20)
            assert found is not None
            self.calls += 1
            await asyncio.sleep(0.02)

    async def _batch(self) -> None:
        while not self.ending:
            names = [f"batch-{self.calls}-{n}" for n in range(5)]
            await self._client.insert_batch(ids=names, vectors=ROWS[:5], timeout=20)
            self.there.update({name: n for n, name in enumerate(names)})
            del self.there[names[0]]  # first: a search may see it gone before this client hears so
            await self._client.delete(names[0], timeout=20)
            self.calls += 1
            await asyncio.sleep(0.1)

    async def _search(self) -> None:
        while not self.ending:
            before, row = dict(self.there), self.calls % LOADED
            hits = await self._client.search(ROWS[row], 9999, exact=True, timeout=20)
            found = [hit.id for hit in hits]
            assert len(found) == len(set(found))
            assert {name for name in before if name in self.there} <= set(found)
            some = await self._client.search(ROWS[row], 5, {"even": True}, exact=True, timeout=20)
            assert all(hit.metadata == {"even": True} for hit in some)
            self.calls += 1
            await asyncio.sleep(0.1)


@pytest.mark.alone
async def test_three_nodes_and_a_shard_become_six_and_four_and_go_back(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(1, 3)
        async with processes.connect() as client, processes.connect() as operator:
            await healthy(client)
            await client.create_collection("default", dimensions=8, metric="l2")
            await client.insert_batch(ids=[f"doc-{n}" for n in range(LOADED)], vectors=ROWS, timeout=30)
            load, coordinator = Load(client), RebalanceCoordinator(operator)
            work = asyncio.create_task(load.run())
            first = processes.nodes["node-1"].address
            for _ in range(3):
                processes.restart(processes.add(sharding={"join": [first]}))
            await wait_for(lambda: _known(operator, 6), 60, "three more nodes")

            async def done(start: Callable[[], Awaitable[RebalanceHandle]]) -> None:
                ended = await (await start()).wait(120)
                assert ended.state is JobState.DONE, ended.why
                assert not work.done(), work.exception()

            for _ in range(3):
                await done(lambda: coordinator.add_shard(CONFIG))
            await done(lambda: coordinator.start_rebalance(CONFIG))
            stats = await coordinator.get_stats()
            assert sorted(stats.shard_sizes) == [0, 1, 2, 3]
            assert stats.documents_imbalance < 0.25
            assert [load.replicas for load in stats.nodes.values()] == [2] * 6
            await _all_there(operator, load)

            for shard in (3, 2, 1):
                await done(lambda shard=shard: coordinator.remove_shard(shard, CONFIG))  # type: ignore[misc]
            for node in ("node-6", "node-5", "node-1"):
                await done(lambda node=node: coordinator.drain_node(node, CONFIG))  # type: ignore[misc]
                await operator.remove_node(node)
            stats = await coordinator.get_stats()
            assert sorted(stats.shard_sizes) == [0]
            assert {node: load.replicas for node, load in stats.nodes.items()} == dict.fromkeys(
                ("node-2", "node-3", "node-4"), 1
            )
            load.ending = True
            await work
            await _all_there(operator, load)
            assert load.calls > 50
            with pytest.raises(InvalidArgument, match="number of a shard"):
                await client.leader(2)
            await client.drop_collection("default")  # the shard confirms it, and the retired ones are not asked
            await client.create_collection("default", dimensions=8, metric="l2")
            await client.insert("doc-0", ROWS[0])
            assert [hit.id for hit in await client.search(ROWS[0], 5)] == ["doc-0"]


async def _known(client: Client, nodes: int) -> bool:
    return len((await client.refresh_topology(timeout=0.2)).addresses()) == nodes


async def _all_there(client: Client, load: Load) -> None:
    before = set(load.there)
    found = {hit.id for hit in await client.search(ROWS[0], 9999, exact=True, timeout=20)}
    assert before & set(load.there) <= found
    if load.ending:
        assert found == set(load.there)
