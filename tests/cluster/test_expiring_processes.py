"""When documents expire, on real processes: as a client sees it, on one group and while ranges move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import needle
from cluster.processes import ShardedProcesses, healthy
from needle import AlreadyExists, CollectionNotFound, InvalidArgument
from needle.client import Client
from needle.local.process_cluster import ProcessCluster
from needle.protocol.catalog_commands import StartMove

FAR = "2999-12-31T23:59:59.5Z"


def vector(n: int) -> list[float]:
    return [1.0, float(n), 2.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def soon(seconds: float = 1.0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def documents(client: Client) -> None:
    """An instant of a document: given, shown, changed, taken away, and passed."""
    await client.insert("stays", vector(1), {"e": 1})
    await client.insert("far", vector(2), {"e": 1}, expires_at=FAR)
    await client.insert_each(
        ids=["b0", "b1", "b2"], vectors=[vector(n) for n in range(3)], metadatas=[{"e": 1}] * 3,
        expires_at=[FAR, None, soon(3600)],
    )  # fmt: skip
    shown = {one.id: one.expires_at for one in await client.get(["stays", "far", "b0", "b1", "b2"])}
    assert (shown["stays"], shown["far"], shown["b0"], shown["b1"]) == (None, FAR, FAR, None)
    assert shown["b2"] is not None and shown["b2"].endswith("Z")
    assert {one.id: one.expires_at async for one in client.scan({"e": 1})} == shown
    await client.patch("far", set={"x": 1})
    await client.update_vector("far", vector(3))
    assert (await client.get("far")).expires_at == FAR  # type: ignore[union-attr]
    await client.patch("b0", expires_at="never")
    assert (await client.patch_where({"e": 1}, expires_at=soon(7200))).count == 5
    await client.insert("stays", vector(1), {"e": 1})
    await client.patch("far", expires_at="never")
    await client.insert("goes", vector(4), {"e": 1}, expires_at=soon())
    await client.patch(["b0", "b1"], expires_at=soon())

    async def gone() -> bool:
        return not await client.get_many(["goes", "b0", "b1"])

    await until(gone)
    assert await client.count({"e": 1}) == 3
    assert {hit.id for hit in await client.search(vector(4), 10, {"e": 1})} == {"stays", "far", "b2"}
    assert [one.id async for one in client.scan({"e": 1})] == ["b2", "far", "stays"]
    assert (await client.delete("goes")).count == 0
    await client.insert_if_absent("goes", vector(4), expires_at=FAR)
    with pytest.raises(AlreadyExists):
        await client.insert_if_absent("goes", vector(4))
    await client.delete_where({})


async def collections(client: Client) -> None:
    """A time to live of a collection: of writes from then on, counted from the last one."""
    await client.create_collection("brief", dimensions=8, ttl=3600)
    there: dict[str, Any] = {"collection": "brief"}
    await client.insert("a", vector(1), {"n": 1}, **there)
    await client.insert_each(ids=["b", "c"], vectors=[vector(2), vector(3)], expires_at=[None, "never"], **there)
    first = {one.id: one.expires_at for one in await client.get_many(["a", "b", "c"], **there)}
    assert first["a"] is not None and first["b"] is not None and first["c"] is None
    await client.patch("a", set={"n": 2}, **there)
    await client.update_vector("b", vector(5), **there)
    later = {one.id: one.expires_at for one in await client.get_many(["a", "b"], **there)}
    assert later["a"] > first["a"] and later["b"] > first["b"]  # type: ignore[operator]
    assert (await client.describe_collection("brief")).ttl == 3600
    await client.alter_collection("brief", ttl=timedelta(seconds=1))
    assert (await client.describe_collection("brief")).ttl == 1.0
    await client.insert("d", vector(6), **there)
    await client.patch_where({"n": 2}, set={"n": 3}, **there)

    async def gone() -> bool:
        return [one.id for one in await client.get_many(["a", "b", "c", "d"], **there)] == ["b", "c"]

    await until(gone)
    await client.alter_collection("brief", ttl=0, ef_search=70)
    found = await client.describe_collection("brief")
    assert (found.ttl, found.index.ef_search, found.documents) == (None, 70, 2)
    await client.insert("e", vector(7), **there)
    assert (await client.get("e", **there)).expires_at is None  # type: ignore[union-attr]
    await client.drop_collection("brief")


async def bad_input(client: Client) -> None:
    everything: Any = client
    for wrong in (5, 1.5, True, "soon", "2030-01-01", datetime(2030, 1, 1), "2001-01-01T00:00:00Z", b"never", {}):
        with pytest.raises(InvalidArgument, match="expires_at"):
            await everything.insert("bad", vector(1), expires_at=wrong)
        with pytest.raises(InvalidArgument, match="expires_at"):
            await everything.patch("stays", set={"n": 1}, expires_at=wrong)
        with pytest.raises(InvalidArgument, match="expires_at"):
            await everything.insert_batch(ids=["bad"], vectors=[vector(1)], expires_at=[wrong])
    with pytest.raises(InvalidArgument, match="2 values"):
        await everything.insert_batch(ids=["bad"], vectors=[vector(1)], expires_at=[FAR, FAR])
    for ttl in (0, -1, "x", True, float("nan"), float("inf"), 10**12):
        with pytest.raises(InvalidArgument, match="ttl"):
            await everything.create_collection("bad", dimensions=8, ttl=ttl)
    for ttl in (-1, "x", True, float("nan"), 10**12):
        with pytest.raises(InvalidArgument, match="ttl"):
            await everything.alter_collection("default", ttl=ttl)
    with pytest.raises(InvalidArgument, match="nothing"):
        await client.alter_collection("default")
    with pytest.raises(CollectionNotFound):
        await client.alter_collection("none", ttl=5)
    assert await client.get("bad") is None
    assert (await client.describe_collection("default")).ttl is None


def blocking(addresses: list[str]) -> None:
    """The client without asyncio."""
    with needle.connect_sync(addresses) as client:
        client.insert_batch(ids=["s"], vectors=[vector(1)], expires_at=FAR)
        assert client.get("s").expires_at == FAR
        client.delete("s")


async def test_one_group(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        for part in (documents, collections, bad_input):
            await part(client)
        await asyncio.to_thread(blocking, list(cluster.addresses.values()))
        await cluster.equal_digests()


async def test_while_ranges_move(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            assert isinstance(client, Client)
            await healthy(client)
            await client.create_collection("default", dimensions=8)
            names = [f"d{n:03}" for n in range(200)]
            at = [soon(1 + n % 5) if n % 4 else FAR for n in range(200)]
            shard_map = client.topology().map
            assert shard_map is not None
            await client.insert_each(ids=names, vectors=[vector(n) for n in range(200)], expires_at=at)
            half = shard_map.ranges(0)[: len(shard_map.ranges(0)) // 2]
            moving = asyncio.create_task(client.change_catalog(StartMove(1, shard_map.epoch, half, 0, 1)))
            before = set(names)
            while not moving.done() or client.topology().map == shard_map or len(before) > 50:
                now = {one.id async for one in client.scan(timeout=30)}
                assert now <= before, "what expired has come back"
                assert {name for n, name in enumerate(names) if not n % 4} <= now
                before = now
            await moving
            assert await client.count() == 50
            assert {one.expires_at async for one in client.scan()} == {FAR}
            await client.delete_where({})
            await documents(client)
            await collections(client)
