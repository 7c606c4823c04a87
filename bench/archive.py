"""The archive of the log: how fast it comes after, what writes notice of it, and the restore of an instant.

Three nodes with DOCUMENTS of 384 dimensions, written in batches and archived at once; then single writes, with an
archive beside them and without one, in turns; then the instant before these is restored into another cluster.
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

from bench.backup import DIMENSIONS, DOCUMENTS, QUICK_DOCUMENTS, fill, until_fast, vectors_of
from bench.cluster import NeedleCluster
from bench.report import Report
from needle import backup as backups
from needle.backup.archiving import Archiver
from needle.client import Client
from needle.local.process_cluster import wait_for

SECONDS = 6.0
WRITERS = 8
ROUNDS = 3


async def _writes(client: Client) -> list[float]:
    """How long single writes took, in milliseconds."""
    took: list[float] = []
    end = time.perf_counter() + SECONDS
    vectors = vectors_of(3, 64)

    async def writer(which: int) -> None:
        n = 0
        while (started := time.perf_counter()) < end:
            await client.insert(f"w{which}-{n % 500}", vectors[n % 64], {"n": n}, timeout=60)
            took.append(1e3 * (time.perf_counter() - started))
            n += 1

    await asyncio.gather(*map(writer, range(WRITERS)))
    return took


async def _beside(client: Client, cluster: str, target: Path | None) -> list[float]:
    if target is None:
        return await _writes(client)
    words = (sys.executable, "-m", "needle", "backup", "archive", str(target), "--cluster", cluster)
    archiving = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    await asyncio.sleep(2.0)  # it has begun by then
    try:
        return await _writes(client)
    finally:
        archiving.terminate()
        await archiving.wait()


async def run(report: Report, *, quick: bool, documents: int | None) -> None:
    """See the module."""
    count = documents or (QUICK_DOCUMENTS if quick else DOCUMENTS)
    root = Path(tempfile.mkdtemp(prefix="bench-archive-"))
    store = backups.open_store(str(root / "target"))
    try:
        with NeedleCluster(dimensions=DIMENSIONS) as nodes:
            cluster = ",".join(nodes.addresses())
            async with await nodes.client() as client:
                await Archiver(client, store).look(flush=True)
                await fill(client, count)
                archiver, started = Archiver(client, store), time.perf_counter()
                await archiver.look(flush=True)
                seconds = time.perf_counter() - started
                rate = f"{archiver.written / 1e6 / seconds:.1f} MB/s"
                report.row(f"archive of the log of {count:,} x {DIMENSIONS}-d", rate, f"{seconds:.1f} s")
                await until_fast(client)
                instant = int(time.time() * 1e6)
                took: dict[bool, list[float]] = {False: [], True: []}
                for _ in range(ROUNDS):
                    for with_it in (False, True):
                        took[with_it] += await _beside(client, cluster, root / "target" if with_it else None)
                alone, beside = (float(np.percentile(took[with_it], 99)) for with_it in (False, True))
                report.row("p99 of writes beside the archive", f"{beside:.1f} ms", f"{alone:.1f} ms without")
                report.ratio(beside / alone, "<= 1.5", ok=beside <= 1.5 * alone)
                each = archiver.written / count
                report.row("bytes archived of a document", f"{each:.0f}", f"{4 * DIMENSIONS} of them its vector")
                last = Archiver(client, store, indexes_every=1.0)
                await last.look(flush=True)
                await wait_for(lambda: all(one.indexed[0] for one in last.shards.values()), 600, "index files")
                await last.look(flush=True)
                await last.close()
        with NeedleCluster(dimensions=DIMENSIONS) as nodes:
            async with await nodes.client() as client:
                started = time.perf_counter()
                done = await backups.restore_at(client, store, instant)
                assert done.documents == count
                await client.search(vectors_of(1, 1)[0], k=10)
                seconds = time.perf_counter() - started
                report.row(f"restore of {count:,} at an instant, to first search", f"{seconds:.1f} s")
                await until_fast(client)
                fast = time.perf_counter() - started
                report.row("until its searches are fast", f"{fast:.1f} s", f"{done.indexed:,} by index files")
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
