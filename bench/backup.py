"""Backups of 384-d documents: how fast, what searches notice, what later ones ship, and restore to first search, and
until searches are fast, beside the time that the index files took to build.

Three nodes serve searches; their p99 is measured without a backup beside them, and with one after another. Before later
backups CHANGED of the documents are added at the end of the ids, then changed at random. `--documents` sets the size.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.cluster import NeedleCluster
from bench.report import Report
from needle import backup as backups
from needle.base.explain import Way
from needle.client import Client
from needle.local.process_cluster import wait_for

DOCUMENTS = 20_000
QUICK_DOCUMENTS = 4_000
DIMENSIONS = 384
BATCH = 1000
CHANGED = 0.01
RATE = 10e6
PACES = {None: "by default", 0.0: "no bound", RATE: f"{RATE / 1e6:g} MB/s"}
TURNS = 3
SECONDS = 8.0
SEARCHERS = 2
WAITING = (4 << 20) // (4 * DIMENSIONS)
FAST_SECONDS = 7200.0


def vectors_of(first: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The same for the same `first`."""
    return np.random.default_rng(first).standard_normal((count, DIMENSIONS), dtype=np.float32)


async def fill(client: Client, documents: int) -> None:
    """Insert so many, in batches."""
    for first in range(0, documents, BATCH):
        count = min(BATCH, documents - first)
        names = [f"d{n:08}" for n in range(first, first + count)]
        metadata = [{"n": n, "title": f"the title of document {n}"} for n in range(first, first + count)]
        await client.insert_batch(ids=names, vectors=vectors_of(first, count), metadatas=metadata, timeout=60)


async def until_fast(client: Client) -> float:
    """Seconds until index files serve all documents but the last ones, which wait to become a file."""
    started, query = time.perf_counter(), vectors_of(1, 1)[0]

    async def fast() -> bool:
        hits = await client.search(query, k=1, explain=True, timeout=60)
        rows: dict[bool, int] = {False: 0, True: 0}
        for part in (part for shard in hits.explained for part in shard.segments):
            rows[part.way is Way.GROWING] += part.rows
        return rows[False] > 0 and rows[True] <= WAITING

    await wait_for(fast, FAST_SECONDS, "index files")
    return time.perf_counter() - started


async def _p99(client: Client, until: asyncio.Event) -> float:
    """Of searches one after the other, in milliseconds."""
    queries, took = vectors_of(-1 % 2**32, 64), list[float]()

    async def searcher(which: int) -> None:
        n = which
        while not until.is_set():
            started = time.perf_counter()
            await client.search(queries[n % len(queries)], k=10)
            took.append(1e3 * (time.perf_counter() - started))
            n += 1

    await asyncio.gather(*map(searcher, range(SEARCHERS)))
    return float(np.percentile(took, 99))


ALONE = f"""
import asyncio, sys, time, needle
from needle import backup
async def main(cluster, target, rate):
    async with needle.connect(cluster.split(",")) as client:
        end = time.monotonic() + {SECONDS}
        while time.monotonic() < end:
            store = backup.open_store(target)
            await backup.create(client, store, rate=None if rate == "None" else float(rate), begin=True)
asyncio.run(main(*sys.argv[1:]))
"""
"""A process of its own, as an operator's: it shares no interpreter with who measures."""


async def _beside(client: Client, cluster: str, target: Path | None, rate: float | None) -> float:
    """The p99 of searches while backups are made one after the other, or none is (target None)."""
    over = asyncio.Event()

    async def making() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if target is None:
                await asyncio.sleep(SECONDS)
            else:
                words = (sys.executable, "-c", ALONE, cluster, str(target), str(rate))
                assert await (await asyncio.create_subprocess_exec(*words)).wait() == 0
        over.set()

    _, p99 = await asyncio.gather(making(), _p99(client, over))
    return p99


async def _paces(report: Report, client: Client, cluster: str, root: Path) -> None:
    """In turns, each with its own time without backups right before it: a busy machine changes by the minute."""
    found: dict[float | None, list[tuple[float, float]]] = {rate: [] for rate in PACES}
    for _ in range(TURNS):
        for rate, turns in found.items():
            idle = await _beside(client, cluster, None, rate)
            turns.append((await _beside(client, cluster, root / f"beside-{rate}", rate), idle))
    for rate, turns in found.items():
        busy, idle = (float(np.median(one)) for one in zip(*turns, strict=True))
        report.row(f"p99 of searches beside backups ({PACES[rate]})", f"{busy:.1f} ms", f"{idle:.1f} ms without")
        ratio = float(np.median([one / other for one, other in turns]))
        report.ratio(ratio, "<= 1.5", ok=ratio <= 1.5)


async def _change(client: Client, names: list[str]) -> None:
    await client.insert_batch(ids=names, vectors=vectors_of(7, len(names)), timeout=60)


async def run(report: Report, *, quick: bool, documents: int | None) -> None:
    """See the module."""
    count = documents or (QUICK_DOCUMENTS if quick else DOCUMENTS)
    root = Path(tempfile.mkdtemp(prefix="bench-backup-"))
    store = backups.open_store(str(root / "target"))
    try:
        with NeedleCluster(dimensions=DIMENSIONS) as nodes:
            cluster = ",".join(nodes.addresses())
            async with await nodes.client() as client:
                await fill(client, count)
                built = await until_fast(client)
                report.row(f"index files of {count:,} x {DIMENSIONS}-d", f"{built:.1f} s", "behind the last write")
                await _make(report, client, store, root, count)
                await _paces(report, client, cluster, root)
        with NeedleCluster(dimensions=DIMENSIONS) as nodes:
            async with await nodes.client() as client:
                started = time.perf_counter()
                done = await backups.restore(client, store)
                await client.search(vectors_of(1, 1)[0], k=10)
                restored = time.perf_counter() - started
                report.row(f"restore of {count:,} x {DIMENSIONS}-d to first search", f"{restored:.1f} s")
                await until_fast(client)
                fast = time.perf_counter() - started
                report.row("until its searches are fast", f"{fast:.1f} s", f"{done.indexed:,} by index files")
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(root)


async def _make(report: Report, client: Client, store: backups.Store, root: Path, count: int) -> None:
    started = time.perf_counter()
    first = await backups.create(client, store, rate=0)
    seconds = time.perf_counter() - started
    report.row(f"backup of {count:,} x {DIMENSIONS}-d", f"{first.read / 1e6 / seconds:.1f} MB/s", f"{seconds:.1f} s")
    again = await backups.create(client, store)
    report.row("second backup, nothing changed", f"{again.shipped / first.shipped:.1%} of the bytes")
    some = max(1, int(CHANGED * count))
    await _change(client, [f"d{count + n:08}" for n in range(some)])
    added = await backups.create(client, store)
    report.row(f"backup after {CHANGED:.0%} more documents", f"{added.shipped / first.shipped:.1%} of the bytes")
    await _change(client, [f"d{n:08}" for n in np.random.default_rng(5).choice(count, some, replace=False)])
    spread = await backups.create(client, store)
    report.row(f"backup after {CHANGED:.0%} changed at random", f"{spread.shipped / first.shipped:.1%} of the bytes")
    started = time.perf_counter()
    found = backups.verify(store)
    seconds = time.perf_counter() - started
    assert not found.problems
    report.row("verify", f"{found.bytes / 1e6 / seconds:.1f} MB/s")
