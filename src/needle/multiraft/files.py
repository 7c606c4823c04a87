"""The few file operations that snapshots need, behind one small class, so that a simulated disk can stand in.

Invariant: after `sync` of a path its content and its name are durable. Paths are made safe by the caller.
It must not know what a snapshot is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import TypeVar

import xxhash

from needle.base.errors import StorageError
from needle.base.file_errors import shortage
from needle.multiraft.blocks import BLOCK_BYTES, hashes_of

T = TypeVar("T")
_READ_BYTES = 1 << 20


def _guard(what: str, path: str, run: Callable[[], T]) -> T:
    try:
        return run()
    except OSError as error:
        failure = shortage(error, path) or StorageError(f"cannot {what} {path}: {error.strerror or error}", path=path)
        raise failure from error


class Files:
    """Blocking file operations. Each raises StorageError, DiskFull or TooManyFiles, which name the path."""

    def make_directory(self, path: str) -> None:
        """Create a directory and its parents; it may exist."""
        _guard("create", path, lambda: os.makedirs(path, exist_ok=True))

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; it may be absent."""
        if os.path.isdir(path):
            _guard("remove", path, lambda: shutil.rmtree(path))

    def names(self, path: str) -> list[str]:
        """The names in a directory, sorted; none if it is absent."""
        return _guard("list", path, lambda: sorted(os.listdir(path))) if os.path.isdir(path) else []

    def size(self, path: str) -> int:
        """Bytes of a file; -1 if it is absent."""
        return _guard("stat", path, lambda: os.path.getsize(path)) if os.path.isfile(path) else -1

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`."""

        def run() -> bytes:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(length)

        return _guard("read", path, run)

    def read_blocks(self, path: str, blocks: Sequence[int]) -> list[bytes]:
        """These blocks (blocks.py); shorter, or empty, where the file has ended."""

        def run() -> list[bytes]:
            with open(path, "rb") as file:
                return [os.pread(file.fileno(), BLOCK_BYTES, block * BLOCK_BYTES) for block in blocks]

        return _guard("read", path, run)

    def block_hashes(self, path: str, first: int, count: int) -> bytes:
        """The hashes of up to `count` blocks from a first one on."""

        def run() -> bytes:
            found, left = [], count * BLOCK_BYTES
            with open(path, "rb") as file:
                file.seek(first * BLOCK_BYTES)
                while left and (part := file.read(min(left, _READ_BYTES))):
                    found.append(hashes_of(part))
                    left -= len(part)
            return b"".join(found)

        return _guard("read", path, run)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """Cut the file (created with its directory if absent) at `offset`, then append `data`. From 0 it is a new file:
        the one before may be linked, and be in use under its other name."""

        def run() -> None:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if offset == 0 and os.path.exists(path):
                os.unlink(path)
            with open(path, "r+b" if offset else "wb") as file:
                if os.fstat(file.fileno()).st_nlink > 1:
                    raise StorageError(f"{path} has another name, under which it may be in use: it is not written to")
                file.truncate(offset)
                file.seek(offset)
                file.write(data)

        _guard("write", path, run)

    def link(self, source: str, target: str) -> None:
        """Give a file that never changes a second name, in place of whatever has it; its directory is created."""

        def run() -> None:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.exists(target):
                os.unlink(target)
            os.link(source, target)

        _guard("link", target, run)

    def checksum(self, path: str) -> str:
        """xxh3-128 of a file's content, as hex."""

        def run() -> str:
            state = xxhash.xxh3_128()
            with open(path, "rb") as file:
                while chunk := file.read(_READ_BYTES):
                    state.update(chunk)
            return state.hexdigest()

        return _guard("read", path, run)

    def sync_tree(self, path: str) -> None:
        """Make every file and directory below `path`, and its own name, durable."""

        def run() -> None:
            for folder, _, names in os.walk(path):
                for name in names:
                    self._sync(os.path.join(folder, name))
                self._sync(folder)
            self._sync(os.path.dirname(os.path.abspath(path)))

        _guard("sync", path, run)

    @staticmethod
    def _sync(path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
