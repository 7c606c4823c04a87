"""Durations say at a scrape what a histogram of prometheus_client would say."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.samples import Sample

from needle.server.metrics.families import FAST, Durations, read

Said = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def said(samples: Iterable[Sample]) -> Said:
    rows = [one for one in samples if not one.name.endswith("_created")]
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in rows}


@pytest.mark.parametrize(("name", "method"), [("needle_search_seconds", ""), ("needle_request_seconds", "shard_get")])
def test_durations_are_those_of_a_histogram(name: str, method: str) -> None:
    noted = [0.0, 0.0001, 0.00011, 0.003, 9.99, 10.1, 1e6, *FAST]
    usual = Histogram(name, "", ["method"] if method else [], registry=CollectorRegistry(), buckets=FAST)
    told, ours = usual.labels(method) if method else usual, Durations()
    for seconds in noted:
        told.observe(seconds)
        ours.note(seconds)
    family = read(name)
    ours.add_to(family, (method,) if method else ())
    [theirs] = usual.collect()
    assert said(family.samples) == pytest.approx(said(theirs.samples))
    assert ours.count == len(noted)
