"""Vectors of bits in backups and in instants of an archive: what comes back is what was there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

import needle
from backup.archived import BOOKS, World
from needle import backup as backups
from needle.backup.format import BITS_FORMAT, FORMAT, NAMED_FORMAT
from needle.backup.instant import Making
from needle.backup.keeping import read_manifest, verify
from needle.base.dtypes import DType
from needle.base.model import CollectionSpec, Metric, VectorSpec
from needle.protocol.commands import CreateCollection, Insert

CODE = VectorSpec(dimensions=16, metric=Metric.HAMMING, dtype=DType.BIT)


async def test_a_restored_collection_has_them(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    rows = np.random.default_rng(1).integers(0, 256, (50, 5)).astype(np.uint8)
    names = [f"d{at:02d}" for at in range(50)]
    async with needle.open(":memory:") as client:
        await client.create_collection("c", dimensions=40, dtype="bit", vectors={"code": CODE})
        await client.insert_batch(ids=names, vectors=rows, named_vectors={"code": rows[:, :2]}, collection="c")
        made = (await backups.create(client, store)).manifest
    assert verify(store).problems == []
    async with needle.open(":memory:") as client:
        await backups.restore(client, store, made.id)
        described = await client.describe_collection("c")
        assert (described.dtype, described.metric, described.vectors) == (DType.BIT, Metric.HAMMING, {"code": CODE})
        for row, one in zip(rows, await client.get(names, vectors=["code"], collection="c"), strict=True):
            assert one.vector.tolist() == row.tolist()
            assert one.vectors is not None and one.vectors["code"].tolist() == row[:2].tolist()


async def test_a_backup_with_them_says_that_releases_before_cannot_read_it(tmp_path: Path) -> None:
    """These told of a damaged manifest."""
    store = backups.open_store(str(tmp_path / "target"))
    async with needle.open(":memory:") as client:
        for name, settings, format in (
            ("plain", {}, FORMAT),
            ("named", {"vectors": {"title": VectorSpec(dimensions=2)}}, NAMED_FORMAT),
            ("code", {"vectors": {"code": CODE}}, BITS_FORMAT),
            ("bits", {"dtype": "bit"}, BITS_FORMAT),
        ):
            await client.create_collection(name, dimensions=8, **settings)
            made = (await backups.create(client, store)).manifest
            assert made.format == read_manifest(store, made.id).format == format
            await client.drop_collection(name)


async def test_an_instant_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each document is a piece of its own: pieces were cut as if a vector had a number for each bit."""
    monkeypatch.setattr("needle.backup.format.PIECE_BYTES_MAX", 1)
    world, store = World(tmp_path / "world"), backups.open_store(str(tmp_path / "target"))
    spec = CollectionSpec(name=BOOKS.stored_name, dimensions=16, metric=Metric.HAMMING, dtype=DType.BIT)
    rows = np.array([[255, 1], [0, 0]], np.uint8)
    books = msgspec.structs.replace(BOOKS, spec=msgspec.structs.replace(spec, name=BOOKS.spec.name))
    world.topology = msgspec.structs.replace(world.topology, collections=(books,))
    world.write(CreateCollection(spec), Insert(spec.name, ["a", "b"], rows.tobytes(), [b"", b""], dtype=DType.BIT))
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    await archiver.close()
    making = Making(store, tmp_path)
    manifest = read_manifest(making.local, making.run(None, {0: 2}, None))
    (made,) = manifest.collections
    assert made.documents == 2 and made.spec.dtype is DType.BIT
    async with needle.open(":memory:") as client:
        await backups.restore(client, making.local, manifest.id)
        found = await client.get(["a", "b"], collection=BOOKS.spec.name)
        assert [one.vector.tolist() for one in found] == rows.tolist()
