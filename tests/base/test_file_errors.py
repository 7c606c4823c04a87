"""What the system says about a file: a shortage passes by itself, anything else is the disk's."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from needle.base.errors import CorruptDocuments, DiskFailed, DiskFull, NeedleError, TooManyFiles
from needle.base.file_errors import os_failure, shortage, sqlite_failure


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EMFILE, TooManyFiles),
        (errno.ENFILE, TooManyFiles),
        (errno.EIO, DiskFailed),
        (errno.EROFS, DiskFailed),
    ],
)
def test_the_number_decides(number: int, kind: type[NeedleError]) -> None:
    error = OSError(number, os.strerror(number))
    assert type(os_failure(error, "/p")) is kind
    assert os_failure(error, "/p").details == {"path": "/p"}
    assert (shortage(error, "/p") is None) is (kind is DiskFailed)


@pytest.mark.parametrize("library", [sqlite3, apsw])
def test_sqlite_tells_a_full_disk_from_a_damaged_file(tmp_path: Path, library: Any) -> None:
    open_database = library.connect if library is sqlite3 else library.Connection
    with closing(open_database(str(tmp_path / "a.db"))) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA max_page_count=2").fetchall()
        with pytest.raises(library.Error) as full:
            db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert type(sqlite_failure(full.value, "p")) is DiskFull
    (tmp_path / "b.db").write_bytes(b"not a database" * 1000)
    with closing(open_database(str(tmp_path / "b.db"))) as db, pytest.raises(library.Error) as damaged:
        db.execute("SELECT * FROM t")
    assert type(sqlite_failure(damaged.value, "p")) is CorruptDocuments
    with pytest.raises(library.Error) as cannot:
        open_database(str(tmp_path / "no" / "c.db"))
    assert type(sqlite_failure(cannot.value, "p")) is DiskFailed


@pytest.mark.parametrize(
    ("code", "number", "kind"),
    [
        (apsw.SQLITE_IOERR_WRITE, errno.EDQUOT, DiskFull),
        (apsw.SQLITE_IOERR_TRUNCATE, errno.ENOSPC, DiskFull),
        (apsw.SQLITE_CANTOPEN, errno.EMFILE, TooManyFiles),
        (apsw.SQLITE_IOERR_WRITE, errno.EIO, DiskFailed),
        (apsw.SQLITE_IOERR_WRITE, 0, DiskFailed),
        (apsw.SQLITE_IOERR_FSYNC, errno.EDQUOT, DiskFailed),
        (apsw.SQLITE_IOERR_READ, errno.ENOSPC, DiskFailed),
    ],
)
def test_the_system_says_why_it_refused_something_to_sqlite(code: int, number: int, kind: type[NeedleError]) -> None:
    error = apsw.IOError("refused")
    error.extendedresult, error.result = code, code & 0xFF
    assert type(sqlite_failure(error, "p", number)) is kind
