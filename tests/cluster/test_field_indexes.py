"""Real processes: indexes of metadata fields are made in the background, also on who does not lead yet."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from harness.calm import CALM
from needle.base.filters.builder import Filter
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster

ROWS = 2000
VECTORS = np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32)
MIDDLE = datetime(2024, 1, 1, 0, 16, 40, tzinfo=timezone.utc)  # noqa: UP017


async def index_bytes(cluster: ProcessCluster, name: str) -> float:
    _, text = await cluster.http(name, "/metrics")
    text = of_one_cluster(text)
    found = re.search(r'^needle_field_index_bytes\{shard="0"\} (\S+)$', text, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_followers_make_the_indexes_that_searches_of_the_leader_use(tmp_path: Path) -> None:
    settings = {"dimensions": 8, **CALM}
    async with ProcessCluster(tmp_path, linked=True, **settings) as cluster, cluster.connect() as client:
        rows = [
            {"url": f"https://example.org/{n}", "at": f"2024-01-01T00:{n // 60:02}:{n % 60:02}.000+00:00"}
            for n in range(ROWS)
        ]
        for at in range(0, ROWS, 500):
            part = slice(at, at + 500)
            await client.insert_batch(
                ids=[f"d{n}" for n in range(at, at + 500)], vectors=VECTORS[part], metadatas=rows[part]
            )
        for _ in range(2):
            hits = await client.search(VECTORS[7], 5, {"url": "https://example.org/7"})
            assert [hit.id for hit in hits] == ["d7"]
            later = await client.search(VECTORS[7], ROWS, Filter.gte("at", MIDDLE), exact=True)
            assert {hit.id for hit in later} == {f"d{n}" for n in range(1000, ROWS)}
        leader = await cluster.leader()
        held = await index_bytes(cluster, leader)
        for name in cluster.nodes:

            async def same(name: str = name) -> bool:
                return await index_bytes(cluster, name) >= held * 0.8

            await wait_for(same, 60, f"the leader's indexes on {name}")
