"""One search of several replicas against the answers of each of them, merged; and who cannot answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from needle.base.errors import DeadlineExceeded, InvalidArgument
from needle.base.model import Claim, HitBatch, Metric, SearchRequest
from needle.client.router.merge import chosen, nearest
from needle.protocol.commands import CreateCollection, Delete
from needle.shard import several
from needle.shard.fields import builders
from needle.shard.searching import Found, Searches
from needle.shard.several import Member, Members, Several, Together, search_several
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

COUNT, DOCUMENTS = 4, 240
CLAIM = Claim(0, 0)
QUERIES = [[0.5, 1.0, -1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1.0, -1.0, 1.0]]


@contextmanager
def untimed(one: Several, count: int) -> Iterator[None]:
    yield


def filled(directory: Path, of: Sequence[int], metric: Metric = Metric.L2) -> Replica:
    replica, log = open_replica(directory), Log()
    rows = np.random.default_rng(3).integers(-2, 3, size=(DOCUMENTS, 3)).astype(float)  # many are as near as others
    replica.apply(log.add(CreateCollection(spec(metric=metric))))
    about = [{"n": n % 7, "word": "odd" if n % 2 else "even"} for n in of]
    # In another order than that of the ids, so that ordinals say nothing of them.
    order = np.random.default_rng(len(of)).permutation(len(of)).tolist()
    ids = [f"d{of[at]}" for at in order]
    replica.apply(log.add(put(ids, [[*rows[of[at]]] for at in order], [about[at] for at in order])))
    replica.apply(log.add(*[None] * (of[0] + 1 if of else 1), Delete("c", ids[:2])))
    return replica


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[Replica]]:
    """Documents are spread over all but the last, which has none."""
    of = [[n for n in range(DOCUMENTS) if n % (COUNT - 1) == which] for which in range(COUNT - 1)]
    made = [filled(tmp_path / str(which), some) for which, some in enumerate([*of, []])]
    yield made
    for one in made:
        one.close()


def members(replicas: Sequence[Replica], claims: Sequence[Claim] = ()) -> Members:
    each = claims or [CLAIM] * len(replicas)
    hosted: list[Any] = [SimpleNamespace(replica=one, stopping=False) for one in replicas]
    return Members([Member(*one) for one in zip(hosted, each, strict=True)])


def request(query: Sequence[float] = QUERIES[0], **options: Any) -> SearchRequest:
    return SearchRequest(**{"collection": "c", "vector": floats(query), "k": 10, **options})


def search(of: Members, requests: Sequence[SearchRequest]) -> list[Together]:
    found = search_several([Several(one, of) for one in requests], lambda _: True, untimed)
    assert all(isinstance(one, Together) for one in found)
    return found  # type: ignore[return-value]


def each_alone(replicas: Sequence[Replica], one: SearchRequest, places: Sequence[int]) -> tuple[HitBatch, list[int]]:
    batches = [replicas[place].search(one) for place in places]
    rows = nearest(batches, one.k, places)
    return chosen(batches, rows), [places[which] for which, _ in rows]


def columns(batch: HitBatch) -> tuple[Any, ...]:
    return batch.ids, batch.distances, batch.versions, batch.metadata, batch.vectors, batch.order


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 1},
    {"k": 500},
    {"k": 37, "with_metadata": False},
    {"with_vectors": True, "exact": True},
    {"filter": b'{"word":"odd"}', "k": 25},
    {"filter": b'{"n":99}'},
    {"max_distance": 2.0, "k": 50},
    {"min_score": -1.5, "k": 50},
    {"order_by": "n", "with_metadata": False},
    {"fields": ("n",)},
    {"bound": b'{"word":"even"}', "filter": b'{"n":{"$lt":4}}'},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_answer_is_that_of_each_alone_merged(replicas: list[Replica], options: dict[str, Any]) -> None:
    asked = [request(query, **options) for query in QUERIES]
    for one, found in zip(asked, search(members(replicas), asked), strict=True):
        batch, places = each_alone(replicas, one, range(COUNT))
        assert columns(found.hits) == columns(batch) and found.places == places
        assert found.applied == [replica.applied_index() for replica in replicas]


def test_of_one_replica_it_is_its_own_answer(replicas: list[Replica]) -> None:
    (found,) = search(members(replicas[1:2]), [request()])
    assert columns(found.hits) == columns(replicas[1].search(request())) and {*found.places} == {0}


def test_searches_that_differ_are_answered_each_by_itself(replicas: list[Replica]) -> None:
    some, all_of_them = members(replicas[:2]), members(replicas)
    asked = [
        Several(request(k=3), all_of_them),
        Several(request(k=3), some),
        Several(request(QUERIES[1], k=3), all_of_them),
        Several(request(k=4), all_of_them),
    ]
    wanted = [True, True, False, True]
    timed: list[tuple[int, int]] = []

    @contextmanager
    def took(one: Several, count: int) -> Iterator[None]:
        timed.append((len(one.members), count))
        yield

    found = search_several(asked, lambda at: wanted[at], took)
    assert isinstance(found[2], DeadlineExceeded) and timed == [(4, 1), (4, 1), (2, 1)]
    for at, places in ((0, range(COUNT)), (1, range(2)), (3, range(COUNT))):
        one = found[at]
        assert isinstance(one, Together)
        assert columns(one.hits) == columns(each_alone(replicas, asked[at].request, places)[0])


def test_documents_are_read_of_the_nearest_of_all_only(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, bool]] = []
    documents = Searches.documents

    def noted(self: Searches, found: Any, ordinals: list[int], *, metadata: bool, vectors: bool) -> Any:
        read.append((len(ordinals), metadata))
        return documents(self, found, ordinals, metadata=metadata, vectors=vectors)

    monkeypatch.setattr(Searches, "documents", noted)
    (found,) = search(members(replicas), [request([0.3, 1.1, -0.7], k=12)])
    assert sum(count for count, metadata in read if metadata) == 12 == len(found.hits.ids)


def test_who_does_not_own_what_is_asked_for_or_lacks_the_collection_or_stops_gives_no_hits(
    replicas: list[Replica], tmp_path: Path
) -> None:
    replicas.append(open_replica(tmp_path / "bare"))
    claims = [CLAIM, Claim(0, 1000), CLAIM, CLAIM, CLAIM]
    of = members(replicas, claims)
    of.each[2].of.stopping = True  # type: ignore[misc]
    (found,) = search(of, [request(k=50)])
    assert [index is not None for index in found.applied] == [True, False, False, True, False]
    assert columns(found.hits) == columns(each_alone(replicas, request(k=50), (0, 3))[0])


def test_a_replica_that_is_closed_gives_no_hits(replicas: list[Replica]) -> None:
    replicas[0].close()
    (found,) = search(members(replicas), [request()])
    assert found.applied[0] is None and columns(found.hits) == columns(each_alone(replicas, request(), (1, 2, 3))[0])


@pytest.mark.parametrize("k", [5, 60])
def test_where_documents_cannot_be_read_the_hits_of_the_others_move_up(
    replicas: list[Replica], tmp_path: Path, k: int
) -> None:
    replicas[0].checkpoint()
    (path,) = (tmp_path / "0").glob("state-*/documents.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM documents")
        connection.commit()
    asked = [request(query, k=k) for query in QUERIES]
    for one, found in zip(asked, search(members(replicas), asked), strict=True):
        batch, places = each_alone(replicas, one, (1, 2, 3))
        assert columns(found.hits) == columns(batch) and found.places == places and found.applied[0] is None
    assert replicas[0].damage is not None


def test_a_vector_that_a_collection_does_not_take_is_nobodys(replicas: list[Replica]) -> None:
    asked = [request(), request([1.0, 2.0]), request([float("nan")] * 3), request(QUERIES[3])]
    found = search(members(replicas), asked)
    for at in (1, 2):
        assert not found[at].hits.ids and found[at].applied == [None] * COUNT
    for at in (0, 3):
        assert columns(found[at].hits) == columns(each_alone(replicas, asked[at], range(COUNT))[0])
        assert None not in found[at].applied


def test_an_index_that_takes_long_is_made_by_who_asks_a_replica_alone(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other searches of the job would wait for it."""
    monkeypatch.setattr(builders, "FEW_DOCUMENTS", 70)
    one = request(filter=b'{"n":{"$lt":5}}')
    replicas[0].search(one)
    (found,) = search(members(replicas), [one])
    assert [index is not None for index in found.applied] == [True, False, False, True]
    assert columns(found.hits) == columns(each_alone(replicas, one, (0, 3))[0])
    expected = each_alone(replicas, one, range(COUNT))[0]  # which makes them
    (found,) = search(members(replicas), [one])
    assert None not in found.applied and columns(found.hits) == columns(expected)


def test_collections_that_measure_otherwise_do_not_stand_in_one_answer(replicas: list[Replica], tmp_path: Path) -> None:
    """One shard may still have a collection of that name that was dropped."""
    other = filled(tmp_path / "other", [1, 2, 3], Metric.DOT)
    (found,) = search(members([replicas[0], other, replicas[1]]), [request()])
    assert [index is not None for index in found.applied] == [True, False, True]
    assert columns(found.hits) == columns(each_alone(replicas, request(), (0, 1))[0])
    other.close()


def test_parts_are_the_same_each_time_and_hold_all() -> None:
    of = Members([Member(SimpleNamespace(n=n), CLAIM) for n in range(7)])  # type: ignore[arg-type]
    assert of.parts(7) == (of,) and of.parts(100) == (of,)
    parts = of.parts(3)
    assert [len(one) for one in parts] == [3, 3, 1] and of.parts(3) is parts
    assert [one for part in parts for one in part.each] == [*of.each]


def test_to_learn_whether_replicas_are_alike_each_is_compared_once(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with all others took more, of a hundred replicas, than all else that is done for one."""
    compared = 0

    def counting(found: Found, other: Found) -> bool:
        nonlocal compared
        compared += 1
        return is_like(found, other)

    is_like = several._is_like
    monkeypatch.setattr(several, "_is_like", counting)
    [found] = search(members(replicas), [request()])
    assert None not in found.applied and compared == len(replicas) - 1


def test_a_search_that_cannot_be_answered_fails_alone(replicas: list[Replica]) -> None:
    of = members(replicas)
    asked = [Several(request(), of), Several(request(fields=("a..b",)), of), Several(request(order_by=""), of)]
    first, second, third = search_several(asked, lambda _: True, untimed)
    assert isinstance(first, Together) and first.hits.ids
    assert isinstance(second, InvalidArgument) and isinstance(third, Together)
