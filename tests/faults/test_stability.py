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

from needle.client import Client
from needle.local.process_cluster import ProcessCluster

SECONDS = float(os.environ.get("NEEDLE_SOAK_SECONDS", "8"))
DIMENSIONS = 384
BATCH = 500
WRITERS = 2
TRIES = 5
BUSY = 0.5
"""Processors' worth of work of others, from which on an election may be their fault."""
PASSES_ROWS = 40_000
"""Ids repeat after so many rows, so that a long run does not fill the disk."""


async def terms(client: Client, cluster: ProcessCluster) -> dict[str, tuple[int, str | None]]:
    statuses = {name: await client.node_status(node.address) for name, node in cluster.nodes.items()}
    return {name: (status.current_term, status.leader) for name, status in statuses.items()}


def cpu_of_others(pids: list[int]) -> float:
    """Seconds of processor time so far of everyone but these processes, the hypervisor's other guests included.
    0 where the system does not tell."""
    if not Path("/proc/stat").exists():
        return 0.0
    _, user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split()
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    for pid in pids:
        ticks -= sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.alone
async def test_a_bulk_load_causes_no_election(tmp_path: Path) -> None:
    """While others keep a good part of a processor busy an election proves nothing: then the load is repeated."""
    settings = {"dimensions": DIMENSIONS, "election_timeout": 0.150, "heartbeat_interval": 0.050}
    vectors = np.random.default_rng(1).standard_normal((BATCH * 8, DIMENSIONS)).astype(np.float32)
    async with ProcessCluster(tmp_path, **settings) as cluster, cluster.connect() as client:
        await client.insert("first", vectors[0])
        ours = [os.getpid(), *(node.process.pid for node in cluster.nodes.values() if node.process is not None)]
        written: set[str] = set()
        for tries_left in reversed(range(TRIES)):
            before, began, others = await terms(client, cluster), monotonic(), cpu_of_others(ours)
            written |= await load(client, vectors)
            after = await terms(client, cluster)
            others = (cpu_of_others(ours) - others) / (monotonic() - began)
            if after == before:
                break
            told = f"elections without a fault, {before} to {after}, in {SECONDS:g} s of load"
            assert tries_left and others > BUSY, f"{told}; others kept {others:.2f} processors busy"
        assert len(written) > 1000
        await cluster.equal_digests()
        assert await client.count() == len(written) + 1


async def load(client: Client, vectors: np.ndarray) -> set[str]:
    """Inserts batches for SECONDS; the ids."""
    end, written = monotonic() + SECONDS, set()

    async def write(writer: int) -> None:
        rounds = 0
        while monotonic() < end:
            first = (rounds * WRITERS + writer) * BATCH % PASSES_ROWS
            ids = [f"d{row}" for row in range(first, first + BATCH)]
            start = first % len(vectors)
            await client.insert_batch(ids=ids, vectors=vectors[start : start + BATCH])
            written.update(ids)
            rounds += 1

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    return written
