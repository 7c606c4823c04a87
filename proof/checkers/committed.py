"""A committed entry never changes: every replica applies the same entry at an index, with the same result, in order,
without a gap; and a new leader's log holds every committed entry (Raft paper, figure 3: leader completeness and state
machine safety)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from proof.checkers.violation import Violation


class CommittedEntry(msgspec.Struct, frozen=True):
    """An applied entry and what the state machine answered, as text."""

    term: int
    data: bytes
    result: str


class Committed:
    """The one true log of a group, as the first replica to apply each entry showed it."""

    def __init__(self) -> None:
        self._log: dict[int, dict[int, CommittedEntry]] = {}
        self._last: dict[int, int] = {}
        self._applied: dict[tuple[int, str, int], int] = {}
        self.on_new: Callable[[int, int, CommittedEntry, Any], None] | None = None

    def log(self, group: int) -> dict[int, CommittedEntry]:
        """Committed entries by index."""
        return self._log.setdefault(group, {})

    def last(self, group: int) -> int:
        """The highest index that any replica has applied."""
        return self._last.get(group, 0)

    def has_gap(self, group: int) -> bool:
        """Whether an entry before the last one was applied by nobody who lived to show it."""
        log = self.log(group)
        return bool(log) and len(log) <= max(log) - min(log)

    def opened(self, group: int, node: str, incarnation: int, applied: int) -> None:
        """The state machine was opened, or a snapshot installed, at `applied`."""
        self._applied[(group, node, incarnation)] = applied

    def apply(self, group: int, node: str, incarnation: int, index: int, entry: CommittedEntry, result: Any) -> None:
        """A replica applied `entry` at `index`. Raises Violation."""
        before = self._applied.get((group, node, incarnation), 0)
        if index != before + 1:
            raise Violation("apply order", f"{node} group {group} applied {index} right after {before}")
        self._applied[(group, node, incarnation)] = index
        log = self.log(group)
        known = log.get(index)
        if known is None:
            log[index] = entry
            self._last[group] = max(index, self._last.get(group, 0))
            if self.on_new is not None:
                self.on_new(group, index, entry, result)
        elif (known.term, known.data) != (entry.term, entry.data):
            raise Violation(
                "state machine safety",
                f"{node} group {group} applied term {entry.term} at {index} ({len(entry.data)} bytes), "
                f"others term {known.term} ({len(known.data)} bytes)",
            )
        elif known.result != entry.result:
            raise Violation(
                "deterministic apply",
                f"{node} group {group} answered {entry.result} at {index}, another replica {known.result}",
            )

    def elected(self, group: int, node: str, first: int, term_of: Callable[[int], int | None], term: int) -> None:
        """A leader was elected: everything committed before its term must be in its log. Raises Violation."""
        for index, entry in self.log(group).items():
            if index >= first and entry.term < term and term_of(index) != entry.term:
                raise Violation(
                    "leader completeness",
                    f"{node} leads group {group} in term {term} without committed entry {index} of term {entry.term}",
                )
