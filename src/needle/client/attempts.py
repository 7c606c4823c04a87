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
SPARE_SECONDS = 0.25
"""A call that was refused for want of room does not ask again in its last twentieth, at most so many seconds: an answer
could come too late, and the caller of a write would learn that its fate is unknown instead of why it was refused."""
PATIENCE_SECONDS = 1.0
"""A request without an answer for so long: ask the other nodes whether they have a new leader. Also how long they may
wait for one before they answer."""
HANDED_MAX = 2000
"""So many times in one turn of the event loop a group is told that it has to watch over a request."""


class Attempts:
    """The bookkeeping of one call: its deadline, what went wrong last, whether a write may have been executed."""

    __slots__ = (
        "backoff", "began", "deadline", "final", "full", "full_at", "hints", "last", "loop", "sent", "spare", "unknown",
        "whole", "writes",
    )  # fmt: skip

    def __init__(
        self, timeout: float, final: tuple[type[NeedleError], ...] = (), *, writes: bool = False, spent: float = 0.0
    ) -> None:
        """final: errors that are the call's answer, though another call may be repeated after them. writes: it has an
        effect. spent: seconds that it took before, of the caller's time, which is told in errors."""
        self.final = final
        self.writes = writes
        self.loop = asyncio.get_running_loop()
        self.whole = timeout + spent
        self.began = self.loop.time() - spent
        self.deadline = self.began + self.whole
        self.backoff = BACKOFF_MIN
        self.hints = 0
        self.last: NeedleError | None = None
        self.full: NeedleError | None = None
        self.full_at = 0.0
        self.spare = 0.0
        self.sent = False
        self.unknown = False

    def left(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - self.loop.time()

    def failed(self, error: NeedleError) -> None:
        """Remember why an attempt failed."""
        self.last = error
        self.spare = 0.0
        if isinstance(error, Overloaded | OutOfMemory):
            self.full, self.full_at = error, self.loop.time()
            self.spare = min(SPARE_SECONDS, self.whole / 20)

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

    __slots__ = ("address", "given_up", "since", "task")

    def __init__(self, address: str, since: float, task: asyncio.Task[Any] | None) -> None:
        self.address = address
        self.since = since
        self.task = task
        self.given_up = False

    def give_up(self) -> None:
        """Have its call end without an answer."""
        if self.task is not None and not self.given_up:
            self.given_up = True
            self.task.cancel()


class Unanswered:
    """The requests to a group's leader that wait for their answer. While all are young they cost a timer; when one is
    old, the nodes are asked what became of the leader, once for all that wait. What one costs
    does not grow with how many wait, or for how long."""

    def __init__(self, directory: Directory) -> None:
        self.caller = directory.caller
        self.directory = directory
        self._asked: dict[_Asked, int] = {}
        """With the term in which the group was led when it was sent. The oldest first, so the terms ascend."""
        self._old: dict[_Asked, int] = {}
        """Of requests to the leader of several groups those that are old, in the same order."""
        self._timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    async def call(self, address: str, method: str, body: Body, seconds: float) -> Payload | None:
        """The answer of the node at `address`, the leader. None if it was given up: another node was elected leader.
        As `WatchedTogether.call` of this one alone: every write comes by here."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        cancelled = 0 if task is None else task.cancelling()
        asked = _Asked(address, loop.time(), task)
        self._asked[asked] = self.directory.term
        if self._timer is None and self._watch is None and seconds > PATIENCE_SECONDS:
            self._timer = loop.call_later(PATIENCE_SECONDS, self._look)
        try:
            return await self.caller.call(address, method, body, seconds)
        except asyncio.CancelledError:
            if _is_given_up(task, cancelled, asked):
                return None
            raise
        finally:
            self._asked.pop(asked, None)
            del task, asked  # as there

    def watch(self, asked: _Asked, term: int) -> None:
        """Watch over a request that is old, too, which was sent when the group was led in this term. Call `end` once it
        was answered."""
        self._old[asked] = term
        if self._watch is None:
            if self._timer is not None:
                self._timer.cancel()
            self._look()

    def end(self, asked: _Asked) -> None:
        """It is not waited for any more."""
        self._old.pop(asked, None)

    def _look(self) -> None:
        """Watch over the oldest request, or come back when it is old."""
        self._timer, loop, young = None, asyncio.get_running_loop(), 0.0
        if not self._old:
            oldest = next(iter(self._asked), None)
            if oldest is None:
                return
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
        directory = self.directory
        # All of them: whoever gives up at the deadline says which did not answer.
        asking: list[Coroutine[Any, Any, object]] = [directory.ask(address) for address in directory.addresses()]
        asking.append(directory.await_leader(PATIENCE_SECONDS))
        await asyncio.gather(*asking)
        for waiting in (self._asked, self._old):
            for asked in self._outdated(waiting):
                del waiting[asked]
                asked.give_up()

    def _outdated(self, waiting: dict[_Asked, int]) -> list[_Asked]:
        """Those that are old, and wait for another node than the one that was elected since."""
        leader, term, found = self.directory.leader, self.directory.term, list[_Asked]()
        born = asyncio.get_running_loop().time() - PATIENCE_SECONDS
        if leader is not None:
            for asked, known in waiting.items():
                if known >= term or asked.since > born:  # those behind it were sent later, and in no earlier term
                    break
                if asked.address != leader:
                    found.append(asked)
        return found


def _is_given_up(task: asyncio.Task[Any] | None, cancelled: int, asked: _Asked) -> bool:
    """Whether the task of a request was cancelled because that was given up, and by nobody else: as
    asyncio.timeout(None) tells its own end from that of its caller, for a tenth of the time. cancelled: how often it
    was before."""
    return asked.given_up and task is not None and task.uncancel() <= cancelled


class _Several(_Asked):
    """A request to the node that leads several groups. terms: in which they were led when it was sent. old: each group
    watches over it."""

    __slots__ = ("old", "terms", "watches")

    def __init__(
        self, watches: Sequence[Unanswered], address: str, since: float, task: asyncio.Task[Any] | None
    ) -> None:
        super().__init__(address, since, task)
        self.watches = watches
        self.terms = [watch.directory.term for watch in watches]
        self.old = False


class WatchedTogether:
    """Requests each of which waits for a node that leads several groups. While they are young they cost a timer in all,
    however many groups there are; over one that is old each of its groups watches, from when it is handed to them."""

    def __init__(self) -> None:
        self._young: dict[_Several, None] = {}  # the oldest first
        self._timer: asyncio.Handle | None = None

    async def call(
        self, watches: Sequence[Unanswered], address: str, method: str, body: Body, seconds: float
    ) -> Payload | None:
        """The answer of the node at `address`, which leads the groups of all `watches`. None if it was given up:
        another node was elected leader of one of them."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        cancelled = 0 if task is None else task.cancelling()
        asked = _Several(watches, address, loop.time(), task)
        if seconds > PATIENCE_SECONDS:
            self._young[asked] = None
            if self._timer is None:
                self._timer = loop.call_later(PATIENCE_SECONDS, self._look)
        try:
            return await watches[0].caller.call(address, method, body, seconds)
        except asyncio.CancelledError:
            if _is_given_up(task, cancelled, asked):
                return None
            raise
        finally:
            self._young.pop(asked, None)
            for watch in watches if asked.old else ():
                watch.end(asked)
            del task, asked  # a task that ends with an error holds it, and that this frame

    def _look(self) -> None:
        """Hand those that are old to their groups, not too many in one turn; come back when the next one is old."""
        self._timer, loop, handed, due = None, asyncio.get_running_loop(), 0, list[_Several]()
        born = loop.time() - PATIENCE_SECONDS
        for asked in self._young:  # in one pass: to find the first of a dict takes longer the more were taken out
            if asked.since > born:
                self._timer = loop.call_later(asked.since - born, self._look)
                break
            if handed >= HANDED_MAX:
                self._timer = loop.call_soon(self._look)
                break
            due.append(asked)
            handed += len(asked.watches)
        for asked in due:
            del self._young[asked]
            asked.old = True
            for watch, term in zip(asked.watches, asked.terms, strict=True):
                watch.watch(asked, term)
