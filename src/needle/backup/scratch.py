"""Directories for what is applied again before it is restored, or compared; what killed commands left is deleted.

A directory has a file beside it, which whoever uses it holds locked: the system lets go of that lock when the process
ends, however it ends. Invariant: nothing is deleted but what has a file of that name, of this user, that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from needle.base.errors import invalid
from needle.base.file_errors import os_failure

PREFIX: Final = "needle-scratch-"
LOCK: Final = ".lock"


@contextmanager
def scratch_directory(where: str | None) -> Iterator[Path]:
    """An empty directory in `where` (None: the system's for temporary files), that is gone afterwards; before, those go
    whose command was killed. Raises DiskFull, DiskFailed, also for what is done in it."""
    parent = Path(where or tempfile.gettempdir())
    if not parent.is_dir():
        raise invalid("scratch", str(parent), "a directory that is there")
    try:
        remove_left(parent)
        lock, handle = _claimed(parent)
        directory = lock.with_suffix("")
        try:
            directory.mkdir(mode=0o700)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(handle)
    except OSError as error:
        raise os_failure(error, str(error.filename or parent)) from error


def remove_left(parent: Path) -> list[Path]:
    """Delete what killed commands left in `parent`: which directories. Raises OSError if that cannot be read."""
    found = []
    for name in sorted(os.listdir(parent)):
        if not (name.startswith(PREFIX) and name.endswith(LOCK)):
            continue
        lock = parent / name
        with suppress(OSError):  # somebody else's, or gone meanwhile
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.geteuid() and _held(lock, handle):
                    if (left := lock.with_suffix("")).exists():
                        shutil.rmtree(left)
                        found.append(left)
                    lock.unlink()
            finally:
                os.close(handle)
    return found


def _claimed(parent: Path) -> tuple[Path, int]:
    """A file of a new name, locked. Whoever clears up may take it in the moment before it is locked."""
    while True:
        lock = parent / f"{PREFIX}{secrets.token_hex(8)}{LOCK}"
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        if _held(lock, handle):
            return lock, handle
        os.close(handle)


def _held(lock: Path, handle: int) -> bool:
    """Lock an open file; False if another process has, or it is not that of its name any more."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.stat(lock, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        return False
    own = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)
