"""The source of a bulk load, in pieces that workers read one by one: row groups of Parquet files, here or in a bucket.

A piece is named by what anybody can read again; nothing of it is kept. It must not know shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from needle.cli.bulk.sources import files_of, opened
from needle.cli.inputs import refuse
from needle.client import arrow_tables

READ_ROWS: Final = 4096


class Piece(msgspec.Struct, frozen=True):
    """A row group. size, changed: of its file, by which another file of the same name is known."""

    path: str
    group: int
    rows: int
    size: int
    changed: str


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
    vectors = arrow_tables.vectors_of(first)
    return found, len(vectors[0])


def batches_of(piece: Piece) -> Iterator[tuple[arrow_tables.Form, Any]]:
    """Its record batches, each with how its documents are read."""
    with _opened(piece.path) as file:
        form = arrow_tables.Form(file.schema_arrow, f"{piece.path}, row group number {piece.group}")
        for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=[piece.group]):
            yield form, batch


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    library = arrow_tables.library("pyarrow.parquet")
    try:
        with opened(path) as file, library.ParquetFile(file, pre_buffer=True) as parquet:
            yield parquet
    except (arrow_tables.library().ArrowException, OSError) as error:
        raise refuse(path, f"not a Parquet file: {error}") from None
