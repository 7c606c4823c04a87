"""When which group's clock must be driven: one loop timer for all groups.

Invariant: a group is never driven before its deadline, and at most one quantum after it; deadlines that fall into one
quantum are driven together, so that the heartbeats of many groups travel in one frame. It must not know groups.
"""

from __future__ import annotations

import heapq
from math import floor

from needle.base.ids import GroupId

_NEVER = float("inf")


class Timers:
    """Deadlines by group, in seconds of the node's monotonic clock. A deadline that moves later costs nothing until
    the old one is due."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._heap: list[tuple[float, GroupId]] = []
        self._armed: dict[GroupId, float] = {}

    def arm(self, group: GroupId, deadline: float) -> bool:
        """Drive the group at `deadline`. True if that is earlier than known."""
        if deadline >= self._armed.get(group, _NEVER):
            return False
        self._armed[group] = deadline
        heapq.heappush(self._heap, (deadline, group))
        return True

    def due(self, now: float) -> list[GroupId]:
        """The groups whose armed deadline has passed; they are disarmed."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            deadline, group = heapq.heappop(self._heap)
            if self._armed.get(group) == deadline:
                del self._armed[group]
                found.append(group)
        return found

    def next_fire(self) -> float:
        """When to look again: the next deadline, rounded up to a quantum."""
        if not self._heap:
            return _NEVER
        return (floor(self._heap[0][0] / self._quantum) + 1) * self._quantum

    def forget(self, group: GroupId) -> None:
        """The group is closed."""
        self._armed.pop(group, None)
