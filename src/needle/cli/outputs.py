"""Files of documents that `needle export` writes and `needle insert` reads (inputs.py): the same documents come back.

Invariant: a file appears under its name only when it is whole and on disk. Nothing here knows about clusters.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.model import Document
from needle.cli.inputs import METADATA_IS_JSON, arrow, refuse

ROWS = 1000
"""Of one group of a Parquet file."""


class _Rows(Protocol):
    def add(self, document: Document) -> None: ...
    def end(self) -> None:
        """Write what is left, and close."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Export:
    """One file that is being written; a context manager. `finish` gives it its name; without that nothing is left."""

    def __init__(self, path: Path, *, replace: bool) -> None:
        """Raises InvalidArgument for a name that says no format, or of a file that is there."""
        makers = {".jsonl": _Lines, ".ndjson": _Lines, ".parquet": _Parquet}
        make = makers.get(path.suffix.lower())
        if make is None:
            raise refuse(str(path), "the name must end in .jsonl or .parquet")
        if path.exists() and not replace:
            raise refuse(str(path), "is there already: --force replaces it")
        if not path.parent.is_dir():
            raise refuse(str(path), f"there is no directory {path.parent}")
        self.count = 0
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._rows: _Rows = self._made(make)

    def _made(self, make: Any) -> _Rows:
        try:
            rows: _Rows = make(self._partial)
        except OSError as error:
            raise refuse(str(self._path), f"cannot be written: {error.strerror}") from None
        return rows

    def add(self, document: Document) -> None:
        """Write a document, which has its vector."""
        try:
            self._rows.add(document)
        except OSError as error:
            raise InvalidArgument(f"{self._path}: cannot be written: {error.strerror}") from error
        self.count += 1

    def finish(self) -> None:
        """All were added."""
        try:
            self._rows.end()
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            raise InvalidArgument(f"{self._path}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> Export:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # what is wrong has been said
            self._rows.close()
        self._partial.unlink(missing_ok=True)


class _Lines:
    """One object a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def add(self, document: Document) -> None:
        row = {"id": document.id, "vector": document.vector.tolist()}
        if document.metadata is not None:
            row["metadata"] = document.metadata
        self._file.write(msgspec.json.encode(row) + b"\n")

    def end(self) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """Columns id, vector (float32) and metadata (JSON text, which the column's own metadata says)."""

    def __init__(self, path: Path) -> None:
        self._arrow, parquet = arrow()
        text = self._arrow.string()
        self._schema = self._arrow.schema([
            self._arrow.field("id", text, nullable=False),
            self._arrow.field("vector", self._arrow.list_(self._arrow.float32()), nullable=False),
            self._arrow.field("metadata", text, metadata=METADATA_IS_JSON),
        ])  # fmt: skip
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Document] = []

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        if len(self._waiting) >= ROWS:
            self._write()

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        json = [None if row.metadata is None else msgspec.json.encode(row.metadata).decode() for row in rows]
        columns = [[row.id for row in rows], [row.vector for row in rows], json]
        arrays = [self._arrow.array(c, field.type) for c, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))

    def end(self) -> None:
        if self._waiting:
            self._write()
        self.close()

    def close(self) -> None:
        self._writer.close()
