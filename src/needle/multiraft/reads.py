"""ReadIndex requests of one group: all that wait in a loop turn share one confirmation round.

Invariant: a request is part of a round that was begun after the request arrived (raft.md: acked after the read
arrived), and is answered with an index only once that index is applied here. It must not know how rounds work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from needle.base.errors import DeadlineExceeded, NeedleError, NotLeader
from needle.base.ids import GroupId, group_name
from needle.multiraft.waiters import Waiters
from needle.raft.messages import ReadState

Reader = tuple[asyncio.Future[int], float]
_NEVER = float("inf")


class ReadRounds:
    """Requests that wait for their round, and rounds that wait for their quorum."""

    def __init__(self) -> None:
        self._queued: list[Reader] = []
        self._rounds: dict[int, list[Reader]] = {}
        self._context = 0
        self.next_deadline = _NEVER

    def add(self, future: asyncio.Future[int], deadline: float) -> None:
        """A request: goes out with the next round."""
        self._queued.append((future, deadline))
        self.next_deadline = min(self.next_deadline, deadline)

    @property
    def queued(self) -> bool:
        """Whether a round is wanted."""
        return bool(self._queued)

    def begin(self) -> int:
        """The context of a new round, of all that is queued."""
        self._context += 1
        self._rounds[self._context] = self._queued
        self._queued = []
        return self._context

    def refuse(self, context: int, error: NeedleError) -> None:
        """The round will never be confirmed."""
        for future, _ in self._rounds.pop(context, ()):
            if not future.done():
                future.set_exception(error)

    def confirmed(self, states: Iterable[ReadState], applied: int, waiters: Waiters, group: GroupId) -> None:
        """These rounds of a group are confirmed: their requests wait for their index to be applied."""
        late = partial(_late, group)
        for state in states:
            for future, deadline in self._rounds.pop(state.context, ()):
                if future.done():
                    continue
                if state.index <= applied:
                    future.set_result(state.index)
                else:
                    waiters.add(state.index, future, deadline, late)

    def expire(self, now: float, error: NeedleError) -> None:
        """Fail the requests whose deadline has passed without a confirmation."""
        if now < self.next_deadline:
            return
        self.next_deadline = _NEVER
        self._queued = self._still(self._queued, now, error)
        for context in list(self._rounds):
            waiting = self._still(self._rounds[context], now, error)
            if waiting:
                self._rounds[context] = waiting
            else:
                del self._rounds[context]

    def _still(self, readers: list[Reader], now: float, error: NeedleError) -> list[Reader]:
        waiting = []
        for future, deadline in readers:
            if future.done():
                continue
            if deadline <= now:
                future.set_exception(error)
            else:
                waiting.append((future, deadline))
                self.next_deadline = min(self.next_deadline, deadline)
        return waiting

    def fail_all(self, error: NeedleError) -> None:
        """The group stops."""
        for readers in (self._queued, *self._rounds.values()):
            for future, _ in readers:
                if not future.done():
                    future.set_exception(error)
        self._queued = []
        self._rounds = {}


def _late(group: GroupId) -> DeadlineExceeded:
    return DeadlineExceeded(f"{group_name(group)} did not apply what the read waits for in time", group=group)


def not_leader(group: int, leader: str) -> NotLeader:
    """The refusal of a read here; names who leads, if known."""
    where = f"{leader} does" if leader else "no leader is known"
    return NotLeader(f"this node does not lead {group_name(group)}; {where}", leader=leader or None, group=group)
