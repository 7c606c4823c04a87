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


def test_a_search_of_an_earlier_moment_finds_what_was_there_then(filled: tuple[Replica, Log]) -> None:
    """A search keeps its view while documents are replaced, changed and deleted: their ids lead elsewhere by now."""
    replica, log = filled
    view = replica.view.collection("c")
    store, universe = replica.view.store, view.live.bitmap() - BitMap([9])
    asked = ["d003", "d004", "d005", "d006", "d009", "none"]
    assert list(store.placed(view.record.id, asked, universe)) == [3, 4, 5, 6]
    replica.apply(log.add(put(["d003", "new"], [[1, 1, 1]] * 2, [{}] * 2)))
    replica.apply(log.add(Delete("c", ["d004", "d100"])))
    replica.apply(log.add(Patch("c", ["d005"], Change(set=[("n", b"0")]))))
    assert list(store.placed(view.record.id, [*asked, "new"], universe)) == [3, 4, 5, 6]
    assert list(store.placed(view.record.id, ["d003"], universe)) == [3]
    now = replica.view.collection("c").live.bitmap()
    assert len(store.placed(view.record.id, [*asked, "new"], now)) == 5  # without d004
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
