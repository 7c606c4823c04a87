"""Index files come along at a backup and a restore of real processes, and what happens where they do not fit."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio

import needle
from backup.killing import Counted, Killed
from harness.calm import CALM
from needle import backup as backups
from needle.backup.around import Around
from needle.backup.format import IndexFile, encode_manifest, manifest_name
from needle.backup.index_restoring import IndexRestoring
from needle.backup.one_collection import MARK
from needle.backup.store import Before, DirectoryStore, Store
from needle.base.errors import InvalidArgument, Unavailable
from needle.base.explain import Way
from needle.base.ids import shard_group
from needle.client.shards import ask_leader
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster
from needle.protocol import calls
from needle.protocol.index_file_calls import (
    INDEX_ADOPT,
    INDEX_HOLD,
    INDEX_PUT,
    IndexAdoptCall,
    IndexHoldCall,
    IndexPutCall,
)
from needle.routing.strategy import CONSISTENT_HASH

pytestmark = pytest.mark.campaign

ROWS, WIDTH = 6000, 16
SETTINGS = {
    **CALM,
    "sharding": {"zone": "a"},
    "segments": {"seal_rows": 250},
}
RNG = np.random.default_rng(3)
VECTORS = RNG.standard_normal((ROWS, WIDTH)).astype(np.float32)
NAMES = [f"d{n}" for n in RNG.permutation(ROWS)]


@asynccontextmanager
async def cluster_of(
    path: Path, shards: int, nodes: int, seal_rows: int = 250
) -> AsyncIterator[tuple[ProcessCluster, needle.Client]]:
    await asyncio.to_thread(path.mkdir)
    async with ProcessCluster(path, nodes, **{**SETTINGS, "segments": {"seal_rows": seal_rows}}) as cluster:
        await cluster.create(shards, nodes, CONSISTENT_HASH)
        async with cluster.connect() as client:
            yield cluster, client


async def filled(client: needle.Client) -> None:
    """Several index files in each shard, of which documents were deleted, changed and added again."""
    await client.create_collection("books", dimensions=WIDTH, metric="l2")
    for first, end in ((0, 5400), (5400, 5960), (5960, ROWS)):  # less than an eighth becomes a file of its own
        await client.insert_batch(ids=NAMES[first:end], vectors=VECTORS[first:end], collection="books")
        await wait_for(lambda end=end: searched(client, end - 480), 90, "index files")
    await client.delete(NAMES[:300], collection="books")
    await client.insert_batch(ids=NAMES[300:400], vectors=VECTORS[300:400] + 1, collection="books")
    await client.insert_batch(ids=NAMES[:50], vectors=VECTORS[:50], collection="books")


async def searched(client: needle.Client, least: int) -> int:
    """How many documents are searched by index files, if that are so many."""
    hits = await client.search(VECTORS[0], k=1, collection="books", explain=True)
    parts = [part for shard in hits.explained for part in shard.segments if part.way is not Way.GROWING]
    rows = sum(part.rows for part in parts)
    return rows if rows >= least else 0


async def found(client: needle.Client) -> float:
    """The share of the nearest that searches by the index find."""
    share = []
    for query in VECTORS[:100] + np.float32(0.01):
        exact = {hit.id for hit in await client.search(query, k=10, exact=True, collection="books")}
        share.append(len(exact & {hit.id for hit in await client.search(query, k=10, collection="books")}) / 10)
    return float(np.mean(share))


async def events(cluster: ProcessCluster, event: str) -> int:
    """Of all nodes and shards."""
    texts = [of_one_cluster((await cluster.http(name, "/metrics"))[1]) for name in cluster.nodes]
    sample = rf'^needle_segment_events_total{{event="{event}",shard="\d+"}} (\S+)$'
    return int(sum(float(value) for text in texts for value in re.findall(sample, text, re.MULTILINE)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Store, backups.Made]]:
    """A backup of two shards on two nodes."""
    root = tmp_path_factory.mktemp("indexes")
    store = backups.open_store(str(root / "target"))
    async with cluster_of(root / "first", 2, 2) as (_, client):
        await filled(client)
        made = await backups.create(client, store)
        assert made.left_out == [] and made.indexes >= 4
        again = await backups.create(client, store)
        assert again.shipped == 0 and again.indexes == made.indexes
        assert again.read < made.read - sum(file.size for one in made.manifest.collections for file in one.indexes), (
            "files that the store has are not read again"
        )
        without = await backups.create(client, store, indexes=False)
        assert without.indexes == 0 and without.manifest.collections[0].indexes == []
    assert backups.verify(store).problems == []
    yield store, made


async def test_nothing_is_inserted_into_a_graph_again(tmp_path: Path, target: tuple[Store, backups.Made]) -> None:
    store, made = target
    async with cluster_of(tmp_path / "to", 2, 3) as (cluster, client):
        done = await backups.restore(client, store, made.manifest.id)
        assert done.built == [] and done.indexed >= ROWS - 1000
        assert done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        assert await searched(client, done.indexed), "at once"
        assert await events(cluster, "adopted") == made.indexes
        # What no file had is few, and waits to be sealed.
        assert await events(cluster, "built") == 0 and await events(cluster, "corrupt") == 0
        assert await found(client) > 0.97
        await wait_for(lambda: _shipped(cluster, made.indexes * 2), 60, "the other replicas have the files")
        assert await events(cluster, "rebuilt") == 0
        await client.insert_batch(ids=NAMES[:2000], vectors=VECTORS[:2000] + 2, collection="books")
        await wait_for(lambda: searched(client, done.documents - 480), 60, "and it goes on as ever")
        assert await found(client) > 0.97
        assert await events(cluster, "built") > 0


async def _shipped(cluster: ProcessCluster, least: int) -> bool:
    return await events(cluster, "shipped") >= least


async def test_with_other_shards_or_without_files_all_is_built(
    tmp_path: Path, target: tuple[Store, backups.Made]
) -> None:
    store, made = target
    async with cluster_of(tmp_path / "three", 3, 1) as (cluster, client):
        done = await backups.restore(client, store, made.manifest.id)
        assert done.indexed == 0 and done.built == []
        assert await events(cluster, "adopted") == 0
        told = list[tuple[int, int]]()
        await asyncio.wait_for(
            backups.wait_indexed(client, done.digests, progress=lambda *one: told.append(one)), timeout=120
        )
        assert await searched(client, done.documents - 740), "when it returns, and not later"
        assert told[-1] == (done.documents, done.documents) and told == sorted(told)
    async with cluster_of(tmp_path / "two", 2, 1) as (cluster, client):
        done = await backups.restore(client, store, made.manifest.id, indexes=False)
        assert done.indexed == 0 and await events(cluster, "adopted") == 0


async def test_damage_of_a_file_is_told_and_its_shard_builds(
    tmp_path: Path, target: tuple[Store, backups.Made]
) -> None:
    store, made = target
    assert isinstance(store, DirectoryStore)
    files = made.manifest.collections[0].indexes
    ref = next(file for file in files if file.shard == 1).parts[0]
    before = store.get(ref.name)
    assert before is not None
    try:
        store.put(ref.name, before[:-1] + bytes([before[-1] ^ 1]))
        problems = backups.verify(store, made.manifest.id).problems
        assert len(problems) == 1 and ref.name in problems[0] and "a restore builds that again" in problems[0]
        async with cluster_of(tmp_path / "to", 2, 1) as (cluster, client):
            done = await backups.restore(client, store, made.manifest.id)
            assert len(done.built) == 1 and ref.name in done.built[0] and "shard 1" in done.built[0]
            assert await events(cluster, "adopted") == sum(file.shard == 0 for file in files)
            await wait_for(lambda: searched(client, done.documents - 480), 60, "the other shard's are built")
            assert await found(client) > 0.97
    finally:
        store.put(ref.name, before)


class Ends(Exception):
    """The command ends here."""


@pytest.mark.parametrize("at", ["after the first round", "in the last round"])
async def test_killed_it_goes_on(
    tmp_path: Path, target: tuple[Store, backups.Made], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    store, made = target
    monkeypatch.setattr("needle.backup.restoring.AT_ONCE", 1)
    monkeypatch.setattr("needle.backup.restoring.NOTED", 2)
    rounds = max(sum(file.shard == shard for file in made.manifest.collections[0].indexes) for shard in (0, 1))
    last = 0 if at == "after the first round" else rounds - 1
    end = IndexRestoring.end

    async def ends(self: IndexRestoring, number: int) -> None:
        if number == last and last:
            raise Ends
        await end(self, number)
        if number == last:
            raise Ends

    async with cluster_of(tmp_path / "to", 2, 1) as (_, client):
        with monkeypatch.context() as patched:
            patched.setattr(IndexRestoring, "end", ends)
            with pytest.raises(Ends):
                await backups.restore(client, store, made.manifest.id)
        noted = await client.get("books", collection=f"{MARK}{made.manifest.id}")
        assert noted is not None and noted.metadata["pieces"] == 0, "a release that knows no rounds begins again"
        done = await backups.restore(client, store, made.manifest.id)
        assert done.resumed and done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        assert done.documents == await client.count(collection="books")
        await wait_for(lambda: searched(client, done.documents - 480), 60, "index files")
        assert await found(client) > 0.97


async def test_a_leader_that_is_new_waits_for_files_too(
    tmp_path: Path, target: tuple[Store, backups.Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made = target
    brought, moved = IndexRestoring._brought, set[int]()

    async def elsewhere(self: IndexRestoring, file: IndexFile) -> int:
        if file.shard not in moved:
            moved.add(file.shard)
            await self._client.step_down(shard=file.shard)
        return await brought(self, file)

    async with cluster_of(tmp_path / "to", 2, 3) as (cluster, client):
        monkeypatch.setattr(IndexRestoring, "_brought", elsewhere)
        done = await backups.restore(client, store, made.manifest.id)
        assert done.built == [] and moved == {0, 1}
        assert await events(cluster, "adopted") == made.indexes


async def test_a_shard_that_says_nothing_holds_up_no_other(
    target: tuple[Store, backups.Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, made = target
    [collection] = made.manifest.collections
    held = list[int]()

    async def hold(_: IndexRestoring, shard: int, __: float) -> None:
        if shard == 0:
            await asyncio.Event().wait()
        held.append(shard)

    monkeypatch.setattr(IndexRestoring, "_hold", hold)
    async with needle.open(":memory:") as client:
        restoring = IndexRestoring(client, store, Around(), collection, [collection.indexes], "books")
        asking = asyncio.create_task(restoring._hold_each(60))
        await wait_for(lambda: held == [1], 20, "shard 1 being asked")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_killed_after_a_file_was_refused_it_goes_on(
    tmp_path: Path, target: tuple[Store, backups.Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round wrote follows from which shards had a file then: the next run took them all for written."""
    store, made = target
    monkeypatch.setattr("needle.backup.restoring.AT_ONCE", 1)
    monkeypatch.setattr("needle.backup.restoring.NOTED", 2)
    adopted, end = IndexRestoring._adopted, IndexRestoring.end

    async def refuses(self: IndexRestoring, file: IndexFile) -> int:
        if file.shard == 1:
            raise InvalidArgument("this index file is refused")
        return await adopted(self, file)

    async def ends(self: IndexRestoring, number: int) -> None:
        if number == 1:
            raise Ends
        await end(self, number)

    async with cluster_of(tmp_path / "to", 2, 1) as (_, client):
        with monkeypatch.context() as patched:
            patched.setattr(IndexRestoring, "_adopted", refuses)
            patched.setattr(IndexRestoring, "end", ends)
            with pytest.raises(Ends):
                await backups.restore(client, store, made.manifest.id)
        noted = await client.get("books", collection=f"{MARK}{made.manifest.id}")
        assert noted is not None and (noted.metadata["round"], noted.metadata["left"]) == (1, [[1, 1]])
        done = await backups.restore(client, store, made.manifest.id)
        assert done.resumed and done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        assert done.documents == await client.count(collection="books")


async def broken_off(client: needle.Client, store: Store, backup: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that ends in its second round, behind some pieces."""
    monkeypatch.setattr("needle.backup.restoring.AT_ONCE", 1)
    monkeypatch.setattr("needle.backup.restoring.NOTED", 2)
    end = IndexRestoring.end

    async def ends(self: IndexRestoring, number: int) -> None:
        if number == 1:
            raise Ends
        await end(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(IndexRestoring, "end", ends)
        with pytest.raises(Ends):
            await backups.restore(client, store, backup)


@pytest.mark.parametrize("what", ["another set", "a damaged set"])
async def test_killed_it_goes_on_with_other_files_or_damaged_ones(
    tmp_path: Path, target: tuple[Store, backups.Made], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """What was written was told by files that are not there any more: RestoreDiffers, or no way on."""
    store, made = target
    [collection] = made.manifest.collections
    async with cluster_of(tmp_path / "to", 2, 1) as (_, client):
        await broken_off(client, store, made.manifest.id, monkeypatch)
        local = DirectoryStore(tmp_path / "local")
        if what == "another set":  # as a restore of an instant may choose one, when that of before is damaged
            firsts = [next(one for one in collection.indexes if one.shard == shard) for shard in (0, 1)]
            other = msgspec.structs.replace(
                collection, indexes=[one for one in collection.indexes if one not in firsts]
            )
            manifest = msgspec.structs.replace(made.manifest, collections=[other])
            local.put(manifest_name(made.manifest.id), encode_manifest(manifest))
        else:
            local.put(collection.indexes[0].hashes[0].name, b"damaged")
        done = await backups.restore(client, Before(local, store), made.manifest.id)
        assert done.resumed and done.digests == {one.spec.name: one.digest for one in made.manifest.collections}
        assert done.indexed == 0 and "all documents are written again" in done.built[0]
        assert done.documents == await client.count(collection="books")
        await wait_for(lambda: searched(client, done.documents - 480), 90, "index files")
        assert await found(client) > 0.97


async def test_a_backup_that_is_killed_leaves_no_file_out(tmp_path: Path, target: tuple[Store, backups.Made]) -> None:
    async with cluster_of(tmp_path / "first", 1, 1) as (_, client):
        await client.create_collection("books", dimensions=WIDTH, metric="l2")
        await client.insert_batch(ids=NAMES[:1500], vectors=VECTORS[:1500], collection="books")
        await wait_for(lambda: searched(client, 250), 60, "an index file")
        store = DirectoryStore(tmp_path / "target")
        for step in range(1, 30):
            try:
                made = await backups.create(client, Counted(store, step, after=step % 2 == 0))
                break
            except Killed:  # what was put before is there
                assert backups.list_backups(store) == [] or step > 3
        assert step > 3
        assert made.indexes >= 1 and backups.verify(store).problems == []


async def test_what_a_leader_is_not_to_take_changes_nothing(tmp_path: Path) -> None:
    async with cluster_of(tmp_path / "one", 1, 1) as (cluster, client):
        await client.create_collection("books", dimensions=WIDTH, metric="l2")
        # Too few for an index file, so that none is being built when it is said that none is to be.
        await client.insert_batch(ids=NAMES[:200], vectors=VECTORS[:200], collection="books")
        info = next(one for one in client.topology().collections if one.spec.name == "books")
        group, stored, name = shard_group(0), info.stored_name, "0" * 32

        async def ask(method: str, call: IndexHoldCall | IndexPutCall | IndexAdoptCall) -> bytes:
            return bytes(await ask_leader(client, 0, method, lambda _: calls.encode(call), 20, (Unavailable,)))

        part = IndexPutCall(group, stored, name, 100, 0, b"x" * 50)
        with pytest.raises(Unavailable, match="builds do not wait"):
            await ask(INDEX_PUT, part)
        with pytest.raises(InvalidArgument, match="seconds = 61"):
            await ask(INDEX_HOLD, IndexHoldCall(group, stored, 61.0))
        await ask(INDEX_HOLD, IndexHoldCall(group, stored, 60.0))
        for wrong, match in (
            (IndexPutCall(group, stored, name, 1 << 40, 0, b"x"), "size = .*for the 200 vectors"),
            (IndexPutCall(group, stored, "../../x", 100, 0, b"x"), "checksum = .*32 hex digits"),
            (IndexPutCall(group, stored, name, 100, 0, b"x" * 101), "offset = 0"),
            (IndexPutCall(group, stored, name, 100, 0, b""), "data = "),
        ):
            with pytest.raises(InvalidArgument, match=match):
                await ask(INDEX_PUT, wrong)
        await ask(INDEX_PUT, part)
        with pytest.raises(Unavailable, match="begin again"):
            await ask(INDEX_PUT, IndexPutCall(group, stored, name, 100, 60, b"x"))
        with pytest.raises(Unavailable, match="not all of this index file"):
            await ask(INDEX_ADOPT, IndexAdoptCall(group, stored, name))
        await ask(INDEX_PUT, IndexPutCall(group, stored, name, 100, 50, b"x" * 50))
        with pytest.raises(needle.NeedleError, match="segment file"):
            await ask(INDEX_ADOPT, IndexAdoptCall(group, stored, name))
        assert not list((tmp_path / "one").rglob("*.tmp")), "what came is gone"
        await ask(INDEX_HOLD, IndexHoldCall(group, stored, 0.0))
        await client.insert_batch(ids=NAMES[200:1500], vectors=VECTORS[200:1500], collection="books")
        await wait_for(lambda: searched(client, 250), 60, "it builds as ever")
        assert await events(cluster, "adopted") == 0
