"""What errors of the system and of SQLite about a file mean: one translation for all who touch the disk.

Four kinds pass by themselves and say nothing of the disk: no room, no more open files, no memory, a file that is still
fetched from another node (`SHORTAGES`). Where
one of them is raised, nothing was changed, so that the same may be done again. All others are final.
Invariant: numbers decide, never an error's text. It must not know who asks.
"""

from __future__ import annotations

import errno
from typing import Final

from needle.base.errors import (
    CorruptDocuments,
    DiskFailed,
    DiskFull,
    FileAwaited,
    NeedleError,
    OutOfMemory,
    Overloaded,
    StorageError,
    TooManyFiles,
)

SHORTAGES: Final = (DiskFull, TooManyFiles, OutOfMemory, FileAwaited)
SCARCITIES: Final = (*SHORTAGES, Overloaded)
"""What a request is refused for that would be served if there were more of something."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_SQLITE_FULL: Final = 13
_SQLITE_NO_MEMORY: Final = 7
_SQLITE_CORRUPT = frozenset({11, 26})
_SQLITE_IOERR_DATA: Final = 10 | 32 << 8
_SQLITE_CORRUPT_READ = frozenset({_SQLITE_IOERR_DATA, 10 | 2 << 8, 10 | 33 << 8, 10 | 34 << 8})
"""SQLITE_IOERR_DATA: a page fails its checksum. _SHORT_READ, _CORRUPTFS, _IN_PAGE."""
_SQLITE_REFUSED = frozenset({10 | 3 << 8, 10 | 6 << 8, 10 | 10 << 8, 14})
"""SQLITE_IOERR_WRITE, _TRUNCATE, _DELETE, SQLITE_CANTOPEN: what the system refused to do, with its number; SQLite
itself tells only a write's ENOSPC. A failed sync is none of them."""
_SQLITE_DEVICE = frozenset({3, 8, 10, 14})
"""SQLITE_PERM, _READONLY, _IOERR, _CANTOPEN: this package imports neither sqlite3 nor apsw."""


def no_room(path: str, error: Exception) -> DiskFull:
    """The error for want of room."""
    return DiskFull(f"no space left for {path} ({error}). Free space: the node goes on by itself", path=path)


def too_many_files(path: str) -> TooManyFiles:
    """The error for want of file handles."""
    return TooManyFiles(f"{path} cannot be opened: too many files are open; see ulimit -n", path=path)


def out_of_memory(path: str) -> OutOfMemory:
    """The error for want of memory."""
    return OutOfMemory(f"the system gives no memory for {path}; see ulimit -v, or the container's limit", path=path)


def shortage(error: OSError, path: str) -> NeedleError | None:
    """DiskFull, TooManyFiles or OutOfMemory; None for an error that does not pass by itself."""
    if error.errno == errno.ENOMEM:
        return out_of_memory(path)
    if error.errno in _NO_ROOM:
        return no_room(path, error)
    return too_many_files(path) if error.errno in _NO_FILES else None


def os_failure(error: OSError, path: str) -> NeedleError:
    """The error for one of the operating system."""
    return shortage(error, path) or DiskFailed(
        f"cannot read or write {path} ({error}). Check the disk and permissions", path=path
    )


def sqlite_failure(error: Exception, path: str, number: int = 0) -> NeedleError:
    """The error for a sqlite3.Error or an apsw.Error; its result code decides. number: the system's for the last call
    that it refused to SQLite, 0 if that is not known."""
    code = getattr(error, "sqlite_errorcode", 0) or getattr(error, "extendedresult", 0) or getattr(error, "result", 0)
    primary = code & 0xFF
    if primary in _SQLITE_CORRUPT or code in _SQLITE_CORRUPT_READ:
        what = "a page fails its checksum" if code == _SQLITE_IOERR_DATA else str(error)
        return CorruptDocuments(f"{path} is damaged ({what})", path=path)
    if primary == _SQLITE_FULL:
        return no_room(path, error)
    if primary == _SQLITE_NO_MEMORY:
        return out_of_memory(path)
    if code in _SQLITE_REFUSED and (wanting := shortage(OSError(number, str(error)), path)) is not None:
        return wanting
    if primary in _SQLITE_DEVICE:
        return DiskFailed(f"cannot read or write {path} ({error}). Check the disk and permissions", path=path)
    return StorageError(f"SQLite failed on {path}: {error} (code {code})", path=path)
