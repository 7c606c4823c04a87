"""Declared indexes: made without a search, kept rather than others, and told of as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from needle.base.collection_sizes import FieldIndex
from needle.base.errors import CollectionNotFound
from needle.base.filters.builder import Filter
from needle.base.sparse import SPARSE_KIND
from needle.protocol.commands import CreateCollection
from needle.shard.fields import index_budget, payload_index
from needle.shard.fields.filter_match import Key
from needle.shard.fields.index_budget import IndexBudget
from needle.shard.state_machine import Replica
from shard.replica_util import put, spec
from shard.test_field_files import fetched, filled, found, opened, save
from shard.test_payload_index import ask, made

__all__ = ["fetched"]

U: list[Key] = [(("u",), False), (("u",), True)]
ROWS = [{"u": f"{n:040d}", "v": f"{n:040d}", "k": n % 2} for n in range(4_000)]


def worked(budget: IndexBudget) -> None:
    while budget.waits:
        budget.work()


def work(replica: Replica) -> None:
    worked(replica.field_indexes)


def state(replica: Replica, field: str = "n") -> str:
    return replica.sizes()[0][1].fields[field].state


def test_a_declared_field_is_indexed_without_a_search() -> None:
    store, index, budget = made(*ROWS)
    index.declare(U, 4_000, 4_000)
    assert index.declared()["u"].state == "building"
    worked(budget)
    told = index.declared()["u"]
    assert told.state == "ready" and 4_000 * 40 < told.bytes == index.bytes_held() - index._tail.nbytes + 131072
    store.read = 0
    assert list(ask(index, Filter.eq("u", ROWS[7]["u"]), 4_000)) == [7] and store.read == 0
    index.declare([], 4_000, 4_000)
    assert index.declared() == {} and "u" in index.indexed()


def test_a_declared_field_takes_the_place_of_others_and_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that is asked for all the time; and is not given up for that however long nobody asks for it."""
    monkeypatch.setattr(index_budget, "IDLE_USES", 3)
    _, index, budget = made(*ROWS, bytes_max=400_000)
    assert list(ask(index, Filter.eq("v", ROWS[5]["v"]), 4_000)) == [5]
    assert "v" in index.indexed()
    index.declare(U, 4_000, 4_000)
    worked(budget)
    assert index.declared()["u"].state == "ready" and "v" not in index.indexed()
    for n in range(20):
        assert list(ask(index, Filter.eq("v", ROWS[n]["v"]), 4_000)) == [n]
        worked(budget)
    assert index.declared()["u"].state == "ready"
    index.declare([], 4_000, 4_000)
    for n in range(20):
        assert list(ask(index, Filter.eq("v", ROWS[n]["v"]), 4_000)) == [n]
    assert "v" in index.indexed() and budget.used <= 400_000


def test_many_made_up_names_do_not_push_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_index, "FIELDS_MAX", 4)
    _, index, budget = made({"k": 1})
    index.declare([(("later",), False)], 1, 1)
    worked(budget)
    for n in range(10):
        ask(index, Filter.eq(f"absent{n}", 1), 1)
    assert index.declared()["later"].state == "ready"


def test_what_the_bound_does_not_hold_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, index, budget = made(*ROWS, bytes_max=200_000)
    assert budget.bytes_max < index.room(("u",), 4_000, 4_000)[0]
    index.declare(U, 4_000, 4_000)
    worked(budget)
    assert index.declared()["u"].state == "no_room"
    assert list(ask(index, Filter.eq("u", ROWS[7]["u"]), 4_000)) == [7]
    store.read = 0
    index.declare(U, 4_000, 4_000)
    worked(budget)
    assert store.read == 0 and index.declared()["u"].state == "no_room"
    budget.bytes_max = 1 << 20
    index.declare(U, 4_000, 4_000)
    worked(budget)
    assert index.declared()["u"].state == "ready"


def test_what_an_index_takes_is_judged_before_it_is_made() -> None:
    _, index, budget = made(*ROWS)
    needs, room = index.room(("u",), 4_000, 4_000)
    index.declare(U, 4_000, 4_000)
    worked(budget)
    took = sum(one.nbytes for one in index._fields.values())
    assert took / 2 < needs < took * 2 and room == budget.bytes_max
    assert index.room(("u",), 4_000, 4_000)[1] == budget.bytes_max
    assert index.room(("v",), 4_000, 4_000)[1] == budget.bytes_max - took
    _, empty, _ = made()
    assert empty.room(("u",), 0, 0)[0] < 10_000


def test_a_replica_tells_and_has_it_again_after_a_restart(tmp_path: Path, fetched: list[int]) -> None:
    replica, log = filled(tmp_path, [1, 2, 1])
    replica.apply(log.add(CreateCollection(spec("other"))))
    replica.held.declare_fields({"c": ["n", "m.x"], "gone": ["n"]}, {}, {})
    assert state(replica) == state(replica, "m.x") == "building"
    work(replica)
    assert state(replica) == state(replica, "m.x") == "ready"
    assert replica.sizes()[1][1].fields == {}
    save(replica)
    replica.close()
    replica = opened(tmp_path)
    assert replica.sizes()[0][1].fields == {}
    fetched.clear()
    replica.held.declare_fields({"c": ["n"]}, {}, {})
    work(replica)
    assert state(replica) == "ready" and found(replica, 1) == ["d0", "d2"]
    assert 0 not in fetched or len(fetched) == 1  # of instants, of which there are none, and so no file
    replica.apply(log.add(put(["e"], [[0.0] * 3], [{"n": 1}])))
    replica.held.declare_fields({"c": ["n"]}, {}, {})
    work(replica)
    fetched.clear()
    assert found(replica, 1) == ["d0", "d2", "e"] and fetched == []
    replica.held.declare_fields({}, {}, {})
    assert replica.sizes()[0][1].fields == {}
    needs, room = replica.held.index_room("c", "n")
    assert 0 < needs < room
    rows = [{"s": {"indices": list(range(at, at + 100)), "values": [1.0] * 100}} for at in range(50)]
    replica.apply(log.add(put([f"s{at}" for at in range(50)], [[0.0] * 3] * 50, rows)))
    plain, sparse = replica.held.index_room("c", "s")[0], replica.held.index_room("c", "s", SPARSE_KIND)[0]
    assert sparse > 50 * 100 * 8 > plain, "8 bytes for each weight; a plain index of objects has no values"
    with pytest.raises(CollectionNotFound):
        replica.held.index_room("gone", "n")
    replica.close()


def test_states_of_several_shards_are_one() -> None:
    ready, building, none = (FieldIndex(state=one, bytes=5) for one in ("ready", "building", "no_room"))
    assert ready + ready == FieldIndex(state="ready", bytes=10)
    assert (ready + building).state == (building + ready).state == "building"
    assert (building + none).state == "no_room"
