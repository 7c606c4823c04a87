"""What many collections, and many replaced documents, cost one replica: CPU time of this process, not seconds, for the
machine may be busy. No network and no Raft log: what is measured is applying entries, the keeper, and opening.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import Report
from needle.base.config import Limits, SegmentConfig
from needle.base.model import CollectionSpec, Metric
from needle.multiraft.ports import Applied
from needle.protocol.commands import Command, CreateCollection, Insert, encode
from needle.shard.disk import REAL_DISK
from needle.shard.segments.keeper import SegmentKeeper
from needle.shard.state_machine import Replica
from needle.system import SystemClock, ThreadPool

DIMENSIONS = 384
COUNTS = (1, 100, 1_000, 4_000)
USED = (1_000, 4_000_000, 100_000_000, 4_000_000_000)
WRITES = 300


class _Filled:
    """A replica and the log that feeds it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index = 0
        self.replica = self.open()
        self._rng = np.random.default_rng(0)

    def open(self) -> Replica:
        self.replica = Replica(str(self.directory), limits=Limits(), segments=SegmentConfig(), disk=REAL_DISK)
        return self.replica

    def apply(self, command: Command) -> None:
        self.index += 1
        self.replica.apply([Applied(self.index, 1, encode(command), None)])

    def create(self, name: str) -> None:
        self.apply(CreateCollection(CollectionSpec(name=name, dimensions=DIMENSIONS, metric=Metric.L2), False))

    def put(self, collection: str, ids: list[str]) -> None:
        vectors = self._rng.standard_normal((len(ids), DIMENSIONS)).astype("<f4").tobytes()
        self.apply(Insert(collection, ids, vectors, [b'{"a":1}'] * len(ids), None))


def _cpu(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def _keeper_kick(replica: Replica, write: Callable[[], None]) -> float:
    """CPU seconds of the event loop for what the keeper does about one write."""

    async def nothing(*_: object) -> bytes:
        return b""

    async def asked(*_: object) -> None:
        return None

    build, files = ThreadPool("bench-build"), ThreadPool("bench-file")
    keeper = SegmentKeeper(
        replica.held, is_leader=lambda: True, publish=nothing, ask_building=asked, fetch_chunk=nothing, peers=list,
        build_pool=build, file_pool=files, clock=SystemClock(),
    )  # fmt: skip
    task = asyncio.ensure_future(keeper.run())
    await asyncio.sleep(1.0)  # the first look at everything
    spent = 0.0
    for _ in range(20):
        write()
        start = time.thread_time()
        keeper.kick()
        await asyncio.sleep(0.01)
        spent += time.thread_time() - start
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    build.close()
    files.close()
    return spent / 20


async def _many(report: Report, count: int, directory: Path) -> float:
    filled = _Filled(directory)
    before = _resident_kb()
    created = _cpu(lambda: [filled.create(f"c{at}") for at in range(count)])
    for at in range(count):
        filled.put(f"c{at}", [f"d{n}" for n in range(5)])
    each = (_resident_kb() - before) / count
    write = _cpu(lambda: [filled.put("c0", [f"x{n}"]) for n in range(WRITES)]) / WRITES
    kick = await _keeper_kick(filled.replica, lambda: filled.put("c0", ["x"]))
    digest = _cpu(filled.replica.digest)
    filled.replica.close()
    opened = _cpu(filled.open)
    filled.replica.close()
    shown = (
        f"{write * 1e6:.0f} us a write, {kick * 1e6:.0f} us of the keeper's loop, {created / count * 1e6:.0f} us a "
        f"creation, digest {digest * 1e3:.2f} ms, open {opened / count * 1e6:.0f} us each"
    )
    memory = f"{each:.0f} kB a collection" if count >= 1_000 else ""
    report.row(f"{count:,} collections of 5 documents x {DIMENSIONS}-d", shown, memory)
    return write


def _replaced(report: Report, used: int, directory: Path) -> float:
    """100 documents behind so many used up ordinals: the file is told so, for 4e9 updates would take days."""
    filled = _Filled(directory)
    filled.create("c")
    names = [f"d{n}" for n in range(100)]
    filled.put("c", names)
    filled.replica.checkpoint()
    filled.replica.close()
    with sqlite3.connect(next(directory.glob("state-*/documents.db"))) as database:
        database.execute("UPDATE collections SET next_ordinal = ?", (used,))
    opened = _cpu(filled.open)
    write = _cpu(lambda: [filled.put("c", [names[n % 100]]) for n in range(WRITES)]) / WRITES
    filled.replica.close()
    report.row(f"100 documents after {used:,} writes", f"{write * 1e6:.0f} us an update, open {opened * 1e3:.1f} ms")
    return write


async def run(report: Report, *, quick: bool) -> None:
    """Adds the rows of writes beside many collections, and of updates after many others."""
    root = Path(tempfile.mkdtemp(prefix="needle-bench-"))
    try:
        first = 0.0
        for count in COUNTS[:3] if quick else COUNTS:
            write = await _many(report, count, root / f"many-{count}")
            first = first or write
            report.ratio(write / first, "<= 1.5 x with one", ok=write / first <= 1.5)
        first = 0.0
        for used in USED:
            write = _replaced(report, used, root / f"used-{used}")
            first = first or write
            report.ratio(write / first, "<= 1.5 x the first", ok=write / first <= 1.5)
    finally:
        shutil.rmtree(root, ignore_errors=True)
