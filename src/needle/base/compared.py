"""The digests that a replica had at entries at which all replicas are compared.

Invariant: what is noted of an entry is the digest right after that entry, and nothing later. Only the newest are kept,
in memory: a replica that was restarted since has nothing to say of an entry before that.
"""

from __future__ import annotations

from typing import Final

KEPT: Final = 8


class Compared:
    """Noted in the thread that applies, asked for on the event loop. What is noted of an entry again takes the place of
    what was."""

    def __init__(self) -> None:
        self._noted: dict[int, str] = {}

    def note(self, index: int, digest: str) -> None:
        """After entry `index` was applied."""
        noted = {**self._noted, index: digest}
        self._noted = dict(sorted(noted.items())[-KEPT:])

    @property
    def newest(self) -> int:
        """The last entry of which there is a digest; 0 for none."""
        return max(self._noted, default=0)

    def at(self, index: int) -> str | None:
        """None if it is not kept, or never was."""
        return self._noted.get(index)
