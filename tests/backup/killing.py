"""Stores whose user is killed."""

from __future__ import annotations

import threading
from typing import Any

from needle.backup.store import Stat, Store


class Killed(Exception):
    """The command ends here."""


class Counted:
    """A store whose user is killed at the nth call that changes something, before or after it is done."""

    def __init__(self, store: Store, at: int, after: bool) -> None:
        self._store, self._left, self._after = store, at, after
        self._lock = threading.Lock()

    def _step(self, change: Any, *arguments: Any) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._after):
                self._left = 0
                raise Killed
            change(*arguments)
            if self._left == 0:
                raise Killed

    def put(self, name: str, data: bytes) -> None:
        self._step(self._store.put, name, data)

    def delete(self, name: str) -> None:
        self._step(self._store.delete, name)

    def get(self, name: str) -> bytes | None:
        return self._store.get(name)

    def names(self, prefix: str) -> dict[str, Stat]:
        return self._store.names(prefix)
