"""Named vectors in backups: what is restored has them, and what an earlier release would lose it does not read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

import needle
from backup.archived import BOOKS, World
from needle import backup as backups
from needle.backup.around import Around
from needle.backup.format import FORMAT, NAMED_FORMAT, Contents, Cutter, Piece, decode_piece, encode_piece
from needle.backup.instant import Making
from needle.backup.keeping import RENEW_SECONDS, read_manifest, verify
from needle.base.errors import RestoreDiffers
from needle.base.model import IndexKind, IndexParams, Metric, VectorSpec
from needle.protocol.calls import DocumentBatch
from needle.protocol.commands import CreateCollection
from needle.protocol.named import Named
from needle.routing.topology import NamedVector
from shard.replica_util import floats, put

TITLE = VectorSpec(dimensions=2, metric=Metric.L2)


async def test_a_restored_collection_has_them(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    rows = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    titles = [None if at % 2 else rows[at, :2] for at in range(50)]
    names = [f"d{at}" for at in range(50)]
    async with needle.open(":memory:") as client:
        await client.create_collection("plain", dimensions=3)
        without = (await backups.create(client, store)).manifest
        await client.create_collection("c", dimensions=3, metric="l2", vectors={"title": TITLE})
        await client.insert_batch(ids=names, vectors=rows, named_vectors={"title": titles}, collection="c")
        made = (await backups.create(client, store)).manifest
        assert (without.format, made.format) == (FORMAT, NAMED_FORMAT)
    assert verify(store).problems == []
    async with needle.open(":memory:") as client:
        await backups.restore(client, store, made.id)
        assert (await client.describe_collection("c")).vectors == {"title": TITLE}
        for one in await client.get(names, vectors=["title"], collection="c"):
            at = names.index(one.id)
            assert one.vectors is not None and set(one.vectors) == (set() if at % 2 else {"title"})
            assert at % 2 or one.vectors["title"].tolist() == rows[at, :2].tolist()


@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize("again", [False, True])
async def test_one_that_is_dropped_while_a_backup_is_made(tmp_path: Path, again: bool, page: int) -> None:
    """It ended the whole backup; one that was made again with other dimensions was written as if it had those of
    before. page: before its collection is read, or when it was."""
    store, pages = backups.open_store(str(tmp_path / "target")), 0
    other, forever = VectorSpec(dimensions=4, metric=Metric.L2), asyncio.Event()
    async with needle.open(":memory:") as client:
        await client.create_collection("first", dimensions=1)
        await client.insert("a", [1], collection="first")
        await client.create_collection("second", dimensions=1, vectors={"title": TITLE})
        await client.insert("a", [1], vectors={"title": [3, 4]}, collection="second")

        async def rest(seconds: float) -> None:
            nonlocal pages
            if seconds == RENEW_SECONDS:  # of the mark, which need not say again that somebody is at it
                await forever.wait()
            pages += 1
            if pages == page:
                await client.drop_vector("second", "title")
                if again:
                    await client.add_vector("second", "title", other)
                    await client.update_vector("a", [1, 2, 3, 4], name="title", collection="second")

        made = (await backups.create(client, store, rate=0.1, around=Around(rest=rest))).manifest
    kept = {"title": other} if again else {"title": TITLE} if page == 2 else {}
    assert [one.vectors for one in made.collections] == [{}, kept]
    assert verify(store).problems == []
    async with needle.open(":memory:") as client:
        await backups.restore(client, store, made.id)
        found = await client.get("a", vectors=list(kept), collection="second")
        told = {name: vector.tolist() for name, vector in found.vectors.items()}
        assert told == ({"title": [1, 2, 3, 4] if again else [3, 4]} if kept else {})


async def test_an_instant_comes_back_with_the_index_that_the_catalog_named_then(tmp_path: Path) -> None:
    """A shard hears nothing of another ef_search, and of another kind only once its files are built."""
    world, store = World(tmp_path / "world"), backups.open_store(str(tmp_path / "target"))
    asked = IndexParams(kind=IndexKind.HNSW_SQ8, ef_search=99)
    vector = NamedVector("title", 65, TITLE)
    stored = BOOKS.stored_vector(vector)
    world.write(
        CreateCollection(BOOKS.stored_spec), CreateCollection(TITLE.stored_as(stored, BOOKS.stored_name)),
        put(["a"], [[1, 2]], collection=BOOKS.stored_name, named=[Named(stored, [0], floats([3, 4]))]),
    )  # fmt: skip
    altered = msgspec.structs.replace(vector, spec=msgspec.structs.replace(TITLE, index=asked), made_index=TITLE.index)
    books = msgspec.structs.replace(BOOKS, vectors=(altered,))
    world.topology = msgspec.structs.replace(world.topology, collections=(books,))
    archiver = world.archiver(store)
    await archiver.look(flush=True)
    await archiver.close()
    making = Making(store, tmp_path)
    (made,) = read_manifest(making.local, making.run(None, {0: 3}, None)).collections
    assert made.documents == 1 and made.vectors == {"title": altered.spec}


async def test_a_vector_that_is_another_one_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with needle.open(":memory:") as client:
        await client.create_collection("c", dimensions=3, metric="l2", vectors={"title": TITLE})
        await client.insert("a", [1, 2, 3], vectors={"title": [4, 5]}, collection="c")
        made = (await backups.create(client, store)).manifest
    async with needle.open(":memory:") as client:
        documents = client.documents
        insert = documents.insert_batch

        async def other(*asked: object, named: list[Named], **how: object) -> object:
            changed = [msgspec.structs.replace(one, vectors=b"\0" * len(one.vectors)) for one in named]
            return await insert(*asked, named=changed, **how)  # type: ignore[arg-type]

        monkeypatch.setattr(documents, "insert_batch", other)
        with pytest.raises(RestoreDiffers):
            await backups.restore(client, store, made.id)


def batch(named: list[Named]) -> DocumentBatch:
    ids = [f"d{at}" for at in range(40)]
    return DocumentBatch(ids, [1] * 40, [b"{}"] * 40, b"\1" * 4 * 40, 1, [], named)


def test_pieces_without_them_are_those_of_before() -> None:
    ref, data = encode_piece(Piece(["a"], [b""], b"\0\0\0\0"))
    assert data == msgspec.msgpack.encode([["a"], [b""], b"\0\0\0\0", []])
    assert decode_piece(ref, data) == Piece(["a"], [b""], b"\0\0\0\0")


def test_what_is_cut_is_whole_and_its_sum_tells_vectors_apart() -> None:
    named = [Named("t", list(range(0, 40, 3)), bytes(8 * 14))]
    cutter = Cutter(1)
    pieces = [*cutter.cut(batch(named)), *cutter.rest()]
    whole, parts, others = Contents(), Contents(), Contents()
    whole.add(batch(named))
    others.add(batch([Named("u", named[0].rows, named[0].vectors)]))
    for piece in pieces:
        parts.add(piece)
    assert parts.digest == whole.digest != others.digest
    assert sum(len(one.rows) for piece in pieces for one in piece.named) == 14
