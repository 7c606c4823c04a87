"""`python -m bench.bulk_load [--documents N] [--engine local|ray] [--only bulk|usual]`: bulk loads and the usual way.

Three nodes, two shards of three replicas, vectors of 128 dimensions in Parquet: written in batches until all of it is
indexed, and loaded in bulk. Processor time of the nodes and of the client with its workers; bytes of the entries;
bytes over the loopback device, which are this program's where nothing else uses it:
`unshare -n sh -c 'ip link set lo up; python -m bench.bulk_load'`. entries: of both shards' logs. made_cpu: of the
client and its workers, until files are made. nodes_idle: of the nodes until then. With --tidy what the pieces have
is deleted once nothing needs it. --directory: where all is, and source and files stay, so that whoever runs it again
goes on with what is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
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


def most_memory(pids: list[int]) -> float:
    """Of the process that ever held the most, in MB."""
    held = [Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0] for pid in pids]
    return max(map(int, held)) / 1e3


async def entries(client: Client) -> int:
    """What the shards' logs have come to."""
    return sum([(await client.status(shard, timeout=60)).commit_index for shard in range(2)])


def own_cpu() -> float:
    """Of this process and its workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def loopback() -> int:
    """Bytes received."""
    [line] = [one for one in Path("/proc/net/dev").read_text().splitlines() if one.strip().startswith("lo:")]
    return int(line.split()[1])


Work = Callable[[Client, list[int]], Awaitable[dict[str, Any]]]


async def measured(path: Path, work: Work) -> dict[str, Any]:
    """What one way takes, in a cluster of its own."""
    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
    await asyncio.to_thread(path.mkdir)
    async with ProcessCluster(path, 3, **SETTINGS) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("books", dimensions=WIDTH, metric="l2")
            await asyncio.sleep(2)
            pids = [node.process.pid for node in cluster.nodes.values() if node.process is not None]
            logged = await entries(client)
            before = (cpu_of(pids), own_cpu(), loopback(), time.perf_counter())
            told = await work(client, pids)
            after = (cpu_of(pids), own_cpu(), loopback(), time.perf_counter())
            nodes, own, network, seconds = (round(b - a, 2) for a, b in zip(before, after, strict=True))
            return {
                **told, "nodes_cpu": nodes, "client_cpu": own, "network_mb": network / 1e6, "seconds": seconds,
                "entries": await entries(client) - logged, "node_mb": most_memory(pids),
                "worker_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3,
            }  # fmt: skip


async def bulk(source: Path, work: Path, given: argparse.Namespace, client: Client, pids: list[int]) -> dict[str, Any]:
    """Load the source in bulk."""
    pieces, width = pieces_of(str(source))
    asked = Asked("books", pieces, width, Metric.L2, str(work), given.seconds)
    marks: dict[str, float] = {}
    started, used, idle = time.perf_counter(), own_cpu(), cpu_of(pids)

    def progress(step: str, _: int, __: int) -> None:
        if step == "sent" and "made_cpu" not in marks:
            marks["made_cpu"], marks["nodes_idle"] = round(own_cpu() - used, 2), round(cpu_of(pids) - idle, 2)
            for part in (work / "pieces").glob("*/*.rows") if given.tidy else ():
                part.unlink()
        marks[step] = round(time.perf_counter() - started, 1)
        if step != "sent":
            print(step, marks[step], flush=True)

    done = await load(client, asked, lambda: engine(EngineName(given.engine), 2), progress)
    marks["loaded"] = round(time.perf_counter() - started, 1)
    assert await client.count(collection="books", timeout=60) == given.documents
    assert await indexed(client, given.documents)
    return {"way": f"bulk, {given.engine}", "log_bytes": done.log, "sent_mb": done.sent / 1e6, **marks}


async def usual(source: Path, count: int, client: Client) -> dict[str, Any]:
    """Write it in batches, and wait until all is indexed."""
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


async def main(given: argparse.Namespace, root: Path) -> None:
    """Measure and print."""
    source, work, count = root / f"{given.documents}.parquet", root / f"work-{given.documents}", given.documents
    if not source.exists():
        write_source(source.with_suffix(".tmp"), count)
        source.with_suffix(".tmp").rename(source)
    if given.only in ("", "bulk"):
        told = await measured(root / "bulk", lambda client, pids: bulk(source, work, given, client, pids))
        print(json.dumps(told), flush=True)
    if given.only in ("", "usual"):
        print(json.dumps(await measured(root / "usual", lambda client, _: usual(source, count, client))), flush=True)


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
    said.add_argument("--tidy", action="store_true")
    said.add_argument("--seconds", type=float, default=600.0)
    said.add_argument("--directory", default="")
    options = said.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(options, Path(options.directory or directory)))
