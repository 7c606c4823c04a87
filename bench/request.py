"""Where the processor time of one request goes: three nodes, one shard of three replicas, beside in-process faiss.

Of each kind of request, sent by one client at a time: the time of the client; of the leader's event loop, and how much
of it a call takes that asks for nothing, with a body as large (the wire); of the leader's threads: filter, index and
documents as searches explain themselves, the rest is the hand-over from the loop and back; and of the followers. Then
rates by 1, 16 and 64 clients over that of faiss alone on one thread, one query at a time, with the same vectors at the
same recall. Machines are shared, so the same by processor time: that of a faiss search over that of the whole request.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import NamedTuple

import faiss
import numpy as np

from bench.cluster import NeedleCluster, Spent
from bench.load import closed_loop
from bench.report import Report
from bench.search import EF_CONSTRUCTION, WANTED_RECALL, M
from bench.vectors import Dataset, build_hnsw, dataset, ef_for_recall, search_one_by_one
from needle.base.config import SegmentConfig
from needle.client import Client, Hits
from needle.connecting import system_caller
from needle.protocol import calls
from needle.protocol.probe_calls import CLOCK
from needle.shard.plan import seal_when_quiet_at

DIMENSIONS = 384
BATCH = 500
EXPLAINED = 200
SPREAD = 1000
"""Every document has one of so many values: a filter of one in a hundred is a range of ten."""
CLIENTS = (1, 16, 64)


class Kind(NamedTuple):
    """A kind of request. parts: the values of `part` [first, end) that its n-th filter allows. goals: by clients, of
    the rate over that of faiss."""

    name: str
    ask: Callable[[int], Awaitable[object]]
    explain: Callable[[int], Awaitable[Hits]] | None
    parts: Callable[[int], tuple[int, int]]
    goals: dict[int, float]


class Cost(NamedTuple):
    """Microseconds of processor time of one request."""

    client: float
    loop: float
    threads: float
    followers: float

    @property
    def whole(self) -> float:
        return sum(self)


async def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Adds rows of where the time of each kind goes, and of the rates."""
    rows, seconds = documents or (5_000 if quick else 20_000), 1.5 if quick else 4.0
    data = dataset(rows, DIMENSIONS)
    index, _ = build_hnsw(data.vectors, M, EF_CONSTRUCTION, threads=1)
    ef = ef_for_recall(index, data, WANTED_RECALL)
    with NeedleCluster(dimensions=DIMENSIONS) as nodes:
        async with await nodes.client() as client:
            await load(client, data)
            await nodes.indexed(rows, seal_when_quiet_at(SegmentConfig(), DIMENSIONS))
            leader = await client.leader()
            beside = _Beside(index, data, ef, seconds)
            wire = await _wire(nodes, leader, seconds)
            for kind in kinds(client, data, ef):
                await _parts(report, nodes, leader, kind, wire, beside, seconds)
                await _rates(report, nodes, leader, kind, data, beside, seconds)


async def load(client: Client, data: Dataset) -> None:
    """Write all of it."""
    for first in range(0, len(data.vectors), BATCH):
        vectors = data.vectors[first : first + BATCH]
        numbers = range(first, first + len(vectors))
        await client.insert_batch(
            ids=[f"v{n}" for n in numbers],
            vectors=vectors,
            metadatas=[{"n": n, "part": n % SPREAD} for n in numbers],
            timeout=120.0,
        )


def _everything(n: int) -> tuple[int, int]:
    return 0, SPREAD


def kinds(client: Client, data: Dataset, ef: int) -> list[Kind]:
    """What is asked, with so wide a beam."""

    def searches(
        name: str, mode: str, goals: dict[int, float], parts: Callable[[int], tuple[int, int]] = _everything
    ) -> Kind:
        def one(n: int, *, explain: bool = False) -> Awaitable[Hits]:
            first, end = parts(n)
            condition = {"part": {"$between": [first, end - 1]}} if parts is not _everything else None
            query = data.queries[n % len(data.queries)]
            return client.search(query, 10, condition, mode=mode, with_metadata=False, ef_search=ef, explain=explain)

        return Kind(name, one, lambda n: one(n, explain=True), parts, goals)

    def write(n: int) -> Awaitable[object]:
        at = n % len(data.vectors)
        return client.insert(f"v{at}", data.vectors[at], {"n": at, "part": at % SPREAD})

    def of(share: float) -> Callable[[int], tuple[int, int]]:
        return lambda n: (100, 100 + int(share * SPREAD))

    def changing(n: int) -> tuple[int, int]:
        return n * 7 % (SPREAD - 10), n * 7 % (SPREAD - 10) + 10

    return [
        searches("leased search", "leased", {1: 0.45, 16: 0.9, 64: 1.2}),
        searches("strong search", "strong", {1: 0.35}),
        searches("filter of 1 %", "leased", {1: 0.8, 16: 1.6}, of(0.01)),
        searches("990 filters of 1 % in turn", "leased", {}, changing),
        searches("filter of 10 %", "leased", {16: 0.5}, of(0.1)),
        searches("filter of 50 %", "leased", {16: 0.4}, of(0.5)),
        Kind("write", write, None, _everything, {}),
    ]


class _Beside:
    """faiss in this process, asked again beside each kind: what others leave of the machine changes."""

    def __init__(self, index: faiss.Index, data: Dataset, ef: int, seconds: float) -> None:
        self._index, self._data, self._ef, self._seconds = index, data, ef, seconds / 2
        self.recall = 0.0

    def measure(self) -> tuple[float, float]:
        """(Searches a second, microseconds of processor time of one.)"""
        rate, answers = search_one_by_one(self._index, self._data.queries, self._ef, self._seconds)
        self.recall = self._data.recall(answers)
        start, count = time.thread_time(), len(self._data.queries)
        for query in self._data.queries:
            self._index.search(query[None], 10)
        return rate, (time.thread_time() - start) / count * 1e6


async def _cost(
    nodes: NeedleCluster, leader: str, seconds: float, clients: int, ask: Callable[[int], Awaitable[object]]
) -> tuple[Cost, str, float]:
    """Of one request, the rate in words, and a second."""
    await ask(0)
    before, own = nodes.spent(), time.process_time()
    rate = await closed_loop(clients, seconds, ask)
    own, after = time.process_time() - own, nodes.spent()
    each = {name: Spent(*(1e6 / rate.operations * (b - a) for a, b in zip(before[name], after[name], strict=True)))
            for name in after}  # fmt: skip
    followers = sum(sum(spent) for name, spent in each.items() if name != leader)
    return Cost(own * 1e6 / rate.operations, *each[leader], followers), str(rate), rate.per_second


async def _wire(nodes: NeedleCluster, leader: str, seconds: float) -> float:
    """Microseconds of the leader's loop for a call that asks for nothing with as many bytes as a query has."""
    caller = system_caller("needle")
    body, address = calls.encode((b"\0" * (4 * DIMENSIONS),)), nodes.address(leader)
    cost, _, _ = await _cost(nodes, leader, seconds, 1, lambda _: caller.call(address, CLOCK, body, 10.0))
    await caller.close()
    return cost.loop


async def _parts(
    report: Report, nodes: NeedleCluster, leader: str, kind: Kind, wire: float, beside: _Beside, seconds: float
) -> None:
    cost, _, _ = await _cost(nodes, leader, seconds, 1, kind.ask)
    inside = "threads"
    if kind.explain is not None:
        told = [(await kind.explain(n)).explained[0] for n in range(EXPLAINED)]
        parts = {
            "filter": median(one.filter_milliseconds for one in told) * 1e3,
            "index": median(one.vectors_milliseconds for one in told) * 1e3,
            "documents": median(one.documents_milliseconds for one in told) * 1e3,
        }
        inside = ", ".join(f"{name} {took:.0f}" for name, took in parts.items())
        inside = f"{inside}, rest of loop and threads {cost.loop - wire + cost.threads - sum(parts.values()):.0f}"
    else:
        inside = f"rest of loop {cost.loop - wire:.0f}, threads {cost.threads:.0f}"
    shown = f"{cost.whole:.0f} us: client {cost.client:.0f}, wire {wire:.0f}, {inside}, followers {cost.followers:.0f}"
    _, alone = beside.measure()
    report.row(f"{kind.name}, CPU of one", shown, f"faiss, one search: {alone:.0f} us at recall {beside.recall:.3f}")
    report.ratio(alone / cost.whole, "", ok=None)


async def _rates(
    report: Report, nodes: NeedleCluster, leader: str, kind: Kind, data: Dataset, beside: _Beside, seconds: float
) -> None:
    recall = "" if kind.explain is None else f", recall {await _recall(kind, data):.3f}"
    for clients in CLIENTS:
        before, _ = beside.measure()
        cost, rate, per_second = await _cost(nodes, leader, seconds, clients, kind.ask)
        after, alone = beside.measure()
        ratio = 2 * per_second / (before + after)
        name = f"{kind.name}, {clients} client(s){recall}"
        report.row(name, f"{rate}; CPU {cost.whole:.0f} us, {alone / cost.whole:.2f} x", f"faiss: {after:,.0f}/s")
        goal = kind.goals.get(clients)
        report.ratio(ratio, f">= {goal} x" if goal else "", ok=None if goal is None else ratio >= goal)


async def _recall(kind: Kind, data: Dataset) -> float:
    """recall@10 of the first queries, among what the filter allows."""
    assert kind.explain is not None
    found, parts = 0, np.arange(len(data.vectors)) % SPREAD
    for n in range(EXPLAINED):
        first, end = kind.parts(n)
        allowed = np.flatnonzero((parts >= first) & (parts < end))
        nearest = allowed[np.argsort(-(data.vectors[allowed] @ data.queries[n]))[:10]]
        found += len({int(hit.id[1:]) for hit in await kind.explain(n)} & set(nearest.tolist()))
    return found / (10 * EXPLAINED)


def section(rows: list[dict[str, object]]) -> str:
    """What was measured, as a table of Markdown."""
    lines = ["| what | Needle, 3 nodes | beside | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        missed = "" if row["ok"] is not False else ", missed"
        goal = f"{row['goal']}{missed}" if row["goal"] else ""
        lines.append(f"| {row['name']} | {row['needle']} | {row['other']} | {row['ratio']} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table that docs/benchmarks.md has."""
    parser = argparse.ArgumentParser(prog="python -m bench.request", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 documents and shorter runs")
    parser.add_argument("--documents", type=int, help="20,000 unless said otherwise")
    options = parser.parse_args()
    report = Report()
    asyncio.run(run(report, quick=options.quick, documents=options.documents))
    print(section(report.rows))


if __name__ == "__main__":
    main()
