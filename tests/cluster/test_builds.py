"""Real processes: an index build goes on when leadership moves, and the file is published through the next leader."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cluster.test_catch_up import events, indexed
from harness.calm import CALM
from harness.pinned import Pinned
from needle.local.process_cluster import ProcessCluster, wait_for

ROWS = 12_000


async def test_a_deposed_leader_finishes_its_build_and_the_next_one_publishes_it(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((ROWS, 32)).astype(np.float32)
    async with (
        ProcessCluster(
            tmp_path,
            linked=True,
            dimensions=32,
            **CALM,
            segments={"seal_rows": ROWS},
        ) as cluster,
        cluster.connect() as client,
    ):
        for at in range(0, ROWS, 1000):
            part = rows[at : at + 1000]
            await client.insert_batch(ids=[f"d{n}" for n in range(at, at + 1000)], vectors=part, timeout=60)
        builder = await cluster.leader()
        async with Pinned(cluster.nodes[builder].address) as pinned:
            await wait_for(pinned.building, 60, "the build to begin")
            await client.step_down(timeout=30)
            assert await cluster.leader() != builder
        await indexed(cluster, *cluster.nodes)
        built = {name: (await events(cluster, name))["built"] for name in cluster.nodes}
    assert built.pop(builder) == 1 and set(built.values()) == {0}
