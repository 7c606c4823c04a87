"""The files of the write-ahead log, behind one small class, so that a simulated disk can stand in; and the mark.

Invariant: a file's content is durable after `flush`, its name after `sync_names`; neither brings the other. See
wal_store.py for the order of calls.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

MARK_BYTES = 16


def _fdatasync(handle: int) -> None:
    _sync(handle)


_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class LogFiles:
    """The files in `directory`. Names have no folders; handles are for this object only. Raises OSError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock = -1
        self._folders: list[int] = []

    def claim(self) -> None:
        """Create the directory and lock it. Raises BlockingIOError if another process uses it."""
        os.makedirs(self.directory, exist_ok=True)
        self._lock = os.open(self._path("in-use"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Held open: a sync must not fail for want of a handle once something was renamed.
            for path in (self.directory, os.path.dirname(os.path.abspath(self.directory))):
                self._folders.append(os.open(path, os.O_RDONLY))
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others use the directory. Idempotent."""
        while self._folders:
            os.close(self._folders.pop())
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # --- names --------------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(os.listdir(self.directory))

    def rename(self, old: str, new: str) -> None:
        """Give a file another name."""
        os.rename(self._path(old), self._path(new))

    def remove(self, name: str) -> None:
        """Delete a file."""
        os.unlink(self._path(name))

    def sync_names(self) -> None:
        """Make the names in the directory, and its own, durable."""
        for folder in self._folders:
            os.fsync(folder)

    # --- contents -----------------------------------------------------------------------------------------------------
    def open(self, name: str) -> int:
        """A handle of a file, which is created if there is none."""
        return os.open(self._path(name), os.O_RDWR | os.O_CREAT, 0o644)

    def close(self, handle: int) -> None:
        """The handle is not used any more."""
        with suppress(OSError):
            os.close(handle)

    def size(self, handle: int) -> int:
        """Bytes of a file."""
        return os.fstat(handle).st_size

    def read(self, handle: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`."""
        return os.pread(handle, length, offset)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written

    def allocate(self, handle: int, size: int, *, zeros: bool) -> None:
        """Give a new file its blocks. Writing zeros makes later commits cheapest; it is done for the first segment
        only, where there is time for it. Later ones are mostly recycled."""
        if not zeros and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
            return
        block = bytes(1 << 20)
        for at in range(0, size, len(block)):
            self.write(handle, block[: size - at], at)

    def flush(self, handle: int) -> None:
        """Make what was written to the file durable."""
        _fdatasync(handle)


def mark(sequence: int) -> bytes:
    """The mark: the number of a commit, and its complement."""
    number = sequence.to_bytes(8, "little")
    return number + bytes(byte ^ 0xFF for byte in number)


def read_mark(data: bytes) -> int:
    """The last commit known to have returned; 0 if the mark itself was lost with the power."""
    sequence = int.from_bytes(data[:8], "little")
    return sequence if len(data) == MARK_BYTES and data == mark(sequence) else 0
