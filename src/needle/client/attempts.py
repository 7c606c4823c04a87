"""One call's time and what its attempts told; and the watch over requests that a leader is long in answering.

Invariant: a request has all the time that its call has left, so a node that works on it is waited for and is not asked
twice. It is given up for another leader that was elected after it was sent. Knows no documents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from needle.base.errors import DeadlineExceeded, DiskFailed, NeedleError, OutOfMemory, Overloaded
from needle.base.parts import Body, Payload
from needle.base.runtime import Rng
from needle.client.directory import Directory

BACKOFF_MIN = 0.005
BACKOFF_MAX = 0.25
PATIENCE_SECONDS = 1.0
"""A request without an answer for so long: ask the other nodes whether they have a new leader. Also how long they may
wait for one before they answer."""


class Attempts:
    """The bookkeeping of one call: its deadline, what went wrong last, whether a write may have been executed."""

    __slots__ = (
        "backoff", "began", "deadline", "final", "full", "full_at", "hints", "last", "loop", "sent", "unknown", "whole",
        "writes",
    )  # fmt: skip

    def __init__(self, timeout: float, final: tuple[type[NeedleError], ...] = (), *, writes: bool = False) -> None:
        """final: errors that are the call's answer, though another call may be repeated after them. writes: it has an
        effect."""
        self.final = final
        self.writes = writes
        self.loop = asyncio.get_running_loop()
        self.whole = timeout
        self.began = self.loop.time()
        self.deadline = self.began + timeout
        self.backoff = BACKOFF_MIN
        self.hints = 0
        self.last: NeedleError | None = None
        self.full: NeedleError | None = None
        self.full_at = 0.0
        self.sent = False
        self.unknown = False

    def left(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - self.loop.time()

    def failed(self, error: NeedleError) -> None:
        """Remember why an attempt failed."""
        self.last = error
        if isinstance(error, Overloaded | OutOfMemory):
            self.full, self.full_at = error, self.loop.time()

    def forget(self) -> None:
        """The call is over. An error holds the frames that it passed, and one of them holds this: neither it nor the
        batch that was to be written would be freed before the garbage collector runs."""
        self.last = self.full = None

    def until_the_end(self) -> NeedleError | None:
        """What a node was like until the time was up, if that is known: short of something. An attempt that the
        deadline cuts off says nothing of it."""
        if isinstance(self.last, Overloaded | OutOfMemory | DiskFailed):
            return self.last
        cut_off = isinstance(self.last, DeadlineExceeded) and self.full_at >= self.began + self.whole / 2
        return self.full if cut_off else None

    def next_pause(self, rng: Rng) -> float:
        """How long to wait before the next attempt: longer each time, at a random point so that clients spread out."""
        seconds = min(max(0.0, self.left()), self.backoff * rng.uniform(0.5, 1.5))
        self.backoff = min(BACKOFF_MAX, self.backoff * 2)
        return seconds

    async def pause(self, rng: Rng) -> None:
        """Wait before the next attempt."""
        await asyncio.sleep(self.next_pause(rng))


class _Asked:
    """A request that waits, in `task`."""

    __slots__ = ("address", "given_up", "since", "task", "term")

    def __init__(self, address: str, since: float, term: int, task: asyncio.Task[Any] | None) -> None:
        self.address = address
        self.since = since
        self.term = term
        self.task = task
        self.given_up = False

    def give_up(self) -> None:
        """Have `call` end without an answer."""
        if self.task is not None:
            self.given_up = True
            self.task.cancel()


class Unanswered:
    """The requests to a group's leader that wait for their answer. While all are young they cost a timer; when one is
    old, the nodes are asked what became of the leader, once for all that wait."""

    def __init__(self, directory: Directory) -> None:
        self.caller = directory.caller
        self._directory = directory
        self._asked: dict[_Asked, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    def call(self, address: str, method: str, body: Body, seconds: float) -> Coroutine[Any, Any, Payload | None]:
        """The answer of the node at `address`, the leader. None if it was given up: another node was elected leader."""
        return call_watched((self,), address, method, body, seconds)

    def begin(self, address: str, task: asyncio.Task[Any] | None, now: float, seconds: float) -> _Asked:
        """A request is sent to the node at `address`, the leader, by `task`. Call `end` once it was answered."""
        asked = _Asked(address, now, self._directory.term, task)
        self._asked[asked] = None
        if self._timer is None and self._watch is None and seconds > PATIENCE_SECONDS:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._look)
        return asked

    def end(self, asked: _Asked) -> None:
        """It is not waited for any more."""
        self._asked.pop(asked, None)

    def _look(self) -> None:
        """Watch over the oldest request, or come back when it is old."""
        self._timer = None
        oldest = next(iter(self._asked), None)
        if oldest is None:
            return
        loop = asyncio.get_running_loop()
        young = oldest.since + PATIENCE_SECONDS - loop.time()
        if young > 0:
            self._timer = loop.call_later(young, self._look)
        else:
            self._watch = loop.create_task(self._watch_over())
            self._watch.add_done_callback(self._watched)

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._watch = None
        if not task.cancelled() and task.exception() is None:
            self._look()

    async def _watch_over(self) -> None:
        """Ask the nodes for a later leader; give up what waits for an earlier one."""
        directory, loop = self._directory, asyncio.get_running_loop()
        old = [asked for asked in self._asked if asked.since + PATIENCE_SECONDS <= loop.time()]
        # All of them: whoever gives up at the deadline says which did not answer.
        asking: list[Coroutine[Any, Any, object]] = [directory.ask(address) for address in directory.addresses()]
        asking.append(directory.await_leader(PATIENCE_SECONDS))
        await asyncio.gather(*asking)
        for asked in old:
            if asked in self._asked and directory.leader not in (None, asked.address) and directory.term > asked.term:
                del self._asked[asked]
                asked.give_up()


async def call_watched(
    watches: Sequence[Unanswered], address: str, method: str, body: Body, seconds: float
) -> Payload | None:
    """The answer of the node at `address`, which leads the groups of all `watches`. None if it was given up: another
    node was elected leader of one of them."""
    loop = asyncio.get_running_loop()
    task, now = asyncio.current_task(loop), loop.time()
    cancelled = 0 if task is None else task.cancelling()
    asked = [watch.begin(address, task, now, seconds) for watch in watches]
    try:
        return await watches[0].caller.call(address, method, body, seconds)
    except asyncio.CancelledError:
        # As asyncio.timeout(None) tells its own end from that of its caller, for a tenth of the time.
        given_up = sum(one.given_up for one in asked)
        if given_up and task is not None and [task.uncancel() for _ in range(given_up)][-1] <= cancelled:
            return None
        raise
    finally:
        for watch, one in zip(watches, asked, strict=True):
            watch.end(one)
        del task, asked, one  # a task that ends with an error holds it, and that this frame
