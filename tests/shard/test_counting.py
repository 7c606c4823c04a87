"""Counts by value against a plain reading of the docs, whatever the field's index knows; and their bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from base.filter_strategies import LONG, documents
from needle.base.errors import DeadlineExceeded, InvalidArgument
from needle.shard.fields import counting
from needle.shard.fields.counting import Counts, value_counts
from needle.shard.fields.index_budget import IndexRows
from shard.test_payload_index import PLENTY, made
from shard.test_reference_model import PATHS, exact, values_of


def counted(index: Any, path: str, end: int, among: BitMap) -> Counts:
    return value_counts(index, tuple(path.split(".")), end, among)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(documents, max_size=14), st.lists(documents, max_size=6), st.sampled_from(PATHS),
    st.sets(st.integers(0, 19)), st.sampled_from([0, 140_000, PLENTY]), st.booleans(),
)  # fmt: skip
def test_counts_are_those_of_the_documents(
    first: list[Any], later: list[Any], path: str, dead: set[int], room: int, indexed: bool
) -> None:
    store, index, budget = made(*first, bytes_max=room)
    budget.rows = IndexRows(few=0 if indexed else 64)
    everything = [*first, *later]
    for end in (len(first), len(everything)):
        if end > len(store.rows):
            store.append(index, *later)
        among = BitMap(range(end)) - BitMap(dead)
        told = counted(index, path, end, among)
        sets = [values_of(everything[at], path) for at in among]
        expected: dict[str, int] = {}
        for found in sets:
            for value in found:
                expected[value] = expected.get(value, 0) + 1
        assert dict(zip(map(exact, told.values), told.counts, strict=True)) == expected
        assert (told.documents, told.without) == (len(among), sum(not found for found in sets))


def test_long_texts_are_told_whole_and_told_apart() -> None:
    texts = [LONG + "x" * (n % 7) for n in range(500)]
    store, index, budget = made(*({"t": [text, "short"]} for text in texts))
    budget.rows = IndexRows(few=0)
    assert dict(zip(*counted(index, "t", 500, BitMap(range(500)))[:2], strict=True))["short"] == 500
    store.read = 0
    again = counted(index, "t", 500, BitMap(range(100, 500)))
    assert store.read <= 500
    counts = dict(zip(again.values, again.counts, strict=True))
    assert counts == {"short": 400, **{LONG + "x" * n: texts[100:].count(LONG + "x" * n) for n in range(7)}}


@pytest.mark.parametrize("indexed", [True, False])
def test_more_values_than_an_answer_may_have_are_refused(monkeypatch: pytest.MonkeyPatch, indexed: bool) -> None:
    monkeypatch.setattr(counting, "VALUES_MAX", 20)
    _, index, budget = made(*({"n": n, "few": n % 3, "t": "x" * 60 + str(n % 30)} for n in range(100)))
    budget.rows = IndexRows(few=0 if indexed else 1000)
    whole = BitMap(range(100))
    for path in ("n", "t"):
        with pytest.raises(InvalidArgument, match=r"at most 20 different values.*a filter may leave fewer") as caught:
            counted(index, path, 100, whole)
        assert repr(path) in caught.value.message
    assert counted(index, "few", 100, whole).counts == [34, 33, 33]
    assert len(counted(index, "n", 100, BitMap(range(20))).values) == 20
    monkeypatch.setattr(counting, "VALUES_BYTES_MAX", 300)
    assert counted(index, "t", 100, BitMap(range(3))).counts == [1, 1, 1]
    with pytest.raises(InvalidArgument):
        counted(index, "t", 100, BitMap(range(6)))


def test_nobody_counts_for_who_has_gone() -> None:
    _, index, _ = made(*({"n": n} for n in range(200)))

    def gone() -> None:
        raise DeadlineExceeded("gone")

    with pytest.raises(DeadlineExceeded):
        value_counts(index, ("n",), 200, BitMap(range(200)), None, gone)


def test_whole_numbers_are_told_without_a_fraction() -> None:
    _, index, _ = made({"a": [1, 1.0, True, "1", None, {"x": 1}, [2]]}, {"a": 2**63}, {"a": 0.5}, {"a": -0.0})
    told = counted(index, "a", 4, BitMap(range(4)))
    assert sorted(map(json.dumps, told.values)) == sorted(["0", "0.5", "1", '"1"', str(2**63), "true"])
