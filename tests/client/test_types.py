"""Every Python type at every place: what it means is written down, and the rest is refused by place and type."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import types
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from harness.scripted_network import VECTOR, Network, client_of
from needle.base.errors import InvalidArgument
from needle.base.filters.builder import Filter
from needle.base.model import IndexKind, IndexParams
from needle.client import Client, values
from needle.client.columns import as_columns
from needle.protocol.peer_calls import SHARD_LEADER

UTC = datetime.UTC


class Text(str):
    __slots__ = ()


class Name(enum.StrEnum):
    A = "a"


class Size(enum.IntEnum):
    SMALL = 1


class Plain(enum.Enum):
    A = "a"


@dataclasses.dataclass
class Point:
    x: Any
    y: int = 2


class Struct(msgspec.Struct):
    x: int = 1


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


Pair = namedtuple("Pair", "a b")

SCALARS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (True, True),
    "np.bool_": (np.bool_(False), False),
    "int": (7, 7),
    "largest": (2**64 - 1, 2**64 - 1),
    "smallest": (-(2**63), -(2**63)),
    "np.int8": (np.int8(-3), -3),
    "np.int64": (np.int64(5), 5),
    "np.uint64": (np.uint64(2**64 - 1), 2**64 - 1),
    "IntEnum": (Size.SMALL, 1),
    "float": (1.5, 1.5),
    "np.float16": (np.float16(0.5), 0.5),
    "np.float32": (np.float32(0.25), 0.25),
    "np.float64": (np.float64(0.1), 0.1),
    "str": ("a", "a"),
    "unicode": ("ä\U0001f600", "ä\U0001f600"),
    "np.str_": (np.str_("a"), "a"),
    "str subclass": (Text("a"), "a"),
    "StrEnum": (Name.A, "a"),
    "datetime": (datetime.datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00+00:00"),
}
CONTAINERS: dict[str, tuple[Any, Any]] = {
    "list": ([1, [2]], [1, [2]]),
    "tuple": ((1, "x"), [1, "x"]),
    "namedtuple": (Pair(1, 2), [1, 2]),
    "dict": ({"a": {"b": None}}, {"a": {"b": None}}),
    "OrderedDict": (OrderedDict(a=1), {"a": 1}),
    "mapping": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "np.str_ key": ({np.str_("a"): 1}, {"a": 1}),
    "dataclass": (Point(np.int64(1)), {"x": 1, "y": 2}),
    "array of ints": (np.arange(3), [0, 1, 2]),
    "array of floats": (np.array([[0.5], [1.5]], "f4"), [[0.5], [1.5]]),
    "array of text": (np.array(["a", "b"]), ["a", "b"]),
}
REFUSED: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "np.float32 NaN": np.float32("nan"),
    "too large": 2**64,
    "too small": -(2**63) - 1,
    "complex": 1j,
    "np.complex64": np.complex64(1j),
    "Decimal": decimal.Decimal("1.5"),
    "Fraction": fractions.Fraction(1, 2),
    "bytes": b"a",
    "np.bytes_": np.bytes_(b"a"),
    "bytearray": bytearray(b"a"),
    "memoryview": memoryview(b"a"),
    "set": {"a"},
    "frozenset": frozenset(["a"]),
    "naive datetime": datetime.datetime(2024, 1, 1),
    "date": datetime.date(2024, 1, 1),
    "time": datetime.time(1),
    "timedelta": datetime.timedelta(1),
    "np.datetime64": np.datetime64("2024-01-01"),
    "np.timedelta64": np.timedelta64(1, "s"),
    "UUID": uuid.UUID(int=1),
    "Path": pathlib.PurePosixPath("a"),
    "Enum": Plain.A,
    "Struct": Struct(),
    "object": object(),
    "rude": Rude(),
    "class": Point,
    "function": len,
    "generator": (n for n in range(1)),
    "range": range(2),
    "dict keys": {"a": 1}.keys(),
    "lone surrogate": "\ud800",
    "array of complex": np.array([1j]),
    "array of dates": np.array(["2024-01-01"], "M8[D]"),
    "array of bytes": np.array([b"a"]),
    "masked array": np.ma.array([1, 2], mask=[0, 1]),
    "array with NaN": np.array([0.0, np.nan]),
}
NESTED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a dict": lambda value: {"f": value},
    "in a list": lambda value: [1, value],
    "in a tuple in a dict": lambda value: {"f": (value,)},
    "in a dataclass": Point,
    "in a dataclass in a list": lambda value: [Point({"f": value})],
}


def refusal(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(InvalidArgument) as told:
        call()
    for word in words:
        assert word in told.value.message, told.value.message


@pytest.mark.parametrize("where", NESTED)
@pytest.mark.parametrize("name", [*SCALARS, *CONTAINERS])
def test_metadata_that_is_accepted(name: str, where: str) -> None:
    value, meaning = (SCALARS | CONTAINERS)[name]
    if where == "alone" and value is None:
        assert values.metadata_bytes(None) == b""
        return
    wanted = msgspec.json.encode(plainly(NESTED[where](meaning)))
    assert values.metadata_bytes(NESTED[where](value)) == wanted


def plainly(value: Any) -> Any:
    if isinstance(value, Point):
        return {"x": plainly(value.x), "y": value.y}
    return [plainly(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("where", NESTED)
@pytest.mark.parametrize("name", REFUSED)
def test_metadata_that_is_refused(name: str, where: str) -> None:
    value = REFUSED[name]
    kind = "" if name == "array with NaN" else type(value).__qualname__
    refusal(lambda: values.metadata_bytes(NESTED[where](value), "metadatas[3]"), "metadatas[3]", kind)


@pytest.mark.parametrize("key", [1, 1.5, None, True, b"a", (1, 2), np.int64(1), "\ud800", Plain.A, decimal.Decimal(1)])
def test_keys_that_are_refused(key: Any) -> None:
    refusal(lambda: values.metadata_bytes({"f": [{key: 1}]}), "key of metadata.f[0]", type(key).__qualname__)


def test_keys_that_would_be_one_and_endless_values_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    refusal(lambda: values.metadata_bytes(endless), "metadata[0][0]", "at most 64 deep")
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    assert values.metadata_bytes(deep) == b"[" * 64 + b"1" + b"]" * 64
    refusal(lambda: values.metadata_bytes([deep]), "at most 64 deep")


@pytest.mark.parametrize("name", [*SCALARS, *CONTAINERS, *REFUSED])
def test_ids(name: str) -> None:
    value = (SCALARS | CONTAINERS)[name][0] if name not in REFUSED else REFUSED[name]
    if isinstance(value, str) and name != "lone surrogate":
        found = values.check_id(value)
        assert type(found) is str
        assert found == str.__str__(value)
        assert values.check_ids([value]) == [found]
    else:
        refusal(lambda: values.check_id(value), "id", type(value).__qualname__)
        refusal(lambda: values.check_ids(["a", value], "ids"), "ids[1]", type(value).__qualname__)
        refusal(lambda: values.check_name(value), "collection", type(value).__qualname__)


LISTS: list[Any] = [{"lang": "de"}, OrderedDict(a=1), b"ab", bytearray(b"ab"), memoryview(b"ab"), 1, None, 1.5]
LISTS += [np.array([["a"], ["b"]]), np.array("a"), np.array([1, 2]), Filter.eq("lang", "de")]
LISTS += [types.MappingProxyType({})]


@pytest.mark.parametrize("value", LISTS)
def test_what_is_no_list_of_ids_is_refused(value: Any) -> None:
    refusal(lambda: values.check_ids(value), "ids")
    refusal(lambda: values.different_ids(value), "ids")


@pytest.mark.parametrize(
    "value", [["a", "b"], ("a", "b"), np.array(["a", "b"]), iter(["a", "b"]), {"a": 1, "b": 2}.keys()]
)
def test_what_is_a_list_of_ids(value: Any) -> None:
    assert values.check_ids(value) == ["a", "b"]


@pytest.mark.parametrize("name", [*SCALARS, *REFUSED])
@pytest.mark.parametrize("op", ["$eq", "$in", "$gt", "$contains", "$all"])
def test_operands_of_filters_mean_what_metadata_means(name: str, op: str) -> None:
    """Whatever metadata accepts, a filter finds under the same value."""
    value = SCALARS[name][0] if name in SCALARS else REFUSED[name]
    operand = [value] if op in ("$in", "$all") else value
    if name in REFUSED:
        refusal(lambda: Filter.parse({"f": {op: operand}}), "filter f " + op, type(value).__qualname__)
        return
    stored = msgspec.json.decode(values.metadata_bytes({"f": value}))
    wanted = (
        {"$eq", "$in", "$all"} if value is None or isinstance(value, bool | np.bool_) else {"$eq", "$in", "$all", "$gt"}
    )
    wanted |= {"$contains"} if isinstance(value, str) else set()
    if op not in wanted:
        refusal(lambda: Filter.parse({"f": {op: operand}}), "filter f " + op)
        return
    found = Filter.from_json(values.filter_bytes({"f": {op: operand}}))
    assert found.matches(stored) == (op != "$gt")


VECTORS: dict[str, Any] = {
    "list": [1, 2.5],
    "tuple": (1, 2.5),
    "array": np.array([1, 2.5]),
    "float16": np.array([1, 2.5], "f2"),
    "numpy scalars": [np.float32(1), np.float64(2.5)],
    "mixed scalars": [np.int64(1), 2.5],
    "objects": np.array([1, 2.5], object),
    "bools": [True, 2.5],
    "memoryview": memoryview(np.array([1, 2.5])),
}
NO_VECTORS: dict[str, Any] = {
    "complex": np.array([1 + 1j, 2]),
    "complex list": [1 + 1j, 2],
    "text": ["1", "2"],
    "array of text": np.array(["1", "2"]),
    "bytes": [b"1", b"2"],
    "one bytes": b"12",
    "bytearray": bytearray(b"12"),
    "memoryview": memoryview(b"12"),
    "signed memoryview": memoryview(b"12").cast("b"),
    "memoryviews": [memoryview(b"1"), memoryview(b"2")],
    "Decimals": [decimal.Decimal(1), decimal.Decimal(2)],
    "None": [None, 1.0],
    "dates": np.array(["2024-01-01", "2024-01-02"], "M8[D]"),
    "timedeltas": np.array([1, 2], "m8[s]"),
    "timedelta objects": [np.timedelta64(1, "s"), 2],
    "masked": np.ma.array([1.0, 2.0], mask=[0, 1]),
    "set": {1.0, 2.0},
    "dict": {0: 1.0, 1: 2.0},
    "generator": (n for n in (1.0, 2.0)),
    "string": "12",
    "objects": [object(), 1],
    "rude": [Rude()],
    "NaN": [float("nan"), 1],
    "number": 1.0,
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    assert values.vector_bytes(VECTORS[name]) == np.array([1, 2.5], "<f4").tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NO_VECTORS)
def test_what_is_no_vector(name: str) -> None:
    refusal(lambda: values.vector_bytes(NO_VECTORS[name], "query"), "query")


MASKED_ROW = np.ma.array([1.0, 2.0], mask=[0, 1])


@pytest.mark.filterwarnings("ignore:.*masked element")
@pytest.mark.parametrize(
    "rows",
    [
        np.ma.array([[1.0, 2.0]], mask=[[0, 1]]),
        [MASKED_ROW],
        (np.array([1.0, 2.0]), MASKED_ROW),
        [[1.0, np.ma.masked]],
        [[1.0, np.ma.array(2.0, mask=True)]],
    ],
)
def test_no_masked_number_becomes_part_of_a_vector(rows: Any) -> None:
    refusal(lambda: values.as_array(rows, "vectors", 2), "vectors")


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**39])
def test_a_whole_number_that_no_float_holds_is_refused_by_its_place(number: int) -> None:
    """One that no float of any size holds was an OverflowError."""
    for value, count, where in (([1, number], 1, "vector[1]"), ([[1, 2], [number, 3]], 2, "vector[1, 0]")):
        with pytest.raises(InvalidArgument, match="finite float32 numbers") as refused:
            values.as_array(value, "vector", count)
        assert where in refused.value.message
    assert values.as_array([1, 10**30], "vector", 1).tolist() == [1.0, float(np.float32(1e30))]


CALLS: dict[str, Callable[[Client, Any], Awaitable[Any]]] = {
    "collection": lambda c, v: c.insert("a", VECTOR, collection=v),
    "collection of a batch": lambda c, v: c.insert_batch([("a", VECTOR)], collection=v),
    "collection of a delete": lambda c, v: c.delete("a", collection=v),
    "collection of a get": lambda c, v: c.get("a", collection=v),
    "collection of a search": lambda c, v: c.search(VECTOR, collection=v),
    "collection of a count": lambda c, v: c.count(collection=v),
    "name": lambda c, v: c.create_collection(v, dimensions=2),
    "dropped name": lambda c, v: c.drop_collection(v),
    "k": lambda c, v: c.search(VECTOR, v),
    "ef_search": lambda c, v: c.search(VECTOR, ef_search=v),
    "dimensions": lambda c, v: c.create_collection("c", dimensions=v),
    "index": lambda c, v: c.create_collection("c", dimensions=2, index=v),
    "metric": lambda c, v: c.create_collection("c", dimensions=2, metric=v),
    "expected_version": lambda c, v: c.compare_and_set("a", v, VECTOR),
    "mode": lambda c, v: c.search(VECTOR, mode=v),
    "exact": lambda c, v: c.search(VECTOR, exact=v),
    "with_metadata": lambda c, v: c.search(VECTOR, with_metadata=v),
    "with_vectors": lambda c, v: c.get("a", with_vectors=v),
    "session": lambda c, v: c.search_eventual(VECTOR, session=v),
    "if_absent": lambda c, v: c.create_collection("c", dimensions=2, if_absent=v),
    "timeout": lambda c, v: c.search(VECTOR, timeout=v),
    "max_staleness": lambda c, v: c.search_eventual(VECTOR, max_staleness=v),
    "filter": lambda c, v: c.search(VECTOR, filter=v),
    "documents": lambda c, v: c.insert_batch(v),
    "metadatas": lambda c, v: c.insert_batch(ids=["a"], vectors=[VECTOR], metadatas=v),
}
COUNTS = {"int", "np.int64", "IntEnum"}
SECONDS = COUNTS | {"float", "np.float16", "np.float32", "np.float64", "timedelta"}
FLAGS = {"bool", "np.bool_"}
MEANT: dict[str, set[str]] = {
    "k": COUNTS,
    "ef_search": COUNTS,
    "dimensions": COUNTS,
    "expected_version": COUNTS,
    "timeout": SECONDS,
    "max_staleness": {"none", *SECONDS},
    "index": {"none"},
    "filter": {"none"},
    "metric": {"none"},
    "exact": FLAGS,
    "with_metadata": FLAGS,
    "with_vectors": FLAGS,
    "session": FLAGS,
    "if_absent": FLAGS,
    "metadatas": {"none", "generator", "dict keys"},
}


@pytest.mark.parametrize("place", CALLS)
async def test_every_type_at_every_other_place_is_understood_or_refused_before_anything_is_sent(place: str) -> None:
    for name, value in ({key: value for key, (value, _) in SCALARS.items()} | REFUSED).items():
        network = Network()
        client = client_of(network)
        fits = name in MEANT.get(place, set())
        if "name" in place or "collection" in place:
            fits = isinstance(value, str) and name != "lone surrogate"
        sent = await outcome(CALLS[place](client, value))
        if fits:
            continue  # what was sent may still be refused by the server, in its own words
        assert isinstance(sent, InvalidArgument), (place, name, sent)
        assert not [method for _, method in network.calls if method != SHARD_LEADER], (place, name)


async def outcome(call: Awaitable[Any]) -> object:
    try:
        return await asyncio.wait_for(asyncio.ensure_future(call), 30)
    except InvalidArgument as refused:
        return refused
    except (AssertionError, msgspec.DecodeError):  # the scripted network knows no such command
        return None
    except Exception as other:  # noqa: BLE001 - that is what is looked for
        return other


def test_parameters_of_an_index_are_numbers_of_any_kind() -> None:
    assert values.check_index(IndexParams(m=np.int64(8))) == IndexParams(m=8)  # type: ignore[arg-type]
    refusal(lambda: values.check_index({"m": 8}), "index", "dict")
    refusal(lambda: values.check_index(IndexParams(m="8")), "index.m", "str")  # type: ignore[arg-type]


def test_an_index_has_a_name() -> None:
    assert values.check_index("flat") == IndexParams(kind=IndexKind.FLAT)
    assert values.check_index("high_recall") == IndexParams(m=32, ef_construction=400, ef_search=200)
    both = IndexParams(m=8, ef_construction=100, ef_search=20, kind=IndexKind.HNSW_SQ8)
    assert values.check_index("hnsw_sq8:low_latency") == both
    for wrong in ("", "hnsw:", "hnsw:fast", "high_recall:hnsw", "HNSW"):
        refusal(lambda wrong=wrong: values.check_index(wrong), "index", "hnsw_sq8")
    refusal(lambda: values.check_index(IndexParams(kind="x")), "index.kind", "hnsw_sq8")  # type: ignore[arg-type]


def test_rows_and_ids_are_lists_in_order() -> None:
    refusal(lambda: as_columns(None, {"a", "b"}, np.eye(2), None), "ids", "set")
    refusal(lambda: as_columns(None, ["a"], [VECTOR], {"a": 1}), "metadatas", "dict")
    refusal(lambda: as_columns({"a": VECTOR}, None, None, None), "documents", "dict")
    refusal(lambda: as_columns(["ab"], None, None, None), "documents[0]", "str")
    assert as_columns(None, ["a"], [VECTOR], iter([{"n": 1}])).metadata == [b'{"n":1}']
