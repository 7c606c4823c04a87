"""What callers pass in: accepted forms, refusals by field, and answers turned back into rows."""

import datetime
from typing import Any

import numpy as np
import pytest

from needle.base.errors import InvalidArgument
from needle.base.model import HitBatch, Metric
from needle.client import answers, values
from needle.client.columns import as_columns, cut


@pytest.mark.parametrize(
    "value", [[1, 2], (1.0, 2.0), np.array([1, 2], ">f8"), np.array([[1, 2], [9, 9]], "<f4").T[:, 0], range(1, 3)]
)
def test_anything_numpy_understands_is_a_vector(value: Any) -> None:
    assert values.vector_bytes(value) == np.array([1, 2], "<f4").tobytes()


@pytest.mark.parametrize(
    "value",
    [None, "ab", b"ab", 1.0, [], [[1.0]], [1, "x"], [float("inf")], [1e40], [1, 10**400], [[1], [2, 3]]],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_vector_is_refused_by_field(value: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        values.vector_bytes(value, "query")
    assert str(refused.value.details["field"]).startswith("query")


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, [None, float("-inf")], object(), {1j: 2}])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="metadata"):
        values.metadata_bytes(value)


def test_null_is_json_and_nan_is_not() -> None:
    assert values.metadata_bytes({"a": None, "b": "null"}) == b'{"a":null,"b":"null"}'
    assert values.metadata_bytes(None) == b""


def test_batches_are_cut_by_bytes_and_documents_and_lose_nothing() -> None:
    batch = as_columns(None, [f"d{n}" for n in range(100)], np.ones((100, 10)), [{"n": n} for n in range(100)])
    for bytes_max, documents_max in ((200, 1000), (1 << 20, 7), (1, 1000), (1 << 20, 1000)):
        parts = cut(batch.ids, batch.metadata, 40, bytes_max, documents_max)
        assert [name for part in parts for name in batch.ids[part.start : part.stop]] == batch.ids
        assert all(part.stop - part.start <= documents_max for part in parts)
        if bytes_max == 200:
            assert all(part.stop - part.start <= 3 for part in parts)


@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.5, 0.5), (datetime.timedelta(milliseconds=20), 0.02)])
def test_timeouts_are_seconds_or_timedeltas(value: Any, seconds: float) -> None:
    assert values.check_timeout(value) == seconds


@pytest.mark.parametrize("value", [0, -1, True, "1", 86_401, float("nan")])
def test_other_timeouts_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        values.check_timeout(value)


def test_scores_follow_the_metric() -> None:
    columns = (["a"], [0.25], [7], [b'{"x":1}'], np.array([1, 2], "<f4").tobytes(), 3)
    for metric, score in ((Metric.COSINE, 0.75), (Metric.L2, -0.25), (Metric.DOT, -0.25)):
        (hit,) = answers.hits(HitBatch(*columns, metric))
        assert (hit.id, hit.distance, hit.score, hit.metadata, hit.version) == ("a", 0.25, score, {"x": 1}, 7)
        assert hit.vector.tolist() == [1, 2]


def test_refusals_say_all_that_is_allowed() -> None:
    with pytest.raises(
        InvalidArgument, match="ids = 5, an int, is not allowed: an id, which is a string, or a list of ids"
    ):
        values.one_or_more(5)
    with pytest.raises(
        InvalidArgument,
        match=r"k = \d+, an int, is not allowed: a whole number of at least 1, and at most 922337203685477",
    ):
        values.check_count(2**70, "k")
    assert values.one_or_more("a") == ["a"] and values.one_or_more(("b", "a", "b")) == ["b", "a", "b"]
