"""Index files come along in an archive: searches are fast when an instant is restored, and nothing is built again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from backup.archived import SECOND, World
from backup.test_indexes import NAMES, ROWS, VECTORS, cluster_of, events, filled, found, searched
from needle import backup as backups
from needle.backup.archive_format import INDEXES
from needle.backup.archive_keeping import outdated, pieces_of_archives
from needle.backup.archive_reading import chosen, index_sets_of, read_index_set
from needle.backup.archiving import Archiver
from needle.backup.index_archiving import IndexArchiving
from needle.backup.keeping import PRUNING
from needle.backup.shard_archive import ShardArchive
from needle.backup.store import DirectoryStore
from needle.base.errors import CollectionExists
from needle.local.process_cluster import wait_for


async def looked(archiver: Archiver) -> None:
    """With what is copied beside the look."""
    await archiver.look(flush=True)
    assert archiver._basing is not None
    while not all(one.indexed[0] for one in archiver.shards.values()):
        await archiver._basing
        await archiver.look(flush=True)


async def test_an_instant_comes_back_with_index_files(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with cluster_of(tmp_path / "first", 2, 1) as (_, client):
        await filled(client)
        archiver = Archiver(client, store)
        await looked(archiver)
        sets = [index_sets_of(store, chosen(store, None), shard) for shard in (0, 1)]
        assert [len(one) for one in sets] == [1, 1]
        await client.insert_batch(ids=NAMES[100:200], vectors=VECTORS[100:200] + 3, collection="books")
        instant = int(time.time() * 1e6)
        await asyncio.sleep(0.01)
        documents = await client.count(collection="books")
        await client.delete(NAMES[1000:2000], collection="books")
        await archiver.look(flush=True)
        await archiver.close()
    assert backups.verify(store).problems == []

    async with cluster_of(tmp_path / "same", 2, 1) as (cluster, client):
        done = await backups.restore_at(client, store, instant)
        assert done.documents == documents == await client.count(collection="books")
        assert done.built == [] and done.indexed >= ROWS - 1000
        assert await searched(client, done.indexed), "at once"
        files = [file for one in sets for _, name in one for file in read_index_set(store, name).files()]
        assert await events(cluster, "adopted") == len(files) > 2 and await events(cluster, "built") == 0
        assert await found(client) > 0.97
        await client.drop_collection("books")
        assert (await backups.restore_at(client, store, instant, index_files=False)).indexed == 0
    async with cluster_of(tmp_path / "three", 3, 1) as (_, client):
        done = await backups.restore_at(client, store, instant)
        assert done.indexed == 0 and done.built == [] and done.documents == documents
        await wait_for(lambda: searched(client, documents - 740), 90, "index files")
        told: list[str] = []
        with pytest.raises(CollectionExists, match="collection books already"):
            await backups.restore_at(client, store, instant, told=told.append)
        assert told == [], "no log is read for what cannot be written"
    _kept_and_checked(store, sets)


def _kept_and_checked(store: backups.Store, sets: list[list[tuple[int, str]]]) -> None:
    """Prune keeps what sets name, until a later one leads to all that stays; damage is told."""
    [(_, name)] = sets[1]
    refs = read_index_set(store, name).pieces()
    assert {ref.name for ref in refs} <= pieces_of_archives(store, set())
    assert not [one for one in outdated(store, int(time.time() * 1e6)) if one.endswith(INDEXES)]
    before = store.get(refs[0].name)
    assert before is not None
    store.put(refs[0].name, before[:-1] + bytes([before[-1] ^ 1]))
    [problem] = backups.verify(store).problems
    assert refs[0].name in problem and "a restore builds these again" in problem
    store.put(name, b"damaged")  # holds up no prune: no restore uses it any more
    others = {ref.name for _, other in sets[0] for ref in read_index_set(store, other).pieces()}
    assert others <= pieces_of_archives(store, set())


def test_when_index_files_are_copied() -> None:
    archive = ShardArchive(0)
    assert not archive.lacks_indexes(10**15, 60), "none was published"
    archive.published = archive.kept = 50
    assert archive.lacks_indexes(10**15, 60)
    archive.indexed = (50, 10**15)
    archive.kept = 90
    assert not archive.lacks_indexes(10**15 + 120_000_000, 60), "there is no new one"
    archive.published = 80
    assert not archive.lacks_indexes(10**15 + 59_000_000, 60)
    assert archive.lacks_indexes(10**15 + 60_000_000, 60)
    archive.kept = 100
    assert archive.lacks_indexes(10**15, 60), "twice as many entries"


async def test_what_could_not_be_copied_is_tried_again(tmp_path: Path) -> None:
    """Beside a prune, index files were left out until there were new ones."""
    world, store, archive = World(tmp_path / "w"), DirectoryStore(tmp_path / "t"), ShardArchive(0)

    async def put(name: str, data: bytes) -> None:
        store.put(name, data)

    archive.published = archive.kept = 50
    mark = f"{PRUNING}{16 * '0'}"
    store.put(mark, b"")
    world.now = int(store.names(PRUNING)[mark].modified * SECOND)
    await IndexArchiving(world.client, store, put, 3600.0, world.around).go_on(world.topology, [archive])
    assert archive.indexed == (0, 0) and not archive.lacks_indexes(world.now + 59 * SECOND, 3600.0)
    assert archive.lacks_indexes(world.now + 60 * SECOND, 3600.0)
