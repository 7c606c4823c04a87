"""Equal vectors are found by their bytes, whatever the hashes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.shard.segments import distinct
from needle.shard.segments.distinct import DistinctRows, unique_rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.5]), min_size=3, max_size=3), min_size=1, max_size=60))
def test_unique_rows_are_those_of_a_dictionary_of_bytes(rows: list[list[float]]) -> None:
    data = np.array(rows, np.float32)
    chosen, place = unique_rows(data)
    first: dict[bytes, int] = {}
    for at, row in enumerate(data):
        first.setdefault(row.tobytes(), at)
    assert chosen.tolist() == list(first.values())
    assert [data[chosen[p]].tobytes() for p in place] == [row.tobytes() for row in data]


@pytest.mark.parametrize("colliding", [False, True])
def test_numbers_are_given_once_over_many_calls(monkeypatch: pytest.MonkeyPatch, colliding: bool) -> None:
    if colliding:
        monkeypatch.setattr(distinct, "row_hashes", lambda rows: np.zeros(len(rows), np.uint64))
    rng = np.random.default_rng(1)
    kinds = rng.standard_normal((40, 8)).astype(np.float32)
    store: list[np.ndarray] = []
    rows = DistinctRows(lambda numbers: np.array([store[n] for n in numbers]))
    for _ in range(20):
        part = kinds[rng.integers(0, 40, 13)]
        numbers, new = rows.add(part)
        store.extend(part[new])
        assert len(store) == len(rows)
        np.testing.assert_array_equal(np.array([store[n] for n in numbers]), part)
    if not colliding:
        assert len(rows) == len({row.tobytes() for row in store})
