"""Why a replica asked for votes, or gave up leadership: for logs and monitors. Nothing decides by it."""

from __future__ import annotations

from enum import Enum


class Cause(Enum):
    """The value is the metric's label."""

    LEADER_SILENT = "leader_silent"
    LEADER_GONE = "leader_gone"
    HANDED_OVER = "handed_over"
    FORCED = "forced"
    NO_QUORUM = "no_quorum"
    DISK_STALLED = "disk_stalled"
    NEWER_TERM = "newer_term"
    REMOVED = "removed"
    RETIRED = "retired"

    @property
    def words(self) -> str:
        """For a log line: "... because {words}"."""
        return _WORDS[self]


ELECTIONS = (Cause.LEADER_SILENT, Cause.LEADER_GONE, Cause.HANDED_OVER, Cause.FORCED)
STEPDOWNS = tuple(cause for cause in Cause if cause is Cause.HANDED_OVER or cause not in ELECTIONS)
_WORDS = {
    Cause.LEADER_SILENT: "the leader was not heard for an election timeout",
    Cause.LEADER_GONE: "the leader ended its connection",
    Cause.HANDED_OVER: "the leader hands over",
    Cause.FORCED: "it was told to",
    Cause.NO_QUORUM: "no majority answered for an election timeout",
    Cause.DISK_STALLED: "a write to its log waits for the disk for too long",
    Cause.NEWER_TERM: "a newer term began",
    Cause.REMOVED: "it is no voter any more",
    Cause.RETIRED: "it lost state that others count on",
}


class Causes:
    """How often what happened since the start, by cause."""

    def __init__(self) -> None:
        self.last = Cause.LEADER_SILENT
        """Why this replica last asked for votes, or gave up leadership."""
        self.elections: dict[Cause, int] = {}
        self.stepdowns: dict[Cause, int] = {}

    def asked(self) -> None:
        """It asks for votes in a new term, for the last cause."""
        self.elections[self.last] = self.elections.get(self.last, 0) + 1

    def gave_up(self, cause: Cause) -> None:
        """It leads no more."""
        self.last = cause
        self.stepdowns[cause] = self.stepdowns.get(cause, 0) + 1
