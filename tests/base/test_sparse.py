"""What a sparse vector is, what is refused and how that is said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from needle.base.errors import InvalidArgument
from needle.base.sparse import INDICES_MAX, Sparse, SparseQuery, Wrong, asked, query_of, read, sparse_vector, wrong_in
from proof.checkers.sparse import as_float32, weights_in

WRONG: list[tuple[Any, str, str]] = [
    (7, "", "7"),
    ([1], "", "[1]"),
    ({"indices": [1]}, "", "indices"),
    ({"indices": [1], "values": [1], "more": 1}, "", "more"),
    ({"indices": "1", "values": [1]}, ".indices", "'1'"),
    ({"indices": [1], "values": {"a": 1}}, ".values", "{'a': 1}"),
    ({"indices": [1, 2], "values": [1]}, ".values", "1 numbers"),
    ({"indices": [1, True], "values": [1, 2]}, ".indices", "True"),
    ({"indices": [1, 2.0], "values": [1, 2]}, ".indices", "2.0"),
    ({"indices": [1, -2], "values": [1, 2]}, ".indices", "-2"),
    ({"indices": [2**32, 1], "values": [1, 2]}, ".indices", str(2**32)),
    ({"indices": [5, 1, 5], "values": [1, 2, 3]}, ".indices", "5"),
    ({"indices": [1], "values": ["x"]}, ".values", "'x'"),
    ({"indices": [1], "values": [None]}, ".values", "None"),
    ({"indices": [1], "values": [False]}, ".values", "False"),
    ({"indices": [1, 2], "values": [1, -1e39]}, ".values", "-1e+39"),
    ({"indices": [1, 2], "values": [1, 10**60]}, ".values", str(10**60)),
    ({"indices": [1, 2], "values": [float("nan"), 1]}, ".values", "nan"),
    ({"indices": [1, 2], "values": [1, float("inf")]}, ".values", "inf"),
    ({"indices": list(range(INDICES_MAX + 1)), "values": [1] * (INDICES_MAX + 1)}, ".indices", "4097 indices"),
]


@pytest.mark.parametrize(("value", "inside", "shown"), WRONG)
def test_what_is_no_sparse_vector_is_refused_by_its_field_its_value_and_what_is_allowed(
    value: Any, inside: str, shown: str
) -> None:
    found = read(value)
    assert isinstance(found, Wrong) and weights_in(value) == {}
    error = found.error("f")
    assert error.details["field"] == f"f{inside}"
    assert shown in error.message and "is not allowed: " in error.message
    with pytest.raises(InvalidArgument, match=r"^sparse\.s"):
        query_of({"s": value})


def test_a_query_is_one_name_and_a_sparse_vector_with_something_in_it() -> None:
    for given in (None, 3, {}, {"a": {}, "b": {}}, {3: {"indices": [1], "values": [1]}}, {"": {}}):
        with pytest.raises(InvalidArgument):
            query_of(given)
    with pytest.raises(InvalidArgument, match="1 to 4096"):
        query_of({"s": {"indices": [], "values": []}})
    arrays = {"indices": np.array([9, 4, 7], np.uint32), "values": (1, 2.5, -3)}
    found = asked(query_of({"s": arrays}))
    assert found.indices.tolist() == [4, 7, 9] and found.values.tolist() == [2.5, -3.0, 1.0]


def _bytes(indices: list[int], values: list[float]) -> tuple[bytes, bytes]:
    return np.array(indices, "<u4").tobytes(), np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("indices", "values"),
    [
        _bytes([], []),
        _bytes([1], [1, 2]),
        (b"abc", b"abc"),
        _bytes([2, 1], [1, 2]),
        _bytes([1, 1], [1, 2]),
        _bytes([1, 2], [1, float("nan")]),
        _bytes(list(range(INDICES_MAX + 1)), [1.0] * (INDICES_MAX + 1)),
    ],
)
def test_a_shard_refuses_what_no_client_sends(indices: bytes, values: bytes) -> None:
    with pytest.raises(InvalidArgument, match="sparse"):
        asked(SparseQuery("s", indices, values))


def test_arrays_become_metadata_that_is_the_same_float32_in_few_digits() -> None:
    rng = random.Random(5)
    numbers = [rng.choice([rng.random(), rng.uniform(-1e38, 1e38), rng.random() * 1e-30, 0.1, 3]) for _ in range(500)]
    made = sparse_vector(np.arange(500, dtype=np.uint16), np.array(numbers, np.float32))
    again = json.loads(json.dumps(made))
    found = read(again)
    assert isinstance(found, Sparse) and found.values.tolist() == [as_float32(one) for one in numbers]
    assert json.dumps(sparse_vector([3], [0.1])) == '{"indices": [3], "values": [0.1]}'
    assert sparse_vector(range(2), [1, 2]) == {"indices": [0, 1], "values": [1.0, 2.0]}
    assert sparse_vector([], []) == {"indices": [], "values": []}
    most = np.array([np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)  # in fewest digits they are more
    extreme = read(json.loads(json.dumps(sparse_vector([0, 1], most))))
    assert isinstance(extreme, Sparse) and np.array_equal(extreme.values, most)


def test_a_value_may_be_all_that_float32_rounds_to_a_finite_number() -> None:
    """Its largest number has fewest digits that are a little more; at half of the next step it becomes infinite."""
    most, half = float(np.finfo(np.float32).max), 2**128 - 2**103
    for value in (3.4028235e38, json.loads("3.4028235e+38"), int(most), most, half - 2**75):
        for sign in (1, -1):
            found = read({"indices": [1], "values": [sign * value]})
            assert isinstance(found, Sparse) and found.values.tolist() == [sign * most], value
            assert asked(query_of({"s": {"indices": [1], "values": [sign * value]}})).values.tolist() == [sign * most]
    for value in (float(half), half, half - 1, 3.4028236e38):
        for sign in (1, -1):
            assert isinstance(read({"indices": [1], "values": [sign * value]}), Wrong), value


@pytest.mark.parametrize(
    "given",
    [
        lambda: sparse_vector([1.5], [1]),
        lambda: sparse_vector([[1]], [[1]]),
        lambda: sparse_vector(3, [1]),
        lambda: sparse_vector([1], ["a"]),
        lambda: sparse_vector([1, 1], [1, 2]),
        lambda: sparse_vector([1], [1, 2]),
        lambda: sparse_vector([-1], [1]),
        lambda: sparse_vector([1], [1e39]),
    ],
)
def test_what_arrays_cannot_be(given: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match="sparse vector"):
        given()


@pytest.mark.parametrize("name", [b"splade", rb"spl\u0061de"])
def test_a_field_that_is_spelled_by_escapes_is_looked_at_too(name: bytes) -> None:
    found = wrong_in(b'{"a": 1, "' + name + b'": 3}', ["splade"])
    assert found is not None and found[0] == "splade" and found[1].value == 3
    assert wrong_in(b'{"a": "' + name + b'"}', ["splade"]) is None
