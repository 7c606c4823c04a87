"""Searches of several replicas that begin in one turn of the event loop go to a thread together, while they are short:
to hand one over and back takes longer than a short search (adr/0096). So do gets by ids.

Invariant: every call is answered once, with its own result or error, on the event loop. It must not know searches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from needle.base.runtime import Done

JOB_SECONDS: Final = 0.0005
"""So long the calls of one job may take together, by what calls took lately."""
CALLS_KEPT: Final = 16
"""Of so many calls the mean counts."""

T = TypeVar("T")
_Call = tuple[Done, Callable[..., Any], tuple[object, ...]]
_Result = tuple[Any, BaseException | None]


class Calls(Protocol):
    """As base.runtime.Pool."""

    def call(self, done: Done, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None: ...


class JoinedCalls:
    """Those of one node."""

    def __init__(self, pool: Calls, now: Callable[[], float], alone: Callable[[], bool]) -> None:
        """now: seconds, or the processor time of the calling thread; called in any thread. alone: whether there is one
        replica only, whose calls need no others."""
        self._pool = pool
        self._now = now
        self._alone = alone
        self._waiting: list[_Call] = []
        self._takes = JOB_SECONDS

    def call(self, done: Done, fn: Callable[..., Any], /, *args: object, quick: bool = False) -> None:
        """As `base.runtime.Pool.call`. What refuses it later is told to `done`."""
        if quick or self._alone():
            self._pool.call(done, fn, *args, quick=quick)
            return
        self._waiting.append((done, fn, args))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._hand_over)

    def run(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        """What `fn` returns, or raises."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if answer.done():
                return  # who asked has gone
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

        self.call(done, fn)
        return answer

    def _hand_over(self) -> None:
        calls, self._waiting = self._waiting, []
        size = max(1, int(JOB_SECONDS / max(self._takes, JOB_SECONDS / len(calls))))
        for start in range(0, len(calls), size):
            part = calls[start : start + size]
            try:
                self._pool.call(partial(self._done, part), self._run, part)
            except Exception as error:  # noqa: BLE001 - its threads are stopped: whoever asked is told
                self._done(part, None, error)

    def _run(self, calls: Sequence[_Call]) -> tuple[list[_Result], float]:
        """In a thread: the results, and the seconds that a call took."""
        began, results = self._now(), list[_Result]()
        try:
            for one in calls:
                try:
                    results.append((one[1](*one[2]), None))
                except Exception as error:  # noqa: BLE001 - it is handed to `done`
                    results.append((None, error))
            return results, (self._now() - began) / len(calls)
        finally:
            # They hold errors, whose tracebacks hold this frame: what a call held would live on.
            del calls, results, one

    def _done(
        self, calls: Sequence[_Call], found: tuple[list[_Result], float] | None, error: BaseException | None
    ) -> None:
        if found is None:
            results: list[_Result] = [(None, error)] * len(calls)
        else:
            results, took = found
            self._takes += (took - self._takes) * min(1.0, len(calls) / CALLS_KEPT)
        for (done, _, _), (result, failure) in zip(calls, results, strict=True):
            done(result, failure)
