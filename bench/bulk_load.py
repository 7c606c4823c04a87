"""`python -m bench.bulk_load [--documents N] [--engine local|ray] [--only bulk|usual]`: bulk loads and the usual way.

Three nodes, two shards of three replicas, vectors of 128 dimensions in Parquet: written in batches until all of it is
indexed, and loaded in bulk. Processor time of the nodes and of the client with its workers; bytes of the entries;
bytes over the loopback device, which are this program's where nothing else uses it:
`unshare -n sh -c 'ip link set lo up; python -m bench.bulk_load'`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from needle import Metric
from needle.cli.bulk.engines import EngineName, engine
from needle.cli.bulk.loading import Asked, load
from needle.cli.bulk.pieces import pieces_of
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.routing.strategy import CONSISTENT_HASH

WIDTH, GROUP, BATCH = 128, 25_000, 500
SETTINGS: dict[str, Any] = {"election_timeout": 2.0, "heartbeat_interval": 0.2, "sharding": {}}


def write_source(path: Path, count: int) -> None:
    """Clustered vectors, in row groups."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((500, WIDTH)).astype(np.float32)
    schema = pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH)), ("n", pa.int64())])
    with pq.ParquetWriter(path, schema) as out:
        for first in range(0, count, GROUP):
            size = min(GROUP, count - first)
            rows = centres[rng.integers(0, 500, size)] + 0.3 * rng.standard_normal((size, WIDTH)).astype(np.float32)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), WIDTH)
            ids = pa.array([f"document-{at}" for at in range(first, first + size)])
            out.write_table(pa.table([ids, vectors, pa.array(range(first, first + size))], schema=schema))


def cpu_of(pids: list[int]) -> float:
    """Seconds of processor time."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def own_cpu() -> float:
    """Of this process and its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def loopback() -> int:
    """Bytes received."""
    [line] = [one for one in Path("/proc/net/dev").read_text().splitlines() if one.strip().startswith("lo:")]
    return int(line.split()[1])


async def measured(path: Path, work: Callable[[Client], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """What one way takes, in a cluster of its own."""
    await asyncio.to_thread(path.mkdir)
    async with ProcessCluster(path, 3, **SETTINGS) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("books", dimensions=WIDTH, metric="l2")
            await asyncio.sleep(2)
            pids = [node.process.pid for node in cluster.nodes.values() if node.process is not None]
            before = (cpu_of(pids), own_cpu(), loopback(), time.perf_counter())
            told = await work(client)
            after = (cpu_of(pids), own_cpu(), loopback(), time.perf_counter())
            nodes, own, network, seconds = (round(b - a, 2) for a, b in zip(before, after, strict=True))
            return {**told, "nodes_cpu": nodes, "client_cpu": own, "network_mb": network / 1e6, "seconds": seconds}


async def main(count: int, name: str, only: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "source.parquet"
        write_source(source, count)

        async def bulk(client: Client) -> dict[str, Any]:
            pieces, width = pieces_of(str(source))
            work = str(Path(directory) / "work")
            asked = Asked("books", pieces, width, Metric.L2, work, 600.0)
            marks: dict[str, float] = {}
            started = time.perf_counter()

            def progress(step: str, _: int, __: int) -> None:
                marks[step] = round(time.perf_counter() - started, 1)

            done = await load(client, asked, lambda: engine(EngineName(name), 2), progress)
            assert await client.count(collection="books") == count
            return {"way": f"bulk, {name}", "log_bytes": done.log, "sent_mb": done.sent / 1e6, **marks}

        async def usual(client: Client) -> dict[str, Any]:
            table = pq.ParquetFile(source)
            at = asyncio.Semaphore(4)

            async def put(batch: Any) -> None:
                async with at:
                    await client.insert_batch(pa.Table.from_batches([batch]), collection="books", timeout=120)

            waiting = [asyncio.create_task(put(batch)) for batch in table.iter_batches(batch_size=BATCH)]
            await asyncio.gather(*waiting)
            written = time.perf_counter()
            await wait_for(lambda: indexed(client, count), 1800, "index files")
            return {"way": "usual", "indexing_seconds": round(time.perf_counter() - written, 1)}

        for way, work in (("bulk", bulk), ("usual", usual)):
            if only in ("", way):
                print(json.dumps(await measured(Path(directory) / way, work)), flush=True)


async def indexed(client: Client, count: int) -> bool:
    """Whether searches read no more than a few thousand vectors."""
    hits = await client.search([0.0] * WIDTH, k=1, collection="books", explain=True, timeout=60)
    parts = [part for shard in hits.explained for part in shard.segments]
    return sum(part.rows for part in parts if part.way != "growing") >= 0.98 * count


if __name__ == "__main__":
    said = argparse.ArgumentParser()
    said.add_argument("--documents", type=int, default=200_000)
    said.add_argument("--engine", default="local")
    said.add_argument("--only", default="")
    given = said.parse_args()
    asyncio.run(main(given.documents, given.engine, given.only))
