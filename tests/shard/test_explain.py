"""What an explained search says is what it did."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from needle.base.explain import SegmentExplanation, Way
from needle.base.model import Metric, SearchRequest
from needle.protocol.commands import CreateCollection, Delete
from needle.shard.segments.allowed import Allowed
from needle.shard.segments.opened import OpenIndex
from needle.shard.segments.trace import Trace
from shard.replica_util import Log, open_replica, put, spec
from shard.vectors_util import clustered, new_vectors, publish, seal

ROWS = 4000


def ticking() -> Callable[[], float]:
    """A clock that goes on by a millisecond at each look."""
    steps = count()
    return lambda: next(steps) / 1000


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory):
    """Two files of 3000 and 500 rows, 500 growing rows behind them; row 7 is dead."""
    made = new_vectors(tmp_path_factory.mktemp("explained"), Metric.L2)
    made.append(0, clustered(ROWS, 16, 1))
    publish(made, *seal(made, 0, 2999))
    publish(made, *seal(made, 3000, 3499))
    made.tombstone([7])
    return made


def explained(vectors, allow: BitMap | None = None, *, exact: bool = False, ef: int = 20) -> list[SegmentExplanation]:
    view, trace, query = vectors.view(), Trace(1, ticking()), clustered(1, 16, 2)
    allowed = None if allow is None else Allowed(allow)
    plain = view.nearest(query, 3, allow=allowed, exact=exact, ef_search=ef)
    assert view.nearest(query, 3, allow=allowed, exact=exact, ef_search=ef, trace=trace) == plain
    return trace.segments(0)


def told(parts: list[SegmentExplanation]) -> list[tuple[Way, int, int, int, int, int]]:
    return [(p.way, p.first, p.last, p.rows, p.allowed, p.ef) for p in parts]


def test_without_a_filter(vectors) -> None:
    parts = explained(vectors)
    assert told(parts) == [
        (Way.GRAPH, 0, 2999, 2999, 2999, 21),  # widened by the one that is dead
        (Way.EXACT, 3000, 3499, 500, 500, 0),  # a beam of 20 costs as much as 600 rows
        (Way.GROWING, 3500, 3999, 500, 500, 0),
    ]
    assert all(part.milliseconds == 1 for part in parts)


def test_a_filter_widens_the_beam_or_leaves_rows_to_be_scored(vectors) -> None:
    half = BitMap(range(0, ROWS, 2))
    first, second, third = explained(vectors, half)
    assert first.ef == 40 and first.way in (Way.GRAPH, Way.BOTH) and first.allowed == 1500
    assert (second.way, second.allowed, third.way, third.allowed) == (Way.EXACT, 250, Way.GROWING, 250)
    few = explained(vectors, BitMap([5, 7, 3600]))  # 7 is dead
    assert told(few) == [
        (Way.EXACT, 0, 2999, 2999, 1, 0),
        (Way.SKIPPED, 3000, 3499, 500, 0, 0),
        (Way.GROWING, 3500, 3999, 500, 1, 0),
    ]


def test_exact(vectors) -> None:
    assert [part.way for part in explained(vectors, exact=True)] == [Way.EXACT, Way.EXACT, Way.GROWING]


def test_each_query_of_several_is_told_its_own_way(vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph gives nothing for the second one, so that one is scored exactly as well."""
    nearest = OpenIndex.nearest

    def blind(self, band, queries, width, beam):
        found = nearest(self, band, queries, width, beam)
        found[1] = -1
        return found

    monkeypatch.setattr(OpenIndex, "nearest", blind)
    trace = Trace(3, ticking())
    vectors.view().nearest(clustered(3, 16, 2), 3, ef_search=20, trace=trace)
    assert [trace.segments(query)[0].way for query in range(3)] == [Way.GRAPH, Way.BOTH, Way.GRAPH]


def test_inner_products_go_band_by_band(tmp_path: Path) -> None:
    made, data = new_vectors(tmp_path, Metric.DOT), clustered(3000, 16, 1)
    data *= np.linspace(0.01, 10, len(data), dtype=np.float32)[:, None]
    made.append(0, data)
    publish(made, *seal(made, 0, 2999))
    trace = Trace(2, ticking())
    made.view().nearest(clustered(2, 16, 2), 3, ef_search=20, trace=trace)
    for query in range(2):
        (part,) = trace.segments(query)
        assert part.way is not Way.SKIPPED and part.allowed == 3000


def test_a_replica_explains_only_who_asks(tmp_path: Path) -> None:
    replica = open_replica(tmp_path)
    rows, told = [[n, 0, 0] for n in range(4)], [{"n": n} for n in range(4)]
    replica.apply(Log().add(CreateCollection(spec()), put(["a", "b", "c", "d"], rows, told), Delete("c", ["d"])))
    plain = SearchRequest(collection="c", vector=np.zeros(3, "<f4").tobytes(), k=2, filter=b'{"n":{"$gte":1}}')
    asked = msgspec.structs.replace(plain, explain=True)
    short = msgspec.structs.replace(asked, vector=b"")
    without, first, wrong, second = replica.search_many([plain, asked, short, asked], clock=ticking())
    assert without.explained == [] and isinstance(wrong, Exception)
    assert msgspec.structs.replace(first, explained=[]) == without == msgspec.structs.replace(second, explained=[])
    (told_of,) = first.explained
    assert (told_of.documents, told_of.allowed, told_of.together, told_of.applied_index) == (3, 2, 2, 3)
    assert (told_of.filter_milliseconds, told_of.documents_milliseconds) == (1, 1)
    assert [(part.way, part.rows, part.allowed) for part in told_of.segments] == [(Way.GROWING, 3, 2)]
    assert told_of.notes == []
    none = msgspec.structs.replace(asked, filter=b'{"$and":[{"id":"a"},{"n":7},{"metadata.n":{"$gt":1}}]}')
    (told_of,) = replica.search_many([none], clock=ticking())[0].explained
    assert [note.split(";")[0] for note in told_of.notes] == [
        "the filter asks for 'id' in the metadata", "the filter asks for 'metadata.n' in the metadata"
    ]  # fmt: skip
    assert "Filter.ids" in told_of.notes[0]
    replica.close()
