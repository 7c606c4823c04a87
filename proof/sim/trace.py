"""The run as a sequence of lines: hashed to prove that one seed is one run, kept to tell the story of a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


class Trace:
    """Every noted event enters the hash; `story` events are kept, all others only when `keep_all`."""

    def __init__(self, now: Callable[[], float], *, keep_all: bool = False) -> None:
        self.now = now
        self._hash = hashlib.blake2b(digest_size=16)
        self._keep_all = keep_all
        self.lines: list[str] = []
        self.story: list[str] = []
        self.events = 0

    def note(self, text: str) -> None:
        """A detail."""
        self._add(text)

    def tell(self, text: str) -> None:
        """An event that matters to a reader: faults, elections, violations."""
        self.story.append(self._add(text))

    def _add(self, text: str) -> str:
        line = f"{self.now():11.6f} {text}"
        self.events += 1
        self._hash.update(line.encode())
        if self._keep_all:
            self.lines.append(line)
        return line

    def digest(self) -> str:
        """Hex digest over all lines so far."""
        return self._hash.hexdigest()
