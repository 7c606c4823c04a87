"""Prometheus' kinds of metrics, made by the table: a name that has no row cannot be published."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from needle.server.metrics.row import Row
from needle.server.metrics.table import METRICS

FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MILLISECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)
THINGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BUCKETS: dict[str, tuple[float, ...]] = {"seconds": FAST, "milliseconds": MILLISECONDS, "": THINGS}


class Durations:
    """Seconds of calls by their bounds, noted on one event loop: Prometheus' histograms take 2 us a call, for their
    locks and labels."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(FAST) + 1)
        self._seconds = 0.0

    def note(self, seconds: float, count: int = 1) -> None:
        """One call, or each of so many, took so long."""
        self._counts[bisect_left(FAST, seconds)] += count
        self._seconds += seconds * count

    @property
    def count(self) -> int:
        """How many calls."""
        return sum(self._counts)

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...] = ()) -> None:
        """Say it at a scrape."""
        bounds = [*map(floatToGoString, FAST), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._seconds)


def text_of(row: Row) -> str:
    """What a scrape says of a metric: without the marks of Markdown."""
    return row.meaning.replace("`", "")


def read(name: str, value: float | None = None) -> Any:
    """A gauge, counter or histogram that is read at scrape time. value: of one without labels."""
    row = METRICS[name]
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily, "histogram": HistogramMetricFamily}
    family = kinds[row.kind]
    made = family(row.name, text_of(row), labels=row.labels)
    if value is not None:
        made.add_metric([], value)
    return made


def counted(name: str, registry: CollectorRegistry) -> Counter:
    """A counter that is told of what happens."""
    row = METRICS[name]
    return Counter(row.name, text_of(row), row.labels, registry=registry)


def observed(name: str, registry: CollectorRegistry) -> Histogram:
    """A histogram that is told of what happens."""
    row = METRICS[name]
    return Histogram(row.name, text_of(row), row.labels, registry=registry, buckets=_BUCKETS[row.unit])
