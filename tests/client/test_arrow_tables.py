"""Documents become Arrow tables, and tables documents: the same ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.base.errors import InvalidArgument
from needle.client import arrow_tables, values
from needle.client.columns import as_columns
from needle.client.scanning import Batch, Place, Scan, SyncScan
from needle.protocol.calls import DocumentBatch
from needle.protocol.named import Named

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        st.none() | JSON_VALUES,
        st.sampled_from([0, 1, 1_000_000, 1_893_456_000_000_001, 253_402_300_799_999_999]),
    ),
    max_size=8,
    unique_by=lambda row: row[0],
)


class OnlyProtocol:
    """Some other library's table."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def pages_of(rows: list[Any], size: int = 3) -> list[DocumentBatch]:
    return [
        DocumentBatch(
            [row[0] for row in part],
            [1] * len(part),
            [values.metadata_bytes(row[2]) for row in part],
            np.array([row[1] for row in part], "<f4").tobytes(),
            9,
            [row[3] for row in part] if any(row[3] for row in part) else [],
        )
        for part in [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
    ]


def read_by_cursor(pages: list[DocumentBatch]):
    def read(cursor: str | None, most: int | None) -> Batch:
        at = int(cursor or 0)
        return Batch(pages[at], str(at + 1) if at + 1 < len(pages) else None)

    return read


def scan_of(pages: list[DocumentBatch], *, with_vectors: bool = True) -> Scan:
    read = read_by_cursor(pages)

    async def later(cursor: str | None, most: int | None) -> Batch:
        return read(cursor, most)

    return Scan(later, None, with_vectors=with_vectors)


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_what_a_scan_gives_an_insert_takes(rows: list[Any]) -> None:
    pages = pages_of(rows)
    table = SyncScan(read_by_cursor(pages), Place(None, True)).to_arrow()
    batch = as_columns(OnlyProtocol(table), None, None, None)
    assert batch.ids == [row[0] for row in rows]
    if rows:
        assert batch.vectors.tobytes() == b"".join(page.vectors for page in pages)
        held = [json.loads(one) if one else None for one in batch.metadata]
        assert held == [row[2] for row in rows]
        assert (batch.expires or [0] * len(rows)) == [row[3] or values.AS_IT_IS for row in rows]


async def test_named_vectors_are_columns_of_their_own() -> None:
    title = Named("title", [0, 2], np.array([[1, 2], [3, 4]], "<f4").tobytes())
    (page,) = pages_of([(f"d{n}", [n, 0, 0], {"n": n}, 0) for n in range(3)])
    pages = [msgspec.structs.replace(page, named=[title])]
    table = SyncScan(read_by_cursor(pages), Place(None, True, named=("image", "title"))).to_arrow()
    assert table.column_names == ["id", "vector", "vector:image", "vector:title", "metadata", "expires_at"]
    assert table.column("vector:title").to_pylist() == [[1, 2], None, [3, 4]]
    assert table.column("vector:image").null_count == 3
    for one in (table, pyarrow.concat_tables([table.slice(0, 1), table.slice(1)])):
        batch = as_columns(OnlyProtocol(one), None, None, None)
        assert batch.named == [title] and [json.loads(row) for row in batch.metadata] == [{"n": n} for n in range(3)]
    with pytest.raises(InvalidArgument, match=r"named_vectors = 'given' is not allowed: .*vector:title"):
        as_columns(table, None, None, None, None, {"title": [[1, 2]] * 3})
    wrong = table.set_column(3, "vector:title", pyarrow.array([[1.0], None, [2.0, 3.0]]))
    with pytest.raises(InvalidArgument, match="named_vectors\\['title'\\]"):
        as_columns(wrong, None, None, None)


async def test_documents_one_by_one_or_as_a_table() -> None:
    pages = pages_of([(f"d{n}", [n, 0, 0], {"n": n}, n) for n in range(5)], 2)
    assert [one.id async for one in scan_of(pages)] == ["d0", "d1", "d2", "d3", "d4"]
    table = await scan_of(pages).to_arrow()
    assert table.column("id").to_pylist() == ["d0", "d1", "d2", "d3", "d4"]
    assert table.column("expires_at").null_count == 1 and table.column("vector")[3].as_py() == [3, 0, 0]
    plain = pages_of([("a", [], None, 0)])
    assert (await scan_of(plain, with_vectors=False).to_arrow()).column_names == ["id", "metadata", "expires_at"]
    begun = scan_of(pages)
    assert (await anext(begun)).id == "d0"
    with pytest.raises(InvalidArgument, match="were read already"):
        await begun.to_arrow()
    await begun.aclose()
    assert [one async for one in begun] == []


def table(**columns: Any) -> Any:
    return pyarrow.table({"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]], **columns})


@pytest.mark.parametrize(
    "kind", [pyarrow.list_(pyarrow.float64()), pyarrow.list_(pyarrow.float32(), 2), pyarrow.list_(pyarrow.int16())]
)
def test_vectors_of_any_kind_of_list(kind: Any) -> None:
    vectors = pyarrow.array([[9, 9], [1, 2], [3, 4]], kind)[1:]  # with an offset
    batch = as_columns(table(vector=vectors), None, None, None)
    assert batch.vectors.tolist() == [[1, 2], [3, 4]]


def test_other_columns_are_metadata() -> None:
    made = table(lang=["en", None], expires_at=["2030-01-01T00:00:00Z"] * 2, metadata=["x", "y"])
    batch = as_columns(made, None, None, None)
    assert [json.loads(one) for one in batch.metadata] == [
        {"lang": "en", "expires_at": "2030-01-01T00:00:00Z", "metadata": "x"},
        {"lang": None, "expires_at": "2030-01-01T00:00:00Z", "metadata": "y"},
    ]
    assert batch.expires == [], "it does not say that it is an instant"
    assert as_columns(made, None, None, None, "never").expires == [values.NEVER] * 2


def test_never_is_said_where_it_matters() -> None:
    for or_never, expected in ((False, values.AS_IT_IS), (True, values.NEVER)):
        form = arrow_tables.schema(or_never=or_never)
        made = arrow_tables.record_batch(form, ["a", "b"], np.zeros(4, "<f4").tobytes(), [b"", b""], [0, 5])
        batch = as_columns(pyarrow.Table.from_batches([made]), None, None, None)
        assert batch.expires == [expected, 5]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (pyarrow.table({"id": ["a"]}), "no column 'vector', only id"),
        (table(id=["a", None]), r"ids\[1\] = None"),
        (table(id=[True, False]), r"ids\[0\] = True"),
        (table(when=pyarrow.array([1, 2**62]).cast(pyarrow.timestamp("us", "UTC"))), "rows 0 to 1: .* out of range"),
        (table(vector=[[1.0, 2.0], [1.0]]), r"documents\[1\]\.vector"),
        (table(vector=[[1.0, 2.0], None]), r"documents\[1\]\.vector"),
        (table(vector=[[1.0, 2.0], [None, 1.0]]), r"documents\[1\]\.vector"),
        (table(vector=["x", "y"]), r"documents\[0\]\.vector"),
        (OnlyProtocol(pyarrow.chunked_array([[1, 2]])), "the columns id and vector"),
    ],
)
def test_tables_that_hold_no_documents(wrong: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        as_columns(wrong, None, None, None)


def test_metadata_that_is_no_json_is_named() -> None:
    form = arrow_tables.schema()
    made = arrow_tables.record_batch(form, ["a", "b"], np.zeros(4, "<f4").tobytes(), [b"{}", b"{"], [])
    with pytest.raises(InvalidArgument, match=r"documents row 1: .* not JSON"):
        as_columns(pyarrow.Table.from_batches([made]), None, None, None)
    deep = arrow_tables.record_batch(form, ["a"], np.zeros(2, "<f4").tobytes(), [b"[" * 100_000], [])
    with pytest.raises(InvalidArgument, match=r"documents row 0: .* not JSON"):
        as_columns(pyarrow.Table.from_batches([deep]), None, None, None)
    more = pyarrow.Table.from_batches([made]).append_column("lang", [["en", "de"]])
    with pytest.raises(InvalidArgument, match="lang have no place"):
        as_columns(more, None, None, None)
