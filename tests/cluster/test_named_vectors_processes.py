"""Named vectors on real processes: through index files, restarts, new replicas and moves of key ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, half_moved, healthy
from needle.base.model import Metric, VectorSpec
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for

pytestmark = pytest.mark.campaign

COUNT = 2400
ROWS = np.random.default_rng(1).standard_normal((COUNT, 8)).astype(np.float32)
TITLES = np.random.default_rng(2).standard_normal((COUNT, 4)).astype(np.float32)
NAMES = [f"d{at}" for at in range(COUNT)]
HAVE = [at for at in range(COUNT) if at % 2 and at > 400]
"""So many have the named vector: those that are written first do not, and then each second one."""


async def written(client: Client) -> None:
    await client.create_collection("c", dimensions=8, metric="l2")
    await client.insert_batch(ids=NAMES[:400], vectors=ROWS[:400], collection="c")
    await client.add_vector("c", "title", VectorSpec(dimensions=4, metric=Metric.L2))
    given = [TITLES[at] if at in HAVE else None for at in range(400, COUNT)]
    await client.insert_batch(ids=NAMES[400:], vectors=ROWS[400:], named_vectors={"title": given}, collection="c")


async def is_right(client: Client, seed: int, *, exact: bool = False) -> None:
    rng = np.random.default_rng(seed)
    for query in rng.standard_normal((10, 4)).astype(np.float32):
        far = np.sqrt(((TITLES[HAVE].astype(np.float64) - query) ** 2).sum(axis=1))
        near = [NAMES[HAVE[at]] for at in np.argsort(far, kind="stable")[:10]]
        hits = await client.search(query, 10, vector_name="title", collection="c", exact=exact)
        assert len({hit.id for hit in hits} & set(near)) >= (10 if exact else 9)
    some = [NAMES[at] for at in rng.choice(COUNT, 50, replace=False)]
    for one in await client.get(some, vectors=["title"], collection="c"):
        at = NAMES.index(one.id)
        assert one.vectors is not None and ("title" in one.vectors) == (at in HAVE)
        assert at not in HAVE or one.vectors["title"].tolist() == TITLES[at].tolist()


async def by_files(client: Client) -> bool:
    """Whether nearly all vectors of the name are in index files, of each shard."""
    hits = await client.search(TITLES[0], 5, vector_name="title", collection="c", explain=True)
    parts = [one for shard in hits.explained for one in shard.segments]
    return sum(one.rows for one in parts if one.way != "growing") > len(HAVE) // 2


async def test_index_files_restarts_and_digests(tmp_path: Path) -> None:
    async with (
        ProcessCluster(tmp_path, dimensions=8, segments={"seal_rows": 500}) as cluster,
        cluster.connect() as client,
    ):
        await written(client)

        await wait_for(lambda: by_files(client), 60, "index files of the named vector")
        await is_right(client, 3)
        await is_right(client, 4, exact=True)
        await cluster.equal_digests()
        leader = await cluster.leader()
        cluster.kill(leader)
        await is_right(client, 5)
        cluster.restart(leader)
        await healthy(client)
        await wait_for(lambda: by_files(client), 60, "index files after a restart")
        await is_right(client, 6)
        await cluster.equal_digests()


async def test_moves_of_key_ranges_and_new_shards_bring_them(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as cluster:
        await cluster.create(2, 3)
        async with cluster.connect() as client:
            await healthy(client)
            await written(client)
            await is_right(client, 7, exact=True)
            before = await client.counts(collection="c")
            await half_moved(client)
            assert (await client.counts(collection="c"))[1] > before[1] + 300
            await is_right(client, 8, exact=True)
            have = [NAMES[at] for at in HAVE]
            told = await client.get(have, vectors=["title"], collection="c")
            assert len(told) == len(have) and all(one.vectors for one in told)
