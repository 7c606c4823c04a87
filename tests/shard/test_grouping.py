"""The nearest documents by groups, where an index file answers nearly right, and whatever the field's index knows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from pyroaring import BitMap

from needle.base.config import Limits
from needle.base.errors import InvalidArgument
from needle.base.filters.values import rank, values_of
from needle.base.model import HitBatch, Metric, SearchRequest
from needle.shard import grouping
from needle.shard.documents.metadata_rows import Rows, rows_of
from needle.shard.documents.records import StoredDocument
from needle.shard.fields import owners
from needle.shard.fields.index_budget import IndexBudget
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.places import Places
from needle.shard.query import search_group
from shard.vectors_util import clustered, live_of, new_vectors, publish, seal, spec_of

ROWS, DIMENSIONS = 3000, 16


class Stored:
    """Documents d0000 to d2999, in memory. read: how many were read."""

    def __init__(self, metadata: Sequence[Any]) -> None:
        self.json = [json.dumps(one).encode() for one in metadata]
        self.read = 0

    def between(self, first: int, end: int) -> Rows:
        return self.some(range(first, end))

    def some(self, ordinals: Sequence[int]) -> Rows:
        self.read += len(ordinals)
        return rows_of((one, self.json[one]) for one in ordinals)

    def by_ordinal(self, _: int, ordinals: Sequence[int], **__: bool) -> dict[int, StoredDocument]:
        return {one: StoredDocument(f"d{one:04}", one, 1, self.json[one]) for one in ordinals}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two files, and rows behind them that no file has."""
    made = new_vectors(tmp_path_factory.mktemp("grouped"), Metric.L2)
    made.append(0, clustered(ROWS, DIMENSIONS, 1))
    publish(made, *seal(made, 0, 1999))
    publish(made, *seal(made, 2000, 2799))
    return made


def collection(vectors: Any, metadata: Sequence[Any], room: int = 1 << 30) -> tuple[Any, Stored]:
    """room: bytes for indexes of fields."""
    stored = Stored(metadata)
    payload = PayloadIndex(stored, IndexBudget(room))
    payload.add(list(enumerate(stored.json)))
    record = SimpleNamespace(id=7, spec=spec_of(Metric.L2, DIMENSIONS), next_ordinal=ROWS, documents=ROWS)
    live = live_of(ROWS)
    held = SimpleNamespace(
        record=record, vectors=vectors.view(), live=live, payload=payload, hidden=BitMap(), places=Places(),
        visible=ROWS,
    )  # fmt: skip
    return held, stored


def ask(query: np.ndarray, **options: Any) -> SearchRequest:
    return SearchRequest(collection="c", vector=query.astype("<f4").tobytes(), group_by="of", **options)


def answer(held: tuple[Any, Stored], request: SearchRequest) -> HitBatch:
    (found,) = search_group(held[0], held[1], [request], 9, Limits())  # type: ignore[arg-type]
    if isinstance(found, Exception):
        raise found
    return found


def groups(found: HitBatch) -> dict[str, list[tuple[float, str]]]:
    told: dict[str, list[tuple[float, str]]] = {}
    for value, distance, name in zip(found.groups, found.distances, found.ids, strict=True):
        told.setdefault(json.dumps(value), []).append((distance, name))
    return told


SKEWED = [{"of": 0 if n % 50 else n} for n in range(ROWS)]
"""Nearly all in one group."""
MANY = [{"of": [n % 7, f"t{n % 400}", None, {"x": 1}]} for n in range(ROWS)]
FEW = [{"of": n % 3} if n % 10 == 0 else {"other": n} for n in range(ROWS)]
NULLS = [{"of": None} if n % 100 else {"of": n // 500} for n in range(ROWS)]


@pytest.mark.parametrize("room", [1 << 30, 0], ids=["indexed", "no room for an index"])
@pytest.mark.parametrize("metadata", [SKEWED, MANY, FEW, NULLS], ids=["skewed", "arrays", "few", "nulls"])
@pytest.mark.parametrize("exact", [True, False])
def test_there_are_as_many_groups_as_there_can_be(vectors: Any, metadata: list[Any], room: int, exact: bool) -> None:
    held = collection(vectors, metadata, room)
    data = clustered(ROWS, DIMENSIONS, 1)
    for query in clustered(3 if room else 1, DIMENSIONS, 2):  # without an index all documents are read for most groups
        true: dict[str, list[tuple[float, str]]] = {}
        order = np.linalg.norm(data.astype(np.float64) - query, axis=1)
        for n, one in enumerate(metadata):
            values = one.get("of") if isinstance(one.get("of"), list) else [one.get("of")]
            for value in {json.dumps(v) for v in values if v is not None and not isinstance(v, dict)}:
                true.setdefault(value, []).append((order[n], f"d{n:04}"))
        best = sorted((sorted(members), value) for value, members in true.items())
        for k, size in ((3, 2), (10, 1), (5, 40), (500, 3)):
            found = groups(answer(held, ask(query, k=k, group_size=size, exact=exact)))
            assert len(found) == min(k, len(true))
            assert all(len(members) == min(size, len(true[value])) for value, members in found.items())
            firsts = [members[0] for members in found.values()]
            assert firsts == sorted(firsts)
            if exact:
                assert {v: [name for _, name in m] for v, m in found.items()} == {
                    value: [name for _, name in members[:size]] for members, value in best[:k]
                }
            for members in found.values():
                assert all(one < other for one, other in pairwise(members))


def test_a_field_with_an_index_is_not_read_for_each_group(vectors: Any) -> None:
    held = collection(vectors, SKEWED)
    query = clustered(1, DIMENSIONS, 2)[0]
    answer(held, ask(query, k=20, group_size=5))
    before = held[1].read
    assert len(set(answer(held, ask(query, k=20, group_size=5)).groups)) == 20
    assert held[1].read == before


def test_groups_by_name_come_beside_the_nearest(vectors: Any) -> None:
    held, query = collection(vectors, SKEWED), clustered(1, DIMENSIONS, 2)[0]
    plain = answer(held, ask(query, k=2, exact=True))
    far = next(n for n in range(0, ROWS, 50) if n not in plain.groups and n)
    both = answer(held, ask(query, k=2, exact=True, groups=msgspec.json.encode([far, "absent"])))
    assert sorted(map(str, both.groups)) == sorted(map(str, [*plain.groups, far]))
    assert both.distances == sorted(both.distances)


def test_bounds_and_the_document_that_others_are_like(vectors: Any) -> None:
    held, query = collection(vectors, FEW), clustered(1, DIMENSIONS, 2)[0]
    found = answer(held, ask(query, k=3, group_size=200, exact=True))
    assert len(found.ids) == ROWS // 10
    limit = sorted(found.distances)[40]
    near = answer(held, ask(query, k=3, group_size=200, exact=True, max_distance=limit))
    assert sorted(near.distances) == sorted(found.distances)[:41]
    without = answer(held, ask(query, k=3, group_size=200, exact=True, like=found.ids[0]))
    assert set(found.ids) - set(without.ids) == {found.ids[0]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 101, "group_size": 100}, "group_size"),
        ({"k": 1, "group_size": 0}, "group_size"),
        ({"k": 1, "groups": b"[1,2]"}, "groups"),
        ({"k": 1, "groups": b"[null]"}, "groups"),
        ({"k": 1, "groups": b"["}, "groups"),
    ],
)
def test_what_cannot_be_meant_is_refused(vectors: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        answer(collection(vectors, FEW), ask(clustered(1, DIMENSIONS, 2)[0], **options))


@pytest.mark.parametrize("size", [1, 3])
def test_of_documents_with_very_many_values_no_more_groups_are_held_than_asked_for(
    vectors: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 KiB of metadata have twelve thousand; two hundred such documents took gigabytes and minutes."""
    held = collection(vectors, [{"of": [n, *range(5000, 5300)]} for n in range(ROWS)])
    most, looked = 0, list[grouping._Looked]()
    made = grouping._Looked.__init__

    def noted(self: grouping._Looked, *arguments: Any) -> None:
        made(self, *arguments)
        looked.append(self)

    monkeypatch.setattr(grouping._Looked, "__init__", noted)
    query, data = clustered(1, DIMENSIONS, 2)[0], clustered(ROWS, DIMENSIONS, 1)
    nearest = int(np.linalg.norm(data.astype(np.float64) - query, axis=1).argmin())
    for k in (1, 5, 200):
        found = answer(held, ask(query, k=k, group_size=size, exact=True))
        told = groups(found)
        assert list(told) == [json.dumps(value) for value in sorted([nearest, *range(5000, 5300)])[:k]]
        most = max(most, len(looked[-1].groups) / k)
    assert most <= 2


def test_who_gave_up_is_seen_while_groups_are_made(vectors: Any) -> None:
    held = collection(vectors, [{"of": n} for n in range(ROWS)])
    asked = 0

    def go_on() -> None:
        nonlocal asked
        asked += 1

    search_group(held[0], held[1], [ask(clustered(1, DIMENSIONS, 2)[0], k=1400)], 9, Limits(), go_on=go_on)  # type: ignore[arg-type]
    assert asked > 1400 // grouping.GO_ON_ROWS


TWINS = 97
"""Different vectors among ROWS: all others are equal to one of them, so most documents are as near as others."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = new_vectors(tmp_path_factory.mktemp("twins"), Metric.L2)
    made.append(0, np.tile(clustered(TWINS, DIMENSIONS, 1), (ROWS // TWINS + 1, 1))[:ROWS])
    publish(made, *seal(made, 0, 1999))
    return made


MIXED = [
    {"of": [True, 1, "1", 1.5][: n % 5]} if n % 3 == 0 else {"of": f"{n % 101}" + "long" * 30} if n % 3 == 1 else
    {"of": [n % 211, 2**63 + n % 5, "a\0b"]} for n in range(ROWS)
]  # fmt: skip
"""Values of every kind, arrays, digests of texts, and texts that no column holds."""


@pytest.mark.parametrize("room", [1 << 30, 0], ids=["indexed", "no room for an index"])
@pytest.mark.parametrize("bounds", [{}, {"TOGETHER_ROWS": 20, "SCORED_ROWS": 50, "READ_ROWS": 7}], ids=["", "low"])
@pytest.mark.parametrize("held_pairs", [1 << 20, 10], ids=["", "few held"])
@pytest.mark.parametrize("like", ["", "d0003"])
def test_groups_that_are_filled_together_are_those_of_a_plain_model(
    twins: Any, room: int, bounds: dict[str, int], held_pairs: int, like: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bounds.items():
        monkeypatch.setattr(grouping, name, value)
    monkeypatch.setattr(owners, "READ_MAX", held_pairs)
    held, query = collection(twins, MIXED, room), clustered(1, DIMENSIONS, 2)[0]
    every = answer(held, SearchRequest(collection="c", vector=query.astype("<f4").tobytes(), k=ROWS, exact=True))
    far = dict(zip(every.ids, every.distances, strict=True))
    own: dict[str, list[tuple[float, str]]] = {}
    values: dict[str, Any] = {}
    for n, one in enumerate(MIXED):
        for each in values_of(one, ("of",)).values() if f"d{n:04}" != like else ():
            own.setdefault(json.dumps(each), []).append((far[f"d{n:04}"], f"d{n:04}"))
            values[json.dumps(each)] = each
    order = sorted(own, key=lambda value: (min(own[value]), rank(values[value])))
    for k, size in ((len(own) + 5, 9), (60, 4), (7, 700)):
        found = groups(answer(held, ask(query, k=k, group_size=size, exact=True, like=like)))
        assert list(found) == order[:k]
        assert found == {value: sorted(own[value])[:size] for value in order[:k]}


@pytest.mark.parametrize(
    ("room", "held_pairs", "reads"),
    [(1 << 30, 1 << 20, 6), (0, 1 << 20, 6), (0, ROWS // 4, 16)],
    ids=["indexed", "no room for an index", "few pairs are held"],
)
def test_what_groups_cost_follows_what_is_asked_for(
    vectors: Any, room: int, held_pairs: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "READ_MAX", held_pairs)
    held = collection(vectors, [{"of": n % 300} for n in range(ROWS)], room)
    searched = list[int]()

    class Counted:
        def nearest(self, queries: Any, k: int, **options: Any) -> Any:
            searched.append(k)
            return vectors.view().nearest(queries, k, **options)

    held[0].vectors = Counted()
    query = clustered(1, DIMENSIONS, 2)[0]
    assert len(answer(held, ask(query, k=290, group_size=10)).ids) == 2900
    assert len(searched) < 10  # and not one for each group
    assert held[1].read < reads * ROWS


def test_groups_of_a_cluster_each_are_not_looked_at_whole(tmp_path: Any) -> None:
    """A portion that shows one group only says that smaller ones do."""
    made, count = new_vectors(tmp_path, Metric.L2), 10
    places = np.arange(ROWS, dtype=np.float32) / ROWS + np.arange(count, dtype=np.float32).repeat(ROWS // count)
    made.append(0, np.repeat(places[:, None], DIMENSIONS, axis=1))
    held = collection(made, [{"of": n // (ROWS // count)} for n in range(ROWS)])
    looked, read = list[int](), held[1].by_ordinal

    def counted(of: int, ordinals: Sequence[int], **options: bool) -> dict[int, StoredDocument]:
        looked.extend(ordinals)
        return read(of, ordinals, **options)

    held[1].by_ordinal = counted  # type: ignore[method-assign,assignment]
    found = answer(held, ask(np.zeros(DIMENSIONS, np.float32), k=count, group_size=2, exact=True))
    assert found.ids == [f"d{ROWS // count * group + n:04}" for group in range(count) for n in (0, 1)]
    assert len(looked) < ROWS // 3


@pytest.mark.parametrize("each", [1, 30, 64, 100])
@pytest.mark.parametrize("k", [50, 200, 1000])
def test_few_searches_find_groups_whose_documents_lie_together(each: int, k: int) -> None:
    """Each is a search among all documents that are left. By small portions alone 200 groups of 100 took 196."""
    asked = list[int]()

    def nearest(count: int, among: BitMap) -> tuple[list[int], list[float], bool]:
        asked.append(count)
        found = [*itertools.islice(among, count)]
        return found, [float(one) for one in found], True

    def matching(condition: Any, among: BitMap) -> BitMap:
        return BitMap(itertools.chain.from_iterable(range(v * each, (v + 1) * each) for v in condition.value)) & among

    def read(ordinals: list[int]) -> dict[int, StoredDocument]:
        return {one: StoredDocument(f"d{one}", one, 1, json.dumps({"of": one // each}).encode()) for one in ordinals}

    sources = grouping.Sources(nearest, read, matching, lambda _: BitMap(), None, None, lambda: None)  # type: ignore[arg-type]
    looked = grouping._Looked(grouping.Wish(("of",), k, 1), sources)
    looked.look(BitMap(range(2 * k * each)))
    assert [group.value for group in looked.groups.values()][:k] == [*range(k)]
    assert len(asked) <= 40
