"""Bitmaps against the definition of filters: any JSON, any filter, indexed or scanned, before and after more writes."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from needle.base.commands import CreateCollection
from needle.base.errors import StorageError
from needle.base.filters import Filter
from needle.base.model import SearchRequest
from needle.shard.payload_index import PayloadIndex
from shard.replica_util import Log, open_replica, put, spec

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([2**53, 2**53 + 1, 0.5, 1.0, -0.0]),
    st.sampled_from(["", "a", "ab", "abc", "b", "é", "\U0001f600"]),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=6,
)
documents = st.none() | scalars | st.dictionaries(st.sampled_from(["a", "b", "c"]), trees, max_size=3)
paths = st.sampled_from(["a", "b", "a.b", "a.a.b", "c"])
texts = st.sampled_from(["", "a", "ab", "b", "é"])
numbers = st.sampled_from([-1, 0, 1, 0.5, 2**53, 2**53 + 1, float(2**53)])


@st.composite
def leaves(draw: st.DrawFn) -> dict[str, Any]:
    op = draw(
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$between", "$contains"])
        | st.sampled_from(["$starts_with", "$exists", "$all"])
    )
    value: Any
    if op in ("$eq", "$ne"):
        value = draw(scalars)
    elif op in ("$in", "$nin", "$all"):
        value = draw(st.lists(scalars, max_size=3))
    elif op == "$between":
        value = draw(st.tuples(numbers, numbers) | st.tuples(texts, texts))
    elif op in ("$contains", "$starts_with"):
        value = draw(texts)
    else:
        value = draw(st.booleans()) if op == "$exists" else draw(numbers | texts)
    return {draw(paths): {op: value}}


conditions = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


class Stored:
    """Rows as SQLite would hand them out."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []

    def __call__(self, first: int, end: int) -> list[tuple[int, bytes]]:
        return list(enumerate(self.rows))[first:end]

    def append(self, index: PayloadIndex, *metadata: Any) -> None:
        new = [(len(self.rows) + at, b"" if m is None else json.dumps(m).encode()) for at, m in enumerate(metadata)]
        self.rows += [data for _, data in new]
        index.add(new)


def brute(stored: Stored, condition: Filter, dead: BitMap) -> list[int]:
    decoded = [json.loads(row) if row else None for row in stored.rows]
    return [at for at, metadata in enumerate(decoded) if at not in dead and condition.matches(metadata)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(documents, max_size=12),
    st.lists(documents, max_size=8),
    st.lists(conditions, min_size=1, max_size=4),
    st.sets(st.integers(0, 19), max_size=6),
    st.sampled_from([0, 1, 3, 1000]),
)
def test_bitmaps_agree_with_the_definition(
    before: list[Any], after: list[Any], asked: list[dict[str, Any]], gone: set[int], values_max: int
) -> None:
    stored = Stored()
    index = PayloadIndex(stored, values_max)
    stored.append(index, *before)
    for more in ([], after):
        stored.append(index, *more)
        end = len(stored.rows)
        dead = BitMap([ordinal for ordinal in gone if ordinal < end])
        for condition in map(Filter.parse, asked):
            found = index.matching(condition.node, end, dead)
            assert list(found) == brute(stored, condition, dead), condition
        # A view from before the new documents still gets its own state.
        old = index.matching(Filter.parse(asked[0]).node, min(len(before), end), BitMap())
        assert all(ordinal < len(before) for ordinal in old)


def test_every_bound_of_every_ordered_operator() -> None:
    stored = Stored()
    index = PayloadIndex(stored)
    stored.append(index, *({"a": n / 2, "s": "x" * n} for n in range(6)), {"a": "x"}, {"a": True}, {}, None)
    for field, bounds in (("a", [n / 4 for n in range(-1, 12)]), ("s", ["", "x", "xx", "xxy"])):
        pairs = [(op, bound) for op in ("$gt", "$gte", "$lt", "$lte", "$eq", "$ne") for bound in bounds]
        pairs += [("$between", [low, high]) for low in bounds for high in bounds]  # type: ignore[misc]
        for op, bound in pairs:
            condition = Filter.parse({field: {op: bound}})
            assert list(index.matching(condition.node, 10, BitMap())) == brute(stored, condition, BitMap()), condition


def test_documents_that_arrive_while_a_field_is_being_indexed_are_in_it() -> None:
    stored = Stored()
    calls = 0

    def rows(first: int, end: int) -> list[tuple[int, bytes]]:
        nonlocal calls
        calls += 1
        found = stored(first, end)
        if calls == 1:
            stored.append(index, {"n": 1})  # apply stores it and tells the index, which does not have the field yet
        return found

    index = PayloadIndex(rows)
    stored.append(index, {"n": 1})
    condition = Filter.eq("n", 1)
    assert list(index.matching(condition.node, 1, BitMap())) == [0]
    assert list(index.matching(condition.node, 2, BitMap())) == [0, 1]


def test_a_field_where_every_value_differs_is_scanned_and_still_exact() -> None:
    stored = Stored()
    index = PayloadIndex(stored, values_max=10)
    stored.append(index, *({"u": n, "k": n % 2} for n in range(10)))
    narrow = Filter.parse({"u": {"$gte": 8}, "k": 1})
    assert list(index.matching(narrow.node, 10, BitMap())) == [9]
    assert index.indexed() == ["u", "k"]
    stored.append(index, *({"u": n, "k": n % 2} for n in range(10, 40)))
    assert index.indexed() == ["k"]
    assert list(index.matching(narrow.node, 40, BitMap())) == list(range(9, 40, 2))


def test_stored_metadata_that_is_no_json_is_an_error_not_a_silent_miss() -> None:
    stored = Stored()
    index = PayloadIndex(stored)
    stored.rows.append(b"{broken")
    with pytest.raises(StorageError, match="JSON"):
        index.matching(Filter.eq("a", 1).node, 1, BitMap())


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
