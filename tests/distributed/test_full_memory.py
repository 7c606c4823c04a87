"""A node that takes as much memory as it may: reads and deletes go on, and writes again once it takes less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import NeedleError, OutOfMemory
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for

DIMENSIONS = 1024
BATCH = 250
LIMIT = 384 << 20


async def fill(client: Client, collection: str) -> int:
    """Insert until it is refused; how many documents were accepted."""
    vectors = np.random.default_rng(1).standard_normal((BATCH, DIMENSIONS)).astype(np.float32)
    for batch in range(4000):
        try:
            ids = [f"d{batch}-{n}" for n in range(BATCH)]
            await client.insert_batch(ids=ids, vectors=vectors, collection=collection, timeout=15.0)
        except OutOfMemory as refused:
            assert f"above {LIMIT}" in refused.message and "memory_bytes_max" in refused.message
            return batch * BATCH
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
            await client.insert("more", [1.0] * 8, timeout=2.0)
        with pytest.raises(NeedleError):
            await client.create_collection("another", dimensions=8, timeout=2.0)
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
