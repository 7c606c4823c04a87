"""What a busy neighbour costs: searches and small writes alone and beside a writer of large batches, in turns.

Three nodes, one shard of three replicas. The writer is a process of its own and sends a batch as soon as the last one
is acknowledged; its documents are new ones of the same collection, so index files are built meanwhile. Client and nodes
share the machine, so each turn also tells the processor time that the nodes took, and how late the leader's event loop
came to what was asked of it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from statistics import median
from typing import NamedTuple

import numpy as np

from bench.cluster import NeedleCluster
from bench.load import Rate, closed_loop
from bench.report import Report
from bench.vectors import dataset
from needle.base.config import SegmentConfig
from needle.connecting import connect
from needle.shard.plan import seal_when_quiet_at

DIMENSIONS = 384
BATCH = 500
SEARCH_GOALS = (2.5, 4.0)
WRITE_GOALS = (None, 4.0)
WRITER_GOAL = 3_000.0
SETTINGS = {"election_timeout": 2.0}
"""Client, writer and all nodes share the cores: no election while a machine is busy."""


class Turn(NamedTuple):
    """One kind of call alone and beside the writer; vectors that it wrote a second; the share of all cores' time that
    the nodes took, alone and beside."""

    alone: Rate
    beside: Rate
    written: float
    nodes: tuple[float, float]


async def run(report: Report, *, quick: bool) -> None:
    """Adds latencies of both kinds of call alone and beside the writer, and how fast it is let."""
    rows, rounds, seconds = (5_000, 3, 3.0) if quick else (20_000, 7, 5.0)
    data = dataset(rows, DIMENSIONS)
    with NeedleCluster(dimensions=DIMENSIONS, **SETTINGS) as nodes:
        async with await nodes.client() as client:
            for first in range(0, rows, BATCH):
                ids = [f"v{n}" for n in range(first, min(first + BATCH, rows))]
                await client.insert_batch(ids=ids, vectors=data.vectors[first : first + BATCH], timeout=120.0)
            await nodes.indexed(rows, seal_when_quiet_at(SegmentConfig(), DIMENSIONS))

            async def search(n: int) -> object:
                query = data.queries[n % len(data.queries)]
                return await client.search(query, 10, mode="leased", with_metadata=False, timeout=60.0)

            async def write(n: int) -> object:
                return await client.insert(f"v{n % rows}", data.vectors[n % rows], timeout=60.0)

            with _Writer(nodes.addresses()) as writer:
                searches, writes = [], []
                for _ in range(rounds):
                    searches.append(await _turn(nodes, writer, seconds, search))
                    writes.append(await _turn(nodes, writer, seconds, write))
    _tell(report, "searches", searches, SEARCH_GOALS)
    _tell(report, "single writes", writes, WRITE_GOALS)


async def _turn(
    nodes: NeedleCluster, writer: _Writer, seconds: float, operation: Callable[[int], Awaitable[object]]
) -> Turn:
    alone, idle = await _measured(nodes, seconds, operation)
    before, began = writer.written, time.perf_counter()
    writer.goes.set()
    beside, busy = await _measured(nodes, seconds, operation)
    rate = (writer.written - before) / (time.perf_counter() - began)
    writer.goes.clear()
    await _settled(nodes)
    return Turn(alone, beside, rate, (idle, busy))


async def _measured(
    nodes: NeedleCluster, seconds: float, operation: Callable[[int], Awaitable[object]]
) -> tuple[Rate, float]:
    """With one caller; and how many cores the nodes kept busy."""
    before, began = nodes.spent(), time.perf_counter()
    rate = await closed_loop(1, seconds, operation)
    after, took = nodes.spent(), time.perf_counter() - began
    return rate, sum(sum(after[name]) - sum(before[name]) for name in after) / took


async def _settled(nodes: NeedleCluster) -> None:
    """Returns when the nodes have built what was written, and have next to nothing to do."""
    while True:
        before = nodes.spent()
        await asyncio.sleep(1.0)
        after = nodes.spent()
        if sum(sum(after[name]) - sum(before[name]) for name in after) < 0.2:
            return


class _Writer:
    """A process that writes batches while `goes` is set."""

    def __init__(self, addresses: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.goes: Event = context.Event()
        self._count: Synchronized[int] = context.Value("q", 0)
        self._process = context.Process(target=_write, args=(addresses, self.goes, self._count), daemon=True)

    @property
    def written(self) -> int:
        """Vectors that were acknowledged."""
        return int(self._count.value)

    def __enter__(self) -> _Writer:
        self._process.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.join()


def _write(addresses: list[str], goes: Event, count: Synchronized[int]) -> None:
    asyncio.run(_write_batches(addresses, goes, count))


async def _write_batches(addresses: list[str], goes: Event, count: Synchronized[int]) -> None:
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((20 * BATCH, DIMENSIONS)).astype(np.float32)
    async with connect(addresses) as client:
        batch = 0
        while True:
            await asyncio.to_thread(goes.wait)
            first = batch % 20 * BATCH
            ids = [f"n{batch}-{n}" for n in range(BATCH)]
            await client.insert_batch(ids=ids, vectors=vectors[first : first + BATCH], timeout=120.0)
            count.value += BATCH
            batch += 1


def _tell(report: Report, name: str, turns: list[Turn], goals: tuple[float | None, float]) -> None:
    for percent, goal in zip(("p50", "p99"), goals, strict=True):
        alone, beside = (
            [getattr(rate, f"{percent}_ms") for rate in part] for part in list(zip(*turns, strict=True))[:2]
        )
        ratio = median(b / a for a, b in zip(alone, beside, strict=True))
        report.row(
            f"{name}, {percent} beside a writer of {BATCH} x {DIMENSIONS}-d",
            f"{median(beside):.2f} ms",
            f"without: {median(alone):.2f} ms",
        )
        report.ratio(ratio, "" if goal is None else f"<= {goal}", ok=None if goal is None else ratio <= goal)
    rate = median(turn.written for turn in turns)
    idle, busy = (median(turn.nodes[n] for turn in turns) for n in range(2))
    report.row(
        f"the writer beside {name}", f"{rate:,.0f} vectors/s; nodes keep {busy:.2f} cores busy", f"without: {idle:.2f}"
    )
    report.ratio(None, f">= {WRITER_GOAL:,.0f}", ok=rate >= WRITER_GOAL)
