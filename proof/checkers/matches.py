"""What a leader believes of its followers is true: the entry up to which it takes a follower's log to match is there,
of the same term, and stays there (Raft paper, figure 2: matchIndex; every commit counts on it)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from proof.checkers.violation import Violation

NAME = "match is real"


def check(group: int, cores: Mapping[str, Any], rotten: Collection[str]) -> None:
    """Compare each leader with the followers of its term. cores: the state of Raft by node. rotten: nodes whose disks
    broke their promises. Raises Violation."""
    for name, core in cores.items():
        if core.role.name != "LEADER":
            continue
        for node, progress in core.progress.items():
            other = cores.get(node)
            if other is not None and node != name and other.term == core.term and node not in rotten:
                _compare(group, name, core, node, other, progress.match)


def _compare(group: int, leader: str, core: Any, node: str, other: Any, match: int) -> None:
    held, last = other.log.term(match), other.log.last_index()
    wanted = core.log.term(match)
    if match > last or (held is not None and wanted is not None and held != wanted):
        raise Violation(
            NAME,
            f"{leader}, leader of group {group} in term {core.term}, takes {node} to match up to {match} (of term "
            f"{wanted}); its log ends at {last} and has term {held} there",
        )
