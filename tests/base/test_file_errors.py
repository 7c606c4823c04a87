"""What the system says about a file: a shortage passes by itself, anything else is the disk's."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from needle.base.errors import DiskFailed, DiskFull, NeedleError, StorageError, TooManyFiles
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


def test_sqlite_tells_a_full_disk_from_a_damaged_file(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    db.execute("CREATE TABLE t (x)")
    db.execute("PRAGMA max_page_count=2")
    with pytest.raises(sqlite3.Error) as full:
        db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert type(sqlite_failure(full.value, "p", "")) is DiskFull
    (tmp_path / "b.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(sqlite3.Error) as damaged:
        sqlite3.connect(tmp_path / "b.db").execute("SELECT * FROM t")
    found = sqlite_failure(damaged.value, "p", "Delete it.")
    assert type(found) is StorageError and "Delete it." in found.message
