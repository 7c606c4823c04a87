"""Micro-batching: concurrent searches of one replica become a few `search_many` calls in threads.

A lone search waits for nothing, and a short one is made without a thread, which would take longer (adr/0088).

Searches of one loop turn, and those that arrive while all workers are busy, are taken together: up to `batch_max` in a
call, `in_flight_max` calls at once. Measured on 4 shards, 64 in flight: 1,569
searches/s with a thread each, 2,475 in micro-batches of 16.

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
from collections.abc import Callable, Sequence

from needle.base.errors import DeadlineExceeded, NeedleError, Overloaded
from needle.base.model import HitBatch, SearchRequest
from needle.shard.fields.builders import SearchAnswer
from needle.shard.joined_calls import Calls

Wanted = Callable[[int], bool]
"""Whether somebody still waits for the answer to the search at this place of the batch. Called in any thread."""
SearchMany = Callable[[list[SearchRequest], Wanted], Sequence[SearchAnswer]]
_Waiting = tuple[SearchRequest, "asyncio.Future[HitBatch]", float]
"""The last: the loop time at which it is over."""
_Queue = OrderedDict["asyncio.Future[HitBatch]", _Waiting]
BATCHES_REMEMBERED = 4
SHORT_MAX = 4
"""So many short searches together are still short."""
AGAIN_SECONDS = 0.05
"""How soon a search looks again for the index that it needs."""


class SearchBatcher:
    """search_many: blocking; answers in the order asked, an error in place of an answer (of one that nobody wants any
    more, DeadlineExceeded will do). waiting_max: more are refused with Overloaded."""

    def __init__(
        self,
        search_many: SearchMany,
        pool: Calls,
        *,
        batch_max: int = 16,
        in_flight_max: int = 2,
        waiting_max: int = 4096,
        short: Callable[[SearchRequest], bool] = lambda _: False,
    ) -> None:
        """short: whether a search takes less than to hand it to a thread and back; then it may be made at once."""
        self._search_many = search_many
        self._pool = pool
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._waiting_max = waiting_max
        self._short = short
        self._waiting: dict[str, _Queue] = {}  # by collection; the first one's turn is next
        self._count = 0
        self._parked: dict[asyncio.Future[HitBatch], asyncio.TimerHandle] = {}
        self._running = 0
        self._ended: asyncio.Future[None] | None = None
        """Who waits until nothing runs any more."""
        self._scheduled = self._starting = self._closed = False
        self._took: deque[float] = deque(maxlen=BATCHES_REMEMBERED)  # seconds of the last batches

    async def search(self, request: SearchRequest, timeout: float = float("inf")) -> HitBatch:
        """The answer to one search. timeout: seconds within which it must have begun. Raises its NeedleError,
        DeadlineExceeded, or Overloaded."""
        answer = self.begin(request, timeout)
        try:
            return await answer
        except asyncio.CancelledError:
            self.forget(request.collection, answer)
            raise

    def begin(self, request: SearchRequest, timeout: float) -> asyncio.Future[HitBatch]:
        """`search`, without waiting for the answer; who does not wait for it any more calls `forget`. Raises
        Overloaded."""
        own = len(self._waiting.get(request.collection, ()))
        # A quarter of the room is never taken by one collection alone.
        if self._count + len(self._parked) >= self._waiting_max or own >= self._waiting_max - self._waiting_max // 4:
            waiting = self._count + len(self._parked)
            raise Overloaded(f"{waiting} searches wait already", limit=self._waiting_max)
        if self._count and (wait := self._expected_wait(own)) > timeout:
            raise Overloaded(
                f"{self._count} searches wait already, for about {wait:.1f} s; this one has {timeout:.1f} s",
                waiting=self._count,
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[HitBatch] = loop.create_future()
        self._enqueue((request, answer, loop.time() + timeout))
        return answer

    def _enqueue(self, waiting: _Waiting) -> None:
        request, answer, _ = waiting
        self._waiting.setdefault(request.collection, OrderedDict())[answer] = waiting
        self._count += 1
        if not self._scheduled and self._running < self._in_flight_max:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _park(self, waiting: _Waiting) -> None:
        """Come back a little later, without a worker until then."""
        loop = asyncio.get_running_loop()
        again = min(loop.time() + AGAIN_SECONDS, waiting[2])
        self._parked[waiting[1]] = loop.call_at(again, self._unpark, waiting)

    def _unpark(self, waiting: _Waiting) -> None:
        _, answer, over = waiting
        del self._parked[answer]
        if asyncio.get_running_loop().time() < over:
            self._enqueue(waiting)
        elif not answer.done():
            text = "the index of a field that the search filters on was not made in its time; it is made meanwhile"
            answer.set_exception(DeadlineExceeded(text))

    def forget(self, collection: str, answer: asyncio.Future[HitBatch]) -> None:
        """Its caller has gone: it must take no room from others until a worker comes by."""
        answer.cancel()
        if (timer := self._parked.pop(answer, None)) is not None:
            timer.cancel()
        queue = self._waiting.get(collection)
        if queue is not None and queue.pop(answer, None) is not None:
            self._count -= 1
            if not queue:
                del self._waiting[collection]

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
        while self._waiting and self._running < self._in_flight_max:
            free = self._in_flight_max - self._running
            batch: list[_Waiting] = []
            for waiting in self._take(min(self._batch_max, -(-self._count // free))):
                if not waiting[1].done() and waiting[2] <= now:
                    waiting[1].set_exception(DeadlineExceeded("the search's time was over before it could begin"))
                if not waiting[1].done():
                    batch.append(waiting)
            if batch:
                self._run(batch)
        self._starting = False

    def _take(self, size: int) -> list[_Waiting]:
        """Up to `size` searches of the collection whose turn it is, and all those of others that fit beside them."""
        taken: list[_Waiting] = []
        while self._waiting:
            name, queue = next(iter(self._waiting.items()))
            if taken and len(queue) > size - len(taken):
                break
            taken += [queue.popitem(last=False)[1] for _ in range(min(size, len(queue)))]
            del self._waiting[name]
            if queue:
                self._waiting[name] = queue  # its next turn comes after everybody else's
                break
        self._count -= len(taken)
        return taken

    def _run(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        requests = [waiting[0] for waiting in batch]

        def wanted(at: int) -> bool:
            return not batch[at][1].done() and batch[at][2] > loop.time()

        def done(results: Sequence[SearchAnswer] | None, error: BaseException | None) -> None:
            self._running -= 1
            if results is not None:
                self._took.append(loop.time() - start)
                self._answer(batch, results)
            else:
                # Whatever went wrong, nobody may be left waiting.
                for _, answer, _ in batch:
                    if not answer.done():
                        answer.set_exception(error or Overloaded("the node is stopping"))
            if not self._running and self._ended is not None and not self._ended.done():
                self._ended.set_result(None)
            if not self._starting:
                self._start()

        self._running += 1
        short = not self._waiting and len(batch) <= SHORT_MAX and all(map(self._short, requests))
        try:
            self._pool.call(done, self._search_many, requests, wanted, quick=short)
        except Exception as error:  # noqa: BLE001 - its threads are stopped: whoever asked is told
            done(None, error)

    def _answer(self, batch: list[_Waiting], results: Sequence[SearchAnswer]) -> None:
        for waiting, result in zip(batch, results, strict=True):
            answer = waiting[1]
            if answer.done():
                continue
            if isinstance(result, HitBatch):
                answer.set_result(result)
            elif isinstance(result, NeedleError):
                answer.set_exception(result)
            elif self._closed:
                answer.set_exception(Overloaded("the node is stopping"))
            else:
                self._park(waiting)

    async def close(self) -> None:
        """Refuse what waits and let running batches end."""
        self._closed = True
        for timer in self._parked.values():
            timer.cancel()
        parked, self._parked = list(self._parked), {}
        for answer in [*parked, *(answer for _, answer, _ in self._take(self._count))]:
            if not answer.done():
                answer.set_exception(Overloaded("the node is stopping"))
        if self._running:
            self._ended = asyncio.get_running_loop().create_future()
            await self._ended
