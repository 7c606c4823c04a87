"""Key ranges move between shards of real processes while clients write and search and leaders are killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, OutcomeUnknown, Unavailable
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.client.client import Client
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.calls import GroupCall, LeaderAnswer
from needle.protocol.catalog_commands import StartMove
from needle.protocol.peer_calls import SHARD_LEADER

DIMENSIONS = 8
LOADED = 1200


def vector(rng: random.Random) -> np.ndarray:
    return np.array([rng.gauss(0, 1) for _ in range(DIMENSIONS)], np.float32)


class Truth:
    """What clients were told. open: writes without an answer, or of unknown fate, by id: both states are right."""

    def __init__(self) -> None:
        self.there: dict[str, np.ndarray] = {}
        self.open: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.unknown = self.writes = self.searches = 0

    def nearest(self, query: np.ndarray, k: int, ids: list[str]) -> list[str]:
        stored = np.stack([self.there[name] for name in ids])
        distances = np.sqrt(((stored - query) ** 2).sum(axis=1))
        return [ids[at] for at in np.lexsort((np.array(ids), distances))[:k]]


async def _writer(client: Client, truth: Truth, name: str, ending: asyncio.Event) -> None:
    """Inserts, replaces and deletes documents of its own; each acknowledged version is higher than the last one."""
    rng = random.Random(name)
    while not ending.is_set():
        await asyncio.sleep(0.002)
        key = f"{name}-{rng.randrange(60)}"
        deletes, row = rng.random() < 0.25, vector(rng)
        truth.open[key] = truth.open.get(key, 0) + 1
        truth.writes += 1
        try:
            if deletes:
                await client.delete(key, timeout=20)
                truth.there.pop(key, None)
            else:
                result = await client.insert(key, row, timeout=20)
                assert result.version > truth.versions.get(key, 0)
                truth.versions[key] = result.version
                truth.there[key] = row
        except (OutcomeUnknown, ConnectionLost):
            truth.unknown += 1
            truth.there.pop(key, None)
            continue  # it stays open
        except Unavailable:
            pass
        truth.open[key] -= 1
        if not truth.open[key]:
            del truth.open[key]


async def _searcher(client: Client, truth: Truth, ending: asyncio.Event) -> None:
    """Every document that was there before an exact search and after it is found, once."""
    rng = random.Random("searcher")
    while not ending.is_set():
        await asyncio.sleep(0.005)
        before = {name: truth.versions.get(name) for name in truth.there if name not in truth.open}
        try:
            hits = await client.search(vector(rng), 10_000, exact=True, with_metadata=False, timeout=20)
        except (Unavailable, ConnectionLost):
            continue
        truth.searches += 1
        found = [hit.id for hit in hits]
        assert len(found) == len(set(found))
        still = truth.there.keys() - truth.open.keys()
        sure = {name for name, version in before.items() if name in still and truth.versions.get(name) == version}
        assert sure <= set(found), sorted(sure - set(found))


async def test_ranges_move_while_clients_work_and_leaders_die(tmp_path: Path) -> None:
    rng, truth, ending = random.Random(4), Truth(), asyncio.Event()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(3, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection("default", dimensions=DIMENSIONS, metric="l2")
            rows = np.stack([vector(rng) for _ in range(LOADED)])
            await client.insert_batch(ids=[f"doc-{n}" for n in range(LOADED)], vectors=rows)
            truth.there.update({f"doc-{n}": rows[n] for n in range(LOADED)})
            work = [
                asyncio.create_task(_writer(client, truth, "one", ending)),
                asyncio.create_task(_writer(other, truth, "two", ending)),
                asyncio.create_task(_searcher(client, truth, ending)),
            ]
            killers: list[Callable[[int], Awaitable[str | None]]] = [
                lambda source: _leader(processes, client, shard_group(source)),
                lambda source: _leader(processes, client, CATALOG_GROUP),
                lambda source: _nobody(),
            ]
            for number in range(9):
                epoch = client.topology().map.epoch  # type: ignore[union-attr]
                source = await _start(client, rng, number)
                victim = await killers[number % 3](source)
                await asyncio.sleep(rng.choice([0.0, 0.01, 0.03, 0.1]))
                if victim is not None:
                    processes.kill(victim)
                    await asyncio.sleep(0.5)
                    processes.restart(victim)
                await wait_for(lambda now=epoch: _moved(client, now), 60, f"move {number}")  # type: ignore[misc]
                assert not [task for task in work if task.done()]
            ending.set()
            await asyncio.gather(*work)
            await _everything_is_there_once(client, truth, rng)
    assert truth.writes > 50
    assert truth.searches > 10


async def _nobody() -> None:
    return None


async def _leader(processes: ShardedProcesses, client: Client, group: int) -> str | None:
    body = calls.encode(GroupCall(group))
    for node in processes.nodes.values():
        try:
            data = await client._shards._caller.call(node.address, SHARD_LEADER, body, 1.0)
        except NeedleError:
            continue
        leader = calls.decode(data, LeaderAnswer).leader
        if leader is not None:
            return leader
    return None


async def _start(client: Client, rng: random.Random, number: int) -> int:
    """Move a part of what a shard owns, or all of it, to another shard."""

    async def start() -> int | None:
        await client.refresh_topology(timeout=0.2)
        shard_map = client.topology().map
        assert shard_map is not None
        source = rng.choice(sorted(set(shard_map.owners)))
        ranges: list[Any] = shard_map.ranges(source)
        chosen = ranges if number == 5 else sorted(rng.sample(ranges, max(1, len(ranges) // 2)))
        target = rng.choice([shard for shard in range(3) if shard != source])
        try:
            await client.change_catalog(StartMove(number + 1, shard_map.epoch, chosen, source, target), timeout=5.0)
        except InvalidArgument:
            return None  # planned by an old map
        return source + 1

    return await wait_for(start, 60, "the start of a move") - 1


async def _moved(client: Client, epoch: int) -> bool:
    now = await client.refresh_topology(timeout=0.2)
    return now.map is not None and now.map.epoch > epoch and not now.moves


async def _everything_is_there_once(client: Client, truth: Truth, rng: random.Random) -> None:
    hits = await client.search(vector(rng), 10_000, exact=True, timeout=20)
    found = [hit.id for hit in hits]
    assert len(found) == len(set(found))
    assert set(truth.there) - set(truth.open) <= set(found) <= set(truth.there) | set(truth.open)
    sure = sorted(set(truth.there) - set(truth.open))
    assert not [name for name in found if name not in sure and name not in truth.open]
    await client.delete(sorted(truth.open), timeout=20) if truth.open else None
    for mode in ("strong", "leased"):
        for _ in range(10):
            query = vector(rng)
            hits = await client.search(query, 10, exact=True, mode=mode)
            assert [hit.id for hit in hits] == truth.nearest(query, 10, sure)
    assert sum((await client.counts()).values()) == len(sure)
    sample = rng.sample(sure, 100)
    for document in await client.get(sample):
        assert np.allclose(document.vector, truth.there[document.id])
    assert len(await client.get(sample)) == 100
