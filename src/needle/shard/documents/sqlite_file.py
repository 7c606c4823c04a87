"""The SQLite file of a replica: its schema, and how connections to it are opened. documents.py says what it holds.

Every page ends with a checksum (SQLite's own extension `cksumvfs`, which APSW brings along): it is written with the
page and compared whenever the page is read, so that no bit of a row, an index or a header changes unseen. What a
checksum of pages cannot see, a page that was never written, the sums of rows do (documents.recompute).

Invariant: a file that has its name has all its tables: it is made under another name. So one without them is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import apsw
import apsw.sqlite_extra
import msgspec

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, UnsupportedFormat
from needle.base.sqlite_uri import EXCLUSIVE_VFS, sqlite_uri
from needle.shard.disk import ReplicaDisk, sqlite_failure
from needle.shard.documents.old_formats import (
    CHECKSUMS,
    KEPT_VECTORS,
    back_to_format_4,
    copy_old_documents,
    copy_old_ids,
    copy_old_sessions,
    old_tables,
)

FILE_NAME: Final = "documents.db"
MAKING: Final = ".new"
FORMAT_VERSION: Final = 5
"""Ids with an instant at which their document expires."""
OLD_FORMATS: Final = (1, 2, 3, 4)
"""Rewritten when they are opened. 2: with a row `holdings` in `meta`. 3: checksums on all pages, pages that are given
back, answers of sessions as rows of their own. 4: versions of documents that keep the vector of an earlier one."""
READ_SINCE: Final = 2
"""The version of clusters (docs/versions.md) whose nodes all read FORMAT_VERSION. The others get images of the format
before. A new format gets the number of its release here, and a function that brings an image back."""
CHECKSUM_BYTES: Final = 8
PAGE_BYTES: Final = 4096
_HEADER_BYTES: Final = 100
_RESERVED_AT: Final = 20

TABLES: Final = {
    "meta": "(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "collections": "(id INTEGER PRIMARY KEY, spec BLOB NOT NULL, next_ordinal INTEGER NOT NULL, "
    "documents INTEGER NOT NULL, digest BLOB NOT NULL)",
    "documents": "(row INTEGER PRIMARY KEY, id TEXT NOT NULL, version INTEGER NOT NULL, metadata BLOB NOT NULL, "
    "vector INTEGER NOT NULL)",
    "vectors": "(row INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    "ids": "(collection_id INTEGER, id TEXT, ordinal INTEGER NOT NULL, version INTEGER NOT NULL, "
    "hash BLOB NOT NULL, vector INTEGER NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (collection_id, id)) "
    "WITHOUT ROWID",
    "graves": "(row INTEGER PRIMARY KEY, what INTEGER NOT NULL)",
    "kept": "(collection_id INTEGER, id TEXT, ordinal INTEGER, vector INTEGER NOT NULL, version INTEGER NOT NULL, "
    "expires INTEGER NOT NULL, died INTEGER NOT NULL, PRIMARY KEY (collection_id, id, ordinal)) WITHOUT ROWID",
    "dropped": "(collection_id INTEGER PRIMARY KEY)",
    "segments": "(collection_id INTEGER, first INTEGER, last INTEGER NOT NULL, rows INTEGER NOT NULL, "
    "size INTEGER NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (collection_id, first)) WITHOUT ROWID",
    "sessions": "(id INTEGER PRIMARY KEY, nonce BLOB NOT NULL, used INTEGER NOT NULL, acked INTEGER NOT NULL)",
    "answers": "(session INTEGER, seq INTEGER, answer BLOB NOT NULL, PRIMARY KEY (session, seq)) WITHOUT ROWID",
}

INDEXES: Final = {
    "expiring": "ids (collection_id, expires) WHERE expires > 0",
    "kept_documents": "kept (collection_id, ordinal)",
    "kept_vectors": "kept (collection_id, vector)",
    "kept_since": "kept (died)",
}
"""What expires next costs nothing to find, and nothing to keep for documents that do not. What is kept for pinned scans
is found by its rows, and by when it died."""
_LATER: Final = ("kept", ("kept_documents", "kept_vectors", "kept_since"))
"""A table that came to format 5 without a change of what there was: files that lack it are given it, empty."""


def _register_checksums() -> None:
    """From here on APSW's SQLite opens files through the extension, in this process, and the extension opens them as
    `sqlite_uri` has the other files opened: without a mapped file."""
    apsw.set_default_vfs(EXCLUSIVE_VFS)
    with closing(apsw.Connection(":memory:")) as connection:
        apsw.sqlite_extra.load(connection, "cksumvfs")


_register_checksums()


def connect(path: str, uri_options: str = "") -> apsw.Connection:
    """A connection in autocommit mode that any thread may use, one at a time. Raises apsw.Error."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    connection = apsw.Connection(sqlite_uri(path, uri_options), flags=flags, statementcachesize=256)
    connection.set_busy_timeout(10_000)
    # The last one to close would move pages of the write-ahead log that nobody has compared (wal_check.py).
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    return connection


def open_writer(path: str, disk: ReplicaDisk, check: Callable[[str], object]) -> apsw.Connection:
    """The connection that writes; creates the file and its tables, or rewrites one of an older format. check: reads all
    of a rewritten one. Raises UnsupportedFormat, CorruptDocuments, apsw.Error."""
    if not disk.exists(path):
        wal = f"{path}-wal"
        if disk.exists(wal) and os.path.getsize(wal):  # SQLite would take its pages for those of the new file
            raise CorruptDocuments(f"{path} is missing, and its write-ahead log is there", path=path)
        _create(path, disk)
    _bring_up_to_date(path, disk, check)
    connection = connect(path)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: apsw.Connection, path: str) -> None:
    found = _format(connection, path)
    if found != FORMAT_VERSION:
        raise UnsupportedFormat(f"{path} has format {found}; this release reads up to {FORMAT_VERSION}", path=path)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    connection.execute("PRAGMA cache_size=-16384")
    name, indexes = _LATER
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone():
        connection.execute("BEGIN")
        connection.execute(f"CREATE TABLE {name} {TABLES[name]}")
        for index in indexes:
            connection.execute(f"CREATE INDEX {index} ON {INDEXES[index]}")
        connection.execute("COMMIT")
    # What is deleted is overwritten, so that it cannot be read from the disk once the pages are checkpointed.
    connection.execute("PRAGMA secure_delete=ON").fetchall()


def _format(connection: apsw.Connection, path: str) -> object:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() if "meta" in tables else None
    if found is None:
        raise CorruptDocuments(f"{path} is damaged: it has no tables, or no format", path=path)
    return found[0]


# --- new files ---
def attach_new(connection: apsw.Connection, path: str) -> None:
    """Attach a new file as `image`, with tables and checksums on all of its pages from the first on (which is why it
    is not made by VACUUM INTO: that writes pages before the header that asks for checksums). Not durable."""
    with open(path, "wb"):  # a connection that does not create its own file creates no others
        pass
    connection.execute("ATTACH ? AS image", (sqlite_uri(path, ""),))
    connection.reserve_bytes("image", CHECKSUM_BYTES)
    connection.execute(f"PRAGMA image.page_size={PAGE_BYTES}")
    connection.execute("PRAGMA image.auto_vacuum=INCREMENTAL")
    connection.execute("PRAGMA image.journal_mode=OFF").fetchall()
    connection.execute("PRAGMA image.synchronous=OFF")
    connection.execute("BEGIN")
    for name, columns in TABLES.items():
        connection.execute(f"CREATE TABLE image.{name} {columns}")
    for name, columns in INDEXES.items():
        connection.execute(f"CREATE INDEX image.{name} ON {columns}")
    connection.execute("COMMIT")


def _create(path: str, disk: ReplicaDisk) -> None:
    disk.remove(path + MAKING)
    with closing(connect(":memory:")) as connection:
        attach_new(connection, path + MAKING)
        rows = [("format", FORMAT_VERSION), ("index", 0), ("term", 0), ("conf", b""), ("next_collection_id", 1)]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO image.meta VALUES (?, ?)", rows)
        connection.execute("COMMIT")
    _give_name(path, disk)


def _give_name(path: str, disk: ReplicaDisk) -> None:
    disk.sync(path + MAKING)
    disk.rename(path + MAKING, path)
    disk.sync(os.path.dirname(path))


def copy_tables(connection: apsw.Connection, target: str) -> None:
    """Write what the connection sees, from one consistent read, into the new file `target`: compacted, not durable.
    The file may be of an older format."""
    attach_new(connection, target)
    try:
        connection.execute("BEGIN")
        try:
            found = connection.execute("SELECT value FROM main.meta WHERE name = 'format'").fetchone()[0]
            for name in TABLES if found == FORMAT_VERSION else old_tables(found):
                connection.execute(f"INSERT INTO image.{name} SELECT * FROM main.{name}")
            if found < CHECKSUMS:
                copy_old_sessions(connection)
            if found < KEPT_VECTORS:
                copy_old_documents(connection, target)
            elif found != FORMAT_VERSION:
                copy_old_ids(connection)
            if found != FORMAT_VERSION:
                connection.execute("UPDATE image.meta SET value = ? WHERE name = 'format'", (FORMAT_VERSION,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    finally:
        connection.execute("DETACH image")


def copy_pages(connection: apsw.Connection, target: str, version: int) -> None:
    """Write what the connection sees, from one consistent read, into the new file `target`, each page where it stands:
    what is equal in another replica's file stays equal (docs/adr/0027). version: of the cluster: a format that all of
    its nodes read. Not durable. Raises apsw.Error for the file that is read, DiskFull, TooManyFiles or DiskFailed for
    the new one."""
    with open(target, "wb"):
        pass
    with closing(connect(target)) as image:
        image.execute("PRAGMA journal_mode=OFF").fetchall()
        image.execute("PRAGMA synchronous=OFF")
        try:
            # First a header that asks for checksums: pages of the write-ahead log have none, they get them here.
            image.reserve_bytes("main", CHECKSUM_BYTES)
            image.execute(f"PRAGMA page_size={PAGE_BYTES}")
            image.execute(f"PRAGMA user_version={FORMAT_VERSION}")
            with image.backup("main", connection, "main") as copying:
                copying.step()
            if version < READ_SINCE:
                back_to_format_4(image)
        except apsw.Error as error:
            failure = sqlite_failure(error, target, image)
            if isinstance(failure, CorruptDocuments):  # nothing was read but what is copied
                raise
            raise failure from error


def _bring_up_to_date(path: str, disk: ReplicaDisk, check: Callable[[str], object]) -> None:
    """Rewrite a file of an older format: after a crash the old or the new one is there."""
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise CorruptDocuments(f"{path} is damaged: it has {len(header)} bytes", path=path)
    with closing(connect(path)) as connection:
        found = _format(connection, path)
        if header[_RESERVED_AT] != CHECKSUM_BYTES and found in range(CHECKSUMS, FORMAT_VERSION + 1):
            raise CorruptDocuments(f"{path} is damaged: its header asks for no checksums", path=path)
        if found not in OLD_FORMATS:
            return
        disk.remove(path + MAKING)
        copy_tables(connection, path + MAKING)
        check(path + MAKING)
        # So that no write-ahead log of the old file is taken for one of the new.
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    _give_name(path, disk)


def decoded(data: bytes, kind: Any, path: str) -> Any:
    """MessagePack that was stored. Raises CorruptDocuments."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (*DECODE_ERRORS, TypeError) as error:
        raise CorruptDocuments(f"{path} is damaged: a stored value cannot be read ({error})", path=path) from None


def memory_used() -> int:
    """Bytes that SQLite holds in this process, for pages of files above all."""
    return int(apsw.memory_used())
