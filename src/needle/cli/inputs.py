"""Files of vectors: what `needle insert` and `needle search --vector` read.

Every reader yields documents in batches, so that a file larger than memory works (except .npy, which is mapped), and
names the line or row it refuses. Nothing here knows about clusters.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from needle.base.dtypes import VectorForm
from needle.base.errors import InvalidArgument, shown
from needle.base.model import VectorSpec
from needle.cli.exported import check_whole
from needle.client import arrow_tables
from needle.client.values import as_array, check_id, expiry, metadata_bytes

Embed = Callable[[list[str]], NDArray[np.float32]]
NONE: Final[Mapping[str, NDArray[np.float32]]] = {}
NPY_MAGIC = b"\x93NUMPY"
LINES = (".jsonl", ".ndjson")
SUFFIXES = (*LINES, ".npy", ".parquet", ".arrow")


class Record(NamedTuple):
    """One document to insert: vector is float32 of shape (dimensions,), metadata any JSON, where: its line or row,
    expires_at: an instant, "never", or None, named: its named vectors, like vector."""

    id: str
    vector: NDArray[np.float32]
    metadata: Any
    where: str = ""
    expires_at: str | None = None
    named: Mapping[str, NDArray[np.float32]] = NONE

    @property
    def vector_bytes(self) -> int:
        """Of all its vectors."""
        return self.vector.nbytes + sum(one.nbytes for one in self.named.values())


def refuse(where: str, problem: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {problem}")


def named_vectors(given: object, where: str) -> dict[str, NDArray[np.float32]]:
    """The named vectors of a document, by name, as `as_vector`; what is null it does not have."""
    if not isinstance(given, Mapping):
        text = f'"vectors" = {shown(given)} is not allowed: an object with a list of numbers by each name of a vector'
        raise refuse(where, f'{text}; metadata that is called so stands in "metadata"')
    return {name: as_vector(one, f"{where}: vector {name!r}") for name, one in given.items() if one is not None}


def as_vector(value: object, where: str) -> NDArray[np.float32]:
    """`value` as float32 of shape (dimensions,), all finite; a single row of shape (1, dimensions) also fits."""
    row = isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[0] == 1
    row = row or (isinstance(value, list) and len(value) == 1 and isinstance(value[0], list))
    try:
        return as_array(value[0] if row else value, "vector", 1)  # type: ignore[index]
    except InvalidArgument as error:
        raise refuse(where, error.message) from None


def check_record(record: Record, form: VectorForm | None, named: Mapping[str, VectorSpec] | None = None) -> None:
    """Raises InvalidArgument that names the line or row of a document that no collection takes, or none whose vectors
    are stored so. form, named: of the collection, if they are known."""
    where = record.where or record.id
    for name, vector in record.named.items() if named is not None else ():
        if (spec := (named or {}).get(name)) is None:
            allowed = ", ".join(map(repr, named or {})) or "the collection has no named vectors"
            raise refuse(where, f"vectors: {name!r} is not allowed: {allowed}")
        if len(vector) not in spec.stored_as(name).form.lengths:
            text = f"the vector {name!r} has {len(vector)} numbers; those of the collection have {spec.dimensions}"
            raise refuse(where, text)
    if form is not None and len(record.vector) not in form.lengths:
        has = f"the vector has {len(record.vector)} numbers"
        raise refuse(where, f"{has}; the collection's vectors have {form.dimensions}")
    try:
        check_id(record.id)
        metadata_bytes(record.metadata)
    except InvalidArgument as error:
        raise refuse(where, error.message) from None


def span(records: Sequence[Record]) -> str:
    """Which documents of a file these are, for an error about one of them."""
    first, last = (record.where or record.id for record in (records[0], records[-1]))
    return first if first == last else f"{first} to {last}"


def may_hold_text(path: Path) -> bool:
    """Whether lines of a file may have a text in place of a vector."""
    return path.suffix.lower() in LINES


def read_records(path: Path, embed: Callable[[], Embed], id_prefix: str, batch: int) -> Iterator[list[Record]]:
    """The documents of a .jsonl, .npy, .parquet or .arrow file, `batch` at a time. embed: makes the embedder when
    the file holds text. Raises InvalidArgument naming file and line."""
    suffix = path.suffix.lower()
    if may_hold_text(path):
        return _read_jsonl(path, embed, batch)
    if suffix == ".npy":
        return _read_npy(path, id_prefix, batch)
    if suffix == ".parquet":
        return _read_table(path, _open_parquet(path), batch)
    if suffix == ".arrow":
        return _read_table(path, _Stream(path), batch)
    raise refuse(str(path), f"the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def count_records(path: Path) -> int | None:
    """How many documents a file holds when that is cheap to know, else None."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return int(_open_npy(path).shape[0])
    if suffix == ".parquet":
        return int(_open_parquet(path).metadata.num_rows)
    if suffix == ".arrow":
        return None
    exported = check_whole(path)
    if exported is not None:
        return exported
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def read_query_vector(source: str) -> NDArray[np.float32]:
    """The vector in a .npy file, or on standard input ("-") as .npy or as a JSON list."""
    if source == "-":
        data = sys.stdin.buffer.read()
        if data.startswith(NPY_MAGIC):
            return as_vector(_load_npy(io.BytesIO(data), "standard input"), "standard input")
        try:
            return as_vector(json.loads(data), "standard input")
        except (ValueError, RecursionError):
            raise refuse("standard input", "neither .npy nor a JSON list of numbers") from None
    try:
        data = Path(source).read_bytes()  # also of a pipe, which cannot be read twice
    except FileNotFoundError:
        raise refuse(source, "no such file") from None
    except OSError as error:
        raise refuse(source, f"cannot be read: {error.strerror}") from None
    return as_vector(_load_npy(io.BytesIO(data), source), source)


def _load_npy(file: io.BytesIO, where: str) -> Any:
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise refuse(where, f"not a .npy file: {error}") from None


def _read_jsonl(path: Path, embed: Callable[[], Embed], batch: int) -> Iterator[list[Record]]:
    embedder: Embed | None = None
    exported = check_whole(path)
    with path.open("rb") as file:
        lines: Iterator[tuple[int, bytes]] = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
        if exported is not None:
            lines = islice(lines, exported)  # behind them is the line that says how many they are
        while chunk := list(islice(lines, batch)):
            rows = [_json_row(line, f"{path}:{number}") for number, line in chunk]
            if exported is not None:
                for row in rows:
                    row.pop("version", None)  # the cluster that it goes to gives another one
            texts = [row["text"] for row in rows if "vector" not in row]
            if texts and embedder is None:
                embedder = embed()
            embedded = iter(embedder(texts)) if embedder is not None and texts else iter(())
            records = []
            for (number, _), row in zip(chunk, rows, strict=True):
                where = f"{path}:{number}"
                vector = as_vector(row["vector"], where) if "vector" in row else next(embedded)
                expires = _expires_at(row, where)
                named = named_vectors(row["vectors"], where) if row.get("vectors") is not None else NONE
                records.append(Record(row["id"], vector, _metadata(row, where), where, expires, named))
            yield records


def _expires_at(row: dict[str, Any], where: str) -> str | None:
    """Beside "metadata", "expires_at" says when the document expires, as `needle export` writes it; else it is
    metadata."""
    told = row.pop("expires_at") if "metadata" in row and "expires_at" in row else None
    try:
        expiry(told)
    except InvalidArgument as error:
        raise refuse(where, error.message) from None
    return None if told is None else str(told)


def _metadata(row: dict[str, Any], where: str) -> Any:
    """The value of "metadata", joined by every other key that is not "id", "vector" or "vectors"."""
    given = row.get("metadata")
    others = {key: value for key, value in row.items() if key not in ("id", "vector", "vectors", "metadata")}
    if not others:
        return given
    if given is not None and not isinstance(given, dict):
        raise refuse(where, f'"metadata" must be an object when there are other keys: {", ".join(others)}')
    return {**(given or {}), **others}


def _json_row(line: bytes, where: str) -> dict[str, Any]:
    """One parsed line, checked: an id, and a vector or a text."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise refuse(where, f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise refuse(where, f'{shown(row)} is not allowed: every line must be an object with a string "id"')
    if not isinstance(row.get("id"), str):
        has = f'"id" = {shown(row["id"])} is not allowed' if "id" in row else 'there is no "id"'
        raise refuse(where, f'{has}: every line must be an object with a string "id"')
    if "vector" not in row and not isinstance(row.get("text"), str):
        raise refuse(where, 'every line must have a "vector" (list of numbers) or a "text" (string)')
    return row


def _open_npy(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise refuse(str(path), f"not a .npy file: {error}") from None
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise refuse(str(path), f"must hold a 2-d array of numbers, not {array.dtype} of shape {array.shape}")
    return array


def _read_npy(path: Path, id_prefix: str, batch: int) -> Iterator[list[Record]]:
    array = _open_npy(path)
    for start in range(0, array.shape[0], batch):
        with np.errstate(over="ignore"):  # what becomes infinite is refused by its row
            rows = np.asarray(array[start : start + batch], dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = start + int(np.argmin(np.isfinite(rows).all(axis=1)))
            as_vector(array[bad], f"{path} row {bad}")
        yield [
            Record(f"{id_prefix}{start + offset}", row, None, f"{path} row {start + offset}")
            for offset, row in enumerate(rows)
        ]


def _open_parquet(path: Path) -> Any:
    try:
        return arrow_tables.library("pyarrow.parquet").ParquetFile(path)
    except (arrow_tables.library().ArrowException, OSError) as error:
        raise refuse(str(path), f"not a Parquet file: {error}") from None


class _Stream:
    """An .arrow file, in either form of Arrow's IPC, like pyarrow's ParquetFile."""

    def __init__(self, path: Path) -> None:
        arrow, ipc = arrow_tables.library(), arrow_tables.library("pyarrow.ipc")
        try:
            with path.open("rb") as file:
                in_file = file.read(6) == b"ARROW1"
            self._opened = (ipc.open_file if in_file else ipc.open_stream)(arrow.memory_map(str(path)))
        except (arrow.ArrowException, OSError) as error:
            raise refuse(str(path), f"not an Arrow file: {error}") from None
        self._in_file = in_file
        self.schema_arrow = self._opened.schema

    def iter_batches(self, batch_size: int) -> Iterator[Any]:
        opened = self._opened
        parts = (opened.get_batch(at) for at in range(opened.num_record_batches)) if self._in_file else opened
        for part in parts:
            for start in range(0, part.num_rows, batch_size):
                yield part.slice(start, batch_size)


def _read_table(path: Path, file: Any, batch: int) -> Iterator[list[Record]]:
    form, row_number = arrow_tables.Form(file.schema_arrow, str(path)), 0
    for table in _parts(file, path, batch):
        records = []
        for row in form.rows(table):
            where = f"{path} row {row_number}"
            vector = as_vector(row.vector, where)
            named = named_vectors(row.named, where) if row.named else NONE
            records.append(Record(row.id, vector, row.metadata, where, row.expires_at, named))
            row_number += 1
        yield records


def _parts(file: Any, path: Path, batch: int) -> Iterator[Any]:
    """Record batches. Raises InvalidArgument for a damaged part of the file."""
    parts = file.iter_batches(batch_size=batch)
    while True:
        try:
            part = next(parts, None)
        except (arrow_tables.library().ArrowException, OSError) as error:
            raise refuse(str(path), f"cannot be read: {error}") from None
        if part is None:
            return
        yield part
