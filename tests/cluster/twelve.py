"""4 shards of 3 replicas on 12 processes, with more data than the suite has time for. Not collected by itself:

.venv/bin/pytest tests/cluster/twelve.py        NEEDLE_TWELVE_VECTORS=100000 NEEDLE_TWELVE_DIMENSIONS=256
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from cluster.processes import ShardedProcesses, healthy
from harness.process_cluster import wait_for
from needle.base.errors import Unavailable
from needle.client.sharded import ShardedClient

COUNT = int(os.environ.get("NEEDLE_TWELVE_VECTORS", "20000"))
DIMENSIONS = int(os.environ.get("NEEDLE_TWELVE_DIMENSIONS", "64"))
CHUNK = 2000


async def test_twelve_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(100, DIMENSIONS))
    stored = (centres[rng.integers(0, 100, COUNT)] + 0.5 * rng.normal(size=(COUNT, DIMENSIONS))).astype("f4")
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    queries = stored[rng.integers(0, COUNT, 50)] + 0.1 * rng.normal(size=(50, DIMENSIONS)).astype("f4")
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype("f4")
    truth = np.argsort(1 - queries @ stored.T, axis=1, kind="stable")[:, :10]

    async with ShardedProcesses(tmp_path, nodes=12, election_timeout=2.0, heartbeat_interval=0.3) as processes:
        topology = await processes.create(4, 3)
        assert [info.replicas for info in topology.shards] == [
            tuple(f"node-{3 * shard + n}" for n in (1, 2, 3)) for shard in range(4)
        ]
        async with processes.connect() as client:
            assert isinstance(client, ShardedClient)
            await healthy(client, 60)
            await client.create_collection("default", dimensions=DIMENSIONS)
            start = time.monotonic()
            for first in range(0, COUNT, CHUNK):
                ids = [f"doc-{n}" for n in range(first, min(first + CHUNK, COUNT))]
                await client.insert_batch(ids=ids, vectors=stored[first : first + CHUNK], timeout=60)
            print(f"\n{COUNT / (time.monotonic() - start):.0f} vectors/s")  # noqa: T201 - a measurement
            assert await client.count(timeout=30) == COUNT

            async def recall(exact: bool) -> float:
                found = 0
                for query, wanted in zip(queries, truth, strict=True):
                    hits = await client.search(query, 10, exact=exact, timeout=30)
                    found += len({hit.id for hit in hits} & {f"doc-{n}" for n in wanted})
                return found / (10 * len(queries))

            assert await recall(exact=True) >= 0.999  # float sums differ in the last bit: ties may swap at rank 10
            assert await recall(exact=False) >= 0.95
            for shard in range(4):
                processes.kill(f"node-{3 * shard + 1}")
            await wait_for(lambda: client.search(queries[0], 1, timeout=5), 60, "searches without one node of each")
            assert await recall(exact=True) >= 0.999
            await client.insert("late", queries[0], timeout=30)
            processes.kill("node-2")
            try:
                await client.search(queries[0], 10, timeout=3)
            except Unavailable:
                pass
            else:
                raise AssertionError("a shard without a majority must not answer a strong search")
            part = await client.search_partial(queries[0], 10, timeout=3)
            assert list(part.missing) == [0]
            for node in processes.nodes.values():
                if not node.running():
                    node.start()
            await healthy(client, 60)
            assert await recall(exact=True) >= 0.998
