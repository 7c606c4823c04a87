"""Index files of named vectors come along in backups and archives, each name's beside those of the documents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio

import needle
from backup.test_indexes import cluster_of, events
from backup.test_instant_indexes import looked
from needle import VectorSpec
from needle import backup as backups
from needle.backup.archiving import Archiver
from needle.backup.format import IndexFile
from needle.backup.index_restoring import IndexRestoring
from needle.backup.store import DirectoryStore, Store
from needle.base.errors import InvalidArgument
from needle.base.explain import Way
from needle.base.model import Metric
from needle.local.process_cluster import wait_for

ROWS, LATE, SEALED = 3000, 1600, 60
WIDTHS = {"": 16, "title": 8, "late": 12}
RNG = np.random.default_rng(5)
VECTORS = {name: RNG.standard_normal((ROWS, width)).astype(np.float32) for name, width in WIDTHS.items()}
NAMES = [f"d{n}" for n in RNG.permutation(ROWS)]
TITLES = [row if at % 10 else None for at, row in enumerate(VECTORS["title"])]
ORDER = RNG.permutation(ROWS)[:LATE].tolist()


async def filled(client: needle.Client) -> None:
    """Several index files of each vector, which begin and end at other documents than those of the others."""
    title = VectorSpec(dimensions=8, metric=Metric.L2)
    await client.create_collection("books", dimensions=16, metric="l2", vectors={"title": title})
    for first, end in ((0, 2700), (2700, ROWS)):  # less than an eighth becomes a file of its own
        await client.insert_batch(
            ids=NAMES[first:end], vectors=VECTORS[""][first:end], named_vectors={"title": TITLES[first:end]},
            collection="books",
        )  # fmt: skip
        await wait_for(partial(searched, client, "", end - 2 * SEALED), 90, "index files")
    await client.add_vector("books", "late", VectorSpec(dimensions=12, metric=Metric.L2))
    for first, end in ((0, 1440), (1440, LATE)):  # in an order of its own
        await late(client, ORDER[first:end])
        await wait_for(partial(searched, client, "late", end - 2 * SEALED), 90, "index files of a name")
    await wait_for(lambda: searched(client, "title", 2700 - 2 * SEALED), 90, "index files of a name")
    await client.delete(NAMES[:150], collection="books")
    # One vector of a document is in a file, and another is not.
    await client.update_vectors(NAMES[200:300], VECTORS[""][200:300] + 1, collection="books")
    await client.update_vectors(NAMES[300:360], VECTORS["title"][300:360] + 1, name="title", collection="books")
    await client.delete_vector(NAMES[400:440], "title", collection="books")


async def late(client: needle.Client, chosen: list[int]) -> None:
    for first in range(0, len(chosen), 500):
        some = chosen[first : first + 500]
        ids = [NAMES[at] for at in some]
        await client.update_vectors(ids, VECTORS["late"][some], name="late", collection="books")


async def searched(client: needle.Client, name: str, least: int) -> int:
    """How many vectors of a name are searched by index files, if that are so many."""
    hits = await client.search(VECTORS[name][0], k=1, vector_name=name or None, collection="books", explain=True)
    parts = [part for shard in hits.explained for part in shard.segments if part.way is not Way.GROWING]
    rows = sum(part.rows for part in parts)
    return rows if rows >= least else 0


async def found(client: needle.Client, name: str) -> float:
    """The share of the nearest that searches by a name find."""
    share, by = list[float](), name or None
    for query in VECTORS[name][:60] + np.float32(0.01):
        exact = {hit.id for hit in await client.search(query, k=10, exact=True, vector_name=by, collection="books")}
        hits = await client.search(query, k=10, vector_name=by, collection="books")
        share.append(len(exact & {hit.id for hit in hits}) / 10)
    return float(np.mean(share))


async def fast_at_once(client: needle.Client, done: backups.Restored) -> None:
    """Nearly all of what is there is searched by files that came."""
    assert done.built == []
    assert await searched(client, "", ROWS - 500) and await searched(client, "title", 2700 - 500)
    assert await searched(client, "late", LATE - 400)
    assert done.indexed >= ROWS - 500 and done.indexed_named >= 2700 + LATE - 900
    for name in VECTORS:
        assert await found(client, name) > 0.97


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Store, backups.Made, int]]:
    """A backup of two shards, and an instant of the archive of the same cluster."""
    root = tmp_path_factory.mktemp("named")
    store = backups.open_store(str(root / "target"))
    async with cluster_of(root / "first", 2, 1, SEALED) as (_, client):
        await filled(client)
        made = await backups.create(client, store)
        assert made.left_out == []
        [collection] = made.manifest.collections
        assert {name: len({one.shard for one in files}) for name, files in collection.named_indexes.items()} == {
            "title": 2, "late": 2,
        }  # fmt: skip
        assert made.indexes == len(collection.index_files()) > 6
        assert (await backups.create(client, store)).shipped == 0, "they are known, too"
        archiver = Archiver(client, store)
        await looked(archiver)
        instant = int(time.time() * 1e6)
        await asyncio.sleep(0.01)
        await client.delete(NAMES[1000:1100], collection="books")
        await archiver.look(flush=True)
        await archiver.close()
    assert backups.verify(store).problems == []
    yield store, made, instant


async def test_searches_by_a_name_are_fast_at_once(tmp_path: Path, target: tuple[Store, backups.Made, int]) -> None:
    store, made, instant = target
    async with cluster_of(tmp_path / "to", 2, 1, SEALED) as (cluster, client):
        done = await backups.restore(client, store, made.manifest.id)
        assert done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        await fast_at_once(client, done)
        assert await events(cluster, "adopted") == made.indexes  # of which small ones are joined later
        await client.drop_collection("books")
        again = await backups.restore_at(client, store, instant)
        assert again.documents == done.documents
        await fast_at_once(client, again)
        assert await events(cluster, "adopted") == 2 * made.indexes
        await late(client, ORDER)
        await wait_for(lambda: searched(client, "late", LATE - 300), 90, "it goes on as ever")


async def test_with_other_shards_all_is_built(tmp_path: Path, target: tuple[Store, backups.Made, int]) -> None:
    store, made, _ = target
    async with cluster_of(tmp_path / "three", 3, 1, SEALED) as (cluster, client):
        done = await backups.restore(client, store, made.manifest.id)
        assert (done.indexed, done.indexed_named, done.built) == (0, 0, [])
        await asyncio.wait_for(backups.wait_indexed(client, done.digests), timeout=120)
        assert await searched(client, "late", LATE - 740) and await events(cluster, "adopted") == 0


@pytest.mark.parametrize("what", ["parts", "hashes"])
async def test_damage_is_told_and_costs_one_shard_of_one_name_its_files(
    tmp_path: Path, target: tuple[Store, backups.Made, int], what: str
) -> None:
    store, made, _ = target
    assert isinstance(store, DirectoryStore)
    files = made.manifest.collections[0].named_indexes["title"]
    ref = getattr(next(file for file in files if file.shard == 1), what)[0]
    before = store.get(ref.name)
    assert before is not None
    try:
        store.put(ref.name, before[:-1] + bytes([before[-1] ^ 1]))
        problems = backups.verify(store, made.manifest.id).problems
        assert len(problems) == 1 and ref.name in problems[0] and "a restore builds that again" in problems[0]
        async with cluster_of(tmp_path / "to", 2, 1, SEALED) as (cluster, client):
            done = await backups.restore(client, store, made.manifest.id)
            assert len(done.built) == 1 and "shard 1, collection books/title" in done.built[0]
            assert ref.name in done.built[0]
            assert await events(cluster, "adopted") == made.indexes - sum(file.shard == 1 for file in files)
            await wait_for(lambda: searched(client, "title", 2700 - 500), 90, "the other shard's are built")
            assert await found(client, "title") > 0.97
    finally:
        store.put(ref.name, before)


class Ends(Exception):
    """The command ends here."""


@pytest.mark.campaign
@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_killed_it_goes_on(
    tmp_path: Path, target: tuple[Store, backups.Made, int], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the ends of rounds: of documents, and of names."""
    store, made, _ = target
    monkeypatch.setattr("needle.backup.restoring.AT_ONCE", 1)
    monkeypatch.setattr("needle.backup.restoring.NOTED", 2)
    ended, end, adopted = list[tuple[str, int]](), IndexRestoring.end, IndexRestoring._adopted

    async def ends(self: IndexRestoring, number: int) -> None:
        if len(ended) == at and at % 2:
            raise Ends
        await end(self, number)
        ended.append((self._name, number))
        if len(ended) == at + 1:
            raise Ends

    async def refuses(self: IndexRestoring, file: IndexFile) -> int:
        if file.shard == 0 and self._name == "books/title":
            raise InvalidArgument("this index file is refused")
        return await adopted(self, file)

    async with cluster_of(tmp_path / "to", 2, 1, SEALED) as (_, client):
        with monkeypatch.context() as patched:
            patched.setattr(IndexRestoring, "end", ends)
            patched.setattr(IndexRestoring, "_adopted", refuses)
            with pytest.raises(Ends):
                await backups.restore(client, store, made.manifest.id)
        done = await backups.restore(client, store, made.manifest.id)
        assert done.resumed and done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        for name, least in (("", ROWS - 500), ("title", 2700 - 500), ("late", LATE - 400)):
            await wait_for(partial(searched, client, name, least), 90, "index files")
            assert await found(client, name) > 0.97


def test_an_earlier_release_reads_what_it_knows(target: tuple[Store, backups.Made, int]) -> None:
    _, made, _ = target
    told = msgspec.json.decode(msgspec.json.encode(made.manifest.collections[0]))
    del told["named_indexes"]
    assert (
        msgspec.convert(told, type(made.manifest.collections[0])).index_files() == made.manifest.collections[0].indexes
    )
