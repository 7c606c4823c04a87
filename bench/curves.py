"""Recall and rate of searches through a node, beside faiss in its own process: the curves that ann-benchmarks draws.

`python -m bench curves`, or `python -m bench.curves [--rows N] [--dimensions D]`, which prints the table; `--write
docs/benchmarks.md` puts it there, with the picture. One node, one shard; leased searches for ten ids by 1 and 16
callers; all vectors, and filters that allow 10 % and 1 %. Each point is one `ef_search`, from the least that finds
LEAST of the nearest to the first that finds MOST. faiss searches its graph over the same vectors, made with the same
parameters, one query at a time by as many threads, with a bitmap of what the filter allows; and scores what is allowed.

Client, node and faiss have the same machine, and take turns. Rates by the clock count where nothing else runs; where
others work, `--processor` draws how many searches a second of processor time is enough for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from math import exp, log
from pathlib import Path
from typing import Any, Final, NamedTuple

import faiss
import numpy as np

from bench import curves_shown, kinds_shown
from bench.cluster import BATCH, Spent
from bench.kinds_beside import CALLERS, K, Rate, rates
from bench.load import closed_loop
from bench.report import Report
from bench.search import EF_CONSTRUCTION, M
from bench.sizes import settled
from bench.vectors import Dataset, Floats, build_hnsw, dataset
from needle.base.config import SegmentConfig
from needle.client import Client
from needle.local.process_cluster import ProcessCluster
from needle.shard.plan import seal_when_quiet_at

ROWS, DIMENSIONS, QUERIES = 100_000, 128, 500
QUICK_ROWS = 5_000
SHARES: Final = (1.0, 0.1, 0.01)
"""Of the vectors that a search may find."""
PARTS: Final = 1000
"""Every document has one of so many values: a filter allows those below some number."""
LEAST, MOST, COMPARED = 0.8, 0.99, 0.95
EFFORTS: Final = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640)
NEEDLE, GRAPH, SCORED = "Needle", "faiss HNSW", "faiss flat"
SLICES: Final = 3
"""Of each rate the best one counts."""
_BUILD_SECONDS: Final = 1800.0


class Point(NamedTuple):
    """effort: ef_search, 0 where there is none. rated: as CALLERS."""

    effort: int
    recall: float
    rated: tuple[Rate, ...]

    def rates(self, *, processor: bool) -> list[float]:
        """Searches a second, or in a second of processor time; as CALLERS."""
        return [1e6 / rate.microseconds if processor else rate.per_second for rate in self.rated]


class Curve(NamedTuple):
    """By rising recall."""

    who: str
    share: float
    points: list[Point]


def _allowed(rows: int, share: float) -> Any:
    """Numbers of the vectors that a filter allows."""
    return np.flatnonzero(np.arange(rows) % PARTS < share * PARTS)


class _Asked:
    """The queries, and what is right of those allowed."""

    def __init__(self, data: Dataset, share: float) -> None:
        self.queries, self.share, self.rows = data.queries, share, _allowed(len(data.vectors), share)
        scores = data.queries @ data.vectors[self.rows].T
        self._nearest = self.rows[np.argsort(-scores, axis=1)[:, :K]]

    def recall(self, answers: list[list[int]]) -> float:
        """One answer for each query, in order."""
        found = [np.isin(want, got).mean() for want, got in zip(self._nearest, answers, strict=True)]
        return float(np.mean(found))


async def _points(
    recall: Callable[[int], Awaitable[float]], rated: Callable[[int], Awaitable[list[Rate]]]
) -> list[Point]:
    """One for each effort, from that which finds LEAST on until MOST is found."""
    points = []
    for effort in EFFORTS:
        found = await recall(effort)
        if points and points[-1].recall == found:
            points.pop()  # the least that is done, whatever is asked
        if found >= LEAST:
            slices = [await rated(effort) for _ in range(SLICES)]
            points.append(Point(effort, found, tuple(map(_best, zip(*slices, strict=True)))))
        if found >= MOST:
            break
    return points


def _best(slices: Iterable[Rate]) -> Rate:
    """Others may use the machine for a moment."""
    slices = list(slices)
    return Rate(max(one.per_second for one in slices), min(one.microseconds for one in slices))


class _Faiss:
    """In this process."""

    def __init__(self, data: Dataset, seconds: float) -> None:
        self._index, _ = build_hnsw(data.vectors, M, EF_CONSTRUCTION, threads=1)
        self._flat = faiss.IndexFlatIP(data.vectors.shape[1])
        self._flat.add(data.vectors)
        self._seconds = seconds

    async def curves(self, asked: _Asked) -> list[Curve]:
        """The graph's, and the one point of scoring all that is allowed."""
        bits = np.zeros(self._flat.ntotal, bool)
        bits[asked.rows] = True
        packed = np.packbits(bits, bitorder="little")
        chosen = None if asked.share == 1 else faiss.IDSelectorBitmap(packed)

        def search(effort: int) -> Callable[[Floats], Any]:
            if not effort:
                return lambda query: self._flat.search(query, K, params=faiss.SearchParameters(sel=chosen))[1]
            said = faiss.SearchParametersHNSW(efSearch=effort, sel=chosen)
            return lambda query: self._index.search(query, K, params=said)[1]

        async def recall(effort: int) -> float:
            faiss.omp_set_num_threads(1)
            return asked.recall([search(effort)(query[None])[0].tolist() for query in asked.queries])

        async def rated(effort: int) -> list[Rate]:
            return await asyncio.to_thread(rates, search(effort), asked.queries, self._seconds)

        graph = await _points(recall, rated)
        return [
            Curve(GRAPH, asked.share, graph),
            Curve(SCORED, asked.share, [Point(0, await recall(0), tuple(await rated(0)))]),
        ]


class _Node:
    """One node that holds the vectors."""

    def __init__(self, cluster: ProcessCluster, client: Client) -> None:
        self._cluster, self._client = cluster, client

    async def load(self, data: Dataset) -> None:
        """Returns when index files hold all but a few, and stay as they are."""
        rows, dimensions = data.vectors.shape
        for first in range(0, rows, BATCH):
            numbers = range(first, min(first + BATCH, rows))
            await self._client.insert_batch(
                ids=[f"v{n}" for n in numbers],
                vectors=data.vectors[first : first + BATCH],
                metadatas=[{"part": n % PARTS} for n in numbers],
                timeout=120.0,
            )
        await settled(self._cluster, rows - seal_when_quiet_at(SegmentConfig(), dimensions), _BUILD_SECONDS)

    async def curve(self, asked: _Asked, seconds: float) -> Curve:
        """Of one filter."""
        condition = None if asked.share == 1 else {"part": {"$lt": round(asked.share * PARTS)}}

        def ask(effort: int) -> Callable[[int], Awaitable[Any]]:
            return lambda n: self._client.search(
                asked.queries[n % len(asked.queries)], K, condition, mode="leased", with_metadata=False,
                ef_search=effort,
            )  # fmt: skip

        async def recall(effort: int) -> float:
            answers = [await ask(effort)(n) for n in range(len(asked.queries))]
            return asked.recall([[int(hit.id[1:]) for hit in hits] for hits in answers])

        async def rated(effort: int) -> list[Rate]:
            return [await self._rate(callers, seconds, ask(effort)) for callers in CALLERS]

        return Curve(NEEDLE, asked.share, await _points(recall, rated))

    async def _rate(self, callers: int, seconds: float, ask: Callable[[int], Awaitable[Any]]) -> Rate:
        before = self._spent()
        rate = await closed_loop(callers, seconds, ask)
        return Rate(rate.per_second, 1e6 * (self._spent() - before) / rate.operations)

    def _spent(self) -> float:
        return time.process_time() + sum(Spent.by(self._cluster.nodes["node-1"].pid))


async def measured(rows: int, dimensions: int, seconds: float) -> list[Curve]:
    """seconds: of each slice. Needle's curve of each filter, then those of faiss."""
    data = dataset(rows, dimensions, QUERIES)
    by_faiss = _Faiss(data, seconds)
    curves = []
    with tempfile.TemporaryDirectory(prefix="bench-curves-") as directory:
        one = ProcessCluster(Path(directory), 1, dimensions=dimensions)
        async with one as cluster, cluster.connect() as client:
            node = _Node(cluster, client)
            await node.load(data)
            for share in SHARES:
                asked = _Asked(data, share)
                curves.append(await node.curve(asked, seconds))
                curves += await by_faiss.curves(asked)
    return curves


def rate_at(points: list[Point], recall: float, callers: int, *, processor: bool = False) -> float | None:
    """Between the two points around it; of the first where all find more; None where none finds as much."""
    at = CALLERS.index(callers)
    above = next((n for n, point in enumerate(points) if point.recall >= recall), None)
    if above is None:
        return None
    after, before = points[above], points[max(0, above - 1)]
    slow, fast = (point.rates(processor=processor)[at] for point in (after, before))
    if before.recall >= after.recall:
        return slow
    part = (recall - before.recall) / (after.recall - before.recall)
    return exp(log(fast) * (1 - part) + log(slow) * part)


async def run(report: Report, *, quick: bool) -> None:
    """Rates at the recall COMPARED, by filter and callers, beside the faster of what faiss can do."""
    curves = await measured(QUICK_ROWS if quick else ROWS, DIMENSIONS, 0.2 if quick else 1.0)
    for share in SHARES:
        of = {curve.who: curve.points for curve in curves if curve.share == share}
        for callers in CALLERS:
            for processor, what in ((False, ""), (True, " of processor time")):
                ours = rate_at(of[NEEDLE], COMPARED, callers, processor=processor)
                others = {who: rate_at(of[who], COMPARED, callers, processor=processor) for who in (GRAPH, SCORED)}
                who, theirs = max(others.items(), key=lambda found: found[1] or 0.0)
                name = f"curve at recall {COMPARED}, {share:.0%} allowed, {callers} caller(s)"
                report.row(name, f"{ours or 0:,.0f} a second{what}", f"{who}: {theirs or 0:,.0f}")
                report.ratio(ours / theirs if ours and theirs else None, "", ok=None)


def table(curves: list[Curve]) -> str:
    """All points, in Markdown."""
    lines = [
        [f"{curve.share:.0%}", curve.who, str(point.effort or ""), f"{point.recall:.3f}"]
        + [f"{rate.per_second:,.0f}" for rate in point.rated]
        + [f"{rate.microseconds:,.0f}" for rate in point.rated]
        for curve in curves
        for point in curve.points
    ]
    costs = [f"{callers}: us of CPU" for callers in CALLERS]
    return kinds_shown.table(["allowed", "", "ef", "recall@10", *kinds_shown.RATED[1:], *costs], lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.curves", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each rate's slices")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} vectors and short slices")
    parser.add_argument("--processor", action="store_true", help="draw rates by processor time")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into it, and the picture beside it")
    said = parser.parse_args()
    rows, seconds = (QUICK_ROWS, 0.2) if said.quick else (said.rows, said.seconds)
    began = os.getloadavg()[0]
    curves = asyncio.run(measured(rows, said.dimensions, seconds))
    note = (
        f"{rows:,} x {said.dimensions}-d, {QUERIES} queries, m {M}, ef_construction {EF_CONSTRUCTION}, "
        f"{os.cpu_count()} cores; load average {began:.1f} before, {os.getloadavg()[0]:.1f} after (16 callers make "
        "some of it).\n"
    )
    text = f"{note}\n{table(curves)}"
    print(text)
    if said.write is not None:
        drawn = curves_shown.picture(curves, processor=said.processor)
        kinds_shown.write(said.write, text, drawn, curves_shown.BEGIN, curves_shown.PICTURE)


if __name__ == "__main__":
    main()
