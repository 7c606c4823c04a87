"""The source of a bulk load, in pieces that workers read one by one: row groups of Parquet files, here or in a bucket.

A piece is named by what anybody can read again; nothing of it is kept. It must not know shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from needle.base.errors import InvalidArgument
from needle.cli.inputs import refuse
from needle.client import arrow_tables

READ_ROWS: Final = 4096
ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT"


class Piece(msgspec.Struct, frozen=True):
    """A row group. size, changed: of its file, by which another file of the same name is known."""

    path: str
    group: int
    rows: int
    size: int
    changed: str


def pieces_of(source: str) -> tuple[list[Piece], int]:
    """All of a source, in order, and the dimensions of its vectors. Raises InvalidArgument, ConfigError without
    pyarrow."""
    system, paths = _files(source)
    found: list[Piece] = []
    for path in paths:
        info = system.get_file_info(path)
        with _open(system, path) as file:
            groups = [file.metadata.row_group(at).num_rows for at in range(file.metadata.num_row_groups)]
        changed = str(info.mtime_ns)
        name = path if not source.startswith("s3://") else f"s3://{path}"
        found += [Piece(name, at, rows, info.size, changed) for at, rows in enumerate(groups) if rows]
    if not found:
        raise refuse(source, "holds no documents")
    first = next(batches_of(found[0]))[1]
    vectors = arrow_tables.vectors_of(first)
    return found, len(vectors[0])


def batches_of(piece: Piece) -> Iterator[tuple[arrow_tables.Form, Any]]:
    """Its record batches, each with how its documents are read."""
    system, [path] = _files(piece.path)
    with _open(system, path) as file:
        form = arrow_tables.Form(file.schema_arrow, f"{piece.path}, row group number {piece.group}")
        if form.named:
            names = ", ".join(arrow_tables.NAMED + name for name in form.named)
            allowed = "a bulk load takes documents without named vectors: give them these by `update_vector`"
            raise refuse(piece.path, f"the column {names} is not allowed: {allowed}")
        for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=[piece.group]):
            yield form, batch


def _open(system: Any, path: str) -> Any:
    try:
        return arrow_tables.library("pyarrow.parquet").ParquetFile(system.open_input_file(path))
    except (arrow_tables.library().ArrowException, OSError) as error:
        raise refuse(path, f"not a Parquet file: {error}") from None


def _files(source: str) -> tuple[Any, list[str]]:
    """The file system, and the paths of the files: of one, or of all in a directory or below a prefix."""
    fs = arrow_tables.library("pyarrow.fs")
    if source.startswith("s3://"):
        system = fs.S3FileSystem(**({"endpoint_override": at} if (at := os.environ.get(ENDPOINT_VARIABLE)) else {}))
        place = source.removeprefix("s3://").rstrip("/")
    else:
        system, place = fs.LocalFileSystem(), str(Path(source).absolute())
    try:
        info = system.get_file_info(place)
        if info.is_file:
            return system, [place]
        within = system.get_file_info(fs.FileSelector(place, recursive=True)) if info.type.name == "Directory" else []
    except OSError as error:
        raise refuse(source, f"cannot be read: {error}") from None
    paths = sorted(one.path for one in within if one.is_file and one.path.endswith(".parquet"))
    if not paths:
        raise InvalidArgument(f"{source}: no Parquet file, and no directory of .parquet files", field="SOURCE")
    return system, paths
