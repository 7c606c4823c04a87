"""Bulk loads into real processes: whole, broken off, with a node that is away, and what is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import needle
from backup.archived import restored
from cluster.processes import ShardedProcesses, healthy
from harness.leading import led_by
from needle.backup.archive_looking import list_archives
from needle.backup.archiving import archive
from needle.backup.keeping import verify
from needle.backup.store import DirectoryStore
from needle.base.errors import CollectionExists, InvalidArgument, NeedleError
from needle.base.explain import Way
from needle.base.instants import micros
from needle.cli.bulk.handing import hand_in
from needle.cli.bulk.loading import Asked, Loaded, load
from needle.cli.bulk.pieces import pieces_of
from needle.client.shards import ask_leader
from needle.local.process_cluster import wait_for
from needle.protocol.bulk_calls import BULK_LOAD
from needle.routing.strategy import CONSISTENT_HASH
from needle.shard.bulk.staged import LOADS_MAX

ROWS, WIDTH = 6000, 16
VECTORS = np.random.default_rng(11).standard_normal((ROWS, WIDTH)).astype(np.float32)


class Inline:
    """An engine without processes."""

    def map(self, call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        for one in arguments:
            yield call(*one)

    def close(self) -> None:
        pass


def source(path: Path, vectors: np.ndarray = VECTORS) -> str:
    path.mkdir(parents=True)
    half = len(vectors) // 2
    for number, (first, end) in enumerate(((0, half), (half, len(vectors)))):
        ids = [f"d{at}" for at in range(first, end)]
        table = pa.table({"id": ids, "vector": list(vectors[first:end]), "n": list(range(first, end))})
        pq.write_table(table, path / f"{number}.parquet", row_group_size=1000)
    return str(path)


async def loaded(
    client: needle.Client,
    place: str,
    work: Path,
    collection: str = "books",
    told: Callable[[str, int, int], None] = lambda *_: None,
) -> Loaded:
    pieces, width = await asyncio.to_thread(pieces_of, place)
    asked = Asked(collection, pieces, width, needle.Metric.L2, str(work), 60.0)
    return await load(client, asked, Inline, told)


async def check_all(client: needle.Client, collection: str = "books") -> None:
    assert await client.count(collection=collection) == ROWS
    for at in (0, 999, 1000, ROWS - 1):
        [hit] = await client.search(VECTORS[at], k=1, collection=collection)
        assert (hit.id, hit.metadata) == (f"d{at}", {"n": at})
    document = await client.get("d17", collection=collection)
    assert np.array_equal(document.vector, VECTORS[17])
    assert await client.count({"n": {"$lt": 100}}, collection=collection) == 100


async def same_digests(client: needle.Client, shard: int) -> bool:
    try:
        said = await client.digests(shard, timeout=2.0)
    except NeedleError:
        return False
    return len(said) == 3 and len({(one.applied_index, one.digest) for one in said.values()}) == 1


async def test_a_load_appears_whole_is_searched_by_its_files_and_is_done_once(tmp_path: Path) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 3) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            told = list[tuple[str, int, int]]()
            done = await loaded(client, place, tmp_path / "work", told=lambda *step: told.append(step))
            assert (done.documents, done.shards, done.lacking) == (ROWS, 2, {})
            assert [one for one in told if one[0] == "loaded"] == [("loaded", at, 2) for at in range(3)], (
                "while they wait"
            )
            assert done.sent == 3 * done.files, "to each replica once"
            assert done.log < 1000
            await check_all(client)
            hits = await client.search(VECTORS[5], k=1, collection="books", explain=True)
            ways = [part.way for shard in hits.explained for part in shard.segments]
            assert Way.GRAPH in ways and Way.GROWING not in ways, ways
            told.clear()
            again = await loaded(client, place, tmp_path / "work", told=lambda *step: told.append(step))
            assert (again.documents, again.sent) == (ROWS, 0)
            assert [done / of for step, done, of in told if step == "sent"] == [0, 1], "nothing is left to be sent"
            again = await loaded(client, place, tmp_path / "other work")
            assert (again.documents, again.sent) == (ROWS, 0), "the same source makes the same files"
            other = await asyncio.to_thread(source, tmp_path / "other", VECTORS + 1)
            with pytest.raises(InvalidArgument, match="If that load ended, its documents are all there"):
                await loaded(client, other, tmp_path / "work")
            await client.insert("d3", VECTORS[3] + 9, {"n": -1}, collection="books")
            await client.delete("d4", collection="books")
            assert await client.count(collection="books") == ROWS - 1
            for shard in (0, 1):
                await wait_for(lambda shard=shard: same_digests(client, shard), 30, "equal replicas")


async def test_what_is_refused_of_source_or_alias_leaves_no_collection_behind(tmp_path: Path) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    twice = pa.table({"id": ["a", "b"], "vector": [[1.0] * WIDTH] * 2})
    (tmp_path / "twice").mkdir()
    pq.write_table(twice, tmp_path / "twice" / "0.parquet", row_group_size=1)
    pq.write_table(twice, tmp_path / "twice" / "1.parquet")
    short = pa.table({"id": ["a", "b"], "vector": [[1.0] * WIDTH, [1.0]]})
    pq.write_table(short, tmp_path / "short.parquet")
    same = pa.table({"id": ["b", "c", "c"], "vector": [[1.0] * WIDTH] * 3})
    pq.write_table(same, tmp_path / "same.parquet")
    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(2, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("taken", dimensions=3)

            async def refused(place: str, alias: str | None = None) -> NeedleError:
                pieces, width = await asyncio.to_thread(pieces_of, place)
                asked = Asked("books", pieces, width, needle.Metric.L2, str(tmp_path / "work"), 60.0, alias)
                with pytest.raises((InvalidArgument, CollectionExists)) as caught:
                    await load(client, asked, Inline, lambda *_: None)
                return caught.value

            message = (await refused(str(tmp_path / "twice"))).message
            assert "one id, 'a'" in message or "one id, 'b'" in message, "each in another piece"
            assert not (tmp_path / "work").exists(), "no second run can use what was made"
            message = (await refused(str(tmp_path / "same.parquet"))).message
            assert "one id, 'c'" in message and not (tmp_path / "work").exists()
            assert "row 1" in (await refused(str(tmp_path / "short.parquet"))).message
            assert not (tmp_path / "work").exists()
            assert isinstance(await refused(place, "taken"), CollectionExists)
            assert isinstance(await refused(place, "books"), InvalidArgument)
            assert [spec.name for spec in await client.collections()] == ["taken"]
            assert not list((tmp_path / "work").glob("shards/*")), "nor files"
            done = await loaded(client, place, tmp_path / "work")
            assert (done.documents, done.shards) == (ROWS, 2)
            await check_all(client)


async def test_documents_are_judged_by_the_limits_of_the_cluster(tmp_path: Path) -> None:
    """Not by those that nodes have by default: what they took as single writes was refused, and the other way round."""
    long, note = "x" * 700, "y" * 100_000
    for name in ("wide", "tight"):
        (tmp_path / name).mkdir()
    vectors = [[float(at)] * WIDTH for at in range(50)]
    table = {"id": [f"{long}{at}" for at in range(50)], "vector": vectors, "note": [note] * 50}
    pq.write_table(pa.table(table), tmp_path / "large.parquet")
    limits = {"metadata_bytes_max": 110_000, "id_bytes_max": 800}
    async with ShardedProcesses(tmp_path / "wide", 1, limits=limits) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            assert (await loaded(client, str(tmp_path / "large.parquet"), tmp_path / "work")).documents == 50
            found = await client.get(f"{long}7", collection="books")
            assert found.metadata == {"note": note}
    async with ShardedProcesses(tmp_path / "tight", 1, limits={"metadata_bytes_max": 3}) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            place = await asyncio.to_thread(source, tmp_path / "source")
            with pytest.raises(InvalidArgument, match="metadata"):
                await loaded(client, place, tmp_path / "other work")
            assert await client.collections() == []


async def test_a_node_that_was_away_gets_the_files_from_the_others(tmp_path: Path) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 3) as cluster:
        await cluster.create(1, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("books", dimensions=WIDTH, metric="l2")
            leader = await client.leader()
            away = next(node for node in cluster.nodes if node != leader)
            await asyncio.to_thread(cluster.kill, away)
            done = await loaded(client, place, tmp_path / "work")
            assert len(done.lacking) == 1
            await check_all(client)
            cluster.restart(away)
            await healthy(client)
            await wait_for(lambda: same_digests(client, 0), 30, "equal replicas")


async def test_a_load_that_is_broken_off_goes_on_under_another_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 3) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            handed = 0

            async def broken(*arguments: Any) -> Any:
                nonlocal handed
                handed += 1
                if handed == 2:
                    raise KeyError("killed here")
                return await hand_in(*arguments)

            monkeypatch.setattr("needle.cli.bulk.loading.hand_in", broken)
            with pytest.raises(KeyError):
                await loaded(client, place, tmp_path / "work")
            killed = await client.leader(shard=0)
            await asyncio.to_thread(cluster.kill, killed)
            monkeypatch.undo()

            async def whole() -> Loaded | None:
                try:
                    return await loaded(client, place, tmp_path / "work")
                except NeedleError:
                    return None

            assert (await wait_for(whole, 60, "the load")).documents == ROWS
            await check_all(client)
            cluster.restart(killed)
            await healthy(client)
            for shard in (0, 1):
                await wait_for(lambda shard=shard: same_digests(client, shard), 30, "equal replicas")


async def test_a_leader_that_was_away_is_handed_the_files_without_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes back between the hand-over and the entry, and leads."""
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 3) as cluster:
        await cluster.create(1, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("books", dimensions=WIDTH, metric="l2")
            leader = await client.leader()
            away = next(node for node in cluster.nodes if node != leader)
            await asyncio.to_thread(cluster.kill, away)
            led: list[bool] = []

            async def ask(asked: Any, shard: int, method: str, *rest: Any) -> Any:
                if method == BULK_LOAD and not led:
                    await asyncio.to_thread(cluster.restart, away)
                    await led_by(client, away)
                    led.append(True)
                return await ask_leader(asked, shard, method, *rest)

            monkeypatch.setattr("needle.cli.bulk.handing.ask_leader", ask)
            done = await loaded(client, place, tmp_path / "work")
            assert (led, done.lacking, done.sent) == ([True], {}, 3 * done.files)
            await check_all(client)


async def prepared(client: needle.Client, place: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load whose command ends when the files are there, before the entry."""

    async def broken(client: Any, shard: int, method: str, *rest: Any) -> Any:
        if method == BULK_LOAD:
            raise KeyError("killed here")
        return await ask_leader(client, shard, method, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("needle.cli.bulk.handing.ask_leader", broken)
        await loaded(client, place, work)


async def test_a_load_is_made_again_of_another_source_though_files_of_the_former_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            for number in range(LOADS_MAX - 1):
                other = await asyncio.to_thread(source, tmp_path / f"other {number}", VECTORS[:1000] + number + 1)
                await prepared(client, other, tmp_path / "work", monkeypatch)
            await loaded(client, place, tmp_path / "work")
            await check_all(client)


async def test_why_a_replica_takes_no_file_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            for number in range(LOADS_MAX):
                other = await asyncio.to_thread(source, tmp_path / f"other {number}", VECTORS[:1000] + number + 1)
                await prepared(client, other, tmp_path / "work", monkeypatch)
            with pytest.raises(InvalidArgument, match="other bulk loads were prepared"):
                await loaded(client, place, tmp_path / "work")
            await client.create_collection("short", dimensions=WIDTH, metric="l2", ttl=60)
            with pytest.raises(InvalidArgument, match="expire"):
                await loaded(client, place, tmp_path / "work", "short")


async def test_a_load_while_the_logs_are_archived_can_be_had_again(tmp_path: Path) -> None:
    place = await asyncio.to_thread(source, tmp_path / "source")
    store, stop = DirectoryStore(tmp_path / "target"), asyncio.Event()

    async def archived() -> bool:
        [told] = await asyncio.to_thread(list_archives, store) or [None]
        return told is not None and (micros(told.until) or 0) > since

    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            archiving = asyncio.create_task(archive(client, store, every=0.2, until=stop.wait))
            since = 0
            await wait_for(archived, 30, "the archive to begin")
            assert (await loaded(client, place, tmp_path / "work")).documents == ROWS
            await client.delete("d4", collection="books")
            since = int(time.time() * 1e6)
            await wait_for(archived, 60, "what is written behind the load")
            stop.set()
            await archiving
    [told] = list_archives(store)
    found = await asyncio.to_thread(restored, store, tmp_path / "restored", micros(told.until))
    assert len(found) == ROWS - 1 and "d4" not in found and found["d17"] == b'{"n":17}'
    assert (await asyncio.to_thread(verify, store)).problems == []
