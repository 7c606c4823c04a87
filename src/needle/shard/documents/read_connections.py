"""Connections that read a replica's file: one for each thread that reads at the moment, used again by later ones.

They see what is committed. It must not know what is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apsw

from needle.base.errors import CorruptDocuments
from needle.shard.disk import disk_errors
from needle.shard.documents.sqlite_file import connect


class ReadConnections:
    """Of one file. All methods from any thread."""

    def __init__(self, path: str, on_damage: Callable[[CorruptDocuments], None]) -> None:
        """on_damage: told of every CorruptDocuments that a reader meets."""
        self._path = path
        self._on_damage = on_damage
        self._idle: list[apsw.Connection] = []
        self._closed = False
        self._guard = threading.Lock()

    def close(self) -> None:
        """Close those that nobody uses, and each of the others as soon as its thread has read: work that was cancelled
        still ends what it does in its thread, and a connection cannot be closed under it."""
        with self._guard, disk_errors(self._path):
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def give_back(self) -> None:
        """Close those that nobody uses, with the pages that each remembers; the next reader opens another one."""
        with self._guard, disk_errors(self._path):
            while self._idle:
                self._idle.pop().close()

    @contextmanager
    def one(self) -> Iterator[apsw.Connection]:
        """For this thread; a transaction that is left open is rolled back."""
        try:
            with self._idle_one() as connection:
                yield connection
        except CorruptDocuments as error:
            self._on_damage(error)
            raise

    @contextmanager
    def _idle_one(self) -> Iterator[apsw.Connection]:
        with disk_errors(self._path):
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = connect(self._path)
                connection.execute("PRAGMA query_only=1")
                connection.execute("PRAGMA cache_size=-8192")
            try:
                with disk_errors(self._path, connection):
                    yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                with self._guard:
                    if self._closed:
                        connection.close()
                    else:
                        self._idle.append(connection)
