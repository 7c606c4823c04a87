"""Restores into clusters that place documents by their metadata: the notes of a restore are documents, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.calm import CALM
from needle import backup as backups
from needle.backup.format import encode_manifest, manifest_name
from needle.backup.restore_marks import SAID, Notes, apart, beside, home_of
from needle.base.config import Limits
from needle.base.errors import InvalidArgument
from needle.local.process_cluster import ProcessCluster
from needle.routing.loading import load_routers
from needle.routing.strategy import CONSISTENT_HASH, Router, ShardStrategy, field_key, register, router_names


@pytest.mark.parametrize(
    ("strategy", "metadata"),
    [("custom:home", {"home": "vienna"}), ("custom:made,at.place", {"made": 7, "at": {"place": "graz"}})],
)
async def test_a_cluster_with_a_shard_key_is_restored(tmp_path: Path, strategy: str, metadata: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"sharding": {"shards": 2, "replicas": 1, "strategy": strategy}, **CALM}
    store = backups.open_store(str(tmp_path / "target"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with (
        ProcessCluster(tmp_path / "a", nodes=1, dimensions=2, **settings) as cluster,
        cluster.connect() as client,
    ):
        await client.insert_batch([(f"d{n}", [1.0, float(n)], {**metadata, "n": n}) for n in range(30)])
        made = await backups.create(client, store)
    async with (
        ProcessCluster(tmp_path / "b", nodes=1, dimensions=2, **settings) as cluster,
        cluster.connect() as client,
    ):
        restored = await backups.restore(client, store, made.manifest.id)
        assert restored.documents == 30 and await client.count() == 30
        assert [one.name for one in await client.collections()] == ["default"]
        alone = await backups.restore(client, store, made.manifest.id, collection="default", name="copy")
        assert alone.documents == 30 and await client.count(collection="copy") == 30


async def test_a_cluster_with_a_router_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose first document has so much metadata that nodes take no more of it in a note."""
    (tmp_path / "routes_by_owner.py").write_text("def owner(_, metadata):\n    return metadata['owner']\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    load_routers(["routes_by_owner:owner"], "routers")
    routing = {"strategy": "router:routes_by_owner:owner", "router_modules": ["routes_by_owner:owner"]}
    settings = {"sharding": {"shards": 2, "replicas": 1, **routing}, **CALM}
    store, most = backups.open_store(str(tmp_path / "target")), "x" * (Limits().metadata_bytes_max - 30)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with (
        ProcessCluster(tmp_path / "a", nodes=1, dimensions=2, **settings) as cluster,
        cluster.connect() as client,
    ):
        await client.insert_batch(
            [(f"d{n}", [1.0, float(n)], {"owner": f"{n % 3}", **({} if n else {"text": most})}) for n in range(9)]
        )
        made = await backups.create(client, store)
    async with (
        ProcessCluster(tmp_path / "b", nodes=1, dimensions=2, **settings) as cluster,
        cluster.connect() as client,
    ):
        restored = await backups.restore(client, store, made.manifest.id)
        assert restored.documents == 9 == await client.count()


async def test_documents_of_a_router_may_have_what_notes_have_and_be_as_large_as_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note_routing.py").write_text('def by_note(id, metadata): return metadata["needle.note"]')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    load_routers(["note_routing:by_note"], "routers")
    sharding: dict[str, Any] = {"shards": 2, "replicas": 1, "router_modules": ["note_routing:by_note"]}
    settings: dict[str, Any] = {"sharding": {**sharding, "strategy": "router:note_routing:by_note"}, **CALM}
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(tmp_path, nodes=1, dimensions=2, **settings) as cluster, cluster.connect() as client:
        rows = [(f"d{n}", [1.0, float(n)], {"needle.note": str(n), "t": "x" * (10 if n else 65_400)}) for n in range(9)]
        await client.insert_batch(rows)
        made = await backups.create(client, store)
        await client.drop_collection("default")
        assert (await backups.restore(client, store, made.manifest.id)).documents == 9
        assert await client.count() == 9
        await client.drop_collection("default")
        await client.create_collection("default", dimensions=2)
        await client.insert_batch([rows[0]])
        large = await backups.create(client, store)
        with pytest.raises(
            InvalidArgument, match=r"limits.metadata_bytes_max = 65536 .* what a restore notes of itself"
        ):
            await backups.restore(client, store, large.manifest.id, collection="default", name="copy")
        assert [one.name for one in await client.collections()] == ["default"]


async def test_what_a_release_before_noted_is_written_over_where_it_is(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"sharding": {"shards": 2, "replicas": 1, "strategy": "custom:made"}, **CALM}
    async with ProcessCluster(tmp_path, nodes=1, dimensions=1, **settings) as cluster, cluster.connect() as client:
        notes = Notes(client, "default", 30.0)
        notes.home = home_of(ShardStrategy.custom("made"), [])
        for made in range(8):
            await client.insert(f"n{made}", [1.0], {"made": made, "holder": "before"})
            await notes.put(f"n{made}", {"made": made, "holder": "now"})
            await notes.put(f"n{made}", {"made": made + 1, "holder": "now"})
            assert await notes.get(f"n{made}") == {"made": made + 1, "holder": "now"}
        assert await client.count() == 8


@pytest.mark.parametrize("home", [{"a": 1}, {SAID: 1}, {SAID: {"b": 1}, SAID + ".": 2}])
def test_a_note_is_taken_apart_as_it_was_put_together(home: dict[str, Any]) -> None:
    assert apart(beside(home, {"made": 1})) == (home, {"made": 1})
    assert apart({"made": 1})[1] == {"made": 1}


def test_what_notes_say_is_apart_from_where_they_are() -> None:
    assert home_of(CONSISTENT_HASH, [b'{"a":1}']) == {}
    assert home_of(ShardStrategy.custom("a.b", "a.c", "d"), []).keys() == {"a", "d"}


def by_owner(_: str, metadata: Any) -> str:
    return str(metadata["owner"])


def by_age(_: str, metadata: Any) -> str:
    if "age" not in metadata:
        raise RuntimeError("no age")
    return str(metadata["age"])


def test_notes_have_the_home_of_the_smallest_document_that_a_router_takes() -> None:
    """The first one was taken, which may have as much metadata as nodes take, and none to spare for a note."""
    documents = [b'{"owner":"a","text":"' + 999 * b"x" + b'"}', b"", b"[1]", b'{"n":1}', b'{"owner":"b"}', b'{"age":3}']
    assert home_of(routed("tests.owner", by_owner), documents) == {"owner": "b"}
    assert home_of(routed("tests.age", by_age), documents) == {"age": 3}
    with pytest.raises(InvalidArgument, match=r"router 'tests\.owner' fails on document 'restoring-': KeyError"):
        home_of(routed("tests.owner", by_owner), [b"", b"[1]"])


def test_notes_stay_where_a_release_before_put_them_if_a_router_takes_them_as_they_are() -> None:
    """Elsewhere there would be two of one id: the older one said that another command had the restore, for good. And
    what is no object gave them no home: the command failed."""
    of_default = routed("tests.default", lambda _, metadata: str(metadata.get("owner", "nobody")))
    of_id = routed("tests.id", lambda name, _: name.split("/")[0])
    for strategy in (of_default, of_id):
        for first in (b'{"owner":"b"}', b"[1,2]", b""):
            assert home_of(strategy, [first]) == {}


def routed(name: str, router: Router) -> ShardStrategy:
    if name not in router_names():
        register(name, router)
    return ShardStrategy("custom", (), name)


@pytest.mark.parametrize("known", [True, False])
async def test_a_document_without_the_shard_key_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """It was found in the middle: the collection was there, and what to do was said to be to raise a limit. known: by
    the look before. A router of the same name may have been another one there, so it may be found later."""
    store = backups.open_store(str(tmp_path / "target"))
    sharding: dict[str, Any] = {"shards": 2, "replicas": 1}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with (
        ProcessCluster(tmp_path / "a", nodes=1, dimensions=2, sharding=sharding, **CALM) as cluster,
        cluster.connect() as client,
    ):
        await client.insert_batch([(f"d{n}", [1.0, float(n)], {"home": "x"} if n else {}) for n in range(30)])
        made = await backups.create(client, store)
    sharding["strategy"] = "custom:home"
    if not known:
        monkeypatch.setattr("needle.backup.restore_limits.placed_before", lambda *_: True)
    async with (
        ProcessCluster(tmp_path / "b", nodes=1, dimensions=2, sharding=sharding, **CALM) as cluster,
        cluster.connect() as client,
    ):
        says = "Nothing was changed" if known else "To give it up, drop collection restoring-"
        with pytest.raises(InvalidArgument, match=rf"'d0' has no values in metadata field 'home'.*{says}") as refused:
            await backups.restore(client, store, made.manifest.id)
        assert "limit" not in str(refused.value)
        there = [one.name for one in await client.collections()]
        assert there == ["default"] if known else len(there) == 2


async def test_two_documents_of_one_id_are_restored_or_told_before_anything_is_made(tmp_path: Path) -> None:
    """Under a shard key an id may be two, in two shards. In one the second took the place of the first, and the command
    said at its end that somebody had written meanwhile."""
    store = backups.open_store(str(tmp_path / "target"))
    rows = [(f"d{n}", [1.0, float(n)], {"home": f"h{n}"}) for n in range(20)]
    sharding: dict[str, Any] = {"shards": 2, "replicas": 1, "strategy": "custom:home"}
    (tmp_path / "a").mkdir()
    async with (
        ProcessCluster(tmp_path / "a", nodes=1, dimensions=2, sharding=sharding, **CALM) as cluster,
        cluster.connect() as client,
    ):
        await client.insert_batch(rows)
        owned = (await client.refresh_topology(confirmed=True)).map
        assert owned is not None
        mine = owned.owner(field_key(["h3"]))
        other = next(f"h{n}" for n in range(20) if owned.owner(field_key([f"h{n}"])) != mine)
        await client.insert("d3", [2.0, 2.0], {"home": other})
        made = await backups.create(client, store)
        assert made.manifest.documents == 21 == await client.count()
        assert [one.repeats for one in made.manifest.collections] == [1]
        again = await backups.restore(client, store, collection="default", name="copy")
        assert again.documents == 21 == await client.count(collection="copy")
    # A release before did not say whether there are any.
    [collection] = made.manifest.collections
    untold = msgspec.structs.replace(made.manifest, collections=[msgspec.structs.replace(collection, repeats=None)])
    store.put(manifest_name("untold"), encode_manifest(msgspec.structs.replace(untold, id="untold")))
    for strategy in ("custom:home", "hash"):
        where = tmp_path / f"b-{strategy.partition(':')[0]}"
        where.mkdir()
        sharding |= {"shards": 1, "strategy": strategy}
        async with (
            ProcessCluster(where, nodes=1, dimensions=2, sharding=sharding, **CALM) as cluster,
            cluster.connect() as client,
        ):
            for name in (made.manifest.id, "untold"):
                with pytest.raises(InvalidArgument, match=r"the ids 'd3', under other shard keys.*Nothing was changed"):
                    await backups.restore(client, store, name)
            assert [one.name for one in await client.collections()] == ["default"] and await client.count() == 0
