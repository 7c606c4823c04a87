"""What a proposer refuses, value by value, and what it lets through."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from needle.base.config import Limits
from needle.base.errors import CollectionNotFound, InvalidArgument
from needle.base.model import METRICS_OF_NUMBERS, CollectionSpec, DType, IndexParams, Metric, SearchRequest
from needle.protocol.commands import (
    Change,
    ChangeWhere,
    Command,
    CreateCollection,
    Delete,
    DropCollection,
    Insert,
    OpenSession,
    Patch,
    PublishSegment,
    Session,
)
from needle.shard.apply.metadata import depth as nesting
from needle.shard.apply.validation import check_command, check_search, check_searches
from shard.replica_util import floats, put

LIMITS = Limits(batch_documents_max=5, batch_bytes_max=2000, metadata_bytes_max=200, collections_max=3)
SPECS = {
    "c": CollectionSpec(name="c", dimensions=3, metric=Metric.COSINE),
    "l": CollectionSpec(name="l", dimensions=3, metric=Metric.L2),
}


def check(command: Command, collections: int = 2) -> Command:
    return check_command(command, SPECS.get, LIMITS, lambda: collections)


def one(id_: str = "a", row: Any = (1, 2, 3), **kw: Any) -> Insert:
    return put([id_], [row], **kw)


def raw(metadata: bytes) -> Insert:
    return Insert("c", ["a"], floats([1, 2, 3]), [metadata])


def create(**kw: Any) -> CreateCollection:
    return CreateCollection(CollectionSpec(**{"name": "n", "dimensions": 3, **kw}))


def patch(**change: Any) -> Patch:
    return Patch("c", ["a"], Change(**change))


BAD: dict[str, tuple[Command, str]] = {
    "a patch of nothing": (patch(), "change"),
    "a patch of no ids": (Patch("c", [], Change(unset=["a"])), "ids"),
    "a patch of a path without a name": (patch(unset=["a..b"]), "change"),
    "a patch of a field and of what is in it": (patch(set=[("a.b", b"1")], unset=["a"]), "change"),
    "a patch of one field twice": (
        patch(set=[("a", b"1"), ("a", b"2")]),
        "change = 'a' is not allowed: a field that is not named twice",
    ),
    "a patch of a field beside one in it": (
        patch(unset=["a", "a.b"]),
        "a field that is not named beside 'a', which holds it",
    ),
    "a patch with what is no JSON": (patch(set=[("a", b"{")]), "metadata of 'a'"),
    "a patch that appends what is no list": (patch(append=[("a", b"1")]), "change of 'a'"),
    "a patch of too many bytes": (patch(set=[("a", b"1" * 150), ("b", b"1" * 150)]), "change"),
    "a patch of all and of a field": (patch(whole=b"{}", unset=["a"]), "change"),
    "a patch at version 0": (Patch("c", ["a"], Change(unset=["a"]), 0), "expected"),
    "a condition that is none": (Delete("c", ["a"], matches=b'{"$what": 1}'), "filter operator"),
    "a part without an end": (ChangeWhere("c", b"{}", None, limit=0), "limit"),
    "a part that looks at everything": (ChangeWhere("c", b"{}", None, looks=10**9), "looks"),
    "a part that reads everything": (ChangeWhere("c", b"{}", None, bytes_max=10**9), "bytes_max"),
    "a filter too deep": (ChangeWhere("c", b'{"a": {"$eq": ' + b"[" * 300 + b"]" * 300 + b"}}", None), "filter"),
    "a condition too deep": (
        Delete("c", ["a"], matches=b'{"a": {"$eq": ' + b"[" * 300 + b"]" * 300 + b"}}"),
        "matches",
    ),
    "no documents": (put([], []), "ids"),
    "too many documents": (put(list("abcdef"), [[1, 2, 3]] * 6), "ids"),
    "too many bytes": (put(["a", "b"], [[1, 2, 3]] * 2, ["x" * 150, "y" * 1900]), "batch"),
    "empty id": (one(""), "id"),
    "id of 513 bytes": (one("é" * 257), "id"),
    "id of 10 MB": (one("x" * 10_000_000), "id"),
    "id with a lone surrogate": (one("\ud800"), "id"),
    "two dimensions": (one(row=[1, 2]), "vector"),
    "four dimensions": (one(row=[1, 2, 3, 4]), "vector"),
    "half a float": (msgspec.structs.replace(one(), vectors=b"\0" * 11), "vector"),
    "NaN": (one(row=[1, float("nan"), 3]), "vector of 'a'"),
    "infinity": (one(row=[1, float("-inf"), 3]), "vector of 'a'"),
    "zero vector with cosine": (one(row=[0, 0, 0]), "zero"),
    "too long for float32 distances": (one(row=[1e30, 0, 0], collection="l"), "vector of 'a'"),
    "metadata is no JSON": (raw(b"{a}"), "metadata of 'a'"),
    "metadata is NaN": (raw(b"NaN"), "metadata of 'a'"),
    "metadata is no UTF-8": (raw(b'"\xff"'), "metadata of 'a'"),
    "metadata too large": (raw(b'"' + b"x" * 200 + b'"'), "metadata of 'a'"),
    "metadata too deep": (raw(b"[" * 65 + b"]" * 65), "metadata of 'a'"),
    "metadata missing": (msgspec.structs.replace(one(), metadata=[]), "metadata"),
    "expected below zero": (one(expected=-1), "expected"),
    "delete nothing": (Delete("c", []), "ids"),
    "delete with expected 0": (Delete("c", ["a"], 0), "expected"),
    "session seq 0": (one(session=Session(1, 0, 0)), "session.seq"),
    "session acked ahead": (one(session=Session(1, 2, 3)), "session.acked"),
    "nonce too large": (OpenSession(2**64), "nonce"),
    "empty name": (create(name=""), "collection"),
    "name of 256 bytes": (create(name="x" * 256), "collection"),
    "name with a newline": (create(name="a\nb"), "collection"),
    "name with a space at the end": (create(name="a "), "collection"),
    "no dimensions": (create(dimensions=0), "dimensions"),
    "too many dimensions": (create(dimensions=8193), "dimensions"),
    "m": (create(index=IndexParams(m=1)), "index.m"),
    "ef": (create(index=IndexParams(ef_search=0)), "index.ef_search"),
    "segment range": (PublishSegment(1, 5, 4, 1, 1, "x"), "first"),
    "segment rows": (PublishSegment(1, 0, 4, 6, 1, "x"), "rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_shortly(case: str) -> None:
    command, named = BAD[case]
    with pytest.raises(InvalidArgument) as caught:
        check(command)
    assert named in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "command", [one(collection="no"), Delete("no", ["a"]), DropCollection("no"), one(collection="x" * 10_000_000)]
)
def test_unknown_collections_are_named(command: Command) -> None:
    with pytest.raises(CollectionNotFound) as caught:
        check(command)
    assert len(caught.value.message) < 200


def test_the_number_of_collections_is_bounded_but_existing_ones_may_be_created_again() -> None:
    with pytest.raises(InvalidArgument, match="collections"):
        check(create(), collections=3)
    assert check(CreateCollection(SPECS["c"], True), collections=3)


def test_cosine_vectors_are_normalised_and_others_left_alone() -> None:
    command = put(["a", "b"], [[3, 4, 0], [1e-30, 0, 0]])
    checked = check(command)
    assert isinstance(checked, Insert)
    assert np.frombuffer(checked.vectors, "<f4").tolist() == pytest.approx([0.6, 0.8, 0, 1, 0, 0])
    euclid = put(["a"], [[3, 4, 0]], collection="l")
    assert check(euclid) == euclid
    assert check(put(["a"], [[1e25, 1e25, 0]])) is not None
    # What was normalised before stays the same, so that a retry proposes equal bytes.
    assert check(checked) == checked or np.allclose(
        np.frombuffer(check(checked).vectors, "<f4"), np.frombuffer(checked.vectors, "<f4"), rtol=1e-6  # type: ignore[union-attr]
    )  # fmt: skip


def test_metadata_with_many_brackets_in_strings_is_not_deep() -> None:
    text = b'["' + b"[{" * 70 + b'\\"[", ' + b"[" * 60 + b"]" * 60 + b"]"
    assert check_command(raw(text), SPECS.get, Limits()) is not None


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_integers_that_filters_and_routing_keys_would_take_for_different_ones_are_refused(number: int) -> None:
    """Clients of ours refuse them; the binary protocol is open to others."""
    for text in (f"{number}", f'{{"a": [1, {{"b": {number}}}]}}'):
        with pytest.raises(InvalidArgument, match=r"metadata of 'a' = -?\d+ is not allowed: integers from -2\^63 to"):
            check_command(raw(text.encode()), SPECS.get, Limits())
    for text in (f"{2**64 - 1}", f"[{-(2**63)}]", f'{{"{number}": "{number}"}}', "1234567890123456789.5"):
        assert check_command(raw(text.encode()), SPECS.get, Limits()) is not None


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("k", 10**9), ("k", -1), ("k", True), ("ef_search", -1)])
def test_bad_searches(field: str, value: Any) -> None:
    request = SearchRequest(**{"collection": "c", "vector": floats([1, 2, 3]), "k": 1, field: value})
    with pytest.raises(InvalidArgument, match=field):
        check_search(request, SPECS["c"], LIMITS)


@pytest.mark.parametrize("vector", [b"", floats([1, 2]), floats([0, 0, 0]), floats([1, float("nan"), 1])])
def test_bad_queries(vector: bytes) -> None:
    with pytest.raises(InvalidArgument, match="vector"):
        check_search(SearchRequest(collection="c", vector=vector, k=1), SPECS["c"], LIMITS)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b'{"a": [{"b": []}]}', 4),
        (rb'["[[[\"[[[", "\\", [["]]"]]]', 3),
        (rb'{"\\\"[": "\\\\"}', 1),
        (b"1", 0),
        (b'"' + b"[" * 70 + b'"', 0),
        (b"[" + b"[]," * 70 + b"[]]", 2),
    ],
)
def test_brackets_in_strings_are_not_nesting(text: bytes, depth: int) -> None:
    assert nesting(text) == depth


def test_many_brackets_cost_no_step_a_byte() -> None:
    """Lines that the interpreter ran, not seconds."""
    small, large = (b"[" + b'{"a":"x"},' * count + b"1]" for count in (70, 7000))
    assert _lines(small) == _lines(large)


def _lines(text: bytes) -> int:
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line" and frame.f_code is nesting.__code__
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        nesting(text)
    finally:
        sys.settrace(before)
    return count


def test_of_documents_with_one_id_the_last_is_proposed_and_a_repeated_delete_counts_once() -> None:
    checked = check_command(put(["a", "b", "a"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1, 2, 3]), SPECS.get, LIMITS)
    assert isinstance(checked, Insert)
    assert (checked.ids, checked.metadata) == (["b", "a"], [b"2", b"3"])
    assert checked.vectors == floats([0, 1, 0], [0, 0, 1])
    twice = Delete("c", ["a", "a"])
    assert check_command(twice, SPECS.get, LIMITS) == twice


def test_who_chooses_by_many_conditions_looks_at_fewer_documents_in_one_entry() -> None:
    """Every replica judges all that an entry looks at before it does anything else."""

    def part(conditions: int, change: Change | None = None) -> ChangeWhere:
        wanted = msgspec.json.encode({"$or": [{"a": n} for n in range(conditions)]})
        checked = check(ChangeWhere("c", wanted, change, looks=65_536, bytes_max=1 << 26))
        assert isinstance(checked, ChangeWhere)
        return checked

    few, many = part(1), part(1000)
    assert few.looks == 65_536 and few.bytes_max >= 1 << 24
    assert 1 <= many.looks <= 150 and 1 <= many.bytes_max <= 1 << 17
    some = check(ChangeWhere("c", b"{}", Change(unset=["a"]), limit=10_000, bytes_max=1 << 23))
    more = check(ChangeWhere("c", b"{}", Change(unset=[f"a{n}" for n in range(256)]), limit=10_000, bytes_max=1 << 23))
    assert isinstance(some, ChangeWhere) and isinstance(more, ChangeWhere)
    assert some.limit == 10_000 and more.limit <= 512


def test_many_conditions_for_many_ids_are_refused() -> None:
    limits = Limits()
    wanted = msgspec.json.encode({"$or": [{"a": n} for n in range(500)]})
    few, many = ([f"d{n}" for n in range(count)] for count in (100, 1000))
    assert check_command(Delete("c", few, matches=wanted), SPECS.get, limits)
    with pytest.raises(InvalidArgument, match="501 conditions for 1000 ids"):
        check_command(Delete("c", many, matches=wanted), SPECS.get, limits)


@pytest.mark.parametrize("metric", METRICS_OF_NUMBERS)
@pytest.mark.parametrize("dimensions", [1, 3, 64, 384, 1000])
def test_queries_that_are_checked_together_are_the_same_bits_as_one_by_one(metric: Metric, dimensions: int) -> None:
    """Or a search would find other distances in a batch, and other ones on each replica."""
    rng, collection = np.random.default_rng(dimensions), CollectionSpec(name="c", dimensions=dimensions, metric=metric)
    rows = [(rng.standard_normal(dimensions) * 10.0 ** rng.integers(-3, 8)).astype("<f4") for _ in range(33)]
    rows += [(row / np.linalg.norm(row)).astype("<f4") for row in rows[:4]]
    requests = [SearchRequest(collection="c", vector=row.tobytes(), k=3) for row in rows]
    for count in (2, 7, len(requests)):
        found = check_searches(requests[:count], collection, Limits())
        assert found is not None and found.dtype == np.float32 and found.shape == (count, dimensions)
        for row, request in zip(found, requests, strict=False):
            assert row.tobytes() == check_search(request, collection, Limits()).tobytes()


@pytest.mark.parametrize(
    "row", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [3e38, 3e38], [1.0], [1.0, 2.0, 3.0], []]
)
def test_among_queries_one_that_may_be_wrong_is_looked_at_by_itself(row: list[float]) -> None:
    collection = CollectionSpec(name="c", dimensions=2, metric=Metric.COSINE)
    requests = [SearchRequest(collection="c", vector=floats(one), k=3) for one in ([1.0, 2.0], row, [3.0, 4.0])]
    assert check_searches(requests, collection, Limits()) is None
    assert check_searches(requests[:1], collection, Limits()) is None
    many = [msgspec.structs.replace(requests[0], k=10**6)] * 2
    assert check_searches(many, collection, Limits()) is None


def test_queries_of_bits_are_looked_at_one_by_one() -> None:
    """Numbers as long as float32 vectors of so many dimensions are no bits: together they must not pass for such."""
    collection = CollectionSpec(name="c", dimensions=64, metric=Metric.HAMMING, dtype=DType.BIT)
    bits = [floats([float(n == at) for n in range(64)]) for at in range(3)]
    for data in (bits, [floats([0.5] * 64)] * 3):
        requests = [SearchRequest(collection="c", vector=one, k=3) for one in data]
        assert check_searches(requests, collection, Limits()) is None
    with pytest.raises(InvalidArgument, match=r"0\.5"):
        check_search(requests[0], collection, Limits())
