"""Backups of real processes, and what comes back from them, in clusters of other shards and nodes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from backup.killing import Counted, Killed
from harness.calm import CALM
from needle import backup as backups
from needle.backup.format import PIECES
from needle.backup.keeping import MAKING, read_manifest
from needle.backup.one_collection import MARK
from needle.backup.store import DirectoryStore
from needle.base.errors import (
    CollectionExists,
    CorruptBackup,
    Forbidden,
    InvalidArgument,
    RestoreDiffers,
    StorageError,
    Unavailable,
)
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.connecting import Credentials, connected
from needle.local.process_cluster import ProcessCluster
from needle.routing.strategy import CONSISTENT_HASH

pytestmark = pytest.mark.campaign

WAITING = {"sharding": {"zone": "a"}, **CALM}
ROWS = 1500
WIDTH = 16


def fresh(path: Path) -> Path:
    path.mkdir()
    return path


async def fill(client: needle.Client) -> dict[str, dict[str, Any]]:
    """Collections of several kinds; what each should hold: (vector, metadata, expires_at) by id."""
    rng = np.random.default_rng(3)
    vectors = rng.random((ROWS, WIDTH), dtype=np.float32)
    await client.create_collection("books", dimensions=WIDTH, metric="l2")
    await client.create_collection("lives", dimensions=2, ttl=86_400)
    await client.create_collection("empty", dimensions=3, metric="dot")
    await client.create_collection("later", dimensions=2, metric="l2")
    await client.insert("old", [1, 2], collection="later")
    await client.alter_collection("later", ttl=3600)  # which counts for what is written from now on
    await client.create_field_index("books", "n")
    await client.set_alias("read", "books")
    names = [f"böok-{n}" for n in range(ROWS)]
    metadata: list[Any] = [{"n": n, "text": "x" * (n % 50)} if n % 3 else None for n in range(ROWS)]
    await client.insert_each(ids=names, vectors=vectors, metadatas=metadata, collection="books")
    await client.insert("soon", [1, 2], {"a": 1}, collection="lives")
    await client.insert("never", [3, 4], collection="lives", expires_at="never")
    await client.insert("2090", [5, 6], collection="lives", expires_at="2090-01-01T00:00:00Z")
    await client.insert_each(ids=names[:200], vectors=vectors[:200, :2], collection="lives")  # which has unit vectors
    await client.delete(names[:10], collection="books")
    await client.patch("böok-11", set={"n": -1}, collection="books")
    return await contents(client)


async def contents(client: needle.Client) -> dict[str, dict[str, Any]]:
    """By the ordinary scan of the client, which shares nothing with digests of backups."""
    found: dict[str, dict[str, Any]] = {}
    for spec in await client.collections():
        scan = client.scan(with_vectors=True, collection=spec.name)
        found[spec.name] = {
            one.id: (one.vector.tobytes(), json.dumps(one.metadata), one.expires_at) async for one in scan
        }
    return found


async def test_what_comes_back_is_what_was_there_whatever_shards_and_nodes(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(fresh(tmp_path / "first"), 3, **WAITING) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            model = await fill(client)
            specs, aliases = await client.collections(), await client.aliases()
            first = await backups.create(client, store)
            assert [len(one.cuts) for one in first.manifest.collections] == [2, 2, 2, 2]
            again = await backups.create(client, store)
            assert again.shipped == 0 and again.read == first.read > 0
            await client.insert("böok-700", [0.0] * WIDTH, collection="books")
            await client.delete("never", collection="lives")
            later = await contents(client)
            third = await backups.create(client, store)
            assert 0 < third.shipped < first.shipped
    assert backups.verify(store).problems == []
    for shards, nodes, backup, expected in ((3, 1, first, model), (2, 2, third, later)):
        async with ProcessCluster(fresh(tmp_path / f"to-{nodes}"), nodes, **WAITING) as cluster:
            await cluster.create(shards, nodes, CONSISTENT_HASH)
            async with cluster.connect() as client:
                done = await backups.restore(client, store, backup.manifest.id)
                assert await contents(client) == expected
                assert done.documents == sum(map(len, expected.values())) and not done.resumed
                assert await client.collections() == specs and await client.aliases() == aliases
                described = await client.describe_collection("books")
                assert list(described.fields) == ["n"]
                hits = await client.search([0.5] * WIDTH, k=3, collection="read")
                assert len(hits) == 3
                again = await backups.create(client, store)  # a backup of what was restored has the same files
                assert again.shipped == 0
                with pytest.raises(CollectionExists, match="restore into a new cluster"):
                    await backups.restore(client, store, backup.manifest.id)


async def test_killed_anywhere_a_backup_does_not_list_and_the_next_one_uses_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.backup.format.PIECE_BYTES", 10_000)
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            model = await fill(client)
            first = await backups.create(client, store)
            pieces = len(list(first.manifest.pieces()))
            assert pieces > 10
            for at, after in [(at, after) for at in range(1, pieces + 4) for after in (False, True)]:
                target = backups.open_store(str(tmp_path / f"{at}-{after}"))
                with pytest.raises(Killed):
                    await backups.create(client, Counted(target, at, after), begin=True)
                whole = at > pieces + 2 or (at == pieces + 2 and after)
                assert len(backups.list_backups(target)) == whole, (at, after)
                here = len(target.names(PIECES))
                assert here == max(0, min(pieces, at - 2 + after))
                again = await backups.create(client, target, begin=True)
                assert len(target.names(PIECES)) == pieces and (again.shipped == 0) == (here == pieces)
                assert backups.verify(target).problems == []
    store = backups.open_store(str(tmp_path / f"{pieces}-True"))
    restored, runs = False, 0
    async with ProcessCluster(fresh(tmp_path / "second"), 1, **WAITING) as cluster:
        await cluster.create(2, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            while not restored:  # killed after one more piece each time
                runs += 1

                def progress(documents: int, seen: list[int] = [], left: int = runs) -> None:  # noqa: B006
                    seen.append(documents)
                    if len(seen) >= left:
                        seen.clear()
                        raise Killed

                try:
                    done = await backups.restore(client, store, progress=progress)
                    restored = True
                except Killed:
                    assert runs < 50
            assert done.resumed and runs > 3
            assert await contents(client) == model


async def test_what_differs_is_said(tmp_path: Path) -> None:
    target = tmp_path / "target"
    store = backups.open_store(str(target))
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await fill(client)
            made = await backups.create(client, store)
    async with ProcessCluster(fresh(tmp_path / "second"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("books", dimensions=WIDTH, metric="l2")  # empty and made alike: no hindrance
            ref = next(made.manifest.pieces())
            data = store.get(ref.name) or b""
            store.put(ref.name, data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(CorruptBackup, match=ref.sha256):
                await backups.restore(client, store)
            store.put(ref.name, data)
            await client.insert("stranger", [1.0] * WIDTH, collection="books")
            with pytest.raises(RestoreDiffers, match=f"collection books has {ROWS - 9} documents"):
                await backups.restore(client, store)
            with pytest.raises(Unavailable, match=f"a restore of backup {made.manifest.id} is under way"):
                await backups.create(client, store)
            with pytest.raises(InvalidArgument, match="rate = nan"):
                await backups.create(client, store, rate=float("nan"))
            assert len(backups.list_backups(store)) == 1 and not store.names(MAKING)
            await client.delete("stranger", collection="books")
            assert (await backups.restore(client, store)).resumed
            assert not any(one.name.startswith(MARK) for one in await client.collections())


async def test_keys_are_obeyed(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    closed = {"require_keys": True, "cluster_secret": "s" * 40, "sharding": {"shards": 1, "replicas": 1}, **CALM}
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **closed) as cluster:
        secret = Credentials(secrets=("s" * 40,))
        async with await connected(list(cluster.addresses.values()), "needle", BATCH_BYTES_MAX, secret) as first:
            await first.insert("a", [1.0] * 8, {"tenant": "a"})
            await first.insert("b", [2.0] * 8, {"tenant": "b"})
            reader = (await first.create_key("all", "reader")).key
            some = (await first.create_key("some", "admin", filter=None)).key
            one = (await first.create_key("one", "reader", collections=["default"])).key
            bound = (await first.create_key("bound", "reader", filter={"tenant": "a"})).key
        for key in (one, bound):  # it would see less, and must not make a backup of less
            async with cluster.connect(api_key=key) as client:
                with pytest.raises(Forbidden):
                    await backups.create(client, store)
        assert backups.list_backups(store) == []
        async with cluster.connect(api_key=reader) as client:
            assert (await backups.create(client, store)).manifest.documents == 2
            with pytest.raises((Forbidden, CollectionExists)):
                await backups.restore(client, store)
        async with cluster.connect(api_key=some) as client:
            await client.drop_collection("default")
            assert (await backups.restore(client, store)).documents == 2


def test_manifest_of_an_unknown_backup(tmp_path: Path) -> None:
    with pytest.raises(needle.InvalidArgument, match="backup = 'nope' is not allowed"):
        read_manifest(backups.open_store(str(tmp_path)), "nope")


class Hooked(DirectoryStore):
    """A directory in which something happens before the nth file is written."""

    def __init__(self, root: Path, at: int, happens: Callable[[], None]) -> None:
        super().__init__(root)
        self._left, self._happens, self._lock = at, happens, threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._happens()
        super().put(name, data)


async def test_what_happens_to_collections_and_files_meanwhile(tmp_path: Path) -> None:
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            model = await fill(client)
            loop = asyncio.get_running_loop()

            def at_once(work: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], None]:
                return lambda: (asyncio.run_coroutine_threadsafe(work(), loop).result(), None)[1]

            async def replaced() -> None:
                await client.drop_collection("lives")
                await client.create_collection("lives", dimensions=2, ttl=86_400)

            store = Hooked(tmp_path / "a", 2, at_once(replaced))  # while books is read, which comes first
            found = (await backups.create(client, store)).manifest
            assert {one.spec.name: one.documents for one in found.collections} == {
                "books": len(model["books"]), "empty": 0, "later": 1
            }  # fmt: skip

            async def dropped() -> None:
                await client.remove_alias("read")
                await client.drop_collection("books")

            store = Hooked(tmp_path / "b", 2, at_once(dropped))
            found = (await backups.create(client, store, begin=True)).manifest
            assert {one.spec.name: one.documents for one in found.collections} == {"empty": 0, "later": 1, "lives": 0}
            assert not found.aliases
            assert backups.verify(store).problems == []

            # And one whose files are deleted by somebody who obeys no marks.
            await client.insert("x", [1, 2], collection="lives")

            def delete() -> None:
                for name in store.names(PIECES):
                    DirectoryStore.delete(store, name)

            first = await backups.create(client, DirectoryStore(tmp_path / "c"), begin=True)
            await client.create_collection("more", dimensions=2)
            await client.insert("y", [1, 2], collection="more")
            store = Hooked(tmp_path / "c", 2, delete)
            with pytest.raises(StorageError, match="was deleted while the backup was made"):
                await backups.create(client, store)
            assert [one.id for one in backups.list_backups(store)] == [first.manifest.id]
            assert "is missing" in backups.verify(store).problems[0]
