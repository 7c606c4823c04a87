"""snapshot index <= applied <= commit <= last; term, commit and applied never go back while a replica is open, and a
term that was durable never does (raft.md, section 3)."""

from __future__ import annotations

import msgspec

from proof.checkers.violation import Violation

NAME = "monotone indices"


class Position(msgspec.Struct, frozen=True):
    """Where a replica stands. snapshot: index before the first entry of its log."""

    term: int
    snapshot: int
    applied: int
    commit: int
    last: int


class Monotone:
    """Fed with every replica's position after each step."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str, int], Position] = {}
        self._floors: dict[tuple[int, str], int] = {}

    def observe(self, group: int, node: str, incarnation: int, now: Position) -> None:
        """Raises Violation."""
        if not now.snapshot <= now.commit <= now.last or not now.applied <= now.commit:
            raise Violation(NAME, f"{node} group {group}: {now} is out of order")
        before = self._seen.get((group, node, incarnation))
        if before is not None and (
            now.term < before.term or now.commit < before.commit or now.applied < before.applied
        ):
            raise Violation(NAME, f"{node} group {group} went back from {before} to {now}")
        if now.term < self._floors.get((group, node), 0):
            raise Violation(NAME, f"{node} group {group} forgot term {self._floors[(group, node)]}: now {now.term}")
        self._seen[(group, node, incarnation)] = now

    def closed(self, group: int, node: str, incarnation: int) -> None:
        """The replica was closed by a node that runs on; when it is opened, it may have to apply entries again."""
        self._seen.pop((group, node, incarnation), None)

    def replaced(self, node: str) -> None:
        """The node has other disks than before: what they held last binds it no more."""
        self._floors = {key: term for key, term in self._floors.items() if key[1] != node}

    def booted(self, group: int, node: str, durable_term: int) -> None:
        """The node starts on a disk that holds `durable_term`."""
        self._floors[(group, node)] = durable_term
