"""Filtered searches on one replica while small writes are applied: rates, the first filter, and how long apply is held.

One process, no network: what is measured is the filter. Two threads search, one applies a write every few milliseconds.
`--documents` sets the size; the first filter on a field reads every document once (about 2 to 4 s a million), later
ones cost what they match, and a condition without an index what the indexed ones leave.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from bench.report import Report
from needle.base.config import Limits, SegmentConfig
from needle.base.filters.builder import Filter
from needle.base.model import CollectionSpec, Metric, SearchRequest
from needle.multiraft.ports import Applied
from needle.protocol.commands import CreateCollection, Insert, Session, encode
from needle.shard.disk import ReplicaDisk
from needle.shard.state_machine import Replica

DIMENSIONS = 8
BATCH = 1000
SEARCHERS = 2
EPOCH = 1_700_000_000


def _metadata(n: int) -> bytes:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH + n))
    document = {
        "lang": ("en", "de", "fr", "es", "it")[n % 5],
        "n": n % 1000,
        "ts": EPOCH + n * 1.37,
        "url": f"https://example.org/articles/{n % 97}/{n}",
        "at": at,
        "title": f"the title of document {n}",
    }
    return msgspec.json.encode(document)


class _Log:
    """A replica and what is applied to it."""

    def __init__(self, directory: str, documents: int) -> None:
        self.replica = Replica(directory, limits=Limits(), segments=SegmentConfig(), disk=ReplicaDisk())
        self._index = 0
        self._rng = np.random.default_rng(0)
        self.apply(CreateCollection(CollectionSpec(name="c", dimensions=DIMENSIONS, metric=Metric.L2)))
        for first in range(0, documents, BATCH):
            self.insert(range(first, min(first + BATCH, documents)))

    def apply(self, command: Any) -> float:
        """Seconds it took."""
        self._index += 1
        start = time.perf_counter()
        self.replica.apply([Applied(index=self._index, term=1, data=encode(command), conf=None)])
        return time.perf_counter() - start

    def insert(self, numbers: range) -> float:
        """Documents of these numbers; those that are there already are replaced."""
        vectors = self._rng.standard_normal((len(numbers), DIMENSIONS)).astype("<f4").tobytes()
        return self.apply(
            Insert("c", [f"d{n}" for n in numbers], vectors, [_metadata(n) for n in numbers], session=Session())
        )

    def search(self, condition: Filter) -> int:
        query = self._rng.standard_normal(DIMENSIONS).astype("<f4").tobytes()
        request = SearchRequest(collection="c", vector=query, k=10, filter=condition.to_json(), with_metadata=False)
        return len(self.replica.search(request).ids)


def _under_writes(log: _Log, seconds: float, make: Callable[[int], Filter] | None) -> tuple[float, list[float]]:
    """Searches a second of SEARCHERS threads, and how long each apply took meanwhile."""
    stop, counts = threading.Event(), [0] * SEARCHERS

    def searcher(at: int) -> None:
        while not stop.is_set() and make is not None:
            log.search(make(at + SEARCHERS * counts[at]))
            counts[at] += 1

    def background() -> None:
        while not stop.wait(0.1):
            while log.replica.field_indexes.waits:
                log.replica.field_indexes.work()

    threads = [threading.Thread(target=searcher, args=(at,)) for at in range(SEARCHERS)]
    threads.append(threading.Thread(target=background))
    for thread in threads:
        thread.start()
    applied, start, n = [], time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        applied.append(log.insert(range(n % 50, n % 50 + 1)))
        n += 1
        stop.wait(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start), sorted(applied)


def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Adds a row a kind of filter: searches/s, the first search, and the median and the longest apply meanwhile."""
    size = documents or (20_000 if quick else 200_000)
    seconds = 2.0 if quick else 4.0
    half = EPOCH + size * 1.37 / 2
    kinds: dict[str, Callable[[int], Filter]] = {
        "one of 5 values": lambda n: Filter.eq("lang", "de"),
        "one of 1,000 values": lambda n: Filter.eq("n", n % 1000),
        "range of a field that differs in each document, half": lambda n: Filter.gt("ts", half + n % 7),
        "the same, all": lambda n: Filter.gt("ts", 0),
        "the same, a thousandth": lambda n: Filter.between("ts", half, half + size / 1000),
        "one value of a field that differs in each": lambda n: Filter.eq(
            "url", f"https://example.org/articles/{n * 7 % size % 97}/{n * 7 % size}"
        ),
        "beginning of such a text": lambda n: Filter.starts_with("url", f"https://example.org/articles/{n % 97}/"),
        "instants, from the middle on": lambda n: Filter.parse(
            {"at": {"$gte": {"$date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH + size // 2))}}}
        ),
        "a field that does not exist": lambda n: Filter.eq("absent", n),
        "one of 1,000 values, and a field without an index": lambda n: (
            Filter.eq("n", 7) & Filter.contains("title", "77")
        ),
    }
    with tempfile.TemporaryDirectory() as directory:
        log = _Log(directory, size)
        _, applied = _under_writes(log, seconds, None)
        row = f"apply of one document among {size:,}, no searches"
        report.row(row, f"median {applied[len(applied) // 2] * 1e3:.2f} ms, longest {applied[-1] * 1e3:.1f} ms")
        for name, make in kinds.items():
            start = time.perf_counter()
            log.search(make(0))
            first = time.perf_counter() - start
            rate, applied = _under_writes(log, seconds, make)
            held = f"apply: median {applied[len(applied) // 2] * 1e3:.2f} ms, longest {applied[-1] * 1e3:.1f} ms"
            report.row(name, f"{rate:,.0f}/s; first {first * 1e3:,.0f} ms", held)
        used = log.replica.field_indexes.used
        report.row("memory of the field indexes", f"{used / 1e6:.0f} MB for {size:,} documents")
        log.replica.close()
