"""What a crash leaves of the replica's files: a copy of its directory in which SQLite's write-ahead log may be cut.

SQLite with synchronous=NORMAL does not sync the log at a commit, only before a checkpoint copies it. So after a power
cut the log may end at any byte behind what the last checkpoint has synced; recovery drops the torn frame and what
follows it (https://www.sqlite.org/walformat.html). A database that syncs each commit (synchronous=FULL: the catalog's)
loses nothing. Bits rot where `pages_in_force` says.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from needle.catalog import machine
from needle.shard.documents.records import ORDINAL_BITS
from needle.shard.documents.sqlite_file import FILE_NAME

SYNCED = frozenset({f"{machine.FILE_NAME}-wal"})
"""Write-ahead logs that are synced at every commit."""


_WAL_HEADER = struct.Struct(">8xI4x8s8x")
"""Page size, salts."""
_FRAME_HEADER = struct.Struct(">II8s8x")
"""Page number, pages of the database after the commit or 0, salts."""
_PAGE_SIZE = struct.Struct(">16xH")
_VECTORS = (
    f"SELECT v.vector FROM ids i JOIN vectors v ON v.row = (i.collection_id << {ORDINAL_BITS} | i.ordinal) "
    "ORDER BY i.collection_id, i.id"
)


def pages_in_force(path: Path) -> list[tuple[Path, int, int]]:
    """Where the current content of each page of a database is, in the file or in its write-ahead log: (file, offset,
    size)."""
    data, log = path.read_bytes(), path.with_name(path.name + "-wal")
    wal = log.read_bytes() if log.exists() else b""
    (page_size,) = _PAGE_SIZE.unpack_from(data) if len(data) >= _PAGE_SIZE.size else (0,)
    if page_size < 512:  # it rotted already
        return [(path, 0, len(data))]
    found = {at // page_size + 1: (path, at, page_size) for at in range(0, len(data) - page_size + 1, page_size)}
    if len(wal) >= _WAL_HEADER.size:
        page_size, salts = _WAL_HEADER.unpack_from(wal)
        waiting: dict[int, tuple[Path, int, int]] = {}
        at = _WAL_HEADER.size
        while at + _FRAME_HEADER.size + page_size <= len(wal):
            page, pages, its_salts = _FRAME_HEADER.unpack_from(wal, at)
            if its_salts != salts:
                break
            waiting[page] = (log, at + _FRAME_HEADER.size, page_size)
            if pages:
                found.update(waiting)
                waiting = {}
            at += _FRAME_HEADER.size + page_size
    return [found[page] for page in sorted(found)] or [(path, 0, len(data))]


def fold(path: Path) -> list[bytes]:
    """Copy the write-ahead log into its database, as the node might have done just before it died: a bit that flips in
    the log makes SQLite drop it from there on, and the Raft log brings it back. The vectors of the documents in it."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return [vector for (vector,) in connection.execute(_VECTORS)] if path.name == FILE_NAME else []
    except sqlite3.Error:  # it has rotted already
        return []


def survive(source: str, target: str, rng: random.Random, *, power_cut: bool, synced: Mapping[str, int]) -> int:
    """Copy what survives of directory `source` to `target` (must not exist); bytes of write-ahead log that were lost.

    synced: of a write-ahead log, by its path relative to `source`: how many bytes are safe (Unsynced.wal_bytes). The
    dead process may still hold files of `source` open: it keeps writing there without success.
    """
    if not os.path.isdir(source):
        os.makedirs(target)
        return 0
    shutil.copytree(source, target)
    lost = 0
    for wal in sorted(Path(target).rglob("*-wal")):
        if power_cut and wal.name not in SYNCED:
            lost += _cut(wal, synced.get(str(wal.relative_to(target)), 0), rng)
    return lost


def _cut(wal: Path, safe: int, rng: random.Random) -> int:
    size = wal.stat().st_size
    if safe >= size:
        return 0
    keep = rng.randint(safe, size)
    os.truncate(wal, keep)
    return size - keep
