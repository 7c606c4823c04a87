"""How a SQLite file of this product is named to SQLite. Knows no tables."""

from __future__ import annotations

from typing import Final

EXCLUSIVE_VFS: Final = "unix-excl"
"""The index of the write-ahead log is kept in memory of this process, not in a mapped `-shm` file, and no other process
is let in. A write through a mapping ends the process (SIGBUS) where the system cannot give it a block: disk full, file
made immutable or cut short. Everything else SQLite writes by system calls, whose errors are reported."""
EXCLUSIVE: Final = f"?vfs={EXCLUSIVE_VFS}"


def sqlite_uri(path: str, options: str = EXCLUSIVE) -> str:
    """For sqlite3.connect(..., uri=True). options: "?name=value", or ""."""
    return f"file:{path.replace('%', '%25').replace('?', '%3f').replace('#', '%23')}{options}"
