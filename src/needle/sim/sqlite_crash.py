"""What a crash leaves of the replica's files: a copy of its directory in which SQLite's write-ahead log may be cut.

SQLite with synchronous=NORMAL does not sync the log at a commit, only before a checkpoint copies it. So after a power
cut the log may end at any byte behind what the last checkpoint has synced; recovery drops the torn frame and what
follows it (https://www.sqlite.org/walformat.html). A database that syncs each commit (synchronous=FULL: the catalog's)
loses nothing. It must not know the schema.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from needle.cluster import catalog_machine

SYNCED = frozenset({f"{catalog_machine.FILE_NAME}-wal"})
"""Write-ahead logs that are synced at every commit."""


def survive(source: str, target: str, rng: random.Random, *, power_cut: bool, synced: Mapping[str, int]) -> int:
    """Copy what survives of directory `source` to `target` (must not exist); bytes of write-ahead log that were lost.

    synced: of a write-ahead log, by its path relative to `source`: how many bytes are safe (Unsynced.wal_bytes). The
    dead process may still hold files of `source` open: it keeps writing there in vain.
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
