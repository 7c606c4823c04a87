"""Files of documents that `needle export` writes and `needle insert` reads (inputs.py): the same documents come back.

Invariant: a file appears under its name only when it is whole and on disk. Nothing here knows about clusters.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec

from needle.base.errors import InvalidArgument
from needle.base.model import Document
from needle.cli.inputs import refuse
from needle.client import arrow_tables
from needle.protocol.named import Named

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

    def __init__(self, path: Path, *, replace: bool, or_never: bool = False, named: Sequence[str] = ()) -> None:
        """or_never: say of documents without an instant that they never expire. named: vectors that they may have.
        Raises InvalidArgument for a name that says no format, or of a file that is there."""
        make = self.check(path, replace=replace)
        self.count = 0
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._rows: _Rows = self._made(make, or_never, named)

    @staticmethod
    def check(path: Path, *, replace: bool) -> Any:
        """What makes its format. Raises as the constructor, without touching anything."""
        makers = {".jsonl": _Lines, ".ndjson": _Lines, ".parquet": _Parquet}
        make = makers.get(path.suffix.lower())
        if make is None:
            raise refuse(str(path), "the name must end in .jsonl or .parquet")
        if path.exists() and not replace:
            raise refuse(str(path), "is there already: --force replaces it")
        if not path.parent.is_dir():
            raise refuse(str(path), f"there is no directory {path.parent}")
        return make

    def _made(self, make: Any, or_never: bool, named: Sequence[str]) -> _Rows:
        try:
            rows: _Rows = make(self._partial, or_never, named)
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

    def __init__(self, path: Path, or_never: bool, named: Sequence[str]) -> None:
        """named: each document says its own."""
        self._file = path.open("wb")
        self._or_never = or_never

    def add(self, document: Document) -> None:
        row: dict[str, Any] = {"id": document.id, "vector": document.vector.tolist()}
        if document.vectors:
            row["vectors"] = {name: vector.tolist() for name, vector in document.vectors.items()}
        expires = document.expires_at or ("never" if self._or_never else None)
        if document.metadata is not None or expires is not None:  # beside metadata, expires_at is no part of it
            row["metadata"] = document.metadata
        if expires is not None:
            row["expires_at"] = expires
        self._file.write(msgspec.json.encode(row) + b"\n")

    def end(self) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """Columns as of client/arrow_tables.py."""

    def __init__(self, path: Path, or_never: bool, named: Sequence[str]) -> None:
        self._schema, self._named = arrow_tables.schema(or_never=or_never, named=named), named
        parquet = arrow_tables.library("pyarrow.parquet")
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[Document] = []

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        if len(self._waiting) >= ROWS:
            self._write()

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        batch = arrow_tables.record_batch(
            self._schema,
            [row.id for row in rows],
            b"".join(row.vector.tobytes() for row in rows),
            [b"" if row.metadata is None else msgspec.json.encode(row.metadata) for row in rows],
            [arrow_tables.instant(row.expires_at) for row in rows],
            [one for one in (_of_name(name, rows) for name in self._named) if one.rows],
        )
        self._writer.write_batch(batch)

    def end(self) -> None:
        if self._waiting:
            self._write()
        self.close()

    def close(self) -> None:
        self._writer.close()


def _of_name(name: str, documents: Sequence[Document]) -> Named:
    has = [(at, one.vectors[name]) for at, one in enumerate(documents) if one.vectors and name in one.vectors]
    return Named(name, [at for at, _ in has], b"".join(vector.tobytes() for _, vector in has))
