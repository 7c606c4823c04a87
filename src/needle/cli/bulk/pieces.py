"""The source of a bulk load, in pieces that workers read one by one: row groups of Parquet files, here or in a bucket.

A piece is named by what anybody can read again; nothing of it is kept. It must not know shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from needle.cli.bulk.sources import files_of, opened
from needle.cli.inputs import as_vector, refuse
from needle.client import arrow_tables

READ_ROWS: Final = 4096


class Piece(msgspec.Struct, frozen=True):
    """A row group. size, changed: of its file, by which another file of the same name is known."""

    path: str
    group: int
    rows: int
    size: int
    changed: str

    @property
    def where(self) -> str:
        """What names it in errors."""
        return f"{self.path}, row group number {self.group}"


def pieces_of(source: str) -> tuple[list[Piece], int]:
    """All of a source, in order, and the dimensions of its vectors. Raises InvalidArgument, ConfigError without
    pyarrow, StorageError."""
    arrow_tables.library("pyarrow.parquet")
    found: list[Piece] = []
    for one in files_of(source):
        with _opened(one.path) as file:
            groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
        found += [Piece(one.path, at, rows, one.size, one.changed) for at, rows in enumerate(groups) if rows]
    if not found:
        raise refuse(source, "holds no documents")
    first = next(batches_of(found[0]))[1]
    # Checked here already: a collection is made with so many dimensions before the workers look at it.
    return found, len(as_vector(arrow_tables.vectors_of(first)[0], f"{found[0].where} row 0"))


def batches_of(piece: Piece) -> Iterator[tuple[arrow_tables.Form, Any]]:
    """Its record batches, each with how its documents are read. Raises InvalidArgument for a file that is damaged, or
    another one than when the piece was named: files of two states of the source would be one load."""
    with _opened(piece.path) as file:
        _check_same(piece)
        form = arrow_tables.Form(file.schema_arrow, piece.where)
        if form.named:
            names = ", ".join(arrow_tables.NAMED + name for name in form.named)
            allowed = "a bulk load takes documents without named vectors: give them these by `update_vector`"
            raise refuse(piece.path, f"the column {names} is not allowed: {allowed}")
        batches = file.iter_batches(batch_size=READ_ROWS, row_groups=[piece.group])
        while (batch := _next(batches, piece)) is not None:
            yield form, batch
        _check_same(piece)


def _check_same(piece: Piece) -> None:
    now = next((one for one in files_of(piece.path) if one.path == piece.path), None)
    if now is None or (now.size, now.changed) != (piece.size, piece.changed):
        raise refuse(piece.path, "was changed since the load began: load again, from files that stay as they are")


def _next(batches: Iterator[Any], piece: Piece) -> Any:
    try:
        return next(batches, None)
    except (arrow_tables.library().ArrowException, OSError) as error:
        raise refuse(piece.where, f"cannot be read: {error}") from None


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    library = arrow_tables.library("pyarrow.parquet")
    try:
        with opened(path) as file, library.ParquetFile(file, pre_buffer=True) as parquet:
            yield parquet
    except (arrow_tables.library().ArrowException, OSError) as error:
        raise refuse(path, f"not a Parquet file: {error}") from None
