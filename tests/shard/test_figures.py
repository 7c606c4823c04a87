"""What a search tells of itself though nobody asked: nothing, unless it took long."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from needle.base.model import HitBatch, SearchRequest
from needle.protocol.commands import CreateCollection
from shard.replica_util import Log, floats, open_replica, put, spec


@pytest.mark.parametrize(("figures", "told"), [(3.0, True), (3.5, False)])
def test_the_figures_of_a_search_that_took_long_are_told_without_asking(
    tmp_path: Path, figures: float, told: bool
) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(
        log.add(CreateCollection(spec()), put(["a", "b", "c"], [[1, 2, 3]] * 3, [{"n": 1}, {"n": 2}, {"n": 3}]))
    )
    ticks = count()
    request = SearchRequest(collection="c", vector=floats([1, 2, 3]), k=2, filter=b'{"n":{"$lt":3}}')
    searched = replica.reads().search_many([request] * 2, lambda _: True, None, lambda: float(next(ticks)), figures)
    for batch in searched:
        assert isinstance(batch, HitBatch)
        assert [(one.documents, one.allowed, one.together) for one in batch.explained] == [(3, 2, 2)] * told
        assert [one.vectors_milliseconds for one in batch.explained] == [1000.0] * told
        assert all(one.segments == [] for one in batch.explained)
    replica.close()
