"""A cluster of real processes that began as three nodes and one shard becomes six nodes and four shards, and goes back,
while clients that were connected before work on: no call fails, and every read and exact search, filtered ones too,
equals a model at every moment."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.modelled import Model, Stored, Vector
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
    """One client that writes, reads and searches all the time; any error and any wrong answer fails the test."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._number = 0
        self.model = Model()
        self.calls = self.filtered = 0
        self.ending = False

    async def run(self) -> None:
        await asyncio.gather(self._write(), self._batch(), self._search())

    def _made(self, row: int) -> Stored:
        self._number += 1
        return Stored(ROWS[row], {"even": row % 2 == 0, "number": self._number})

    async def load(self) -> None:
        await self._insert([f"doc-{n}" for n in range(LOADED)], range(LOADED))

    async def _insert(self, names: list[str], rows: Sequence[int]) -> None:
        made = dict(zip(names, map(self._made, rows), strict=True))
        self.model.write(made)
        about = [state.metadata for state in made.values()]
        vectors = np.stack([state.vector for state in made.values()])
        await self._client.insert_batch(ids=names, vectors=vectors, metadatas=about, timeout=30)
        self.model.written(made)

    async def _write(self) -> None:
        """Single writes: new documents, and of those that were loaded one after the other again."""
        while not self.ending:
            at = self.calls
            name, state = f"live-{at}" if at % 2 else f"doc-{at % LOADED}", self._made((at * 7) % LOADED)
            self.model.write({name: state})
            told = await self._client.insert(name, state.vector, state.metadata, timeout=20)
            self.model.written({name: state}, told.version)
            asked = self.model.ask()
            self.model.judge_get(asked, name, await self._client.get(name, timeout=20))
            self.calls += 1
            await asyncio.sleep(0.02)

    async def _batch(self) -> None:
        while not self.ending:
            names = [f"batch-{self.calls}-{n}" for n in range(5)]
            await self._insert(names, range(5))
            gone: dict[str, Stored | None] = {names[0]: None}
            self.model.write(gone)
            await self._client.delete(names[0], timeout=20)
            self.model.written(gone)
            asked = self.model.ask()
            self.model.judge_get(asked, names[0], await self._client.get(names[0], timeout=20))
            self.calls += 1
            await asyncio.sleep(0.1)

    async def _search(self) -> None:
        while not self.ending:
            await self.search(self._client, ROWS[self.calls % LOADED])
            self.calls += 1
            await asyncio.sleep(0.1)

    async def search(self, client: Client, query: Vector) -> None:
        """Everything there is, and the nearest with a filter, as exact searches show them."""
        asked = self.model.ask()
        self.model.judge_search(asked, query, 9999, await client.search(query, 9999, exact=True, timeout=20))
        asked, even = self.model.ask(), {"even": True}
        hits = await client.search(query, 5, even, exact=True, with_vectors=True, timeout=20)
        self.model.judge_search(asked, query, 5, hits, even)
        self.filtered += len(hits)


async def test_three_nodes_and_a_shard_become_six_and_four_and_go_back(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(1, 3)
        async with processes.connect() as client, processes.connect() as operator:
            await healthy(client)
            await client.create_collection("default", dimensions=8, metric="l2")
            load, coordinator = Load(client), RebalanceCoordinator(operator)
            await load.load()
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
            held, arrived = await _switches(processes)
            assert min(held, arrived) >= 3  # each shard was given something
            stats = await coordinator.get_stats()
            assert sorted(stats.shard_sizes) == [0, 1, 2, 3]
            assert stats.documents_imbalance < 0.25
            assert [load.replicas for load in stats.nodes.values()] == [2] * 6
            await load.search(operator, ROWS[0])

            for shard in (3, 2, 1):
                await done(lambda shard=shard: coordinator.remove_shard(shard, CONFIG))  # type: ignore[misc]
            for node in ("node-6", "node-5", "node-1"):
                await done(lambda node=node: coordinator.drain_node(node, CONFIG))  # type: ignore[misc]
                await operator.remove_node(node)
                processes.kill(node)  # clients that knew it meet nobody there
            stats = await coordinator.get_stats()
            assert sorted(stats.shard_sizes) == [0]
            assert {node: load.replicas for node, load in stats.nodes.items()} == dict.fromkeys(
                ("node-2", "node-3", "node-4"), 1
            )
            load.ending = True
            await work
            await load.search(operator, ROWS[0])
            assert load.calls > 50
            assert load.filtered > 50
            with pytest.raises(InvalidArgument, match="number of a shard"):
                await client.leader(2)
            await client.drop_collection("default")  # the shard confirms it, and the retired ones are not asked
            await client.create_collection("default", dimensions=8, metric="l2")
            await client.insert("doc-0", ROWS[0])
            assert [hit.id for hit in await client.search(ROWS[0], 5)] == ["doc-0"]


async def _known(client: Client, nodes: int) -> bool:
    return len((await client.refresh_topology(timeout=0.2)).addresses()) == nodes


async def _switches(processes: ShardedProcesses) -> tuple[float, float]:
    """Decided switches of key ranges, and those that arrived, as all nodes have counted them."""
    found = [0.0, 0.0]
    names = r"(needle_move_hold_seconds_count\{[^}]*event=\"decided\"|needle_move_arrival_seconds_count)[^ ]* (\S+)"
    for node in processes.nodes:
        for name, count in re.findall(names, (await processes.http(node, "/metrics"))[1]):
            found["arrival" in name] += float(count)
    return found[0], found[1]
