"""Documents as Arrow tables, in both directions: what `Scan.to_arrow` gives, inserts take; so do Parquet files.

Columns: `id` (text), `vector` (lists of numbers), `vector:NAME` for each named vector (lists of numbers, null where a
document lacks it), `metadata` and `expires_at`, whose fields say of themselves that the first is JSON of all the
metadata and the second an instant. In a table that does not say so these two are metadata like all other columns.
pyarrow is loaded when a table comes along, not before; anything that has the Arrow PyCapsule protocol
(`__arrow_c_stream__`) is a table. Knows no cluster.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any, NamedTuple, Protocol

import numpy as np

from needle.base.errors import ConfigError, InvalidArgument
from needle.base.instants import micros, rfc3339
from needle.base.plain import refused
from needle.protocol.calls import DocumentBatch
from needle.protocol.named import Named

ID, VECTOR, METADATA, EXPIRES = "id", "vector", "metadata", "expires_at"
NAMED = "vector:"
"""Before the name of a named vector."""
MARK = b"needle"
JSON = {MARK: b"json"}
INSTANT = {MARK: b"instant"}
INSTANT_OR_NEVER = {MARK: b"instant, or never"}
"""Documents without an instant do not expire, also where a collection's ttl says otherwise."""


class Table(Protocol):
    """What has the Arrow PyCapsule protocol: a table of pyarrow, a data frame of pandas or polars, and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """See the Arrow PyCapsule protocol."""
        ...


class Row(NamedTuple):
    """One document of a table. id, vector: as the table has them, to be checked; numbers as ids become text.
    expires_at: RFC 3339, "never", or None. named: the named vectors that it has, as `vector`."""

    id: Any
    vector: Any
    metadata: Any
    expires_at: str | None
    named: Mapping[str, Any]


def library(name: str = "pyarrow") -> Any:
    """pyarrow, or a part of it. Raises ConfigError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        text = "Arrow tables and .parquet files need pyarrow: pip install 'needle-vdb[parquet]'"
        raise ConfigError(text, field="parquet") from None


# --- out -------------------------------------------------------------------------------------------------------------
def schema(*, vectors: bool = True, or_never: bool = False, named: Iterable[str] = ()) -> Any:
    """Of the tables that are made here. named: of named vectors."""
    arrow = library()
    fields = [arrow.field(ID, arrow.string(), nullable=False)]
    if vectors:
        fields.append(arrow.field(VECTOR, arrow.list_(arrow.float32()), nullable=False))
    fields += [arrow.field(NAMED + name, arrow.list_(arrow.float32())) for name in named]
    fields += [
        arrow.field(METADATA, arrow.string(), metadata=JSON),
        arrow.field(EXPIRES, arrow.timestamp("us", "UTC"), metadata=INSTANT_OR_NEVER if or_never else INSTANT),
    ]
    return arrow.schema(fields)


def record_batch(
    form: Any,
    ids: Sequence[str],
    vectors: bytes | memoryview,
    metadata: Sequence[bytes],
    expires: Sequence[int],
    named: Sequence[Named] = (),
) -> Any:
    """Documents as a record batch of the schema `form`. vectors: rows of float32, if the form has them. metadata: JSON,
    b"" for none. expires: microseconds since 1970, 0 for never; empty if none does. named: those of names that the form
    has, as float32."""
    arrow = library()
    columns = {
        ID: arrow.array(ids, arrow.string()),
        METADATA: arrow.array([one.decode() or None for one in metadata], arrow.string()),
        EXPIRES: arrow.array([at or None for at in expires or [0] * len(ids)], arrow.int64()),
    }
    if VECTOR in form.names:
        numbers = arrow.array(np.frombuffer(vectors, "<f4"))
        width = len(numbers) // len(ids) if ids else 0
        ends = arrow.array(np.arange(len(ids) + 1, dtype=np.int32) * np.int32(width))
        columns[VECTOR] = arrow.ListArray.from_arrays(ends, numbers)
    given = {NAMED + one.vector: one for one in named}
    for name in form.names:
        if name.startswith(NAMED):
            columns[name] = arrow.array(_listed(given.get(name), len(ids)), arrow.list_(arrow.float32()))
    columns[EXPIRES] = columns[EXPIRES].cast(arrow.timestamp("us", "UTC"))
    return arrow.record_batch([columns[name] for name in form.names], schema=form)


def _listed(named: Named | None, count: int) -> list[Any]:
    """Of each of so many documents, or None where it has none."""
    found: list[Any] = [None] * count
    if named is not None:
        for at, row in zip(named.rows, np.frombuffer(named.vectors, "<f4").reshape(len(named.rows), -1), strict=True):
            found[at] = row
    return found


def table(batches: Sequence[DocumentBatch], *, vectors: bool, named: Iterable[str] = ()) -> Any:
    """Pages of documents as one table."""
    form = schema(vectors=vectors, named=named)
    parts = [record_batch(form, one.ids, one.vectors, one.metadata, one.expires, one.named) for one in batches]
    return library().Table.from_batches(parts, form)


def instant(text: str | None) -> int:
    """RFC 3339 as microseconds since 1970; 0 for None."""
    return (micros(text) or 0) if text is not None else 0


# --- in --------------------------------------------------------------------------------------------------------------
def is_table(value: object) -> bool:
    """Whether it is a table: a single column, which some libraries give the same protocol, is none."""
    return hasattr(value, "__arrow_c_stream__") and getattr(value, "ndim", 2) != 1


def rows_of(value: Any) -> list[Row]:
    """The documents of a table. Raises InvalidArgument that names column and row."""
    arrow = library()
    try:
        reader = arrow.RecordBatchReader.from_stream(value)
        form = Form(reader.schema, "documents")
        return [row for batch in reader for row in form.rows(batch)]
    except (arrow.ArrowException, TypeError) as error:
        raise refused("documents", value, f"a table with the columns id and vector ({error})") from None


class Form:
    """How the documents of a table are to be read. where: what names the table in errors."""

    def __init__(self, form: Any, where: str) -> None:
        """form: its schema. Raises InvalidArgument."""
        for name in (ID, VECTOR):
            if name not in form.names:
                raise InvalidArgument(f"{where}: has no column {name!r}, only {', '.join(form.names)}", field=where)
        if len(set(form.names)) < len(form.names):
            raise InvalidArgument(f"{where}: two columns have one name: {', '.join(form.names)}", field=where)
        self._where = where
        self._json = _mark(form, METADATA) == JSON[MARK]
        says = _mark(form, EXPIRES)
        self._expires = says in (INSTANT[MARK], INSTANT_OR_NEVER[MARK])
        self._without = "never" if says == INSTANT_OR_NEVER[MARK] else None
        self.named = [name.removeprefix(NAMED) for name in form.names if name.startswith(NAMED)]
        own = (
            {ID, VECTOR, *(NAMED + name for name in self.named)}
            | ({METADATA} if self._json else set())
            | ({EXPIRES} if self._expires else set())
        )
        self._others = [name for name in form.names if name not in own]
        if self._json and self._others:
            raise InvalidArgument(
                f"{where}: its column metadata has all the metadata, so the columns {', '.join(self._others)} have no "
                "place; rename metadata, or leave them out",
                field=where,
            )
        self._seen = 0

    def rows(self, batch: Any) -> Iterator[Row]:
        """The documents of the next record batch."""
        count, first = batch.num_rows, self._seen
        self._seen += count
        try:
            ids, vectors = batch.column(ID).to_pylist(), _vectors(batch.column(VECTOR))
            named = {name: _some_vectors(batch.column(NAMED + name)) for name in self.named}
            told = batch.column(METADATA).to_pylist() if self._json else batch.select(self._others).to_pylist()
            expires = self._instants(batch.column(EXPIRES)) if self._expires else [None] * count
        except (library().ArrowException, ValueError, OverflowError) as error:  # such as an instant of the year 148000
            where = f"{self._where} rows {first} to {first + count - 1}"
            raise InvalidArgument(f"{where}: a value that Python cannot hold: {error}", field=self._where) from None
        for at, (name, vector, held, until) in enumerate(zip(ids, vectors, told, expires, strict=True)):
            metadata = self._parsed(held, first + at) if self._json else _plain(held) or None
            has = {of: rows[at] for of, rows in named.items() if rows[at] is not None}
            yield Row(str(name) if type(name) is int else name, vector, metadata, until, has)

    def _instants(self, column: Any) -> list[str | None]:
        arrow = library()
        numbers = column.cast(arrow.timestamp("us", "UTC")).cast(arrow.int64()).to_pylist()
        return [self._without if at is None else rfc3339(at) for at in numbers]

    def _parsed(self, text: str | None, row: int) -> Any:
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(
                f'{self._where} row {row}: the column "metadata" holds what is not JSON: {error}', field=self._where
            ) from None


def vectors_of(batch: Any) -> Sequence[Any]:
    """The column of vectors of a record batch."""
    return _vectors(batch.column(VECTOR))


def _mark(form: Any, name: str) -> bytes | None:
    if name not in form.names:
        return None
    mark: bytes | None = (form.field(name).metadata or {}).get(MARK)
    return mark


def _vectors(column: Any) -> Sequence[Any]:
    """Of each row, an array; or what Python makes of it, if they are no lists of numbers, all there."""
    flat = column.flatten() if hasattr(column, "flatten") and hasattr(column, "value_lengths") else None
    if flat is None or column.null_count or flat.null_count or not _numbers(flat):
        found: Sequence[Any] = column.to_pylist()
        return found
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    return np.split(flat.to_numpy(zero_copy_only=False), ends[:-1]) if len(ends) else []


def _some_vectors(column: Any) -> Sequence[Any]:
    """As `_vectors`, None where there is none."""
    if not column.null_count:
        return _vectors(column)
    given = iter(_vectors(column.drop_null()))
    return [next(given) if there else None for there in column.is_valid().to_pylist()]


def _numbers(flat: Any) -> bool:
    return flat.type in [getattr(library(), name)() for name in ("float16", "float32", "float64")]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Dates, times and timestamps without a zone are no instants: they become their ISO text."""
    return {name: _zoneless_as_text(value) for name, value in row.items()}


def _zoneless_as_text(value: object) -> object:
    zoneless = isinstance(value, date | time) and getattr(value, "tzinfo", None) is None
    return value.isoformat() if zoneless else value  # type: ignore[attr-defined]
