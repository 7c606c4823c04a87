"""`python -m proof.killed_at_step STEP WHEN WHAT WORDS...`: the command `needle WORDS...`, killed by SIGKILL at the nth
request to its store that changes something (WHAT: changes) or reads a file (reads), before it is sent or after it was
answered (WHEN: before, after). The store is what the command has: a real one is asked, and answers.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from needle import backup as backups
from needle.backup.store import Stat, Store, open_store


class Deadly:
    """A store that kills this process."""

    def __init__(self, store: Store, step: int, when: str, what: str) -> None:
        self._store, self._left, self._when, self._what = store, step, when, what
        self._lock = threading.Lock()

    def _step(self, what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
        if what != self._what:
            return ask(*arguments)
        with self._lock:
            self._left -= 1
            last = self._left == 0
            if last and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = ask(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

    def put(self, name: str, data: bytes) -> None:
        self._step("changes", self._store.put, name, data)

    def delete(self, name: str) -> None:
        self._step("changes", self._store.delete, name)

    def get(self, name: str) -> bytes | None:
        found: bytes | None = self._step("reads", self._store.get, name)
        return found

    def names(self, prefix: str) -> dict[str, Stat]:
        return self._store.names(prefix)


def main() -> None:
    """See the module."""
    step, when, what, *words = sys.argv[1:]
    backups.open_store = lambda target: Deadly(open_store(target), int(step), when, what)
    sys.argv = ["needle", *words]
    runpy.run_module("needle", run_name="__main__")


if __name__ == "__main__":
    main()
