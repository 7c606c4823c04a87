"""What calls cost while everything else grows: collections, documents, rounds of updates, connections.

`python -m bench growth`, or `python -m bench.growth [--collections 1,100,1000] [--documents ...] [--updates ...]
[--connections ...]`, which measures what is named only. Each figure stands beside the one at the smallest size of the
same run. Nothing may grow with what a call does not touch: flat within FLAT, or as a logarithm where an index is.

Processor time of all nodes and of the client for one call, the least of some rounds: a busy machine changes little.
With `--guard` it ends with 1 where a figure is more than GUARD times its goal: for CI, whose machine is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import log
from typing import Final, NamedTuple

import numpy as np

import needle
from bench.cluster import BATCH, IN_FLIGHT, TIMING, NeedleCluster
from bench.report import Report
from bench.vectors import Floats
from needle.client import Client

DIMENSIONS: Final = 64
VECTORS: Final = 20_000
"""So many different ones, over and over."""
MATCHES: Final = 100
"""Documents that a filter allows, however many there are."""
CALLERS: Final = 8
CREATED: Final = 10
"""Collections whose making is measured at each size."""
FLAT: Final = 1.3
GUARD: Final = 2.5

Call = Callable[[int], Awaitable[object]]
Figures = dict[str, float]

WRITE, SEARCH, FILTERED, CREATE = "a write", "a search", "a filtered search", "making a collection"
IDLE, START, MEMORY = "idle", "start", "memory"
UNITS: Final = {IDLE: "ms of CPU a second", START: "s of CPU", MEMORY: "MB"}
"""Of all others microseconds of CPU."""
MEASURED_IN_INDEXES: Final = (WRITE, SEARCH)
"""Their cost may grow as the logarithm of the number of documents: trees of the documents' file, graphs."""


class Sizes(NamedTuple):
    """The sizes of each axis, ascending; () for an axis that is not measured. calls: in each of ROUNDS rounds."""

    collections: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()
    updates: tuple[int, ...] = ()
    connections: tuple[int, ...] = ()
    beside: int = 10_000
    """Documents while something else grows."""
    calls: int = 300
    rounds: int = 3
    idle_seconds: float = 5.0


WHOLE: Final = Sizes((1, 100, 1_000), (10_000, 100_000, 1_000_000), (0, 1, 10), (1, 100, 1_000))
QUICK: Final = Sizes((1, 60), (2_000, 10_000), (0, 2), (1, 60), beside=2_000, calls=100, idle_seconds=1.5)


class _Grown:
    """A cluster of three nodes with one shard, and a collection in which all calls are made."""

    def __init__(self, nodes: NeedleCluster, client: Client, vectors: Floats, sizes: Sizes) -> None:
        self.nodes, self.client, self.vectors, self.sizes = nodes, client, vectors, sizes
        self.documents = 0
        self._bare = max(nodes.memory_mb())
        """Memory of a node that holds nothing yet."""

    async def fill(self, first: int, end: int) -> None:
        """Documents `v<first>` to `v<end - 1>`, new or once more."""
        starts = iter(range(first, end, BATCH))

        async def worker() -> None:
            for start in starts:
                rows = range(start, min(start + BATCH, end))
                await self.client.insert_batch(
                    ids=[f"v{n}" for n in rows],
                    vectors=self.vectors[np.array(rows) % len(self.vectors)],
                    metadatas=[{"of": n // MATCHES} for n in rows],
                    timeout=120,
                )

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        self.documents = max(self.documents, end)

    def _nodes_spent(self) -> float:
        return sum(one.loop + one.threads for one in self.nodes.spent().values())

    async def cost(self, call: Call, calls: int, idle: float, callers: int = 1) -> float:
        """Microseconds of one, without what the nodes take while nobody calls: `idle` cores. Of several callers at a
        time that is less to take off, which counts where the machine is busy and calls take long."""
        numbers = iter(range(calls))

        async def caller() -> None:
            for n in numbers:
                await call(n)

        before, own, begun = self._nodes_spent(), time.process_time(), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        spent = self._nodes_spent() - before + time.process_time() - own
        return (spent - idle * (time.perf_counter() - begun)) / calls * 1e6

    async def figures(self) -> Figures:
        """Once nothing is built any more."""
        await self.nodes.quiet()
        idle = await self._idle()
        client, vectors, groups = self.client, self.vectors, max(1, self.documents // MATCHES)

        def vector(n: int) -> Floats:
            return vectors[n % len(vectors)]

        async def write(n: int) -> object:
            at = n * 7919 % self.documents  # all over, so that every index file has its share
            return await client.insert(f"v{at}", vector(at), {"of": at // MATCHES})

        async def search(n: int) -> object:
            return await client.search(vector(n), k=10, mode="leased")

        async def filtered(n: int) -> object:
            return await client.search(vector(n), k=10, filter={"of": n % min(groups, 20)}, mode="leased")

        found: Figures = {}
        for name, call in ((WRITE, write), (SEARCH, search), (FILTERED, filtered)):
            for n in range(self.sizes.calls // 4):
                await call(n)
            costs = [await self.cost(call, self.sizes.calls, idle, CALLERS) for _ in range(self.sizes.rounds)]
            found[name] = max(1.0, min(costs))
        return found | {IDLE: idle * 1e3, MEMORY: await self._memory(), START: await self._start()}

    async def _memory(self) -> float:
        """Megabytes of the leader more than a node had that held nothing. It is never restarted here."""
        leader = await self.client.leader()
        held = dict(zip(self.nodes.spent(), self.nodes.memory_mb(), strict=True))
        return max(1.0, held[leader] - self._bare)

    async def _idle(self) -> float:
        """Cores that the nodes take while nobody calls: the least of some looks."""
        looks = []
        for _ in range(self.sizes.rounds):
            before, begun = self._nodes_spent(), time.perf_counter()
            await asyncio.sleep(self.sizes.idle_seconds / self.sizes.rounds)
            looks.append((self._nodes_spent() - before) / (time.perf_counter() - begun))
        return min(looks)

    async def _start(self) -> float:
        """Of a follower that was killed, until it is level with the others."""
        leader = await self.client.leader()
        node = next(name for name in self.nodes.spent() if name != leader)
        self.nodes.kill(node)
        self.nodes.restart(node)
        await self.nodes.caught_up(self.client)
        return sum(self.nodes.spent()[node])


class _Axis:
    """What grows, and what was found at its smallest size. unit: what one of it is called."""

    def __init__(self, report: Report, name: str, *, of_documents: bool = False) -> None:
        self._report, self._name, self._of_documents = report, name, of_documents
        self._first: tuple[int, Figures] | None = None

    def tell(self, size: int, found: Figures) -> None:
        """A row for each figure, beside that of the smallest size."""
        if self._first is None:
            self._first = size, found
        smallest, first = self._first
        for figure, value in found.items():
            shown, before = value, first[figure]
            unit = UNITS.get(figure, "us of CPU")
            if figure == MEMORY and self._of_documents:
                shown, before, unit = 1e3 * value / size, 1e3 * before / smallest, "kB a document"
            goal, logarithmic = self._goal(figure, size, smallest)
            self._report.row(f"{size:,} {self._name}: {figure}", f"{shown:,.2f} {unit}", f"{smallest:,}: {before:,.2f}")
            if size == smallest:
                continue
            ratio = shown / before
            if goal is None:
                more = (value - first[figure]) / (size - smallest)
                self._report.ratio(ratio, f"{1e3 * more:.0f} kB for each more", ok=None)
            else:
                self._report.ratio(ratio, f"<= {goal:.2f} x{' (log)' * logarithmic}", ok=ratio <= goal)

    def _goal(self, figure: str, size: int, smallest: int) -> tuple[float | None, bool]:
        """How often what it was at the smallest size it may be, and whether as a logarithm. None: no goal, for what
        there is more of takes memory of its own."""
        if self._of_documents and figure in MEASURED_IN_INDEXES:
            return FLAT * log(size) / log(smallest), True
        if figure == MEMORY and self._name in (COLLECTIONS, CONNECTIONS):
            return None, False
        return FLAT, False


COLLECTIONS, DOCUMENTS, UPDATES, CONNECTIONS = "collections", "documents", "rounds of updates", "connections"


@contextlib.asynccontextmanager
async def _cluster(sizes: Sizes) -> AsyncIterator[_Grown]:
    vectors = np.random.default_rng(1).standard_normal((VECTORS, DIMENSIONS)).astype(np.float32)
    with NeedleCluster(dimensions=DIMENSIONS, **TIMING) as nodes:
        async with await nodes.client() as client:
            yield _Grown(nodes, client, vectors, sizes)


async def _collections(report: Report, sizes: Sizes) -> None:
    axis = _Axis(report, COLLECTIONS)
    async with _cluster(sizes) as grown:
        await grown.fill(0, sizes.beside)
        made = 1

        async def make(_: int) -> None:
            nonlocal made
            name, made = f"c{made}", made + 1
            await grown.client.create_collection(name, dimensions=DIMENSIONS, timeout=60)

        for count in sizes.collections:
            while made < count:
                await make(0)
                await grown.client.insert_batch(
                    ids=["a", "b", "c"], vectors=grown.vectors[:3], collection=f"c{made - 1}", timeout=60
                )
            found = await grown.figures()
            # Those that were just made count for the next size.
            found[CREATE] = await grown.cost(make, CREATED, found[IDLE] / 1e3)
            axis.tell(count, found)


async def _documents(report: Report, sizes: Sizes) -> None:
    axis = _Axis(report, DOCUMENTS, of_documents=True)
    async with _cluster(sizes) as grown:
        for count in sizes.documents:
            await grown.fill(grown.documents, count)
            axis.tell(count, await grown.figures())


async def _updates(report: Report, sizes: Sizes) -> None:
    axis = _Axis(report, UPDATES)
    async with _cluster(sizes) as grown:
        done = -1
        for wanted in sizes.updates:
            while done < wanted:
                await grown.fill(0, sizes.beside)
                done += 1
            axis.tell(wanted, await grown.figures())


async def _connections(report: Report, sizes: Sizes) -> None:
    """Clients that are connected, of which one calls."""
    axis = _Axis(report, CONNECTIONS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each has a few connections, all in this process
    async with _cluster(sizes) as grown, contextlib.AsyncExitStack() as stack:
        await grown.fill(0, sizes.beside)
        opened = 1
        for count in sizes.connections:
            while opened < count:
                other = await stack.enter_async_context(await needle.connect(grown.nodes.addresses()))
                await other.search(grown.vectors[0], k=1, mode="leased")
                opened += 1
            axis.tell(count, await grown.figures())


async def measure(report: Report, sizes: Sizes) -> None:
    """Adds a row for each figure at each size."""
    for one, axis in (
        (sizes.collections, _collections),
        (sizes.documents, _documents),
        (sizes.updates, _updates),
        (sizes.connections, _connections),
    ):
        if one:
            await axis(report, sizes)


async def run(report: Report, *, quick: bool) -> None:
    """All axes."""
    await measure(report, QUICK if quick else WHOLE)


def fallen_back(rows: list[dict[str, object]]) -> list[str]:
    """What has grown far beyond its goal, in words."""
    found = []
    for row in rows:
        goal, ratio = str(row["goal"]), row["ratio"]
        if row["ok"] is False and isinstance(ratio, float) and ratio > GUARD * float(goal.split()[1]):
            found.append(f"{row['name']}: {ratio:g} x what it was, and {GUARD:g} times the goal ({goal}) would do")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(one) for one in text.split(",")}))


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    for axis in ("collections", "documents", "updates", "connections"):
        parser.add_argument(f"--{axis}", type=_numbers, metavar="N,N", help="the sizes to measure at, such as 1,100")
    parser.add_argument("--beside", type=int, help="documents while something else grows")
    parser.add_argument("--quick", action="store_true", help="small sizes and few calls")
    parser.add_argument(
        "--guard", action="store_true", help=f"end with 1 for what grew {GUARD:g} times beyond its goal"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    said = parser.parse_args()
    sizes = QUICK if said.quick else WHOLE
    named = {axis: said.__dict__[axis] or () for axis in ("collections", "documents", "updates", "connections")}
    sizes = sizes._replace(**named) if any(named.values()) else sizes
    sizes = sizes._replace(beside=said.beside or sizes.beside)
    report = Report()
    try:
        asyncio.run(measure(report, sizes))
    finally:
        report.print(as_json=said.json)
    fallen = fallen_back(report.rows) if said.guard else []
    print(*fallen, sep="\n", file=sys.stderr)
    return 1 if fallen else 0


if __name__ == "__main__":
    sys.exit(main())
