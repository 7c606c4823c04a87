"""Majorities of a configuration, simple or joint (paper, section 6).

Invariant: while joint, a decision holds only if it holds in a majority of both voter sets. Pure functions; they know
neither roles nor messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

from needle.base.ids import NodeId
from needle.raft.messages import ConfState

N = TypeVar("N", int, float)


class Verdict(Enum):
    PENDING = 0
    WON = 1
    LOST = 2


def majority_value(voters: tuple[NodeId, ...], value: Callable[[NodeId], N]) -> N:
    """The largest x such that a majority of `voters` has value(v) >= x. `voters` is not empty."""
    values = sorted(map(value, voters))
    return values[(len(values) - 1) // 2]


def quorum_value(conf: ConfState, value: Callable[[NodeId], N]) -> N:
    """The largest x such that a quorum of every active voter set has value(v) >= x."""
    reached = majority_value(conf.voters, value)
    if conf.voters_outgoing:
        reached = min(reached, majority_value(conf.voters_outgoing, value))
    return reached


def _tally(voters: tuple[NodeId, ...], votes: Mapping[NodeId, bool]) -> Verdict:
    needed = len(voters) // 2 + 1
    granted = sum(1 for v in voters if votes.get(v) is True)
    refused = sum(1 for v in voters if votes.get(v) is False)
    if granted >= needed:
        return Verdict.WON
    return Verdict.LOST if refused > len(voters) - needed else Verdict.PENDING


def count_votes(conf: ConfState, votes: Mapping[NodeId, bool]) -> Verdict:
    """The state of an election, given the answers so far. Answers of non-voters do not count."""
    results = [_tally(voters, votes) for voters in (conf.voters, conf.voters_outgoing) if voters]
    if not results or Verdict.LOST in results:
        return Verdict.LOST
    return Verdict.PENDING if Verdict.PENDING in results else Verdict.WON
