"""Files of lines that came from a node's HTTP export: whether all of it is there.

Invariant: of an export that broke off nothing is read. Its last line says that it is complete (docs/http.md); a file
that people wrote has no such line, and needs none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Final

from needle.base.errors import InvalidArgument, shown

LINE_BYTES_MAX: Final = 64 * 1024
"""Of a last line."""
_KEYS: Final = {"id", "version", "metadata", "vector", "vectors", "expires_at"}


def check_whole(path: Path) -> int | None:
    """How many documents an export by HTTP says it has; None for another file. Raises InvalidArgument for one that is
    not all there."""
    with path.open("rb") as file:
        first, last = _row(file.readline()), _row(_last_line(file))
    if is_end(last):
        if last["end"] != "complete":
            problem = last.get("problem")
            why = problem.get("detail") if isinstance(problem, dict) else None
            raise InvalidArgument(f"{path}: the export broke off: {why or 'it does not say why'}")
        return _all_of_them(path, last.get("documents"))
    if isinstance(first, dict) and {"id", "version", "metadata"} <= first.keys() <= _KEYS:
        raise InvalidArgument(
            f"{path}: the export broke off, for it has no last line that says that it is complete: export again. (If "
            'this is no export: a file of your own has no "version" beside "metadata", but in it)'
        )
    return None


def _all_of_them(path: Path, said: object) -> int:
    """The number of documents that the last line says. Raises InvalidArgument unless there are so many before it."""
    with path.open("rb") as file:
        there = sum(1 for line in file if line.strip()) - 1
    if type(said) is not int or said != there:
        raise InvalidArgument(
            f"{path}: its last line says that the export has {shown(said)} documents, and {there} lines are before it. "
            "Of several exports in one file only the last one's number is there: give each file by itself"
        )
    return said


def is_end(row: Any) -> bool:
    """Whether a line is the last one of an export."""
    return isinstance(row, dict) and "end" in row and "id" not in row


def _last_line(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LINE_BYTES_MAX))
    return file.read().rstrip().rpartition(b"\n")[2]


def _row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
