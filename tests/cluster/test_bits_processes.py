"""Vectors of bits on real processes: through index files, moves of key ranges, restarts and backups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import needle
from cluster.processes import ShardedProcesses, half_moved, healthy
from needle import backup as backups
from needle.client import Client
from needle.local.process_cluster import wait_for

pytestmark = pytest.mark.campaign

COUNT, WIDTH = 2400, 128
HEARTS = np.random.default_rng(1).integers(0, 2, (30, WIDTH))
BITS = HEARTS[np.arange(COUNT) % 30] ^ (np.random.default_rng(2).random((COUNT, WIDTH)) < 0.1)
PACKED = np.packbits(BITS, axis=1)
NAMES = [f"d{at:04d}" for at in range(COUNT)]


async def is_right(client: Client, *, exact: bool = False) -> None:
    for heart in HEARTS[:10]:
        far = np.sort((heart != BITS).sum(axis=1))
        hits = await client.search(np.packbits(heart), 10, collection="c", exact=exact)
        truly = [(heart != BITS[NAMES.index(hit.id)]).sum() for hit in hits]
        assert [hit.distance for hit in hits] == truly
        assert sum(distance <= far[9] for distance in truly) >= (10 if exact else 9)
    found = await client.get(NAMES, collection="c")
    assert np.array_equal([one.vector for one in found], PACKED)


async def by_files(client: Client) -> bool:
    """Whether nearly all vectors of each shard are in index files."""
    hits = await client.search(PACKED[0], 5, collection="c", explain=True)
    parts = [one for shard in hits.explained for one in shard.segments]
    return sum(one.rows for one in parts if one.way != "growing") > COUNT * 0.6


async def test_files_moves_restarts_and_backups(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3, segments={"seal_rows": 300}) as cluster:
        await cluster.create(2, 3)
        async with cluster.connect() as client:
            await healthy(client)
            await client.create_collection("c", dimensions=WIDTH, dtype="bit", metric="hamming")
            await client.insert_batch(ids=NAMES[:1000], vectors=PACKED[:1000], collection="c")
            await client.insert_batch(ids=NAMES[1000:], vectors=BITS[1000:], collection="c")
            await wait_for(lambda: by_files(client), 60, "index files of bits")
            await is_right(client)
            await is_right(client, exact=True)
            before = await client.counts(collection="c")
            await half_moved(client)
            assert (await client.counts(collection="c"))[1] > before[1] + 300
            await is_right(client, exact=True)
            for name in list(cluster.nodes):
                cluster.kill(name)
            for name in list(cluster.nodes):
                cluster.restart(name)
            await healthy(client)
            await is_right(client, exact=True)
            await wait_for(lambda: by_files(client), 60, "index files after a restart")
            await is_right(client)
            store = backups.open_store(str(tmp_path / "target"))
            made = (await backups.create(client, store)).manifest
    async with needle.open(":memory:") as client:
        await backups.restore(client, store, made.id)
        described = await client.describe_collection("c")
        assert (described.dtype, described.metric, described.documents) == ("bit", "hamming", COUNT)
        assert described.size is not None and described.size.vector_bytes == COUNT * WIDTH // 8
        await is_right(client, exact=True)
