"""Change feeds of real processes: at the end a consumer has what the cluster has, whatever happened meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from cluster.test_moving_processes import Truth, _leader, _moved, _nobody, _start, _writer
from needle.base.errors import CollectionNotFound, InvalidArgument, NeedleError
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.client.client import Client
from needle.client.feed import Change, Changes
from needle.local.process_cluster import wait_for

DIMENSIONS = 8


class Mirror:
    """A consumer: what it was told makes its state. told: the last version of each id, deletions included."""

    def __init__(self) -> None:
        self.there: dict[str, tuple[int, Any, bytes]] = {}
        self.told: dict[str, int] = {}
        self.resets = self.changes = 0
        self.whole = True

    def take(self, change: Change) -> None:
        if change.kind == "reset":
            self.there, self.told, self.whole = {}, {}, False
            self.resets += 1
        elif change.kind == "ready":
            self.whole = True
        else:
            self.changes += 1
            assert change.version > self.told.get(change.id, -1), (change, self.told[change.id])
            self.told[change.id] = change.version
            if change.kind == "delete":
                assert self.there.pop(change.id, None) is not None, change
            else:
                assert (change.kind == "update") == (change.id in self.there), change
                self.there[change.id] = (change.version, change.metadata, change.vector.tobytes())


async def _stored(client: Client) -> dict[str, tuple[int, Any, bytes]]:
    found = client.scan(with_vectors=True, timeout=30)
    return {one.id: (one.version, one.metadata, one.vector.tobytes()) async for one in found}


async def _equal(client: Client, mirror: Mirror) -> None:
    async def look() -> bool | None:
        return (mirror.whole and mirror.there == await _stored(client)) or None

    await wait_for(look, 60, "the consumer has what the cluster has")


async def _some(feed: Changes, count: int) -> list[Change]:
    async with asyncio.timeout(30):
        return [await anext(feed) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "int8", "bit"])
async def test_each_change_is_told_once_and_a_token_goes_on(tmp_path: Path, dtype: str) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            like: dict[str, Any] = {"dimensions": 16} if dtype == "bit" else {"dimensions": 2, "metric": "l2"}
            await client.create_collection("default", dtype=dtype, **like)
            async with client.changes() as feed:
                first = await client.insert("a", [1, 2], {"n": 1})
                await client.patch("a", set={"n": 2})
                await client.update_vector("a", [3, 4])
                last = await client.delete("a")
                await client.delete("a")  # there is nothing to delete, and so no change
                told = await _some(feed, 4)
                assert [one.kind for one in told] == ["insert", "update", "update", "delete"]
                assert [one.metadata for one in told] == [{"n": 1}, {"n": 2}, {"n": 2}, None]
                assert [list(one.vector) for one in told[:3]] == [[1, 2], [1, 2], [3, 4]]
                assert told[0].version == first.version
                assert told[3].version == last.version
                token = feed.token
            await client.insert_batch([(f"b{n}", [n, 0], {"n": n}) for n in range(20)])
            await client.delete_where({"n": {"$lt": 5}})
            async with other.changes(since=token) as feed:
                told = await _some(feed, 25)
                assert sorted(one.id for one in told if one.kind == "insert") == sorted(f"b{n}" for n in range(20))
                assert sorted(one.id for one in told if one.kind == "delete") == sorted(f"b{n}" for n in range(5))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(feed), 0.5)
                await client.insert("c", [0, 0])
                assert (await _some(feed, 1))[0].id == "c"  # giving up waiting has lost nothing
            mirror = Mirror()
            async with client.changes(since="start") as feed:
                while mirror.resets == 0 or not mirror.whole:
                    mirror.take(await anext(feed))
                assert mirror.there == await _stored(client)
                await client.drop_collection("default")
                with pytest.raises(CollectionNotFound):
                    await _some(feed, 1)
            await client.create_collection("default", dimensions=2, metric="l2")
            with pytest.raises(InvalidArgument, match="dropped and made again"):
                await client.changes(since=token).begin()
            with pytest.raises(InvalidArgument, match="since"):
                client.changes(since=token[:-3])


async def test_it_goes_on_after_all_nodes_were_restarted(tmp_path: Path) -> None:
    """By what the replicas have applied again, or again."""
    mirror = Mirror()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(1, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            async with client.changes(since="start") as feed:
                await client.insert_batch(ids=["a", "z"], vectors=[[1, 2]] * 2)
                while not {"a", "z"} <= mirror.there.keys() or not mirror.whole:
                    mirror.take((await _some(feed, 1))[0])
                token = feed.token
            await client.insert("b", [1, 2])
            await client.delete("z")
            for node in processes.nodes:
                processes.kill(node)
            for node in processes.nodes:
                processes.restart(node)
            await healthy(client)
            await client.delete("a")
            stored = await _stored(client)
            async with client.changes(since=token, timeout=30) as feed:
                while mirror.there != stored or not mirror.whole:
                    mirror.take((await _some(feed, 1))[0])
    assert sorted(stored) == ["b"]


async def test_a_reader_comes_to_the_end_of_all_documents_however_much_is_written_meanwhile(tmp_path: Path) -> None:
    """More than is remembered; by one feed, and by many that each go on by the token of the one before."""
    async with ShardedProcesses(tmp_path, nodes=3, limits={"feed_bytes_max": 50_000}) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            ids = [f"d{n:05}" for n in range(2500)]
            await client.insert_batch(ids=ids, vectors=np.ones((2500, 2)))
            ending, written = asyncio.Event(), 0

            async def write() -> None:
                nonlocal written
                rng = random.Random(4)
                while not ending.is_set():
                    some = [f"d{rng.randrange(3000):05}" for _ in range(20)]
                    work = [client.insert(one, [1, 2], {"n": written}) for one in sorted(set(some[:15]))]
                    await asyncio.gather(*work, client.delete(some[15:]))
                    written += 20

            writer, mirrors = asyncio.create_task(write()), [Mirror(), Mirror()]
            async with other.changes(since="start", timeout=30) as feed:
                while mirrors[0].resets == 0 or not mirrors[0].whole:
                    mirrors[0].take(await anext(feed))
                    if mirrors[0].changes % 10 == 0:
                        await asyncio.sleep(0.004)  # so the whole takes longer than what is remembered
                while written < 3000:
                    mirrors[0].take(await anext(feed))
                token, feeds = "start", 0
                while mirrors[1].resets == 0 or not mirrors[1].whole:
                    async with other.changes(since=token, timeout=30) as short:
                        for _ in range(350):
                            mirrors[1].take(await anext(short))
                        token, feeds = short.token, feeds + 1
                    mirrors[0].take(await anext(feed))
                ending.set()
                await writer
                stored = await _stored(client)
                while mirrors[0].there != stored:
                    mirrors[0].take((await _some(feed, 1))[0])
            async with other.changes(since=token, timeout=30) as feed:
                while mirrors[1].there != stored:
                    mirrors[1].take((await _some(feed, 1))[0])
    assert feeds > 5
    assert mirrors[1].resets == 1


async def test_a_filter_of_the_readers_own(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=1) as processes:
        await processes.create(2, 1)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            await client.insert_batch([(f"b{n}", [n, 0], {"n": n}) for n in range(20)])
            async with client.changes(since="start", filter={"n": {"$gte": 17}}) as feed:
                told = await _some(feed, 5)
                assert [(one.kind, one.id) for one in told[1:4]] == [("insert", f"b{n}") for n in (17, 18, 19)]
                assert [told[0].kind, told[4].kind] == ["reset", "ready"]
                await client.patch("b3", set={"n": 3.5})
                await client.patch("b18", set={"n": 1})
                await client.patch("b1", set={"n": 21})
                await client.patch("b1", set={"n": 22})
                await client.delete_where({})
                told = await _some(feed, 6)
                of = {name: [one.kind for one in told if one.id == name] for name in {one.id for one in told}}
                assert of == {
                    "b18": ["delete"], "b1": ["insert", "update", "delete"], "b17": ["delete"], "b19": ["delete"],
                }  # fmt: skip
            with pytest.raises(InvalidArgument, match="filter"):
                client.changes(filter={"n": {"$no": 1}})


async def _consume(client: Client, mirror: Mirror, rng: random.Random, ending: asyncio.Event) -> None:
    """Reads, and now and then goes on with another feed, by the token of the one before."""
    token = "start"
    while not ending.is_set():
        feed = client.changes(since=token, timeout=20)
        try:
            for _ in range(rng.randrange(1, 400)):
                mirror.take(await asyncio.wait_for(anext(feed), 1.0))
        except TimeoutError:
            pass
        except NeedleError as error:
            assert error.retryable, error
        token = feed.token
        await feed.aclose()


async def test_a_consumer_has_what_the_cluster_has_while_ranges_move_and_leaders_die(tmp_path: Path) -> None:
    rng, truth, ending, over = random.Random(9), Truth(), asyncio.Event(), asyncio.Event()
    mirror = Mirror()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(3, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection("default", dimensions=DIMENSIONS, metric="l2")
            await client.insert_batch(ids=[f"doc-{n}" for n in range(200)], vectors=np.ones((200, DIMENSIONS)))
            work = [
                asyncio.create_task(_writer(client, truth, "one", ending)),
                asyncio.create_task(_writer(other, truth, "two", ending)),
                asyncio.create_task(_consume(other, mirror, rng, over)),
            ]
            killers: list[Callable[[int], Awaitable[str | None]]] = [
                lambda source: _leader(processes, client, shard_group(source)),
                lambda source: _nobody(),
                lambda source: _leader(processes, client, CATALOG_GROUP),
            ]
            for number in range(6):
                epoch = client.topology().map.epoch  # type: ignore[union-attr]
                source = await _start(client, rng, number)
                victim = await killers[number % 3](source)
                await asyncio.sleep(rng.choice([0.0, 0.03, 0.1]))
                if victim is not None:
                    processes.kill(victim)
                    await asyncio.sleep(0.5)
                    processes.restart(victim)
                await wait_for(lambda now=epoch: _moved(client, now), 60, f"move {number}")  # type: ignore[misc]
                assert not [task for task in work if task.done()]
            ending.set()
            await asyncio.gather(*work[:2])
            await _equal(client, mirror)
            over.set()
            await work[2]
    assert truth.writes > 50
    assert mirror.changes > 100


async def test_a_reader_who_was_away_while_a_shard_was_split_and_written_to_goes_on(tmp_path: Path) -> None:
    """What had been written meanwhile, and then left with its range, was purged on all replicas before it came back."""
    mirror = Mirror()
    async with ShardedProcesses(tmp_path, nodes=3, snapshot_threshold=50) as processes:
        await processes.create(1, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2, metric="l2")
            ids = [f"d{n}" for n in range(3000)]
            await client.insert_batch(ids=ids, vectors=np.ones((3000, 2)))
            async with client.changes(since="start") as feed:
                while mirror.resets == 0 or not mirror.whole:
                    mirror.take((await _some(feed, 1))[0])
                token = feed.token
            rng = random.Random(3)

            async def write() -> bool:
                await client.insert(f"d{rng.randrange(3000)}", [1, 2], timeout=20)
                return True

            for _ in range(20):
                await write()
            await client.split_shard(0)

            async def split() -> bool:
                await write()
                now = await client.refresh_topology(timeout=0.2)
                return now.map is not None and len(set(now.map.owners)) == 2 and not now.moves

            await wait_for(split, 120, "the split")
            over = (await client.status(0)).last_index

            async def purged() -> bool:
                for _ in range(10):
                    await write()
                told = [one.status for one in await client.cluster_status() if one.shard == 0]
                return all(one is not None and one.first_index > over for one in told)

            await wait_for(purged, 120, "snapshots of what was left, before which each replica purges")
            async with client.changes(since=token, timeout=30) as feed:
                stored = await _stored(client)
                while mirror.there != stored:
                    mirror.take((await _some(feed, 1))[0])
    assert mirror.resets == 1
