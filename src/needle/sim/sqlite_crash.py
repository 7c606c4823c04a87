"""What a crash leaves of the replica's files: a copy of its directory in which SQLite's write-ahead log may be cut.

SQLite with synchronous=NORMAL does not sync the log at a commit, only before a checkpoint copies it. So after a power
cut the log may end at any byte behind the frames that were checkpointed; recovery drops the torn frame and what
follows it (https://www.sqlite.org/walformat.html). Frames already copied are durable: `nBackfill` in the -shm file
counts them. A database that syncs each commit (synchronous=FULL: the catalog's) loses nothing. It must not know the
schema.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
from pathlib import Path

from needle.cluster import catalog_machine

_HEADER = 32
_FRAME_HEADER = 24
_BACKFILL_OFFSET = 96


SYNCED = frozenset({f"{catalog_machine.FILE_NAME}-wal"})
"""Write-ahead logs that are synced at every commit."""


def survive(source: str, target: str, rng: random.Random, *, power_cut: bool) -> int:
    """Copy what survives of directory `source` to `target` (must not exist); bytes of write-ahead log that were lost.

    The dead process may still hold files of `source` open: it keeps writing there in vain.
    """
    if not os.path.isdir(source):
        os.makedirs(target)
        return 0
    shutil.copytree(source, target)
    lost = 0
    for wal in sorted(Path(target).rglob("*-wal")):
        shm = wal.with_name(wal.name[: -len("-wal")] + "-shm")
        if power_cut and wal.name not in SYNCED:
            lost += _cut(wal, shm, rng)
        if shm.exists():
            shm.unlink()
    return lost


def _cut(wal: Path, shm: Path, rng: random.Random) -> int:
    size = wal.stat().st_size
    if size <= _HEADER or not shm.exists():
        return 0
    page_size = struct.unpack(">I", wal.read_bytes()[8:12])[0]
    page_size = 65536 if page_size == 1 else page_size
    index = shm.read_bytes()[: _BACKFILL_OFFSET + 4]
    if len(index) < _BACKFILL_OFFSET + 4:
        return 0
    backfilled = struct.unpack_from("<I", index, _BACKFILL_OFFSET)[0]
    durable = _HEADER + backfilled * (_FRAME_HEADER + page_size) if backfilled else 0
    if durable >= size:
        return 0
    keep = rng.randint(durable, size)
    os.truncate(wal, keep)
    return size - keep
