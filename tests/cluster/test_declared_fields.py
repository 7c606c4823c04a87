"""Declared indexes of fields: in the catalog, asked for by a client, and kept by every replica."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from cluster.processes import ShardedProcesses, healthy
from needle.base.collection_sizes import CollectionSize, FieldIndex
from needle.base.errors import (
    ClusterTooOld,
    CollectionExists,
    CollectionNotFound,
    InvalidArgument,
    NeedleError,
    Unavailable,
)
from needle.base.model import CollectionSpec, IndexParams, Metric, WriteResult
from needle.base.sparse import SPARSE_KIND
from needle.base.versions import KNOWN
from needle.catalog.collections import FIELDS_MAX
from needle.catalog.state import execute
from needle.client import Client
from needle.client.document_calls import Held
from needle.client.documents import DocumentMethods
from needle.client.naming import _fields
from needle.client.router.router import Router
from needle.protocol.catalog_commands import (
    CatalogCommand,
    CreateCollection,
    DeclareField,
    DropCollection,
    SetAlias,
)
from needle.protocol.peer_calls import IndexRoom
from needle.routing.topology import Topology


def after(*commands: CatalogCommand) -> Topology:
    now = topology()
    for index, command in enumerate([CreateCollection(spec("a"), False, 1), *commands], start=2):
        now, result = execute(now, index, command)
        assert not isinstance(result, NeedleError), result
    return now


def fields(now: Topology) -> tuple[str, ...]:
    found = now.named("a")
    assert found is not None
    return found.fields


# --- the catalog -----------------------------------------------------------------------------------------------------
def test_the_catalog_keeps_what_is_declared() -> None:
    now = after(DeclareField("a", 2, "y.z", True), DeclareField("a", 2, "x", True))
    assert fields(now) == ("x", "y.z")
    same, again = execute(now, 9, DeclareField("a", 2, "x", True))
    assert same is now and isinstance(again, WriteResult) and again.existed
    less, gone = execute(now, 9, DeclareField("a", 2, "x", False))
    assert fields(less) == ("y.z",) and isinstance(gone, WriteResult) and gone.existed
    assert less.map == now.map  # nobody's routing changes by it
    other = after(DeclareField("a", 2, "x", True), DropCollection("a", 2), CreateCollection(spec("a"), False, 9))
    assert fields(other) == ()
    made, _ = execute(topology(), 2, CreateCollection(spec("a"), False, 1, ["y", "x", "y"]))
    assert fields(made) == ("x", "y")
    same, refused = execute(topology(), 2, CreateCollection(spec("a"), False, 1, ["x"] * (FIELDS_MAX + 1)))
    assert same.collections == () and isinstance(refused, InvalidArgument)
    assert CreateCollection(spec("a"), False, 1, ["x"]).needs() == 4


class Catalog:
    """A catalog and its shards, as far as collections need them."""

    def __init__(self) -> None:
        self.now = after(DeclareField("a", 2, "x", True), SetAlias("b", "a"))

    def topology(self) -> Topology:
        return self.now

    def group(self, shard: int) -> Any:
        raise AssertionError("no shard is asked")

    async def refresh(self, version: int, timeout: float) -> Topology:
        return self.now

    async def confirmed(self, timeout: float) -> Topology:
        return self.now

    def nonce(self) -> int:
        return self.now.version

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        self.now, result = execute(self.now, self.now.version + 1, command)
        if isinstance(result, NeedleError):
            raise result
        return result

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        pass


class OfCatalog(DocumentMethods):
    def __init__(self, catalog: Any) -> None:
        self._router = Router(catalog)

    async def _documents(self) -> Any:
        return self._router


async def test_a_collection_with_the_settings_of_another() -> None:
    catalog = Catalog()
    client = OfCatalog(catalog)
    await client.alter_collection("a", ef_search=99, ttl=60)
    await client.create_collection("c", like="b")
    await client.create_collection("d", like="a", dimensions=7, metric="dot", ttl=0, index=IndexParams(m=5))
    made = {info.spec.name: info for info in catalog.now.collections}
    assert made["c"].spec == msgspec.structs.replace(made["a"].spec, name="c") and made["c"].spec.ttl == 60
    assert made["c"].fields == made["d"].fields == ("x",) and made["c"].id != made["a"].id
    assert made["d"].spec == CollectionSpec(name="d", dimensions=7, metric=Metric.DOT, index=IndexParams(m=5))
    await client.create_collection("c", like="a", if_absent=True)
    for error, asked in [
        (CollectionNotFound, {"like": "none"}),
        (CollectionExists, {"like": "a"}),
        (InvalidArgument, {"like": ""}),
        (InvalidArgument, {}),
        (InvalidArgument, {"dimensions": 3, "ttl": 0}),
    ]:
        before = catalog.now
        with pytest.raises(error):
            await client.create_collection("c", **asked)  # type: ignore[arg-type]
        assert catalog.now is before


@pytest.mark.parametrize(
    ("command", "refused", "says"),
    [
        (DeclareField("b", 2, "x", True), CollectionNotFound, "b"),
        (DeclareField("a", 77, "x", True), CollectionNotFound, "a"),
        (DeclareField("a", 2, "z", False), InvalidArgument, "'x'"),
        (DeclareField("a", 2, "one more", True), InvalidArgument, str(FIELDS_MAX)),
    ],
)
def test_what_cannot_be_is_refused(command: CatalogCommand, refused: type[NeedleError], says: str) -> None:
    more = [DeclareField("a", 2, f"f{n}", True) for n in range(FIELDS_MAX - 1)]
    now = after(DeclareField("a", 2, "x", True), *more)
    same, result = execute(now, 99, command)
    assert isinstance(result, refused) and says in result.message and same is now


# --- a client --------------------------------------------------------------------------------------------------------
class Rooms:
    """Shards that say how much room there is."""

    def __init__(self, *rooms: IndexRoom | NeedleError) -> None:
        self.known = topology(shards=len(rooms))
        self.known, _ = execute(self.known, 2, CreateCollection(spec("a"), False, 1))
        nodes = tuple(msgspec.structs.replace(node, knows=KNOWN) for node in self.known.nodes)
        self.known = msgspec.structs.replace(self.known, cluster_version=KNOWN, nodes=nodes)
        self.rooms = rooms
        self.asked: list[tuple[int, str, str]] = []
        self.kinds = set[str]()

    def group(self, _: int) -> Rooms:
        return self

    def topology(self) -> Topology:
        return self.known

    async def refresh(self, version: int, timeout: float) -> Topology:
        return self.known

    async def confirmed(self, timeout: float) -> Topology:
        return self.known

    async def index_room(self, shard: int, collection: str, path: str, timeout: float, kind: str = "") -> IndexRoom:
        self.asked.append((shard, collection, path))
        self.kinds.add(kind)
        if isinstance(said := self.rooms[shard], NeedleError):
            raise said
        return said

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        pass

    async def command(self, command: CatalogCommand, timeout: float) -> WriteResult:
        self.known, result = execute(self.known, 9, command)
        assert isinstance(result, WriteResult)
        return result


async def test_each_shard_is_asked_whether_it_has_the_memory() -> None:
    shards: Any = Rooms(IndexRoom(5, 5), IndexRoom(0, -7 + 7))
    router = Router(shards)
    assert not (await router.declare_field("a", "x", True, 5)).existed
    assert shards.asked == [(0, "a@2", "x"), (1, "a@2", "x")] and fields(shards.known) == ("x",)
    assert (await router.declare_field("a", "x", True, 5)).existed and len(shards.asked) == 2
    assert (await router.declare_field("a", "x", False, 5)).existed and len(shards.asked) == 2


async def test_an_index_that_does_not_fit_is_refused_and_nothing_is_changed() -> None:
    shards: Any = Rooms(IndexRoom(5, 5), IndexRoom(1_234_567, 1_000))
    with pytest.raises(InvalidArgument) as refused:
        await Router(shards).declare_field("a", "x", True, 5)
    for word in ("'x'", "shard 1", "1,234,567", "1,000", "limits.field_index_bytes_max"):
        assert word in refused.value.message
    assert fields(shards.known) == ()
    with pytest.raises(CollectionNotFound):
        await Router(shards).declare_field("b", "x", True, 5)


async def test_an_index_of_sparse_vectors_that_does_not_fit_is_refused_but_for_a_restore() -> None:
    shards: Any = Rooms(IndexRoom(5, 5), IndexRoom(1_234_567, 1_000))
    with pytest.raises(InvalidArgument, match="in shard 1 it would take about 1,234,567 bytes"):
        await Router(shards).declare_sparse("a", "splade", True, 5)
    assert shards.kinds == {SPARSE_KIND} and shards.known.collections[0].sparse == ()
    shards.asked.clear()
    await Router(shards).declare_sparse("a", "splade", True, 5, fits=False)
    await Router(shards).declare_sparse("a", "splade", True, 5)  # it has them
    assert shards.asked == [] and shards.known.collections[0].sparse == ("splade",)


async def test_a_shard_that_lacks_the_collection_has_room_and_older_nodes_are_not_asked() -> None:
    shards: Any = Rooms(IndexRoom(5, 5), CollectionNotFound("away"))
    await Router(shards).declare_field("a", "x", True, 5)
    assert fields(shards.known) == ("x",)
    shards = Rooms(IndexRoom(5, 5), Unavailable("cut off"))
    with pytest.raises(Unavailable):
        await Router(shards).declare_field("a", "x", True, 5)
    shards.known = msgspec.structs.replace(shards.known, cluster_version=1)
    shards.asked.clear()
    with pytest.raises(ClusterTooOld):
        await Router(shards).declare_field("a", "x", True, 5)
    assert shards.asked == [] and fields(shards.known) == ()


def test_a_shard_that_says_nothing_of_a_field_is_building_it() -> None:
    ready = CollectionSize(fields={"x": FieldIndex(state="ready", bytes=5)})
    told = _fields(("x",), {0: Held(1, ready), 1: Held(1, ready)})
    assert told == {"x": FieldIndex(state="ready", bytes=10)}
    for other in (CollectionSize(), None):
        told = _fields(("x",), {0: Held(1, ready), 1: Held(1, other)})
        assert told == {"x": FieldIndex(state="building", bytes=5)}
    assert (ready + ready).fields == {"x": FieldIndex(state="ready", bytes=10)}
    assert (ready + CollectionSize()).fields == (CollectionSize() + ready).fields == ready.fields


# --- a cluster -------------------------------------------------------------------------------------------------------
async def ready(client: Client, *paths: str) -> None:
    async with asyncio.timeout(60):
        while True:
            found = (await client.describe_collection("a")).fields
            assert tuple(found) == paths
            if all(one.state == "ready" for one in found.values()):
                assert not paths or all(one.bytes for one in found.values())
                return
            await asyncio.sleep(0.1)


async def test_every_replica_has_it_also_after_its_restart(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("a", dimensions=2)
            ids = [f"{n:03}" for n in range(200)]
            rows = [{"n": n % 5, "in": {"x": n}} for n in range(200)]
            await client.insert_each(ids=ids, vectors=[[1.0, 2.0]] * 200, metadatas=rows, collection="a")
            await client.set_alias("other", "a")
            assert not (await client.create_field_index("other", "n")).existed
            assert not (await client.create_field_index("a", "in.x")).existed
            assert (await client.create_field_index("a", "n")).existed
            await ready(client, "in.x", "n")
            for wrong, refused in (
                (client.create_field_index("a", "x..y"), InvalidArgument),
                (client.create_field_index("a", ""), InvalidArgument),
                (client.create_field_index("none", "x"), CollectionNotFound),
                (client.drop_field_index("a", "x"), InvalidArgument),
            ):
                with pytest.raises(refused):
                    await wrong
            await client.drop_field_index("a", "in.x")
            for name in list(processes.addresses):
                processes.kill(name)
                processes.restart(name)
                await healthy(client)
            await ready(client, "n")
            assert await client.count({"n": 3}, collection="a") == 40
            await client.drop_field_index("a", "n")
            await ready(client)
