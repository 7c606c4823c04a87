"""Field indexes against a plain reading of the docs: any JSON, any filter, whatever is indexed, while writes go on."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from base import filter_reference
from base.filter_strategies import IDS, LONG, conditions, documents
from needle.base.errors import DeadlineExceeded, InvalidArgument, StorageError
from needle.base.filters.builder import Filter
from needle.base.filters.operators import OPERATORS
from needle.base.model import HitBatch, SearchRequest
from needle.protocol.commands import CreateCollection
from needle.shard.documents.metadata_rows import Rows, rows_of
from needle.shard.fields import field as field_module
from needle.shard.fields import field_index, filter_match, index_budget, payload_index, reader
from needle.shard.fields.field_index import IMPLIED, MATCHERS
from needle.shard.fields.index_budget import IndexBudget, IndexRows
from needle.shard.fields.payload_index import PayloadIndex
from shard.replica_util import Log, open_replica, put, spec

PLENTY = 1 << 30


def name_of(ordinal: int) -> str:
    """Of three versions of a document, one after the other."""
    return IDS[ordinal // 3 % len(IDS)]


class Store:
    """Documents as SQLite would hand them out; `gone` are purged. read: how many rows were."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.gone = BitMap()
        self.read = 0

    def _rows(self, ordinals: Any) -> Rows:
        there = [(at, self.rows[at]) for at in ordinals if at < len(self.rows) and at not in self.gone]
        self.read += len(there)
        return rows_of(there)

    def placed(self, ids: Sequence[str], universe: BitMap) -> BitMap:
        return BitMap([at for at in universe if at not in self.gone and name_of(at) in ids])

    def between(self, first: int, end: int) -> Rows:
        return self._rows(range(first, end))

    def some(self, ordinals: Sequence[int]) -> Rows:
        return self._rows(ordinals)

    def append(self, index: PayloadIndex, *metadata: Any) -> None:
        new = [(len(self.rows) + at, b"" if m is None else json.dumps(m).encode()) for at, m in enumerate(metadata)]
        self.rows += [data for _, data in new]
        index.add(new)


def made(*metadata: Any, bytes_max: int = PLENTY) -> tuple[Store, PayloadIndex, IndexBudget]:
    store, budget = Store(), IndexBudget(bytes_max)
    index = PayloadIndex(store, budget)
    store.append(index, *metadata)
    return store, index, budget


def brute(store: Store, condition: dict[str, Any], end: int, dead: BitMap) -> list[int]:
    decoded = [json.loads(row) if row else None for row in store.rows[:end]]
    holds = filter_reference.matches
    return [at for at, one in enumerate(decoded) if at not in dead and holds(condition, one, name_of(at))]


def ask(index: PayloadIndex, condition: Filter, end: int) -> BitMap:
    """Of a view in which nothing is dead."""
    return index.within(condition.node, end, BitMap(range(end)))


def parsed(condition: dict[str, Any]) -> Filter | None:
    """As it comes over the wire: no text in it is the very object that the condition was written with."""
    try:
        return Filter.from_json(Filter.parse(condition).to_json())
    except InvalidArgument:  # ordered by a text that is an instant
        return None


def test_the_index_knows_every_operator() -> None:
    assert MATCHERS.keys() | IMPLIED == OPERATORS.keys()


@pytest.mark.parametrize("name", ["straße", "日本", "\U0001f600", "x\u0301", 'a"b\\c', "\x00", " ", "a\n", "x" * 300])
def test_a_field_is_found_whatever_letters_its_name_has(name: str) -> None:
    """Though the decoder of many documents is told which keys to keep."""
    store, index, _ = made({name: 1}, {name: "b", "x": 2}, {"x": 2}, {"x": {name: "b"}})
    for condition in ({name: 1}, {name: "b", "x": 2}, {name: {"$exists": False}}, {f"x.{name}": "b"}):
        node = Filter.from_json(Filter.parse(condition).to_json())
        assert list(ask(index, node, 4)) == brute(store, condition, 4, BitMap()), condition


steps = st.one_of(
    st.tuples(st.just("add"), st.lists(documents, min_size=1, max_size=8)),
    st.tuples(st.just("kill"), st.sets(st.integers(0, 60), max_size=8)),
    st.tuples(st.just("purge"), st.none()),
    st.tuples(st.just("work"), st.integers(1, 4)),
    st.tuples(st.just("ask"), conditions),
    st.tuples(st.just("ask"), conditions),
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(documents, max_size=12),
    st.lists(steps, min_size=1, max_size=12),
    st.lists(conditions, min_size=1, max_size=4),
    st.sampled_from([0, 5_000, 140_000, PLENTY]),
    st.sampled_from([(0, 1 << 30), (0, 1 << 30), (5, 2), (64, 8)]),
)
def test_whatever_is_indexed_the_answer_is_what_the_docs_say(
    first: list[Any], course: list[tuple[str, Any]], asked: list[dict[str, Any]], room: int, reading: tuple[int, int]
) -> None:
    """Asks between writes, deletes, purges and background work, of the newest view and of older ones; with an index
    from the first document on or only for many, and with room for all, some or no indexes."""
    store, index, budget = made(*first, bytes_max=room)
    dead = BitMap()
    views: list[tuple[int, BitMap]] = []
    with pytest.MonkeyPatch.context() as patch:
        budget.rows = IndexRows(few=reading[0])
        patch.setattr(payload_index, "READ_SHARE", reading[1])
        patch.setattr(filter_match, "READ_COST", reading[0])
        patch.setattr(field_module, "BLOAT_ROWS", 2)
        patch.setattr(index_budget, "IDLE_USES", 3)
        for what, value in [*course, *(("ask", condition) for condition in asked)]:
            end = len(store.rows)
            if what == "add":
                store.append(index, *value)
            elif what == "kill":
                dead = dead | BitMap([one for one in value if one < end])
            elif what == "purge":  # who still looks at an older view has left
                store.gone, views = dead, []
            elif what == "work":
                for _ in range(value):
                    budget.work()
            elif (condition := parsed(value)) is not None:
                views.append((end, dead))
                for seen, gone in views[-3:]:
                    found = index.within(condition.node, seen, BitMap(range(seen)) - gone)
                    assert list(found) == brute(store, value, seen, gone), condition
            assert 0 <= budget.used <= room


def test_every_bound_of_every_ordered_operator() -> None:
    numbers = [{"a": n / 2, "s": "x" * n, "u": LONG + "y" * n} for n in range(6)]
    exact = [{"a": n, "s": str(n)} for n in (2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**30)]
    store, index, budget = made(*numbers, *exact, {"a": "x"}, {"a": True}, {}, None, {"s": "x\x00"}, {"s": "x\x00y"})
    budget.rows = IndexRows(few=0)
    wanted = {
        "a": [*(n / 4 for n in range(-1, 12)), 2**53, 2**53 + 1, float(2**63), 2**63, 2**63 - 1, 2**64 - 1, -1e300],
        "s": ["", "x", "xx", "xxy", "x\x00", "x\x00x", "9"],
        "u": [LONG, LONG[:47], LONG[:46], LONG + "y", LONG[:60] + "z", "z", LONG[:64]],
    }
    ask(index, Filter.parse(dict.fromkeys(wanted, 1)), len(store.rows))
    assert index.indexed() == [*wanted]
    for field, bounds in wanted.items():
        pairs = [(op, bound) for op in ("$gt", "$gte", "$lt", "$lte", "$eq", "$ne") for bound in bounds]
        pairs += [("$between", [low, high]) for low in bounds for high in bounds]  # type: ignore[list-item]
        if field != "a":
            pairs += [(op, text) for op in ("$starts_with", "$contains") for text in bounds]
        for op, bound in pairs:
            condition = {field: {op: bound}}
            found = ask(index, Filter.parse(condition), len(store.rows))
            assert list(found) == brute(store, condition, len(store.rows), BitMap()), condition


def test_documents_that_arrive_while_a_field_is_being_indexed_are_in_it() -> None:
    class Busy(Store):
        def between(self, first: int, end: int) -> Rows:
            found = super().between(first, end)
            if len(self.rows) == 1000:
                self.append(index, {"n": 1})  # apply stores it and tells the index, which does not have the field yet
            return found

    store = Busy()
    index = PayloadIndex(store, IndexBudget(PLENTY))
    store.append(index, *({"n": 1 if n < 2 else 5} for n in range(1000)))
    condition = Filter.eq("n", 1)
    assert list(ask(index, condition, 1000)) == [0, 1]
    assert list(ask(index, condition, 1001)) == [0, 1, 1000]


def test_only_what_the_indexed_conditions_leave_is_read() -> None:
    store, index, budget = made(*({"u": f"doc-{n}", "k": n % 1000} for n in range(20_000)))
    ask(index, Filter.eq("k", 1), 20_000)
    store.read = 0
    both = Filter.parse({"k": 7, "u": {"$contains": "7"}})
    assert list(ask(index, both, 20_000)) == [n for n in range(7, 20_000, 1000) if "7" in str(n)]
    assert store.read == 20
    assert index.indexed() == ["k"]
    while budget.waits:
        budget.work()
    assert index.indexed() == ["k", "u"]
    store.read = 0
    assert list(ask(index, Filter.eq("u", "doc-77"), 20_000)) == [77]
    assert len(ask(index, Filter.contains("u", "77"), 20_000)) == sum("77" in str(n) for n in range(20_000))
    assert store.read == 0
    # Twenty documents are read rather than looking at all the texts that the index has.
    assert list(ask(index, both, 20_000)) == [n for n in range(7, 20_000, 1000) if "7" in str(n)]
    assert store.read == 20


def test_searches_that_need_the_same_index_make_it_once() -> None:
    store, index, _ = made(*({"u": n} for n in range(5_000)))
    found: list[list[int]] = []

    def search(n: int) -> None:
        found.append(list(ask(index, Filter.eq("u", n), 5_000)))

    threads = [threading.Thread(target=search, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [[0], [1], [2], [3]]
    assert store.read == 5_000


def test_apply_never_waits_for_a_search() -> None:
    """A search stands still in the middle of its reading: whatever it holds, apply does not need it."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Store):
        def between(self, first: int, end: int) -> Rows:
            entered.set()
            assert go_on.wait(30)
            return super().between(first, end)

    store = Slow()
    index = PayloadIndex(store, IndexBudget(PLENTY))
    store.append(index, *({"u": n} for n in range(5_000)))
    found: list[int] = []
    search = threading.Thread(target=lambda: found.extend(ask(index, Filter.gte("u", 10), 5_000)))
    search.start()
    assert entered.wait(30)
    applied = threading.Thread(target=lambda: store.append(index, {"u": 1}), daemon=True)
    applied.start()
    applied.join(10)
    stuck = applied.is_alive()
    go_on.set()
    search.join(30)
    assert not stuck
    assert found == list(range(10, 5_000))


def test_fields_that_do_not_exist_take_no_room_from_those_that_do() -> None:
    store, index, budget = made(*({"k": n % 10} for n in range(300)))
    for n in range(payload_index.FIELDS_MAX + 50):
        assert not ask(index, Filter.eq(f"absent{n}", 1), 300)
        if n == 0:
            assert len(ask(index, Filter.eq("k", 1), 300)) == 30
    assert "k" in index.indexed() and len(index.indexed()) <= payload_index.FIELDS_MAX
    assert budget.used < payload_index.FIELDS_MAX * 5_000 + 200_000
    store.read = 0
    assert len(ask(index, Filter.eq("k", 2), 300)) == 30
    assert store.read == 0


def test_what_does_not_fit_is_read_and_what_is_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_budget, "IDLE_USES", 5)
    rows = [{"u": f"{n:040d}", "v": f"{n:040d}", "k": n % 2} for n in range(4_000)]
    store, index, budget = made(*rows, bytes_max=450_000)
    for field in ("u", "v"):
        for _ in range(2):
            assert list(ask(index, Filter.eq(field, f"{5:040d}"), 4_000)) == [5]
            assert budget.used <= 450_000
    assert index.indexed() == ["u"]
    for n in range(20):  # "u" is not asked for any more
        assert list(ask(index, Filter.eq("v", f"{n:040d}"), 4_000)) == [n]
    assert index.indexed() == ["v"] and budget.evicted == 1
    store.read = 0
    assert list(ask(index, Filter.eq("v", f"{9:040d}"), 4_000)) == [9]
    assert store.read == 0
    index.close()
    assert budget.used == 0
    assert list(ask(index, Filter.eq("v", f"{9:040d}"), 4_000)) == [9]
    assert budget.used == 0 and not budget.waits


def test_an_index_that_is_taken_back_while_it_is_made_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PIECE_ROWS_MAX", 100)
    store, index, budget = made(*({"k": n % 2} for n in range(1_000)))
    index.prepare([(("k",), False)], 1_000, 1_000)
    assert index.work()
    (field,) = index._fields.values()
    assert 0 < field.state.end < 1_000
    between = store.between

    def taken_back(first: int, end: int) -> Rows:
        budget.release(field)  # as another field's need for room does, in any thread
        return between(first, end)

    with monkeypatch.context() as patched:
        patched.setattr(store, "between", taken_back)
        assert index.work()
    assert len(ask(index, Filter.eq("k", 1), 1_000)) == 500


def test_an_index_that_only_the_background_made_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower was never searched: that is no sign that its documents are dead."""
    monkeypatch.setattr(field_module, "BLOAT_ROWS", 50)
    store, index, budget = made(*({"k": n} for n in range(1_000)))
    index._tail.give_back()
    index.prepare([(("k",), False)], 1_000, 1_000)
    while budget.waits:
        budget.work()
    assert index.indexed() == ["k"] and store.read <= 1_000


def test_replaced_documents_leave_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small collection that is updated forever keeps a small index, and is asked all the while."""
    monkeypatch.setattr(field_module, "BLOAT_ROWS", 500)
    store, index, budget = made(*({"k": n} for n in range(100)))
    dead, held = BitMap(), []
    for turn in range(100):
        end = len(store.rows)
        assert list(index.within(Filter.gte("k", 50).node, end, BitMap(range(end)) - dead)) == list(
            range(end - 50, end)
        )
        dead = BitMap(range(end))
        store.append(index, *({"k": n} for n in range(100)))
        if turn % 5 == 0:
            store.gone = BitMap(range(end))
        while budget.waits:
            budget.work()
        held.append(budget.used)
    assert max(held[50:]) <= max(held[:50])


def test_a_follower_has_the_indexes_that_its_leader_used() -> None:
    rows = [{"u": f"doc-{n}", "at": "2024-01-01T00:00:00Z"} for n in range(1_000)]
    _, leading, leader = made(*rows)
    store, following, follower = made(*rows)
    for condition in (Filter.eq("u", "x"), Filter.parse({"at": {"$date": "2024-01-01T00:00:00Z"}}), Filter.eq("no", 1)):
        for _ in range(2):
            ask(leading, condition, 1_000)
    told = leader.recent()
    assert told == [(0, ("u",), False), (0, ("at",), True)]
    for end in (1_000, 1_100):
        following.prepare([name[1:] for name in told], end, end)
        while follower.waits:
            follower.work()
        store.read = 0
        assert list(ask(following, Filter.eq("u", "doc-7"), end)) == [7, *([1_007] if end > 1_007 else [])]
        assert len(ask(following, Filter.parse({"at": {"$date": "2024-01-01T01:00:00+01:00"}}), end)) == end
        assert store.read == 0
        store.append(following, *rows[:100])


def test_stored_metadata_that_is_no_json_is_an_error_not_a_silent_miss() -> None:
    for broken in (b"{broken", b"1,2", b""):
        store, index, budget = made(*({"a": 1} for _ in range(500)))
        store.rows[250] = broken
        if broken == b"":  # is null
            assert len(ask(index, Filter.eq("a", 1), 500)) == 499
            continue
        for _ in range(2):
            with pytest.raises(StorageError, match="JSON"):
                ask(index, Filter.eq("a", 1), 500)
        budget.ask(index)
        while budget.waits:
            budget.work()


def test_filtered_search_is_exact_and_sees_one_applied_index_while_writes_go_on(tmp_path: Any) -> None:
    """Each batch i adds documents with n = i and replaces the marker: a search never mixes two batches."""
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    rng = np.random.default_rng(0)
    entries = [
        log.add(
            put(
                [*(f"{i}-{j}" for j in range(20)), "marker"],
                rng.normal(size=(21, 3)).tolist(),
                [*({"n": i} for _ in range(20)), {"n": i, "marker": True}],
            )
        )
        for i in range(60)
    ]
    wrong: list[str] = []
    done = threading.Event()

    def search() -> None:
        kept = Filter.any_(Filter.exists("marker"), Filter.gte("n", 0)).to_json()
        marker = Filter.eq("marker", True).to_json()
        query = np.zeros(3, "<f4").tobytes()
        while not done.is_set():
            batch = replica.search(SearchRequest(collection="c", vector=query, k=10_000, filter=kept, exact=True))
            batches = batch.applied_index - 1
            if len(batch.ids) != 20 * batches + (batches > 0):
                wrong.append(f"{len(batch.ids)} hits at {batch.applied_index}")
            one = replica.search(SearchRequest(collection="c", vector=query, k=5, filter=marker))
            expected = [one.applied_index] if one.applied_index > 1 else []
            if one.versions != expected:
                wrong.append(f"marker {one.versions} at {one.applied_index}")

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for at, batch in enumerate(entries):
            replica.apply(batch)
            if at % 10 == 9:
                replica.checkpoint()
    finally:
        done.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)
    replica.close()


@pytest.mark.parametrize("many", ["$or", "$and"])
def test_a_filter_is_not_worked_on_for_nobody(tmp_path: Any, many: str) -> None:
    """A search that has begun ends soon after its time is over, however much its filter asks for: others wait for the
    thread. Of two that share the work, the other one's answer is finished."""
    replica, log = open_replica(tmp_path), Log()
    rows = range(300)
    texts = [{"t": f"{at} {'x' * 50}"} for at in rows]
    replica.apply(log.add(CreateCollection(spec()), put([f"d{at}" for at in rows], [[at, 0, 0] for at in rows], texts)))
    asked = {many: [{"$not": {"t": {"$contains": f"y{at}"}}} for at in range(500)]}
    query = np.zeros(3, "<f4").tobytes()
    request = SearchRequest(collection="c", vector=query, k=3, filter=Filter.parse(asked).to_json())
    looks: list[int] = []

    def for_a_while(at: int) -> bool:
        looks.append(at)
        return len(looks) <= 5

    (late,) = replica.search_many([request], for_a_while)
    assert isinstance(late, DeadlineExceeded)
    assert len(looks) == 6

    found = replica.search_many([request, request], lambda at: at == 1 or for_a_while(at))
    assert isinstance(found[1], HitBatch)
    assert found[1].ids == ["d0", "d1", "d2"]
    replica.close()


def test_documents_are_not_read_for_nobody() -> None:
    """The same where there is no room for an index."""
    store, index, _ = made(*({"t": at} for at in range(3000)), bytes_max=0)
    looks = 0

    def twice() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise DeadlineExceeded("over")

    with pytest.raises(DeadlineExceeded):
        index.within(Filter.gt("t", 5).node, 3000, BitMap(range(3000)), go_on=twice)
    assert 0 < store.read < 3000


def test_what_waits_no_more_is_seen_between_few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are read at a time: each is judged by up to a thousand conditions."""
    _, index, _ = made(*({"t": at} for at in range(3000)), bytes_max=0)
    since = worst = 0

    def judged(*_: Any) -> bool:
        nonlocal since, worst
        since, worst = since + 1, max(worst, since + 1)
        return True

    def looked() -> None:
        nonlocal since
        since = 0

    monkeypatch.setattr(payload_index, "evaluate", judged)
    found = index.within(Filter.gt("t", 5).node, 3000, BitMap(range(3000)), go_on=looked)
    assert len(found) == 3000 and 0 < worst <= 64


def test_values_that_a_field_must_all_have_are_asked_for_once_and_only_as_long_as_something_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each takes a set of all documents."""
    _, index, _ = made(*({"t": ["a", "b", 1]} for _ in range(100)))
    asked, equal = [], field_index._equal

    def counted(known: Any, value: Any) -> Any:
        asked.append(value)
        return equal(known, value)

    monkeypatch.setattr(field_index, "_equal", counted)
    assert len(ask(index, Filter.all("t", ["a", 1, "b", 1.0] * 2000), 100)) == 100
    assert asked == ["a", 1, "b"]
    asked.clear()
    assert not ask(index, Filter.all("t", [True, *map(str, range(5000))]), 100)
    assert asked == [True]
