"""Bulk load, search and memory: 3 Needle nodes against one in-process faiss HNSW over the same vectors."""

from __future__ import annotations

import asyncio
import time

from bench.cluster import NeedleCluster
from bench.load import closed_loop
from bench.report import Report
from bench.vectors import Dataset, build_hnsw, dataset, ef_for_recall, search_one_by_one
from needle.base.config import SegmentConfig
from needle.client import Client
from needle.shard.plan import seal_at, seal_when_quiet_at

DIMENSIONS = 384
BATCH = 500
M, EF_CONSTRUCTION = 16, 100
WANTED_RECALL = 0.95


async def load(client: Client, data: Dataset, in_flight: int = 4) -> float:
    """Insert every vector in batches of 500, `in_flight` at a time; seconds until all are acknowledged."""
    batches = iter(range(0, len(data.vectors), BATCH))
    start = time.perf_counter()

    async def worker() -> None:
        for first in batches:
            rows = data.vectors[first : first + BATCH]
            await client.insert_batch(
                ids=[f"v{n}" for n in range(first, first + len(rows))], vectors=rows, timeout=120.0
            )

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return time.perf_counter() - start


async def run(report: Report, *, quick: bool) -> None:
    """Adds the rows of bulk load, search in each mode at 1, 16 and 64 clients, and memory."""
    rows = 20_000 if quick else 100_000
    data = dataset(rows, DIMENSIONS)
    with NeedleCluster(dimensions=DIMENSIONS) as nodes:
        async with await nodes.client() as client:
            idle = nodes.memory_mb()
            report.row("memory of an idle node", f"{max(idle):.0f} MB")
            report.ratio(None, "<= 150 MB", ok=max(idle) <= 150)
            start = time.perf_counter()
            acknowledged = await load(client, data)
            files = await nodes.indexed(rows, seal_at(SegmentConfig(), DIMENSIONS))
            indexed = time.perf_counter() - start
            index, built = build_hnsw(data.vectors, M, EF_CONSTRUCTION, threads=1)
            name = f"bulk load {rows:,} x {DIMENSIONS}-d, RF 3, indexed on all replicas"
            shown = f"{indexed:.1f} s (acknowledged after {acknowledged:.1f} s; {files} segment files)"
            report.row(name, shown, f"faiss HNSW build, 1 thread: {built:.1f} s")
            report.ratio(indexed / built, "<= 1.3 x one build", ok=indexed / built <= 1.3)
            await nodes.indexed(rows, seal_when_quiet_at(SegmentConfig(), DIMENSIONS))
            await _search(report, client, data, index, seconds=2.0 if quick else 5.0)
            _memory(report, nodes, idle, rows)  # now: pages of the index files count once searches have touched them


def _memory(report: Report, nodes: NeedleCluster, idle: list[float], rows: int) -> None:
    used = max(now - before for now, before in zip(nodes.memory_mb(), idle, strict=True))
    stored = rows * (DIMENSIONS * 4 + M * 2 * 4 + 16) / 1e6  # vector + level-0 links of HNSW (2M) + levels, offsets
    report.row(f"memory for {rows:,} vectors, a node", f"{used:.0f} MB", f"vectors + graph: {stored:.0f} MB")
    report.ratio(used / stored, "<= 1.3 x", ok=used / stored <= 1.3)


async def _search(report: Report, client: Client, data: Dataset, index: object, seconds: float) -> None:
    ef = ef_for_recall(index, data, WANTED_RECALL)
    single, answers = search_one_by_one(index, data.queries, ef, seconds)
    recall = data.recall(answers)
    for mode in ("strong", "leased", "eventual"):

        async def one(n: int, mode: str = mode) -> list[str]:
            query = data.queries[n % len(data.queries)]
            hits = await client.search(query, 10, mode=mode, with_metadata=False, ef_search=ef)
            return [hit.id for hit in hits]

        ours = [[int(name[1:]) for name in await one(n)] for n in range(len(data.queries))]
        for clients in (1, 16, 64):
            rate = await closed_loop(clients, seconds, one)
            name = f"search {mode}, {clients} client(s), recall@10 {data.recall(ours):.3f}"
            report.row(name, str(rate), f"faiss, one query at a time: {single:,.0f}/s at recall {recall:.3f}")
            ratio = rate.per_second / single
            goal, ok = (">= 0.75 x", ratio >= 0.75) if clients >= 16 else ("", None)
            report.ratio(ratio, goal, ok=ok)
