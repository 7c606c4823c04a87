"""Prometheus' kinds of metrics, made by the table: a name that has no row cannot be published."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from needle.server.metrics.row import Row
from needle.server.metrics.table import METRICS

FAST = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MILLISECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0)
THINGS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BUCKETS: dict[str, tuple[float, ...]] = {"seconds": FAST, "milliseconds": MILLISECONDS, "": THINGS}


def text_of(row: Row) -> str:
    """What a scrape says of a metric: without the marks of Markdown."""
    return row.meaning.replace("`", "")


def read(name: str, value: float | None = None) -> Any:
    """A gauge or counter that is read at scrape time. value: of one without labels."""
    row = METRICS[name]
    family = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}[row.kind]
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
