"""Changes of leader without a fault on a busy machine: other processes compute while a cluster is written to, searched
and builds index files. At each timing in turn, under the same load; and from kill -9 to the next write at the default.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np

from bench.cluster import NeedleCluster
from bench.failover import fail_over
from bench.report import Report
from needle.base.config import RaftConfig
from needle.base.errors import NeedleError
from needle.client import Client

DIMENSIONS = 128
SEAL_ROWS = 2000
BATCH = 100
BUSY_PER_CORE = 6.5
"""13 processes on 2 cores."""


def _compute() -> None:
    while True:
        sum(range(10_000))


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes compute at normal priority."""
    workers = [multiprocessing.get_context("spawn").Process(target=_compute, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


async def _terms(client: Client) -> int:
    """The highest term that a node tells."""
    leader = None
    while leader is None:
        with contextlib.suppress(NeedleError):
            leader = await client.leader()
    while True:
        with contextlib.suppress(NeedleError):
            return (await client.node_status(leader, timeout=5.0)).current_term


async def _elections(seconds: float, settings: dict[str, object]) -> tuple[int, int, float]:
    """Terms begun in so many seconds of load, writes acknowledged, and the slowest of them in seconds."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((5000, DIMENSIONS)).astype(np.float32)
    done, slowest = 0, 0.0
    with NeedleCluster(dimensions=DIMENSIONS, segments={"seal_rows": SEAL_ROWS}, **settings) as nodes:
        async with await nodes.client() as client:
            await client.insert("first", vectors[0])
            with busy(int(BUSY_PER_CORE * (os.cpu_count() or 1))):
                before, end = await _terms(client), time.perf_counter() + seconds

                async def write(writer: int) -> None:
                    nonlocal done, slowest
                    rounds = 0
                    while (start := time.perf_counter()) < end:
                        first = rounds * BATCH % len(vectors)
                        ids = [f"{writer}-{n}" for n in range(first, first + BATCH)]
                        with contextlib.suppress(NeedleError):
                            await client.insert_batch(ids=ids, vectors=vectors[first : first + BATCH])
                            done += 1
                        slowest = max(slowest, time.perf_counter() - start)
                        rounds += 1

                async def search(searcher: int) -> None:
                    while time.perf_counter() < end:
                        with contextlib.suppress(NeedleError):
                            await client.search(vectors[searcher], k=10)

                await asyncio.gather(*(write(n) for n in range(2)), *(search(n) for n in range(2)))
                return await _terms(client) - before, done, slowest


async def run(report: Report, *, quick: bool) -> None:
    """Adds both timings under load, and failover at the default on the machine as it is."""
    seconds = 20.0 if quick else 60.0
    default = RaftConfig(node_id="n", cluster_nodes=["n:1"], data_dir="d")
    name = f"{default.election_timeout * 1000:.0f}/{default.heartbeat_interval * 1000:.0f} ms (default)"
    guide, _, slow = await _elections(seconds, {"election_timeout": 0.150, "heartbeat_interval": 0.050})
    ours, writes, slowest = await _elections(seconds, {})
    report.row(
        f"elections without a fault in {seconds:.0f} s, {name}",
        f"{ours} ({writes} batches, slowest {slowest:.1f} s)",
        f"150/50 ms: {guide}, slowest batch {slow:.1f} s",
    )
    report.ratio(ours / guide if guide else None, "none", ok=ours == 0)
    times = np.array(await fail_over(5 if quick else 20)) * 1e3
    report.row(f"failover, {name}, {len(times)} kills", f"median {np.median(times):.0f} ms, max {times.max():.0f} ms")
    report.ratio(None, "median < 1000 ms", ok=bool(np.median(times) < 1000))
