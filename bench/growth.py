"""What one call costs while everything else grows: collections, documents, rounds of updates, connections.

Processor time of all nodes and of the client for one call, by one caller, so that a busy machine changes little; and
how long a node takes to start and what memory it has. Nothing here may grow with what a call does not touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import numpy as np

import needle
from bench.cluster import BATCH, IN_FLIGHT, TIMING, NeedleCluster
from bench.report import Report
from bench.vectors import Floats
from needle.client import Client

DIMENSIONS: Final = 64
CALLS: Final = 500
IDLE_SECONDS: Final = 5.0
SELDOM: Final = 100
"""One of so many documents matches the filter."""
FLAT: Final = 1.3
UPDATED: Final = 20_000

Call = Callable[[int], Awaitable[object]]


class Costs(NamedTuple):
    """Microseconds of processor time for one call; seconds until a node that was killed is level again; megabytes of
    the first node."""

    write: float
    search: float
    filtered: float
    start: float
    memory: float


class _Grown:
    """A cluster of three nodes with one shard, and a collection in which all calls are made."""

    def __init__(self, nodes: NeedleCluster, client: Client, vectors: Floats) -> None:
        self.nodes, self.client, self.vectors = nodes, client, vectors
        self.count = 0
        self._idle = 0.0
        """Cores that the cluster takes while nobody calls."""

    async def fill(self, first: int, end: int) -> None:
        """Documents `v<first>` to `v<end - 1>`, new or once more."""
        starts = iter(range(first, end, BATCH))

        async def worker() -> None:
            for start in starts:
                rows = range(start, min(start + BATCH, end))
                vectors = self.vectors[np.array(rows) % len(self.vectors)]
                await self.client.insert_batch(
                    ids=[f"v{n}" for n in rows],
                    vectors=vectors,
                    metadatas=[{"n": n % SELDOM} for n in rows],
                    timeout=120,
                )

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        self.count = max(self.count, end)

    async def _cost(self, call: Call) -> float:
        """Without what the cluster takes while nobody calls."""
        for n in range(CALLS // 4):
            await call(n)
        before, begun = self._spent(), time.perf_counter()
        for n in range(CALLS):
            await call(n)
        spent = self._spent() - before - self._idle * (time.perf_counter() - begun)
        return spent / CALLS * 1e6

    def _spent(self) -> float:
        return time.process_time() + sum(one.loop + one.threads for one in self.nodes.spent().values())

    async def costs(self) -> Costs:
        """Once nothing is built any more."""
        await self.nodes.quiet()
        before, begun = self._spent(), time.perf_counter()
        await asyncio.sleep(IDLE_SECONDS)
        self._idle = (self._spent() - before) / (time.perf_counter() - begun)
        client, vectors = self.client, self.vectors

        def vector(n: int) -> Floats:
            return vectors[n % len(vectors)]

        write = await self._cost(lambda n: client.insert(f"v{n}", vector(n), {"n": n % SELDOM}))
        search = await self._cost(lambda n: client.search(vector(n), k=10, mode="leased"))
        seldom = {"n": 7}
        filtered = await self._cost(lambda n: client.search(vector(n), k=10, filter=seldom, mode="leased"))
        memory = self.nodes.memory_mb()[0]
        self.nodes.kill("node-1")
        begun = time.perf_counter()
        self.nodes.restart("node-1")
        await self.nodes.caught_up(client)
        return Costs(write, search, filtered, time.perf_counter() - begun, memory)


@contextlib.asynccontextmanager
async def _cluster(dimensions: int) -> AsyncIterator[_Grown]:
    vectors = np.random.default_rng(1).standard_normal((20_000, dimensions)).astype(np.float32)
    with NeedleCluster(dimensions=dimensions, **TIMING) as nodes:
        async with await nodes.client() as client:
            yield _Grown(nodes, client, vectors)


def _tell(report: Report, what: str, found: Costs, first: Costs, bound: float) -> None:
    """bound: of each call's cost beside the first row's."""
    shown = f"{found.write:,.0f} us a write, {found.search:,.0f} a search, {found.filtered:,.0f} a filtered one"
    report.row(what, shown, f"starts in {found.start:.1f} s, {found.memory:.0f} MB")
    worst = max(now / then for now, then in zip(found[:3], first[:3], strict=True))
    report.ratio(worst, f"<= {bound:g} x the first", ok=worst <= bound)


async def _collections(report: Report, counts: tuple[int, ...]) -> None:
    async with _cluster(DIMENSIONS) as grown:
        await grown.fill(0, 10_000)
        first, made = None, 1
        for count in counts:
            while made < count:
                name = f"c{made}"
                await grown.client.create_collection(name, dimensions=DIMENSIONS, timeout=60)
                await grown.client.insert_batch(
                    ids=["a", "b", "c"], vectors=grown.vectors[:3], collection=name, timeout=60
                )
                made += 1
            found = await grown.costs()
            first = first or found
            _tell(report, f"{count:,} collections", found, first, FLAT)


async def _documents(report: Report, counts: tuple[int, ...]) -> None:
    async with _cluster(DIMENSIONS) as grown:
        before = None
        for count in counts:
            await grown.fill(grown.count, count)
            found = await grown.costs()
            # A search of ten times as many documents walks a graph that is a few links deeper.
            _tell(report, f"{count:,} documents", found, before or found, 1.6)
            before = found


async def _updates(report: Report, rounds: tuple[int, ...]) -> None:
    async with _cluster(DIMENSIONS) as grown:
        first, done = None, -1
        for wanted in rounds:
            while done < wanted:
                await grown.fill(0, UPDATED)
                done += 1
            found = await grown.costs()
            first = first or found
            _tell(report, f"{UPDATED:,} documents, each updated {wanted} times", found, first, FLAT)


async def _connections(report: Report, counts: tuple[int, ...]) -> None:
    async with _cluster(DIMENSIONS) as grown, contextlib.AsyncExitStack() as stack:
        await grown.fill(0, 10_000)
        first, opened = None, 1
        for count in counts:
            while opened < count:
                other = await stack.enter_async_context(await needle.connect(grown.nodes.addresses()))
                await other.search(grown.vectors[0], k=1, mode="eventual")
                opened += 1
            found = await grown.costs()
            first = first or found
            _tell(report, f"{count:,} clients connected, one of them calls", found, first, FLAT)


async def run(report: Report, *, quick: bool) -> None:
    """Adds a row for each size."""
    await _collections(report, (1, 100) if quick else (1, 100, 1_000))
    await _documents(report, (10_000, 40_000) if quick else (10_000, 100_000, 1_000_000))
    await _updates(report, (0, 2) if quick else (0, 1, 10))
    await _connections(report, (1, 100) if quick else (1, 100, 1_000))
