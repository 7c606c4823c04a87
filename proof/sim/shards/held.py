"""What is known of a collection that clients write, by what they were answered."""

from __future__ import annotations

DECLARED = ("stable", "owner", "log")
"""Fields of which an index may be declared."""


class Held:
    """One collection. sure: the documents that are there all the time; possible: others that may be there. owners: what
    the field `owner` of each may be."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sure: set[str] = set()
        self.possible: set[str] = set()
        self.owners: dict[str, set[str | None]] = {}
        self.done: list[int] = []
        """Numbers that acknowledged changes have appended to the `log` of each, in this order."""
        self.open: set[int] = set()
        """Numbers that changes of unknown fate may have appended."""
        self.declared: dict[str, set[bool]] = {path: {False} for path in DECLARED}
        """Whether an index of each field may be declared."""
