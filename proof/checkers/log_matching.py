"""Log matching: if two logs hold an entry of the same index and term, they are equal up to it (Raft paper, fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping

from proof.checkers.violation import Violation

Log = Mapping[int, tuple[int, int]]
"""Index -> (term, checksum of kind and data)."""


def check(group: int, logs: Mapping[str, Log]) -> None:
    """Compare every pair of logs of a group. Raises Violation."""
    names = sorted(logs)
    for position, left in enumerate(names):
        for right in names[position + 1 :]:
            _compare(group, left, logs[left], right, logs[right])


def _compare(group: int, left: str, a: Log, right: str, b: Log) -> None:
    shared = sorted((index for index in a if index in b), reverse=True)
    matched = 0
    for index in shared:
        if not matched and a[index][0] == b[index][0]:
            matched = index
        if matched and a[index] != b[index]:
            raise Violation(
                "log matching",
                f"group {group}: {left} and {right} agree on the term of entry {matched} but differ at {index}: "
                f"{a[index]} and {b[index]}",
            )
