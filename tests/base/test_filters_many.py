"""Filters on arrays of many elements: looked up, and the same as one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from needle.base.filters import operators
from needle.base.filters.builder import Filter
from needle.base.filters.nodes import evaluate, lookup

INSTANTS = ["2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00", "2025-06-01T00:00:00.5Z", "2023-01-01T00:00:00Z"]
SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, 2.5, -3, 2**60, "", "a", "ab", "b", "1", *INSTANTS]
ORDERED: list[Any] = [0, 1, 1.5, 2**60, "a", "ab", "c", *({"$date": text} for text in INSTANTS)]


def condition(rng: random.Random) -> dict[str, Any]:
    op = rng.choice(["$eq", "$ne", "$in", "$nin", "$all", "$gt", "$gte", "$lt", "$lte", "$between", "$starts_with",
                     "$contains", "$exists"])  # fmt: skip
    any_of = [*SCALARS, *({"$date": text} for text in INSTANTS)]
    if op in ("$in", "$nin", "$all"):
        return {op: rng.sample(any_of, rng.randrange(4))}
    if op == "$between":
        return {op: rng.choice([[0, 2], [1.5, 1.7], ["a", "b"], [{"$date": INSTANTS[3]}, {"$date": INSTANTS[0]}]])}
    if op in ("$starts_with", "$contains"):
        return {op: rng.choice(["", "a", "b", "2024", "x"])}
    if op == "$exists":
        return {op: rng.random() < 0.5}
    return {op: rng.choice(any_of if op in ("$eq", "$ne") else ORDERED)}


def test_many_scalars_match_as_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "FEW", 0)
    rng = random.Random(7)
    for _ in range(20_000):
        asked = condition(rng)
        metadata = {"f": rng.sample(SCALARS, rng.randrange(6))} if rng.random() < 0.95 else {}
        one = Filter.parse({"f": asked}).node
        by_one = operators.OPERATORS[one.op].holds(*lookup(metadata, ("f",)), one.value)  # type: ignore[union-attr]
        both = Filter.parse({"$and": [{"f": asked}, {"$not": {"g": 1}}]}).node
        assert evaluate(both, metadata, "x") is evaluate(one, metadata, "x") is by_one, (asked, metadata)


def test_a_thousand_conditions_look_at_an_array_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compared with each of its elements: one document took seconds, also while an entry was applied."""
    looked = 0
    right = operators.kind

    def kind(value: object) -> str:
        nonlocal looked
        looked += 1
        return right(value)

    monkeypatch.setattr(operators, "kind", kind)
    monkeypatch.setattr(operators, "same", lambda item, value: pytest.fail("one by one"))
    metadata = {"f": list(range(30_000))}
    asked = [{"f": {"$eq": -n}} for n in range(1, 500)] + [{"f": {"$lt": -n}} for n in range(1, 500)]
    assert not Filter.parse({"$or": asked}).matches(metadata)
    assert looked < 40_000
