"""A filter that names ids looks these up: nothing else is read for it, and it is as right as one that reads all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyroaring import BitMap

from base import filter_reference
from needle.base.filters.builder import Filter
from needle.base.model import SearchRequest
from needle.protocol.commands import Change, ChangeWhere, CreateCollection, Delete, Patch
from needle.shard.documents import scans
from needle.shard.documents.store import DocumentStore
from needle.shard.reads import Page
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec

COUNT = 200
IDS = [f"d{n:03}" for n in range(COUNT)]
ROWS = {id_: {"n": n, "kind": "odd" if n % 2 else "even", "list": [n] * (n % 4)} for n, id_ in enumerate(IDS)}
FILTERS: list[dict[str, Any]] = [
    {"$ids": ["d003", "d150", "no such document"]},
    {"$ids": ["d003", "d004", "d005"], "kind": "odd"},
    {"$or": [{"$ids": ["d001"]}, {"n": {"$lt": 5}, "$ids": ["d002", "d090"]}]},
    {"$and": [{"$ids": ["d001", "d002"]}, {"$not": {"$ids": ["d002"]}}, {"list": {"$size": 1}}]},
    {"$ids": []},
]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("needle.shard.reads.SCAN_LOOKS", 20)
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    replica.apply(log.add(put(IDS, [[n, 2, 3] for n in range(COUNT)], list(ROWS.values()))))
    yield replica, log
    replica.close()


def wanted(where: dict[str, Any]) -> list[str]:
    return [id_ for id_, row in ROWS.items() if filter_reference.matches(where, row, id_)]


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_searches_counts_scans_and_changes_read_nothing_else(
    filled: tuple[Replica, Log], where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, log = filled
    for reads_all in ("page", "scan", "live"):
        monkeypatch.setattr(DocumentStore, reads_all, lambda *_, **__: pytest.fail("all documents are read"))
    whole = DocumentStore.metadata_between

    def some(store: DocumentStore, collection: int, first: int, end: int) -> Any:
        assert end - first < 10, "an index is made"
        return whole(store, collection, first, end)

    monkeypatch.setattr(DocumentStore, "metadata_between", some)
    json_ = Filter.parse(where).to_json()
    found = wanted(where)
    assert replica.count_matching("c", json_)[0] == len(found)
    page = replica.scan(Page("c", json_, "", 100, False))
    assert [one.id for one in page.documents] == found and page.reached is None
    hits = replica.search(SearchRequest(collection="c", vector=floats([0, 0, 0]), k=9, filter=json_))
    assert hits.ids == found
    change = Change(set=[("seen", b"true")])
    (result,) = replica.apply(log.add(ChangeWhere("c", json_, change, return_ids=True)))
    assert (result.ids, result.reached) == (found, -1)
    (result,) = replica.apply(log.add(ChangeWhere("c", json_, None, return_ids=True)))
    assert (result.ids, result.reached) == (found, -1)


def test_a_change_of_many_named_documents_goes_on_where_its_part_ended(filled: tuple[Replica, Log]) -> None:
    replica, log = filled
    where, done, after, upto = Filter.parse({"$ids": IDS[10:60], "kind": "odd"}).to_json(), [], -1, -1
    for _ in range(50):
        command = ChangeWhere("c", where, Change(set=[("m", b"1")]), after, upto, 4, looks=7, return_ids=True)
        (result,) = replica.apply(log.add(command))
        assert len(result.ids) <= 4
        done += result.ids
        after, upto = result.reached, result.upto
        if after < 0:
            break
    assert done == IDS[11:60:2]


def stored_of(replica: Replica) -> Any:
    """What looks ids up for the searches of the one collection."""
    opened = replica._states.opened
    assert opened is not None
    return next(iter(opened.live.numbered.values()))._stored


def test_a_search_of_an_earlier_moment_finds_what_was_there_then(filled: tuple[Replica, Log]) -> None:
    """A search keeps its view while documents are replaced, changed and deleted: their ids lead elsewhere by now."""
    replica, log = filled
    view = replica.view.collection("c")
    stored, universe = stored_of(replica), view.live.bitmap() - BitMap([9])
    asked = ["d003", "d004", "d005", "d006", "d009", "none"]
    assert list(stored.placed(asked, universe)) == [3, 4, 5, 6]
    replica.apply(log.add(put(["d003", "new"], [[1, 1, 1]] * 2, [{}] * 2)))
    replica.apply(log.add(Delete("c", ["d004", "d100"])))
    replica.apply(log.add(Patch("c", ["d005"], Change(set=[("n", b"0")]))))
    assert list(stored.placed([*asked, "new"], universe)) == [3, 4, 5, 6]
    assert list(stored.placed(["d003"], universe)) == [3]
    now = replica.view.collection("c").live.bitmap()
    assert len(stored.placed([*asked, "new"], now)) == 5  # without d004
    node = Filter.ids(["d003", "d005", "d100"]).node
    assert list(view.payload.within(node, view.record.next_ordinal, universe)) == [3, 5, 100]


def test_a_condition_may_name_ids(filled: tuple[Replica, Log]) -> None:
    replica, log = filled
    only = Filter.ids(["d001", "d002"]).to_json()
    (kept,) = replica.apply(log.add(Delete("c", ["d001", "d003"], matches=only)))
    assert type(kept).__name__ == "ConditionFailed" and kept.details["id"] == "d003"
    (gone,) = replica.apply(log.add(Delete("c", ["d001", "d002"], matches=only)))
    assert gone.count == 2
    (seen,) = replica.get("c", ["d003", "d005"], False, None, Filter.ids(["d003"]).to_json())
    assert (seen.id, json.loads(seen.metadata)) == ("d003", ROWS["d003"])
    assert replica.get("c", ["d003"], False, None, Filter.ids(["d004"]).to_json()) == []


def test_ids_that_are_not_there_cost_what_died_since_not_all_that_is_dead(
    filled: tuple[Replica, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, log = filled
    for n in range(50):
        replica.apply(log.add(put(IDS[:40], [[n + 1, 2, 3]] * 40)))
    monkeypatch.setattr(DocumentStore, "graves", lambda *_: pytest.fail("all dead rows are read"))
    asked, placed = list[int](), scans.placed

    def counting(*arguments: Any) -> BitMap:
        *rest, died = arguments

        def counted() -> BitMap:
            found: BitMap = died()
            asked.append(len(found))
            return found

        return placed(*rest, counted)

    monkeypatch.setattr(scans, "placed", counting)
    request = SearchRequest(
        collection="c", vector=floats([1, 2, 3]), k=10, filter=json.dumps({"$ids": ["d003", "no"]}).encode()
    )
    assert replica.search(request).ids == ["d003"]
    assert asked == [0]


def test_ids_of_documents_that_a_batch_replaces_are_found_before_memory_has_it(filled: tuple[Replica, Log]) -> None:
    """The file may have a batch that no view has yet."""
    replica, log = filled
    view, stored = replica.view.collection("c"), stored_of(replica)
    fresh = stored.live
    replica.apply(log.add(Delete("c", ["d003"])))
    stored.live = fresh  # as another thread may see it between the two
    assert list(stored.placed(["d003", "d004", "no"], view.live.bitmap())) == [3, 4]
