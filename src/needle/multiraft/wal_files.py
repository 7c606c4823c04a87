"""The files of the write-ahead log: blocks, whole writes, and the mark. See wal_store.py for their order."""

from __future__ import annotations

import os

MARK_BYTES = 16


def flush(handle: int) -> None:
    """Make what was written to the file durable."""
    _sync(handle)


_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


def allocate(handle: int, size: int, *, zeros: bool) -> None:
    """Give a new file its blocks. Writing zeros makes later commits cheapest; it is done for the first segment only,
    where there is time for it. Later ones are mostly recycled."""
    if not zeros and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    block = bytes(1 << 20)
    for at in range(0, size, len(block)):
        write_all(handle, block[: size - at], at)


def write_all(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def mark(sequence: int) -> bytes:
    """The mark: the number of a commit, and its complement."""
    number = sequence.to_bytes(8, "little")
    return number + bytes(byte ^ 0xFF for byte in number)


def read_mark(handle: int) -> int:
    """The last commit known to have returned; 0 if the mark itself was lost with the power."""
    data = os.pread(handle, MARK_BYTES, 0)
    sequence = int.from_bytes(data[:8], "little")
    return sequence if len(data) == MARK_BYTES and data == mark(sequence) else 0
