"""The SQLite file of a replica: its schema, and how connections to it are opened. documents.py says what it holds."""

from __future__ import annotations

import os
import sqlite3
from typing import Final

from needle.base.errors import UnsupportedFormat
from needle.base.sqlite_uri import sqlite_uri
from needle.shard.disk import ReplicaDisk

FILE_NAME: Final = "documents.db"
FORMAT_VERSION: Final = 1
FORMAT_MOVED: Final = 2
"""Of a file whose shard took part in a move: `meta` has a row `holdings`, which an older release would not obey."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE collections (id INTEGER PRIMARY KEY, spec BLOB NOT NULL, next_ordinal INTEGER NOT NULL,
    documents INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE documents (row INTEGER PRIMARY KEY, id TEXT NOT NULL, version INTEGER NOT NULL, metadata BLOB NOT NULL);
CREATE TABLE vectors (row INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE ids (collection_id INTEGER, id TEXT, ordinal INTEGER NOT NULL, version INTEGER NOT NULL,
    hash BLOB NOT NULL, PRIMARY KEY (collection_id, id)) WITHOUT ROWID;
CREATE TABLE graves (row INTEGER PRIMARY KEY);
CREATE TABLE dropped (collection_id INTEGER PRIMARY KEY);
CREATE TABLE segments (collection_id INTEGER, first INTEGER, last INTEGER NOT NULL, rows INTEGER NOT NULL,
    size INTEGER NOT NULL, checksum TEXT NOT NULL, PRIMARY KEY (collection_id, first)) WITHOUT ROWID;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, nonce BLOB NOT NULL, used INTEGER NOT NULL, state BLOB NOT NULL);
"""


def connect(path: str, uri_options: str = "") -> sqlite3.Connection:
    """A connection in autocommit mode that any thread may use, one at a time. uri_options: "?name=value"."""
    return sqlite3.connect(
        sqlite_uri(path, uri_options), uri=True, isolation_level=None, check_same_thread=False, timeout=10.0,
        cached_statements=256,
    )  # fmt: skip


def open_writer(path: str, disk: ReplicaDisk) -> sqlite3.Connection:
    """The connection that writes; creates the file and its tables. Raises UnsupportedFormat, sqlite3.Error."""
    fresh = not disk.exists(path)
    connection = connect(path, disk.sqlite_options)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    if fresh:
        disk.sync(os.path.dirname(path))
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA page_size=4096")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=-16384")
    tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
    if not tables:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            [("format", FORMAT_VERSION), ("index", 0), ("term", 0), ("conf", b""), ("next_collection_id", 1)],
        )
        connection.execute("COMMIT")
    found = connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    if found is None or found[0] not in (FORMAT_VERSION, FORMAT_MOVED):
        raise UnsupportedFormat(
            f"{path} has format {found and found[0]}; this release reads {FORMAT_VERSION} and {FORMAT_MOVED}",
            path=path,
        )
