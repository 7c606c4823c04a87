"""The text of a scrape is that of Prometheus' own writer, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nan

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from needle.server.metrics.text import text

HOSTILE = 'a "quoted" \\ back\nslash, {brace}="x" \u00e9'
NUMBERS = (0, 1, True, -1.5, 1e6, 12345678.0, 1234567.25, 1e22, 1e-7, inf, -inf, nan, 2**53)


def families() -> list[Metric]:
    registry = CollectorRegistry()
    seconds = Histogram("h_seconds", "How \\ long\nit took", ["method"], registry=registry, buckets=(0.1, 1.0))
    for value in (0.05, 0.5, 5.0):
        seconds.labels("search").observe(value)
    Counter("c", "Counted", ["z", "a"], registry=registry).labels(HOSTILE, "1").inc(3)
    gauge = GaugeMetricFamily("g", "Of shards", labels=["shard", "collection"])
    for number, value in enumerate(NUMBERS):
        gauge.add_metric([str(number), HOSTILE], value)
    alone = GaugeMetricFamily("alone", "Without labels", value=4)
    events = CounterMetricFamily("e", "Events", labels=["event"])
    events.add_metric(["sent"], 2)
    return [*registry.collect(), gauge, alone, events]


class Labelled(Collector):
    """The families, each sample with more labels."""

    def __init__(self, common: dict[str, str]) -> None:
        self._common = common

    def collect(self) -> Iterator[Metric]:
        for family in families():
            family.samples = [Sample(s.name, {**s.labels, **self._common}, s.value) for s in family.samples]
            yield family


def same(common: dict[str, str]) -> None:
    def without_times(made: bytes) -> list[bytes]:  # when a counter was made, which differs
        return [line for line in made.splitlines() if b"_created{" not in line]

    ours, theirs = text(families(), common), generate_latest(Labelled(common))  # type: ignore[arg-type]
    assert without_times(ours) == without_times(theirs) and ours.endswith(b"\n")
    assert ours.count(b"_created{") == theirs.count(b"_created{") > 0


def test_it_is_the_same_text() -> None:
    same({})
    same({"needle_cluster": HOSTILE})
