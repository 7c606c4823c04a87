"""`python -m bench.sizes [VECTORS]`: what documents and index files take on disk and in memory, and a search in CPU, by
dimensions, links and metadata. One node; `needle plan` calculates with these figures (src/needle/client/sizing.py).

It measures no rates but the CPU time of a search, so a machine that is busy changes little.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import needle
from bench.cluster import BATCH, rows_of
from needle.base.config import SegmentConfig
from needle.client import Client
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.shard.plan import seal_when_quiet_at

VECTORS = 20_000
SEARCHES = 1000


class Case(NamedTuple):
    dimensions: int
    m: int
    metadata: int


CASES = (Case(64, 16, 0), Case(384, 16, 0), Case(384, 32, 0), Case(384, 16, 1000), Case(1536, 16, 0))


class Sizes(NamedTuple):
    """Bytes; `search`: milliseconds of the node's CPU."""

    idle: float
    resident: float
    index: int
    documents: int
    log: int
    search: float


async def measure(case: Case, vectors: int) -> Sizes:
    """Load a collection into a new node, wait until all is in index files, search it."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="bench-sizes-") as directory:
        async with ProcessCluster(Path(directory), 1, dimensions=None) as cluster, cluster.connect() as client:
            node = cluster.nodes["node-1"]
            idle = node.memory_mb() * 1e6
            index = needle.IndexParams(m=case.m)
            await client.create_collection("sizes", dimensions=case.dimensions, index=index)
            metadata = {"text": "x" * max(0, case.metadata - 11)} if case.metadata else None
            for first in range(0, vectors, BATCH):
                rows = rng.standard_normal((min(BATCH, vectors - first), case.dimensions), np.float32)
                ids = [f"document-{first + n:012d}" for n in range(len(rows))]
                given = [metadata] * len(rows) if metadata else None
                await client.insert_batch(ids=ids, vectors=rows, metadatas=given, collection="sizes", timeout=120)
            await settled(cluster, vectors - seal_when_quiet_at(SegmentConfig(), case.dimensions))
            spent = node.cpu_seconds()
            await _search(client, case.dimensions)
            spent = (node.cpu_seconds() - spent) / SEARCHES * 1000
            return Sizes(
                idle,
                node.memory_mb() * 1e6,
                sum(path.stat().st_size for path in node.index_files()),
                _bytes(node.data_dir, "documents.db"),
                _bytes(node.data_dir, "*") - _bytes(node.data_dir, "documents.db") - _bytes(node.data_dir, "*.seg"),
                spent,
            )


async def settled(cluster: ProcessCluster, rows: int, deadline: float = 600.0) -> None:
    """Index files cover that many rows, and have not changed for three seconds."""
    node, seen, since = cluster.nodes["node-1"], list[str](), time.monotonic()

    def quiet() -> bool:
        nonlocal seen, since
        found = [path.name for path in node.index_files()]
        if found != seen:
            seen, since = found, time.monotonic()
        return time.monotonic() - since > 3 and sum(map(rows_of, found)) >= rows

    await wait_for(quiet, deadline, "the index")


async def _search(client: Client, dimensions: int) -> None:
    queries = iter(np.random.default_rng(2).standard_normal((SEARCHES, dimensions), np.float32))

    async def worker() -> None:
        for query in queries:
            await client.search(query, 10, collection="sizes", mode="leased")

    await asyncio.gather(*(worker() for _ in range(8)))


def _bytes(directory: Path, name: str) -> int:
    return sum(path.stat().st_size for path in directory.rglob(name) if path.is_file() and path.name != "reserve")


async def main(vectors: int) -> None:
    print("| dimensions | m | metadata | index, B a vector | documents, B | RSS, B | log, MB | idle, MB | search, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        found = await measure(case, vectors)
        each = [found.index / vectors, found.documents / vectors, (found.resident - found.idle) / vectors]
        cells = [*case, *(f"{one:,.0f}" for one in each), f"{found.log / 1e6:.0f}", f"{found.idle / 1e6:.0f}"]
        print(f"| {' | '.join(map(str, [*cells, f'{found.search:.2f}']))} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else VECTORS))
