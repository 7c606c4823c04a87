"""A node that takes as much memory as it may: reads and deletes go on, and writes again once it takes less."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

import needle
from needle.base.errors import NeedleError, OutcomeUnknown, OutOfMemory
from needle.client import Client
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for

DIMENSIONS = 1024
BATCH = 250
LIMIT = 384 << 20


async def fill(client: Client, collection: str) -> int:
    """Insert until it is refused; how many documents were accepted."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSIONS)).astype(np.float32)
    batch = tries = 0
    while tries < 4000:
        tries += 1
        try:
            ids = [f"d{batch}-{n}" for n in range(BATCH)]
            await client.insert_batch(ids=ids, vectors=vectors, collection=collection, timeout=15.0)
            batch += 1
        except OutcomeUnknown:
            continue  # a busy machine; the same batch once more
        except OutOfMemory as refused:
            assert str(LIMIT) in refused.message and "memory_bytes_max" in refused.message
            found = await client.count(collection=collection)
            assert batch * BATCH <= found <= (batch + 1) * BATCH, "none is lost"
            return found
    raise AssertionError("memory did not get full")


async def said(client: Client) -> set[str]:
    """The conditions of memory that hold."""
    health = await client.health_check(timeout=10.0)
    return {condition.alert for condition in health.conditions if "Memory" in condition.alert}


async def test_full_memory_takes_no_data_and_loses_none(tmp_path: Path) -> None:
    settings = {"dimensions": 8, "memory_bytes_max": LIMIT, "segments": {"seal_rows": 1_000_000}}
    async with ProcessCluster(tmp_path, nodes=1, **settings) as cluster, cluster.connect() as client:
        await client.insert("small", [1.0] * 8)
        await client.create_collection("large", dimensions=DIMENSIONS)
        accepted = await fill(client, "large")
        assert accepted >= BATCH and await said(client) == {"NeedleMemoryFull"}
        with pytest.raises(OutOfMemory):
            await client.insert("more", [1.0] * 8, timeout=5.0)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(OutOfMemory, match="memory_bytes_max"):  # at once, not when its time is up
            await client.create_collection("another", dimensions=8, timeout=60.0)
        assert asyncio.get_running_loop().time() - begun < 30
        query = [1.0] * DIMENSIONS
        assert len(await client.search(query, k=5, collection="large")) == 5
        assert await client.get("small") is not None
        await client.delete([f"d0-{n}" for n in range(100)], collection="large")
        assert await client.get("d0-0", collection="large") is None
        assert await client.count(collection="large") == accepted - 100
        await client.drop_collection("large")

        async def taken() -> bool:
            try:
                await client.insert("more", [1.0] * 8, timeout=2.0)
            except NeedleError:
                return False
            return True

        await wait_for(taken, 60, "a write")
        assert await client.get("more") is not None

        async def quiet() -> bool:
            return not await said(client)

        await wait_for(quiet, 60, "no condition of memory")
        (node,) = cluster.nodes.values()
        assert "data is refused above" in node.output() and "has memory again" in node.output()


async def test_a_refused_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a cycle with its frames kept the vectors of a dropped collection until a full pass of the collector:
    the node refused data for minutes although there was memory."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(
        node_id="one", listen=address, data_dir=str(tmp_path), cluster_nodes=[f"one={address}"], dimensions=8
    )
    made: list[weakref.ref[NeedleError]] = []
    async with RaftCluster(config) as node:
        assert node._node is not None
        memory = node._node.space.memory
        refusal = memory.refusal

        def noted() -> OutOfMemory:
            error = refusal()
            made.append(weakref.ref(error))
            return error

        monkeypatch.setattr(memory, "refusal", noted)
        async with needle.connect(address) as client:
            await client.insert("a", [1.0] * 8)
            monkeypatch.setattr(memory, "look", lambda: None)
            memory.low = True
            for memory.tight in (True, False):
                assert all(one.keeper._saving() is memory.tight for one in node._node.groups.values())
            gc.disable()
            try:
                with pytest.raises(OutOfMemory):
                    await client.insert("b", [1.0] * 8, timeout=2.0)
                with pytest.raises(OutOfMemory):
                    await client.insert_batch([("b", [1.0] * 8, {"text": "x" * 40_000})], timeout=2.0)
                with pytest.raises(OutOfMemory):
                    await client.create_collection("c", dimensions=8, timeout=2.0)
                assert len(made) > 2
                await wait_for(lambda: all(one() is None for one in made), 60, "the end of all refusals")
            finally:
                gc.enable()
