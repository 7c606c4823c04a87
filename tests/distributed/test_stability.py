"""No election without a fault: a bulk load at the guide's timeouts (150/50 ms) leaves every term as it was.

`make soak` runs it for 60 s; NEEDLE_SOAK_SECONDS sets any other length.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from harness.process_cluster import ProcessCluster
from needle.client import Client

SECONDS = float(os.environ.get("NEEDLE_SOAK_SECONDS", "8"))
DIMENSIONS = 384
BATCH = 500
WRITERS = 2
PASSES_ROWS = 40_000
"""Ids repeat after so many rows, so that a long run does not fill the disk."""


async def terms(client: Client, cluster: ProcessCluster) -> dict[str, tuple[int, str | None]]:
    statuses = {name: await client.node_status(node.address) for name, node in cluster.nodes.items()}
    return {name: (status.current_term, status.leader) for name, status in statuses.items()}


@pytest.mark.alone
async def test_a_bulk_load_causes_no_election(tmp_path: Path) -> None:
    settings = {"dimensions": DIMENSIONS, "election_timeout": 0.150, "heartbeat_interval": 0.050}
    vectors = np.random.default_rng(1).standard_normal((BATCH * 8, DIMENSIONS)).astype(np.float32)
    async with ProcessCluster(tmp_path, **settings) as cluster, cluster.connect() as client:
        await client.insert("first", vectors[0])
        before = await terms(client, cluster)
        end = monotonic() + SECONDS
        written = 0

        async def load(writer: int) -> None:
            nonlocal written
            n = 0
            while monotonic() < end:
                first = (n * WRITERS + writer) * BATCH % PASSES_ROWS
                rows = vectors[first % len(vectors) :][:BATCH]
                await client.insert_batch(ids=[f"d{first + row}" for row in range(len(rows))], vectors=rows)
                written += len(rows)
                n += 1

        await asyncio.gather(*(load(writer) for writer in range(WRITERS)))
        after = await terms(client, cluster)
        assert after == before, f"elections without a fault, after {written} vectors in {SECONDS:g} s"
        assert written > 1000
        await cluster.equal_digests()
        assert await client.count() == min(written, PASSES_ROWS) + 1
