"""What archives of a group's log told its leader last: a place for each target, so that none hides another's. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from needle.multiraft.retention import Member

ACTIVE_SECONDS: Final = 60.0
SECONDS: Final = 3600.0
"""For an archive that has not asked for so long nothing is kept."""
TARGETS_MAX: Final = 8
"""Of more, the one that asked the longest time ago is forgotten."""


class Archived(NamedTuple):
    """Up to where an archive of the log has it, until which clock of the leader that is all there was (microseconds
    since 1970; 0: not yet), and when it said so (monotonic seconds)."""

    last: int
    until: int
    asked: float


UNNAMED: Final = ""
"""The target of an archive that does not say which, or that is only expected: once one has asked that was there
before, it counts for a minute."""


class Archives:
    """Of one group, by target."""

    def __init__(self, opened: float = 0.0) -> None:
        """opened: when its replica was opened (monotonic seconds)."""
        self._told = opened
        self._targets: dict[str, Archived] = {}
        self._expected_asks = False

    def note(self, target: str, last: int, until: int, now: float, begun: bool = False) -> None:
        """It has the log up to there. begun: that archive began there lately."""
        if until:
            self._told = now
        before = self._targets.pop(target, None)
        # Not who begins elsewhere: it must not end what is kept for the one that is expected. A leader hears of it
        # while it has nothing yet, others behind its first flush.
        self._expected_asks |= target != UNNAMED and before is None and last > 0 and not begun
        self._targets[target] = Archived(last, max(until, 0 if before is None else before.until), now)
        if len(self._targets) > TARGETS_MAX:
            del self._targets[next(iter(self._targets))]

    def members(self, now: float) -> Iterator[Member]:
        """For whom the log is kept."""
        for target, one in self._targets.items():
            away = ACTIVE_SECONDS if target == UNNAMED and self._expected_asks else SECONDS
            if now - one.asked <= away:
                yield Member(one.last, -1, now - one.asked <= ACTIVE_SECONDS)

    def silent(self, now: float) -> float:
        """For how many seconds none has said until when it has the log, since the replica was opened: one that asks and
        says nothing of it has stored nothing."""
        return now - self._told

    def until(self, now: float) -> int:
        """The clock up to which all have it that ask now; if none does, the one that asked last. 0 if none ever has. A
        target that has nothing yet does not hide how far another is."""
        found = [one for one in self._targets.values() if one.until]
        asking = [one for one in found if now - one.asked <= ACTIVE_SECONDS] or found[-1:]
        return min((one.until for one in asking), default=0)
