"""The nearest documents by groups, where an index file answers nearly right, and whatever the field's index knows."""

from __future__ import annotations

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
from needle.base.model import HitBatch, Metric, SearchRequest
from needle.shard.documents.metadata_rows import Rows, rows_of
from needle.shard.documents.records import StoredDocument
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
    for query in clustered(3, DIMENSIONS, 2):
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
