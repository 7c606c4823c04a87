"""What more cores would give a node: how much of a request's time needs Python's lock, and what takes it away.

Three nodes, one shard of three replicas, 16 callers. Of the leader's processor time for one request, what its event
loop and its threads spend with the lock (GIL) held, and without it: in faiss, SQLite, numpy, fsync and system calls.
Only one thread of a process can hold the lock. So a node with N cores has, by Amdahl's law, 1 / (s + (1 - s) / N) times
the rate that it has with one, where s is the share with the lock held, and never more than one request in the time for
which it holds it.

Then a prototype (core_workers.py): the graph part of searches by worker processes that map the same index file, beside
the threads of one process, in turns, on the cores that there are; and what the model makes of a search with it. Then
the same shards on one node and on several, as they may run on one machine.
Processor time only counts: a machine that others use makes rates mean little.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np

from bench.cluster import NeedleCluster, ShardedNodes, Spent
from bench.core_workers import Turn
from bench.gil_samples import Shares, counted, sampled
from bench.load import calls
from bench.report import Report
from bench.request import DIMENSIONS, kinds, load
from bench.search import EF_CONSTRUCTION, WANTED_RECALL, M
from bench.vectors import Dataset, build_hnsw, dataset, ef_for_recall
from needle.base.config import SegmentConfig
from needle.base.model import CollectionSpec, IndexParams
from needle.client import Client
from needle.shard.plan import seal_when_quiet_at
from needle.shard.segments.builder import build_segment

CALLERS = 16
CORES = (1, 2, 4, 8, 16)
ROUND, ROUNDS_MAX = 200, 200
ALLOWED = 0.5
"""The share of the documents that the prototype's filter allows: it searches the graph under a mask."""
WORKERS = 2
SHARDS = 4


class Cost(NamedTuple):
    """Microseconds of processor time of one request on one process, with the lock held and without: of its event loop,
    and of its threads."""

    loop_held: float
    loop_free: float
    threads_held: float
    threads_free: float

    @property
    def held(self) -> float:
        return self.loop_held + self.threads_held

    @property
    def whole(self) -> float:
        return sum(self)

    def rate(self, cores: float) -> float:
        """Requests a second, by Amdahl's law."""
        share = self.held / self.whole
        return 1e6 / self.whole / (share + (1 - share) / cores)

    def __str__(self) -> str:
        loop, threads = self.loop_held + self.loop_free, self.threads_held + self.threads_free
        return (
            f"{self.whole:.0f} us, {self.held:.0f} held: loop {loop:.0f} ({self.loop_held:.0f}), "
            f"threads {threads:.0f} ({self.threads_held:.0f})"
        )

    def rates(self, nodes: int = 1) -> str:
        """In words. nodes: so many share the cores."""
        by_cores = {cores: self.rate(cores // nodes) for cores in CORES if cores >= nodes}
        shown = ", ".join(f"{cores}: {rate:,.0f}/s" for cores, rate in by_cores.items())
        return f"by cores {shown}; never more than {1e6 / self.held:,.0f}/s"


async def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Adds rows of each kind of request, of the prototype, and of what the model makes of both."""
    rows, wanted = documents or (5_000 if quick else 20_000), 1_500 if quick else 6_000
    data = dataset(rows, DIMENSIONS)
    index, _ = build_hnsw(data.vectors, M, EF_CONSTRUCTION, threads=1)
    ef = ef_for_recall(index, data, WANTED_RECALL)
    with tempfile.TemporaryDirectory(prefix="bench-cores-") as name, sampled(Path(name)):
        costs = await _requests(report, Path(name), data, ef, wanted)
        await _prototype(report, Path(name), data, ef, costs, quick=quick)
        await _several(report, Path(name), data, ef, wanted)


async def _requests(report: Report, samples: Path, data: Dataset, ef: int, wanted: int) -> dict[str, Cost]:
    """wanted: milliseconds of the leader's processor time to look at, of each kind."""
    costs = {}
    with NeedleCluster(dimensions=DIMENSIONS) as nodes:
        async with await nodes.client() as client:
            await load(client, data)
            await nodes.indexed(len(data.vectors), seal_when_quiet_at(SegmentConfig(), DIMENSIONS))
            for kind in kinds(client, data, ef):
                each = await _costs(samples, nodes.pids(), kind.ask, wanted)
                cost = costs[kind.name] = each[await client.leader()]
                report.row(f"{kind.name}, leader's CPU", str(cost), cost.rates())
                report.ratio(cost.held / cost.whole, "", ok=None)
    return costs


async def _several(report: Report, samples: Path, data: Dataset, ef: int, wanted: int) -> None:
    """One node with all shards, and as many nodes as there are shards: what several nodes on one machine do."""
    alone: dict[str, float] = {}
    for count in (1, SHARDS):
        async with ShardedNodes(SHARDS, nodes=count) as nodes:
            await nodes.load("data", data.vectors)
            for what, ask in _asking(nodes.client, data, ef).items():
                costs = (await _costs(samples, nodes.pids(), ask, wanted)).values()
                most = max(costs, key=lambda cost: cost.held)
                name = f"{what} of {SHARDS} shards of one replica on {count} node(s), the busiest node's CPU"
                report.row(name, f"{most}; all nodes {sum(cost.whole for cost in costs):.0f}", most.rates(count))
                report.ratio(most.held / alone.setdefault(what, most.held), "", ok=None)


def _asking(client: Client, data: Dataset, ef: int) -> dict[str, Callable[[int], Awaitable[object]]]:
    def search(n: int) -> Awaitable[object]:
        query = data.queries[n % len(data.queries)]
        return client.search(query, 10, collection="data", mode="leased", with_metadata=False, ef_search=ef)

    def write(n: int) -> Awaitable[object]:
        at = n % len(data.vectors)
        return client.insert(f"v{at}", data.vectors[at], collection="data")

    return {"leased search": search, "write": write}


async def _costs(
    samples: Path, pids: dict[str, int], ask: Callable[[int], Awaitable[object]], wanted: int
) -> dict[str, Cost]:
    """Of one request with many callers, on each node. The samples tell the shares, the scheduler the time."""
    await calls(CALLERS, ROUND, ask)
    done, before = 0, {name: (counted(samples, pid), Spent.by(pid)) for name, pid in pids.items()}
    for _ in range(ROUNDS_MAX):
        await calls(CALLERS, ROUND, ask)
        done += ROUND
        shares = {name: counted(samples, pid).since(before[name][0]) for name, pid in pids.items()}
        if max(map(sum, shares.values())) >= wanted:
            break
    found = {}
    for name, pid in pids.items():
        loop, threads = (1e6 / done * (b - a) for a, b in zip(before[name][1], Spent.by(pid), strict=True))
        found[name] = _split(loop, threads, shares[name])
    return found


def _split(loop: float, threads: float, shares: Shares) -> Cost:
    def part(one: float, other: float) -> float:
        return one / (one + other) if one + other else 0.0

    held = loop * part(shares.loop_held, shares.loop_free), threads * part(shares.threads_held, shares.threads_free)
    return Cost(held[0], loop - held[0], held[1], threads - held[1])


async def _prototype(
    report: Report, directory: Path, data: Dataset, ef: int, costs: dict[str, Cost], *, quick: bool
) -> None:
    given = await asyncio.to_thread(_given, directory, data, ef)
    limits = {
        "workers": WORKERS,
        "callers": [1, 4, CALLERS],
        "count": 150 if quick else 1500,
        "rounds": 3 if quick else 7,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.core_workers", json.dumps(given | limits),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"bench.core_workers ended with exit code {process.returncode}")
    for name, ways in json.loads(out).items():
        turns = {way: [Turn(*one) for one in ways[way]] for way in ("threads", "workers")}
        costs_of = {way: _of_turns(found) for way, found in turns.items()}
        masked, callers = name.split()
        what = f"graph part{' under a mask' if masked == 'masked' else ''}, {callers} caller(s)"
        for way, (own, workers) in costs_of.items():
            rate = median(turn.searches / turn.seconds for turn in turns[way])
            report.row(f"{what}, {way}", f"{own}; workers {workers:.0f}", f"{rate:,.0f}/s here")
        pairs = zip(turns["threads"], turns["workers"], strict=True)
        report.ratio(median(one.seconds / other.seconds for one, other in pairs), "", ok=None)
        if int(callers) == CALLERS:
            request = "filter of 50 %" if masked == "masked" else "leased search"
            cost = _with_workers(costs[request], costs_of["threads"][0], *costs_of["workers"])
            report.row(f"{request} by workers, modelled", str(cost), cost.rates())
            report.ratio(cost.held / costs[request].held, "", ok=None)


def _of_turns(turns: list[Turn]) -> tuple[Cost, float]:
    """Of one search: what it costs the process that is asked, and the workers."""
    found = Turn(*map(sum, zip(*turns, strict=True)))
    shares = Shares(found.loop_held, found.loop_free, found.threads_held, found.threads_free)
    each = 1e6 / found.searches
    return _split(each * found.loop, each * found.threads, shares), each * found.workers


def _with_workers(request: Cost, threads: Cost, asking: Cost, workers: float) -> Cost:
    """A request whose graph part goes to workers: what that part takes of a node's threads is taken off, and what it
    costs the loop more is added; the workers' own time is free of this lock, but takes cores."""
    return Cost(
        request.loop_held + asking.loop_held - threads.loop_held,
        request.loop_free + asking.loop_free - threads.loop_free,
        max(0.0, request.threads_held - threads.threads_held),
        max(0.0, request.threads_free - threads.threads_free) + workers,
    )


def _given(directory: Path, data: Dataset, ef: int) -> dict[str, object]:
    """An index file, as a node builds it, and what is searched in it."""
    rows, files = len(data.vectors), directory / "files"
    files.mkdir()
    spec = CollectionSpec(name="c", dimensions=DIMENSIONS, index=IndexParams(m=M, ef_construction=EF_CONSTRUCTION))
    segment, _ = build_segment(str(files), 1, 0, rows - 1, [(np.arange(rows), data.vectors)], spec)
    (path,) = files.iterdir()
    mask = np.random.default_rng(11).random(segment.rows) < ALLOWED
    told = {"path": str(path), "segment": msgspec.to_builtins(segment), "spec": msgspec.to_builtins(spec), "ef": ef}
    for name, array in (("queries", data.queries), ("mask", mask)):
        np.save(directory / f"{name}.npy", array)
        told[name] = str(directory / f"{name}.npy")
    return told
