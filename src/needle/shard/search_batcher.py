"""Micro-batching: concurrent searches of one replica become a few `search_many` calls in threads.

A lone search waits for nothing, and a short one is made without a thread, which would take longer (adr/0088).

Searches of one loop turn, and those that arrive while all workers are busy, are taken together: up to `batch_max` in a
call, `in_flight_max` calls at once. Measured on 4 shards, 64 in flight: 1,569
searches/s with a thread each, 2,475 in micro-batches of 16. Short searches are not divided into small parts for workers
that are free: they take the same time wherever they run, and what a batch takes whatever it holds is as much as two or
three of them (adr/0134).

Collections take turns: a batch takes what one of them waits for, and others join it only if all that they wait for
fits. So thousands of slow searches of one collection delay a search of another by the batches that run, no more.

A search that needs a field's index, while others make such indexes, waits for its turn without a worker.

Invariant: no search is begun whose caller has gone or whose time is over, and one that cannot be begun in its time, by
what searches took lately, is refused at once.

It does not know what a search is.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from needle.base.errors import DeadlineExceeded, NeedleError, Overloaded
from needle.shard.fields.builders import BeingIndexed
from needle.shard.joined_calls import Calls


class Asked(Protocol):
    """A search, as far as this knows one."""

    @property
    def collection(self) -> str: ...


Q = TypeVar("Q", bound=Asked)
A = TypeVar("A")
Wanted = Callable[[int], bool]
"""Whether somebody still waits for the answer to the search at this place of the batch. Called in any thread."""
SearchMany = Callable[[list[Q], Wanted], Sequence[A | NeedleError | BeingIndexed]]
_Waiting = tuple[Q, "asyncio.Future[Any]", float]
"""The last: the loop time at which it is over."""
_Queue = OrderedDict["asyncio.Future[Any]", _Waiting[Q]]
BATCHES_REMEMBERED = 4
SHORT_MAX = 4
"""So many short searches together are still short."""
TOO_LATE = "the search's time was over before it could begin"
PART_MIN, PART_SECONDS = 8, 0.004
"""What waits is divided between workers in parts of so many searches at the least, or of fewer that take so long."""
TOOK_KEPT = 16
"""What searches take is the most that one took lately: it falls by one part of so many with each batch."""
AGAIN_SECONDS = 0.05
"""How soon a search looks again for the index that it needs."""


class SearchBatcher(Generic[Q, A]):
    """search_many: blocking; answers in the order asked, an error in place of an answer (of one that nobody wants any
    more, DeadlineExceeded will do). waiting_max: more are refused with Overloaded."""

    def __init__(
        self,
        search_many: SearchMany[Q, A],
        pool: Calls,
        *,
        batch_max: int = 16,
        in_flight_max: int = 2,
        waiting_max: int = 4096,
        short: Callable[[Q], bool] = lambda _: False,
        turn: Callable[[Q], Hashable] = attrgetter("collection"),
        spent: Callable[[], float] | None = None,
    ) -> None:
        """short: whether a search takes less than to hand it to a thread and back; then it may be made at once. turn:
        what takes turns; all searches of one turn are of one collection. spent: processor time of the calling thread,
        in seconds; without it searches are long."""
        self._search_many = search_many
        self._pool = pool
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._waiting_max = waiting_max
        self._short = short
        self._turn = turn
        self._waiting: dict[Hashable, _Queue[Q]] = {}  # the first one's turn is next
        self._count = 0
        self._of: dict[str, int] = {}
        """How many wait, by collection."""
        self._parked: dict[asyncio.Future[A], asyncio.TimerHandle] = {}
        self._running: dict[int, None] = {}
        """Batches, by their numbers."""
        self._begun = 0
        self._ended: asyncio.Future[None] | None = None
        """Set when the next batch ends, for who waits for that."""
        self._scheduled = self._starting = self._closed = False
        self._took: deque[float] = deque(maxlen=BATCHES_REMEMBERED)  # seconds of the last batches
        self._spent = spent
        self._each: float | None = None  # processor time of one search; long ones until it is known

    @property
    def idle_workers(self) -> int:
        """How many batches could begin now, beside those for which searches wait already."""
        return 0 if self._count else self._in_flight_max - len(self._running)

    async def search(self, request: Q, timeout: float = float("inf")) -> A:
        """The answer to one search. timeout: seconds within which it must have begun. Raises its NeedleError,
        DeadlineExceeded, or Overloaded."""
        answer = self.begin(request, timeout)
        try:
            return await answer
        except asyncio.CancelledError:
            self.forget(self._turn(request), answer)
            raise

    def begin(self, request: Q, timeout: float) -> asyncio.Future[A]:
        """`search`, without waiting for the answer; who does not wait for it any more calls `forget`. Raises
        Overloaded; DeadlineExceeded, if no time is left."""
        if timeout <= 0:
            raise DeadlineExceeded(TOO_LATE)
        waiting = self._count + len(self._parked)
        # A quarter of the room is never taken by one collection alone.
        room = self._waiting_max - self._waiting_max // 4
        if waiting >= self._waiting_max or self._of.get(request.collection, 0) >= room:
            raise Overloaded(f"{waiting} searches wait already", limit=self._waiting_max)
        own = len(self._waiting.get(self._turn(request), ()))
        if self._count and (wait := self._expected_wait(own)) > timeout:
            raise Overloaded(
                f"{self._count} searches wait already, for about {wait:.1f} s; this one has {timeout:.1f} s",
                waiting=self._count,
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._enqueue((request, answer, loop.time() + timeout))
        return answer

    def _enqueue(self, waiting: _Waiting[Q]) -> None:
        request, answer, _ = waiting
        self._waiting.setdefault(self._turn(request), OrderedDict())[answer] = waiting
        self._more_wait(request.collection, 1)
        if not self._scheduled and len(self._running) < self._in_flight_max:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _more_wait(self, collection: str, count: int) -> None:
        """So many more of a collection; fewer, if it is negative."""
        self._count += count
        self._of[collection] = left = self._of.get(collection, 0) + count
        if not left:
            del self._of[collection]

    def _park(self, waiting: _Waiting[Q]) -> None:
        """Come back a little later, without a worker until then."""
        loop = asyncio.get_running_loop()
        again = min(loop.time() + AGAIN_SECONDS, waiting[2])
        self._parked[waiting[1]] = loop.call_at(again, self._unpark, waiting)

    def _unpark(self, waiting: _Waiting[Q]) -> None:
        _, answer, over = waiting
        del self._parked[answer]
        if asyncio.get_running_loop().time() < over:
            self._enqueue(waiting)
        elif not answer.done():
            text = "the index of a field that the search filters on was not made in its time; it is made meanwhile"
            answer.set_exception(DeadlineExceeded(text))

    def forget(self, turn: Hashable, answer: asyncio.Future[A]) -> None:
        """Its caller has gone: it must take no room from others until a worker comes by. turn: of the search, which is
        its collection unless said otherwise."""
        answer.cancel()
        if (timer := self._parked.pop(answer, None)) is not None:
            timer.cancel()
        queue = self._waiting.get(turn)
        if queue is not None and (gone := queue.pop(answer, None)) is not None:
            self._more_wait(gone[0].collection, -1)
            if not queue:
                del self._waiting[turn]

    def _expected_wait(self, own: int) -> float:
        """Seconds until the workers begin a search of a collection of which `own` wait, at the least: in full batches,
        each as quick as the quickest of the last ones. Others go first as far as they are there, a batch for each of
        its own collection's. An estimate by searches would refuse too much forever: refusals keep batches small, and
        the small ones are slow for what they hold."""
        ahead = min(self._count, (own + self._batch_max) * len(self._waiting))
        return ahead / self._batch_max / self._in_flight_max * min(self._took, default=0.0)

    def _start(self) -> None:
        """Start as many batches as there are free workers, sharing what waits between them."""
        self._scheduled, self._starting = False, True  # a short batch has ended when `_run` returns
        now = asyncio.get_running_loop().time()
        while self._waiting and len(self._running) < self._in_flight_max:
            free = self._in_flight_max - len(self._running)
            batch: list[_Waiting[Q]] = []
            parts = max(1, min(free, self._count // self._part()))
            for waiting in self._take(min(self._batch_max, -(-self._count // parts))):
                if not waiting[1].done() and waiting[2] <= now:
                    waiting[1].set_exception(DeadlineExceeded(TOO_LATE))
                if not waiting[1].done():
                    batch.append(waiting)
            if batch:
                self._run(batch)
        self._starting = False

    def _part(self) -> int:
        """How many searches are worth a worker of their own."""
        each = PART_SECONDS if self._each is None else self._each
        return PART_MIN if each * PART_MIN <= PART_SECONDS else max(1, int(PART_SECONDS / each))

    def _take(self, size: int) -> list[_Waiting[Q]]:
        """Up to `size` searches of the turn that is next, and all those of others that fit beside them."""
        taken: list[_Waiting[Q]] = []
        while self._waiting:
            name, queue = next(iter(self._waiting.items()))
            if taken and len(queue) > size - len(taken):
                break
            some = [queue.popitem(last=False)[1] for _ in range(min(size, len(queue)))]
            taken += some
            self._more_wait(some[0][0].collection, -len(some))
            del self._waiting[name]
            if queue:
                self._waiting[name] = queue  # its next turn comes after everybody else's
                break
        return taken

    def _run(self, batch: list[_Waiting[Q]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        number = self._begun = self._begun + 1
        requests = [waiting[0] for waiting in batch]
        spent: float | None = None

        def wanted(at: int) -> bool:
            return not batch[at][1].done() and batch[at][2] > loop.time()

        def search(asked: list[Q], still: Wanted) -> Sequence[A | NeedleError | BeingIndexed]:
            nonlocal spent
            if self._spent is None:
                return self._search_many(asked, still)
            began = self._spent()
            results = self._search_many(asked, still)
            spent = self._spent() - began
            return results

        def done(results: Sequence[A | NeedleError | BeingIndexed] | None, error: BaseException | None) -> None:
            self._running.pop(number, None)
            if results is not None:
                self._took.append(loop.time() - start)
                if spent is not None:  # many cheap ones of one collection say nothing of another's
                    each = spent / len(batch)
                    known = each if self._each is None else self._each
                    self._each = max(each, known + (each - known) / TOOK_KEPT)
                self._answer(batch, results)
            else:
                # Whatever went wrong, nobody may be left waiting.
                for _, answer, _ in batch:
                    if not answer.done():
                        answer.set_exception(error or Overloaded("the node is stopping"))
            if self._ended is not None:
                self._ended.set_result(None)
                self._ended = None
            if self._waiting and not self._starting:
                self._start()

        self._running[number] = None
        short = not self._waiting and len(batch) <= SHORT_MAX and all(map(self._short, requests))
        try:
            self._pool.call(done, search, requests, wanted, quick=short)
        except Exception as error:  # noqa: BLE001 - its threads are stopped: whoever asked is told
            done(None, error)

    def _answer(self, batch: list[_Waiting[Q]], results: Sequence[A | NeedleError | BeingIndexed]) -> None:
        for waiting, result in zip(batch, results, strict=True):
            answer = waiting[1]
            if answer.done():
                continue
            if isinstance(result, NeedleError):
                answer.set_exception(result)
            elif not isinstance(result, BeingIndexed):
                answer.set_result(result)
            elif self._closed:
                answer.set_exception(Overloaded("the node is stopping"))
            else:
                self._park(waiting)

    async def passed(self) -> None:
        """Returns once the batches that run now have ended, whichever begin meanwhile."""
        last = self._begun
        while any(number <= last for number in self._running):
            if self._ended is None:
                self._ended = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Refuse what waits and let running batches end."""
        self._closed = True
        for timer in self._parked.values():
            timer.cancel()
        parked, self._parked = list(self._parked), {}
        for answer in [*parked, *(answer for _, answer, _ in self._take(self._count))]:
            if not answer.done():
                answer.set_exception(Overloaded("the node is stopping"))
        while self._running:
            await self.passed()
