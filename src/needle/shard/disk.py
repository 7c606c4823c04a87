"""What a replica asks of the file system, and the translation of SQLite's and the system's errors.

Durability order: nothing a replica writes is assumed durable except what `ReplicaDisk.sync` and a truncating SQLite
checkpoint have made so. A power loss may cut any suffix off a `-wal` file; the Raft log replays it.

It must not know tables, commands or Raft.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import xxhash

from needle.base import file_errors
from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptDocuments, DiskFailed, NeedleError, TooManyFiles
from needle.base.file_errors import os_failure, shortage, too_many_files

_CHUNK = 1 << 20
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""Why a path leads to nothing, whatever is there."""


@contextmanager
def disk_errors(path: str, connection: apsw.Connection | None = None) -> Iterator[None]:
    """Turn errors of SQLite, the system and decoders about `path` into Needle's, each with what to do about it.
    connection: the one that is used, if that is known: it knows why the system refused something."""
    try:
        yield
    except apsw.Error as error:
        raise sqlite_failure(error, path, connection) from error
    except OSError as error:
        raise os_failure(error, path) from error
    except DECODE_ERRORS as error:
        raise CorruptDocuments(f"{path} is damaged: a stored value cannot be read ({error})", path=path) from error


def sqlite_failure(error: apsw.Error, path: str, connection: apsw.Connection | None = None) -> NeedleError:
    """The Needle error for one of SQLite's about a replica's file."""
    if getattr(error, "result", 0) == apsw.SQLITE_CANTOPEN and files_are_used_up():
        return too_many_files(path)
    number = 0
    with suppress(apsw.Error):  # a connection that was closed does not know
        number = connection.system_errno if connection is not None else 0
    return file_errors.sqlite_failure(error, path, number)


def files_are_used_up() -> bool:
    """Whether this process may open no more files: SQLite does not say why it cannot open one."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return isinstance(shortage(error, os.devnull), TooManyFiles)
    return False


def _fsync(handle: int, path: str) -> None:
    """Raises DiskFailed whatever the reason: after a failed fsync, for want of room too, the data may be gone."""
    try:
        os.fsync(handle)
    except OSError as error:
        raise DiskFailed(f"cannot sync {path} ({error}). Check the disk", path=path) from error


def remove_file(path: str) -> None:
    """Delete a file; fine if it is not there. Raises DiskFailed, DiskFull or TooManyFiles."""
    with disk_errors(path):
        Path(path).unlink(missing_ok=True)


class ReplicaDisk:
    """The real file system. A simulator overrides methods to lose, delay or fail writes.

    Every method raises DiskFailed; a failed sync is never retried.
    """

    def sync(self, path: str) -> None:
        """fsync a file or a directory."""
        with disk_errors(path):
            handle = os.open(path, os.O_RDONLY)
            try:
                _fsync(handle, path)
            finally:
                os.close(handle)

    def make_directory(self, path: str) -> None:
        with disk_errors(path):
            os.makedirs(path, exist_ok=True)

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory. What cannot be looked at is not taken for missing, as something
        new would be made in its place."""
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise os_failure(error, path) from error
        except ValueError:  # a name that no file can have
            return False
        return True

    def names(self, directory: str) -> list[str]:
        """Sorted names in a directory."""
        with disk_errors(directory):
            return sorted(os.listdir(directory))

    def files(self, directory: str) -> list[str]:
        """Sorted paths of all files below a directory, relative to it."""
        found = []
        with disk_errors(directory):
            for root, _, names in os.walk(directory):
                found += [os.path.relpath(os.path.join(root, name), directory) for name in names]
        return sorted(found)

    def remove_tree(self, path: str) -> None:
        """Delete a directory and all in it; fine if it is not there."""
        with disk_errors(path):
            if os.path.isdir(path):
                shutil.rmtree(path)

    def remove(self, path: str) -> None:
        """Delete a file; fine if it is not there."""
        remove_file(path)

    def rename(self, source: str, target: str) -> None:
        """Atomically replace `target`. Durable after `sync` of the directory."""
        with disk_errors(target):
            os.replace(source, target)

    def read(self, path: str) -> bytes:
        with disk_errors(path):
            return Path(path).read_bytes()

    def write(self, path: str, *parts: bytes | memoryview) -> None:
        """Write a whole file, of one or more parts, and sync it."""
        with disk_errors(path), open(path, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            _fsync(file.fileno(), path)

    def copy(self, source: str, target: str) -> None:
        with disk_errors(target):
            shutil.copyfile(source, target)

    def link(self, source: str, target: str) -> None:
        """Share an immutable file, or copy it where the file system cannot link."""
        with disk_errors(target):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                shutil.copyfile(source, target)

    def fingerprint(self, path: str) -> tuple[int, str]:
        """(size in bytes, xxh3-128 hex) of a file."""
        digest, size = xxhash.xxh3_128(), 0
        with disk_errors(path), open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()


REAL_DISK = ReplicaDisk()
