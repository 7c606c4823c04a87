"""`needle.open`: the client of a database in this process."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

import needle
from harness.calm import CALM
from needle.base.errors import ConfigError, InvalidArgument, StorageError
from needle.local.process_cluster import ProcessCluster, wait_for


async def test_a_directory_is_opened_again_and_belongs_to_one_client_at_a_time(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with needle.open(directory, dimensions=2) as client:
        await client.insert("a", [1.0, 0.0], {"n": 1})
        await client.create_collection("other", dimensions=3, metric="l2")
        assert [hit.id for hit in await client.search_strong([1.0, 0.0], 1)] == ["a"]
        with pytest.raises(StorageError, match="in use by process"):
            await needle.open(directory)
    with pytest.raises(needle.NeedleError):
        await client.count()
    client = await needle.open(directory)
    assert await client.count({"n": 1}) == 1
    assert sorted(spec.name for spec in await client.collections()) == ["default", "other"]
    await client.close()
    await client.close()


def test_memory_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with needle.open_sync(":memory:", dimensions=2, metric="dot") as client:
        assert len(list(tmp_path.iterdir())) == 1
        client.insert_batch(ids=["a", "b"], vectors=[[1.0, 0.0], [0.0, 2.0]])
        assert [hit.id for hit in client.search([0.0, 1.0], 2)] == ["b", "a"]
        assert [document.id for document in client.scan()] == ["a", "b"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="dimensions"):
        needle.open_sync(":memory:", dimensions=-1)
    assert list(tmp_path.iterdir()) == []


async def test_collections_of_every_kind_of_index(tmp_path: Path) -> None:
    """Found by index files, which stay; told by `describe_collection`."""
    rows = np.random.default_rng(1).standard_normal((2600, 64), np.float32)
    names = [str(n) for n in range(len(rows))]
    directory = tmp_path / "data"
    async with needle.open(directory) as client:
        for kind in needle.IndexKind:
            await client.create_collection(kind, dimensions=64, metric="l2", index=f"{kind}:balanced")
            for part in (slice(0, 1300), slice(1300, None)):
                metadata = [{"even": int(name) % 2 == 0} for name in names[part]]
                batch = {"ids": names[part], "vectors": rows[part], "metadatas": metadata}
                await client.insert_batch(**batch, collection=kind, timeout=60)
        found = await client.collections()
        assert {spec.name: spec.index.kind for spec in found} == {str(kind): kind for kind in needle.IndexKind}
        await wait_for(lambda: _indexed(directory) == len(needle.IndexKind), 60, "index files")
        for kind in needle.IndexKind:
            await _finds(client, kind, rows)
    async with needle.open(directory) as client:
        for kind in needle.IndexKind:
            await _finds(client, kind, rows)
        described = await client.describe_collection("hnsw_sq8")
        assert described.index == needle.IndexParams(
            m=16, ef_construction=200, ef_search=50, kind=needle.IndexKind.HNSW_SQ8
        )


def _indexed(directory: Path) -> int:
    """How many collections have an index file of all vectors."""
    return len({path.name.split("-")[0] for path in directory.rglob("*-0-2599-*.seg")})


async def _finds(client: needle.Client, kind: str, rows: np.ndarray) -> None:
    found = 0
    for row in rows[:10]:
        for matches in (None, {"even": True}):
            hits = await client.search(row, 5, matches, collection=kind, explain=True)
            exact = await client.search(row, 5, matches, collection=kind, exact=True)
            near = {hit.id: hit.distance for hit in exact}
            assert len(hits) == 5 and hits.explained and hits.explained[0].segments
            assert all(near.get(hit.id, hit.distance) == hit.distance for hit in hits)
            found += len(near.keys() & {hit.id for hit in hits})
    assert found >= 95


async def test_a_served_directory_is_opened_and_an_opened_one_served(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, 1, **CALM) as cluster:
        async with cluster.connect() as client:
            await client.insert("a", [1.0] * 8)
        cluster.kill("node-1")
        async with needle.open(tmp_path / "node-1") as client:
            assert (await client.get("a")).id == "a"
            await client.insert("b", [0.5] * 8)
        cluster.restart("node-1")
        await cluster.ready()
        async with cluster.connect() as client:
            assert await client.count() == 2


async def test_a_directory_of_a_larger_cluster_is_refused(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, 3, **CALM) as cluster:
        cluster.kill("node-1")
        with pytest.raises(ConfigError, match="a cluster with 2 more: start it with `needle serve`"):
            await needle.open(tmp_path / "node-1")


async def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the path of a directory"):
        await needle.open("")
    with pytest.raises(ConfigError, match="the path of a directory"):
        await needle.open(5)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument, match="there is a file"):
        await needle.open(tmp_path / "file")
