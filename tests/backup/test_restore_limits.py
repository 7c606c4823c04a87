"""A backup goes into a cluster whose nodes take less: what they can take comes back, and what they cannot is refused by
the name of the setting, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needle
from backup.test_processes import WAITING, fresh
from needle import backup as backups
from needle.backup.format import CollectionBackup, Longest, Manifest, Piece, encode_manifest, manifest_name
from needle.backup.one_collection import MARK
from needle.backup.restore_limits import FRAME_ROOM, Taking, check_shape
from needle.backup.restore_marks import Note
from needle.backup.store import Store
from needle.base.dtypes import DType
from needle.base.errors import ClusterTooOld, InvalidArgument, StorageError
from needle.base.model import CollectionSpec, Metric, VectorSpec
from needle.base.versions import BITS, FIRST, NAMED, SPARSE
from needle.local.process_cluster import ProcessCluster
from needle.protocol.named import Named
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Topology

ROWS, WIDTH, METADATA, ID = 700, 32, 3000, 300


async def fill(client: needle.Client) -> None:
    await client.create_collection("wide", dimensions=WIDTH, metric="l2")
    await client.create_collection("many", dimensions=2, metric="l2")
    documents = {f"d{n}": [1.0, float(n)] for n in range(ROWS)}
    await client.insert_batch(ids=list(documents), vectors=list(documents.values()), collection="many")
    await client.insert("x" * ID, [1.0] * WIDTH, {"text": "t" * METADATA}, collection="wide")
    await client.insert_batch(
        ids=[f"w{n}" for n in range(100)],
        vectors=[[float(n)] * WIDTH for n in range(100)],
        metadatas=[{"text": "t" * 2000}] * 100,
        collection="wide",
    )


async def names(client: needle.Client) -> list[str]:
    return sorted(one.name for one in await client.collections())


def as_before(store: Store, manifest: Manifest) -> None:
    """Have it be one of an earlier release."""
    plain = [msgspec.structs.replace(one, longest=None) for one in manifest.collections]
    store.put(manifest_name(manifest.id), encode_manifest(msgspec.structs.replace(manifest, collections=plain)))


@pytest.mark.campaign
async def test_what_is_too_small_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(2, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await fill(client)
            made = (await backups.create(client, store)).manifest
    assert {one.spec.name: one.longest for one in made.collections} == {
        "many": Longest(id=4, metadata=0, document=8),
        "wide": Longest(id=ID, metadata=METADATA + 11, document=METADATA + 11 + 4 * WIDTH),
    }
    small: list[tuple[dict[str, int], str]] = [
        ({"dimensions_max": WIDTH - 1}, f"{WIDTH} or more"),
        ({"id_bytes_max": ID - 1}, f"{ID} or more"),
        ({"metadata_bytes_max": METADATA}, f"{METADATA + 11} or more"),
        ({"batch_bytes_max": METADATA}, "or more"),
        ({"collections_max": 2}, "3 or more"),
    ]
    for at, (limits, told) in enumerate(small):
        [setting] = limits
        async with ProcessCluster(fresh(tmp_path / f"small-{at}"), 1, **{**WAITING, "limits": limits}) as cluster:
            await cluster.create(1, 1, CONSISTENT_HASH)
            async with cluster.connect() as client:
                before = await names(client)
                for change in (store.put, as_before) if setting.endswith("bytes_max") else (store.put,):
                    if change is as_before:
                        as_before(store, made)
                    with pytest.raises(InvalidArgument, match=rf"limits\.{setting} = \d+ of node node-1 .*{told}"):
                        await backups.restore(client, store)
                    assert await names(client) == before
                store.put(manifest_name(made.id), encode_manifest(made))
                await backups.create(client, backups.open_store(str(tmp_path / f"other-{at}")))  # nothing is under way


@pytest.mark.campaign
async def test_pieces_are_cut_as_nodes_take_them(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await fill(client)
            digests = {one.spec.name: one.digest for one in (await backups.create(client, store)).manifest.collections}
    least = {"batch_documents_max": 50, "batch_bytes_max": 8192, "frame_bytes_max": 1 << 16}
    async with ProcessCluster(fresh(tmp_path / "second"), 1, **{**WAITING, "limits": least}) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            assert (await backups.restore(client, store)).digests == digests
            assert await names(client) == ["many", "wide"]


class Pruned:
    """A store of which somebody deletes a backup when the first of its pieces is read."""

    def __init__(self, store: Store) -> None:
        self._store, self.pruned = store, False
        self.put, self.names, self.delete = store.put, store.names, store.delete

    def get(self, name: str) -> bytes | None:
        if name.startswith("pieces/") and not self.pruned:
            self.pruned = True
            for one in (*self.names("backups/"), *self.names("pieces/")):
                self.delete(one)
        return self._store.get(name)


@pytest.mark.campaign
async def test_a_backup_that_is_pruned_while_it_is_restored_is_not_called_damaged(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    async with ProcessCluster(fresh(tmp_path / "first"), 1, **WAITING) as cluster:
        await cluster.create(1, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await fill(client)
            made = await backups.create(client, store)
            with pytest.raises(StorageError, match=rf"backup {made.manifest.id} is not there any more") as told:
                await backups.restore(client, Pruned(store), collection="wide", name="again")
            [mark] = [one for one in await names(client) if one.startswith(MARK)]
            assert f"Drop collection {mark}" in told.value.message and type(told.value) is StorageError


def rows(piece: Piece) -> Iterable[Any]:
    width = len(piece.vectors) // len(piece.ids)
    named = {row: one.each()[at] for one in piece.named for at, row in enumerate(one.rows)}
    for at, name in enumerate(piece.ids):
        vector = piece.vectors[at * width : (at + 1) * width]
        yield name, piece.metadata[at], vector, piece.expires[at], bytes(named.get(at, b""))


def test_parts_hold_all_of_a_piece() -> None:
    count = 100
    named = Named("beside", list(range(0, count, 3)), b"".join(bytes([n]) * 64 for n in range(0, count, 3)))
    piece = Piece(
        [f"é{n}" for n in range(count)], [b"m" * n for n in range(count)], bytes(range(count)) * 4,
        list(range(count)), [named],
    )  # fmt: skip
    assert Taking({}).batches(piece) == [piece]
    assert Taking({"a": {"limits.batch_bytes_max": 1 << 20, "tls.mode": "off"}}).batches(piece) == [piece]
    for limits, most in (
        ({"limits.batch_documents_max": 7}, 7),
        ({"limits.batch_bytes_max": 600}, count // 2),
        ({"limits.frame_bytes_max": FRAME_ROOM + 900}, count // 2),
        ({"limits.batch_bytes_max": 1}, 1),
    ):
        parts = Taking({"a": limits, "b": {"limits.batch_documents_max": 1000}}).batches(piece)
        assert max(len(part.ids) for part in parts) <= most and len(parts) > 1
        assert [row for part in parts for row in rows(part)] == list(rows(piece))


def test_the_least_of_all_nodes_counts() -> None:
    taking = Taking({"a": {"limits.id_bytes_max": 9}, "b": {"limits.id_bytes_max": 8}, "c": {}})
    assert taking.least("id_bytes_max") == 8 and taking.unusual and taking.least("k_max") is None
    with pytest.raises(InvalidArgument, match=r"limits\.id_bytes_max = 8 of node b .* set it to 9 or more"):
        taking.check("id_bytes_max", 9, "it", "and go on")
    taking.check("id_bytes_max", 8, "it", "and go on")
    taking.check("k_max", 1 << 40, "it", "and go on")


OF_BITS: Any = {"dimensions": 8, "metric": Metric.HAMMING, "dtype": DType.BIT}


@pytest.mark.parametrize(
    ("more", "needs"),
    [
        ({"sparse": ("splade",)}, SPARSE),
        ({"vectors": {"title": VectorSpec(dimensions=2)}}, NAMED),
        ({"vectors": {"code": VectorSpec(**OF_BITS)}}, BITS),
        ({"spec": CollectionSpec(name="c", **OF_BITS)}, BITS),
    ],
)
def test_a_cluster_that_knows_no_such_vectors_is_told_before_anything_is_written(
    more: dict[str, Any], needs: int
) -> None:
    """Sparse vectors are declared last, when all documents are there: hours later it was refused. For bits it was
    refused when the collections before were there, and the mark of a restore stayed, with which no backup is made."""
    plain = CollectionBackup(
        spec=CollectionSpec(name="c", dimensions=2, metric="l2"), fields=(), documents=0, expiring=0, digest="",
        cuts=[], pieces=[],
    )  # fmt: skip
    rest = {
        "id": "b",
        "format": 2,
        "began": "",
        "ended": "",
        "release": "",
        "cluster": "7",
        "settings": {},
        "aliases": {},
    }

    def check(one: CollectionBackup, version: int) -> None:
        check_shape(
            Taking({}),
            Manifest(collections=[one], **rest),
            Topology(cluster_version=version),
            Note(backup="b"),
            {},
            "m",
            "and restore again",
        )

    rich = msgspec.structs.replace(plain, **more)
    check(plain, FIRST)
    check(rich, needs)
    with pytest.raises(
        ClusterTooOld, match=f"collection c .* needs version {needs} of .* at {needs - 1}: .* Upgrade them and restore"
    ):
        check(rich, needs - 1)


def test_notes_that_have_the_home_of_a_large_document_are_told_before_anything_is_written() -> None:
    """As under a router: the first note was refused, when its collection was made."""
    rest = {"format": 2, "began": "", "ended": "", "release": "", "cluster": "7", "settings": {}, "aliases": {}}
    manifest = Manifest(id="b", collections=[], **rest)
    taking = Taking({"a": {"limits.metadata_bytes_max": 2000}})

    def check(size: int) -> None:
        check_shape(taking, manifest, Topology(), Note(backup="b"), {"text": size * "x"}, "m", "and restore again")

    check(1500)
    with pytest.raises(InvalidArgument, match="metadata_bytes_max = 2000 of node a is too small for what a restore"):
        check(1999)
