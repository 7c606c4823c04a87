"""What the catalog's file says of itself when SQLite does not: errors as ours, and a header that lets nobody write."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from needle.base.errors import CorruptDocuments
from needle.base.file_errors import os_failure, sqlite_failure

PROBE_BYTES: Final = 1 << 20


def says_read_only(path: str) -> bool:
    """Whether the header has a write version that SQLite does not know: it reads such a file, and writes nothing."""
    with open(path, "rb") as file:
        header = file.read(20)
    return len(header) == 20 and header[18] not in (1, 2)


def is_of_content(error: sqlite3.OperationalError) -> bool:
    """Whether it says that the file does not hold what it should, and nothing of the disk. Without
    a code it is Python's own: a text of a damaged page is no UTF-8."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) == sqlite3.SQLITE_ERROR


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """SQLite's and the system's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise sqlite_failure(error, path, _refusal(path)) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema, which is no text any more
        raise CorruptDocuments(f"{path} is damaged: it has another schema ({error})", path=path) from error
    except OSError as error:
        raise os_failure(error, path) from error


def _refusal(path: str) -> int:
    """Why the system refuses to write beside this file, 0 if it does not: Python's sqlite3 does not say it."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(path)) as file:
            file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error.errno or 0
    return 0
