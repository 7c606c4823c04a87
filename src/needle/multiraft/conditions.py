"""Futures that are done once something holds of a group, looked at after each of its turns. Each has a deadline.
It must not know what is waited for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from needle.base.errors import NeedleError


class _Waiting(msgspec.Struct):
    holds: Callable[[], bool]
    future: asyncio.Future[None]
    deadline: float
    late: Callable[[], NeedleError]


class Conditions:
    """Of one group. waiting: [] if nobody is."""

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []

    @property
    def next_deadline(self) -> float:
        """When `expire` must be called next; infinity when nobody waits."""
        return min((one.deadline for one in self.waiting), default=math.inf)

    def until(
        self, holds: Callable[[], bool], deadline: float, late: Callable[[], NeedleError]
    ) -> asyncio.Future[None]:
        """A future that is done once `holds()`, or fails with `late()` at the deadline."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if holds():
            future.set_result(None)
        else:
            self.waiting.append(_Waiting(holds, future, deadline, late))
        return future

    def check(self) -> None:
        """Answer those whose condition holds now."""
        for one in self.waiting:
            if not one.future.done() and one.holds():
                one.future.set_result(None)
        self._forget()

    def expire(self, now: float) -> None:
        """Answer those that hold, and those whose time is up."""
        self.check()
        for one in self.waiting:
            if one.deadline <= now:
                one.future.set_exception(one.late())
        self._forget()

    def fail_all(self, error: NeedleError) -> None:
        """Answer everyone with an error."""
        for one in self.waiting:
            if not one.future.done():
                one.future.set_exception(error)
        self.waiting = []

    def _forget(self) -> None:
        self.waiting = [one for one in self.waiting if not one.future.done()]
