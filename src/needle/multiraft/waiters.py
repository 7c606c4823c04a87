"""Callers that wait until a number has been reached, an index applied or a term led, each with a deadline.

Invariant: a step looks at those that it answers, however many others wait; what is kept of those that were answered,
or gave up, is bounded by how many waited at once. It must not know what the number means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count

import msgspec

from needle.base.errors import NeedleError

NEVER = float("inf")
_FEW = 64


class _Waiter(msgspec.Struct):
    number: int
    deadline: float
    future: asyncio.Future[int]
    late: Callable[[], NeedleError]


class Waiters:
    """Of one group. Deadlines are seconds of the node's monotonic clock. waiting: by number; [] if nobody waits."""

    def __init__(self) -> None:
        # Two heaps of the same: (number or deadline, which of them came first, the waiter).
        self.waiting: list[tuple[int, int, _Waiter]] = []
        self._by_deadline: list[tuple[float, int, _Waiter]] = []
        self._order = count()
        self._tidy_at = _FEW

    @property
    def next_deadline(self) -> float:
        """When `expire` must be called next; infinity when nobody waits."""
        heap = self._by_deadline
        while heap and heap[0][2].future.done():
            heappop(heap)
        return heap[0][0] if heap else NEVER

    def add(self, number: int, future: asyncio.Future[int], deadline: float, late: Callable[[], NeedleError]) -> None:
        """Resolve `future` with `number` once that is reached; after `deadline` fail it with `late()`."""
        waiter, order = _Waiter(number, deadline, future, late), next(self._order)
        heappush(self.waiting, (number, order, waiter))
        heappush(self._by_deadline, (deadline, order, waiter))
        if len(self._by_deadline) >= self._tidy_at or len(self.waiting) >= self._tidy_at:
            self._tidy()

    def _tidy(self) -> None:
        """Let go of those that are done. Called when the number has doubled, so that it costs a constant for each."""
        self.waiting = [one for one in self.waiting if not one[2].future.done()]
        self._by_deadline = [one for one in self._by_deadline if not one[2].future.done()]
        heapify(self.waiting)
        heapify(self._by_deadline)
        self._tidy_at = max(_FEW, 2 * len(self.waiting))

    def reached(self, number: int) -> None:
        """Resolve whoever waits for `number` or less."""
        heap = self.waiting
        while heap and heap[0][0] <= number:
            waiter = heappop(heap)[2]
            if not waiter.future.done():
                waiter.future.set_result(waiter.number)

    def expire(self, now: float) -> None:
        """Fail those whose deadline has passed."""
        while self.next_deadline <= now:
            waiter = heappop(self._by_deadline)[2]
            waiter.future.set_exception(waiter.late())

    def fail_all(self, error: NeedleError) -> None:
        """The group stops."""
        for _, _, waiter in self.waiting:
            if not waiter.future.done():
                waiter.future.set_exception(error)
        self.waiting, self._by_deadline = [], []
