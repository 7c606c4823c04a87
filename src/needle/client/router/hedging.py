"""A read of one shard that any replica may answer: the first in turn is asked, and another one when it fails, or is
later than 95 % of recent answers, and than three times as long as half of them take (Dean and Barroso, "The Tail at
Scale", 2013: hedged requests).

Invariant: two replicas at most are asked at a time. The first one is asked without a task or a timer of its own: most
reads need no other, and each hop of the event loop cuts apart what reads of one turn ask and get together.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from needle.base.errors import NeedleError, Overloaded, StaleEpoch, TooStale
from needle.base.parts import Payload
from needle.client.router.latency import Latencies


class Replicas(Protocol):
    """Those of one shard, as `client.shards` reaches them."""

    async def ask_replica(self, address: str, method: str, body: bytes, timeout: float) -> Payload: ...
    def suspect(self, address: str) -> None:
        """That one failed: put it last for a while."""
        ...


class _Read(msgspec.Struct, eq=False):
    """One read. failed, others: from the time that the first replica is late: told if it fails, and what asks other
    ones. given_up: the others have answered, and `task` was cancelled to hear it."""

    replicas: Replicas
    order: list[str]
    method: str
    body: Callable[[float], bytes]
    timeout: float
    failures: dict[str, NeedleError]
    since: float
    task: asyncio.Task[Any] | None
    failed: asyncio.Future[Payload] | None = None
    others: asyncio.Task[Payload | None] | None = None
    given_up: bool = False

    def left(self, now: float) -> float:
        return self.timeout - (now - self.since)

    def note(self, address: str, error: BaseException) -> None:
        """A replica has not answered; raises what no other one would answer otherwise."""
        try:
            if not isinstance(error, NeedleError):
                raise error
            answers_of_all(error)
            self.failures[address] = error
            if not isinstance(error, TooStale | Overloaded):
                self.replicas.suspect(address)
        finally:
            del error  # its traceback holds this frame


def answers_of_all(error: NeedleError) -> None:
    """Raises what no other replica would answer otherwise."""
    if isinstance(error, StaleEpoch) or (not error.retryable and not error.of_the_node):
        try:
            raise error
        finally:
            del error  # as in `note`


class Hedging:
    """All reads of one router; see the module."""

    def __init__(self) -> None:
        self.latencies = Latencies()
        self._first: dict[_Read, None] = {}
        """Those whose first replica is not late, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None

    async def ask(
        self,
        replicas: Replicas,
        order: list[str],
        method: str,
        body: Callable[[float], bytes],
        timeout: float,
        failures: dict[str, NeedleError],
    ) -> Payload | None:
        """The answer of one of the replicas in `order`; None if all failed or were late, and why in `failures`."""
        if not order:
            return None
        loop = asyncio.get_running_loop()
        task, since = asyncio.current_task(loop), loop.time()
        cancelled = 0 if task is None else task.cancelling()
        read = _Read(replicas, order, method, body, timeout, failures, since, task)
        self._watch(read, loop)
        try:
            answer = await replicas.ask_replica(order[0], method, body(timeout), timeout)
            self.latencies.add(loop.time() - since)
            return answer
        except asyncio.CancelledError:
            # As asyncio.timeout tells its own end from that of its caller.
            if read.given_up and read.others is not None and task is not None and task.uncancel() <= cancelled:
                return read.others.result()
            raise
        except NeedleError as error:
            self._first.pop(read, None)
            if read.others is None or read.failed is None:
                read.note(order[0], error)
                return await self._ask_others(read, {})
            read.task = None  # there is nothing to give up any more
            if not read.failed.done():  # it is while what the others found has not ended this yet
                read.failed.set_exception(error)
            return await read.others
        finally:
            self._first.pop(read, None)
            read.task = None
            forget([one for one in (read.others, read.failed) if one is not None])
            read.others = read.failed = None
            del task  # as of these, an error that it ends with may hold this frame

    def _watch(self, read: _Read, loop: asyncio.AbstractEventLoop) -> None:
        if len(read.order) > 1:
            self._first[read] = None
            if self._timer is None:
                self._timer = loop.call_later(self.latencies.late, self._look)

    def _look(self) -> None:
        """Ask others for the reads that are late, and come back when the next one is."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now, late = loop.time(), self.latencies.late
        while self._first:
            read = next(iter(self._first))
            if (early := read.since + late - now) > 0:
                self._timer = loop.call_later(early, self._look)
                return
            del self._first[read]
            read.failed = loop.create_future()
            read.others = loop.create_task(self._ask_others(read, {read.failed: (read.order[0], read.since)}))
            read.others.add_done_callback(functools.partial(self._others_done, read))

    @staticmethod
    def _others_done(read: _Read, _: object) -> None:
        """The first replica need not answer any more."""
        if read.task is not None:
            read.given_up = True
            read.task.cancel()

    async def _ask_others(
        self, read: _Read, waiting: dict[asyncio.Future[Payload], tuple[str, float]]
    ) -> Payload | None:
        """As `ask`, of all but the first. waiting: who is asked already, and since when."""
        loop = asyncio.get_running_loop()
        upcoming = read.order[1:]
        done = set[asyncio.Future[Payload]]()
        one: asyncio.Future[Payload] | None = None
        error: BaseException | None = None
        try:
            while upcoming or waiting:
                left = read.left(loop.time())
                if left <= 0:
                    break
                if upcoming and len(waiting) < 2:
                    address = upcoming.pop(0)
                    task = loop.create_task(read.replicas.ask_replica(address, read.method, read.body(left), left))
                    waiting[task] = (address, loop.time())
                late = self.latencies.late if upcoming and len(waiting) < 2 else left
                done, _ = await asyncio.wait(waiting, timeout=min(late, left), return_when=asyncio.FIRST_COMPLETED)
                for one in [one for one in waiting if one in done]:
                    address, asked = waiting.pop(one)
                    error = one.exception()
                    if error is None:
                        self.latencies.add(loop.time() - asked)
                        return one.result()
                    read.note(address, error)
            return None
        finally:
            forget(waiting)
            del waiting, done, one, error  # an error that is raised holds this frame


def forget(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Nobody waits for these any more: end those that run; failures of the others count as seen."""
    for task in tasks:
        if not task.cancel() and not task.cancelled():
            task.exception()
