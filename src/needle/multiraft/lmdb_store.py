"""The ordered key-value store under the Raft log, on LMDB. The only importer of lmdb.

Invariant: `commit(sync=True)` returns only after LMDB has flushed data and meta page (no NOSYNC, no NOMETASYNC, no
WRITEMAP). After the first error of a commit nothing is written any more: a failed fsync may have dropped the dirty
pages, so a second one that succeeds proves nothing (Rebello et al. 2020, "Can applications recover from fsync
failures?"). It must not know what is stored.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import cast

import lmdb

from needle.base.errors import DiskFailed, StorageError
from needle.multiraft.ports import KeyValueTxn


class _Txn:
    """A write transaction as `KeyValueTxn`."""

    __slots__ = ("_txn",)

    def __init__(self, txn: lmdb.Transaction) -> None:
        self._txn = txn

    def get(self, key: bytes) -> bytes | None:
        return cast("bytes | None", self._txn.get(key))

    def put(self, key: bytes, value: bytes) -> None:
        self._txn.put(key, value)

    def delete(self, key: bytes) -> None:
        self._txn.delete(key)

    def delete_range(self, start: bytes, end: bytes) -> None:
        with self._txn.cursor() as cursor:
            found = cursor.set_range(start)
            while found and bytes(cursor.key()) < end:
                found = cursor.delete()


class LmdbStore:
    """One LMDB environment in `directory`, which is created if need be and locked against other processes.

    size_max: bytes the file may grow to (address space, not disk, is reserved). Raises DiskFailed and StorageError.
    """

    def __init__(self, directory: str, *, size_max: int) -> None:
        self._failed: DiskFailed | None = None
        self._directory = directory
        self._lock = -1
        try:
            os.makedirs(directory, exist_ok=True)
            self._lock = os.open(os.path.join(directory, "in-use"), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StorageError(f"another process uses {directory}; stop it first", directory=directory) from None
        except OSError as error:
            raise DiskFailed(f"cannot open {directory}: {error}", directory=directory) from error
        try:
            self._env = lmdb.open(directory, map_size=size_max, max_dbs=0, max_readers=64, readahead=False)
            self._sync_directories()
        except (lmdb.Error, OSError) as error:
            os.close(self._lock)
            raise DiskFailed(f"cannot open the Raft log in {directory}: {error}", directory=directory) from error

    def _sync_directories(self) -> None:
        for path in (self._directory, os.path.dirname(os.path.abspath(self._directory))):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        try:
            with self._env.begin() as txn:
                return txn.get(key)
        except lmdb.Error as error:
            raise self._error("read", error) from error

    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """Pairs in [start, end) in key order; stops after the pair that reaches bytes_max."""
        found: list[tuple[bytes, bytes]] = []
        size = 0
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                if cursor.set_range(start):
                    for key, value in cursor:
                        if key >= end:
                            break
                        found.append((key, value))
                        size += len(key) + len(value)
                        if size >= bytes_max:
                            break
        except lmdb.Error as error:
            raise self._error("read", error) from error
        return found

    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        """Run `fill` in one write transaction and make it durable. LMDB has one durability here: `sync` or not, it
        is flushed. Raises DiskFailed, also for every later call."""
        if self._failed is not None:
            raise self._failed
        try:
            with self._env.begin(write=True) as txn:
                fill(_Txn(txn))
        except lmdb.MapFullError as error:
            self._failed = DiskFailed(
                f"the Raft log in {self._directory} is full; raise log_bytes_max and start the node again",
                directory=self._directory,
            )
            raise self._failed from error
        except (lmdb.Error, OSError) as error:
            self._failed = self._error("write", error)
            raise self._failed from error

    def _error(self, what: str, error: Exception) -> DiskFailed:
        return DiskFailed(f"cannot {what} the Raft log in {self._directory}: {error}", directory=self._directory)

    def close(self) -> None:
        """Close the environment and let other processes use it. Idempotent."""
        if self._lock >= 0:
            self._env.close()
            os.close(self._lock)
            self._lock = -1
