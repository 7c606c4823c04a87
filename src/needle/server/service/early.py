"""Searches that begin without a task: what a task costs the event loop is a good part of a short search.

Invariant: what is answered here is what `ShardDocuments.read` would have answered of the same shard: by the same map,
for a claim that was checked, as fresh as was asked for. Whatever turns out to be otherwise (the map changes, the shard
lacks the collection, a write came between) is read again the long way. It must not know how a shard is searched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from needle.base.errors import CollectionNotFound, DiskFull, InvalidArgument, NeedleError, StaleEpoch, Unavailable
from needle.base.explain import ShardExplanation
from needle.base.ids import GroupId
from needle.base.model import HitBatch, ReadMode, SearchRequest
from needle.base.parts import LARGE_BYTES, Body
from needle.client.router.hedging import forget
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall, batch_bytes
from needle.routing.topology import Ownership
from needle.rpc.promise import Promise
from needle.server.replica import HostedReplica
from needle.server.service.documents import ShardDocuments
from needle.server.service.reads import Reads
from needle.server.service.served import LARGE_ROWS, ServedNode, add_address, call_timeout, encoded
from needle.server.service.shares import Work

OBSERVED: Final = "shard_search"
_SEARCH, _STRONG, _LEASED = Work.SEARCH, ReadMode.STRONG, ReadMode.LEASED  # see raft.state.LEADER
_AGAIN = (InvalidArgument, CollectionNotFound, StaleEpoch, DiskFull)
"""What a search says of a state that may be old, or that the long way has an answer to."""

Confirmed = int | asyncio.Future[int]
"""The index that a search has to see, or what will tell it."""


def confirming(node: ServedNode, reads: Reads, group: GroupId, fresh: Freshness, timeout: float) -> Confirmed | None:
    """What a search that begins now has to see; None if it must wait to begin. Raises NeedleError: nothing has begun
    then."""
    host = node.host
    if fresh.mode is _STRONG or fresh.mode is _LEASED:
        index = host.leased_index(group) if fresh.mode is _LEASED else None
        if index is None:  # without a lease a leased read is a strong one
            return host.begin_read(group, timeout) if reads.may_search_early(group, fresh) else None
    elif fresh.max_staleness or host.maintenance:
        return None
    else:
        host.check_serves(group)
        index = fresh.min_index
    return None if max(index, fresh.min_index) > host.applied_index(group) else index


class EarlySearches:
    """Those of one node."""

    def __init__(
        self,
        node: ServedNode,
        documents: ShardDocuments,
        reads: Reads,
        long_way: Callable[[SearchCall], Coroutine[Any, Any, Body]],
    ) -> None:
        """long_way: answers, and is observed by itself."""
        self.node, self.documents, self.reads, self.long_way = node, documents, reads, long_way

    def begin(self, call: SearchCall, key: str = "") -> Promise[Body] | None:
        """None for a search that has to wait for something before it can begin, that somebody follows, or that is not
        by a vector. key: the name of the caller's API key."""
        node, request, owned = self.node, call.request, self.node.ownership
        if owned is None or owned.epoch != call.epoch or not _is_usual(request) or self.documents.watch.follows_now():
            return None
        hosted, fresh = node.groups.get(call.group), call.freshness
        if hosted is None:
            return None
        claim = owned.claim(call.group - 1)
        if fresh.min_index < claim.since:
            fresh = Freshness(fresh.mode, claim.since, fresh.max_staleness, fresh.timeout)
        try:
            timeout = call_timeout(fresh.timeout)
            confirmed = confirming(node, self.reads, call.group, fresh, timeout)
        except NeedleError:  # the long way meets it again, and says it
            return None
        if confirmed is None:
            return None
        asked = self.reads.as_searched(request, claim, explain=False)
        self.documents.bulk.called(_SEARCH)
        try:
            found = hosted.batcher.begin(asked, timeout)
        except NeedleError as error:  # it has no room
            forget(() if isinstance(confirmed, int) else (confirmed,))
            node.observe(OBSERVED, 0.0, error)
            raise
        return EarlySearch(self, call, owned, hosted, asked, confirmed, found, key)


class EarlySearch(Promise[Body]):
    """The answer of one of them, while it is searched."""

    __slots__ = (
        *("_asked", "_call", "_confirmed", "_explained", "_found", "_hosted", "_key", "_of", "_owned", "_parts"),
        *("_start", "_task", "_went"),
    )

    def __init__(
        self,
        of: EarlySearches,
        call: SearchCall,
        owned: Ownership,
        hosted: HostedReplica,
        asked: SearchRequest,
        confirmed: Confirmed,
        found: asyncio.Future[HitBatch],
        key: str,
    ) -> None:
        super().__init__()
        self._of, self._call, self._owned, self._hosted, self._asked = of, call, owned, hosted, asked
        self._confirmed, self._found = confirmed, found
        self._start = of.node.now()
        self._task: asyncio.Task[Body] | None = None
        # Of one that turns out to be slow: what took how long, where slow ones are told, and what it went on from.
        self._key, self._went = key, -1.0
        self._parts: dict[str, float] | None = {} if of.documents.watch.tells_slow else None
        self._explained: list[ShardExplanation] = []
        of.reads.reading += 1
        found.add_done_callback(self._look)
        if not isinstance(confirmed, int):
            confirmed.add_done_callback(self._look)

    def _look(self, ended: object) -> None:
        """The search, or its round, has ended."""
        if self._parts is not None:
            self._parts["search" if ended is self._found else "confirm"] = self._of.node.now() - self._start
        try:
            self._judge()
        except Exception as error:  # noqa: BLE001 - a boundary: whoever asked gets an answer, whatever went wrong
            self.set_exception(error)

    def _judge(self) -> None:
        confirmed, found = self._confirmed, self._found
        if self.done() or self._task is not None or not found.done():
            return
        error = found.exception()
        if error is not None and not isinstance(error, _AGAIN):
            self._end()
            self._fail(error)
            return
        if not isinstance(confirmed, int):
            if not confirmed.done():
                return
            if (failure := confirmed.exception()) is not None:
                self._end()
                self._fail(failure)
                return
            confirmed = confirmed.result()
        self._end()
        if error is None and self._holds(batch := found.result(), confirmed):
            self._answer(batch)
        else:
            self._went = self._of.node.now()
            self._go_on(self._of.long_way(self._later()))

    def _later(self) -> SearchCall:
        """The call, with the time that is left of it."""
        call = self._call
        left = call.freshness.timeout - (self._of.node.now() - self._start)
        return msgspec.structs.replace(call, freshness=msgspec.structs.replace(call.freshness, timeout=left))

    def _holds(self, batch: HitBatch, index: int) -> bool:
        """Whether what was found is the answer: it is of a state that is new enough, and the map and what the node has
        to know of the catalog are as they were."""
        documents, group = self._of.documents, self._call.group
        return batch.applied_index >= index and self._of.node.ownership is self._owned and not documents.lacks(group)

    def _end(self) -> None:
        """Nothing of this runs any more."""
        self._of.reads.reading -= 1
        if not isinstance(self._confirmed, int):
            forget((self._confirmed,))

    def _answer(self, batch: HitBatch) -> None:
        hosted, now = self._hosted, self._of.node.now()
        hosted.calls.searched(now)
        hosted.recall.saw(self._asked)
        if batch.explained:  # it took long, and nobody asked why
            self._explained = batch.explained
            batch = msgspec.structs.replace(batch, explained=[])
        if batch_bytes(batch) >= LARGE_BYTES:
            self._go_on(self._large(batch))
            return
        self._observe(None, now)
        self.set_result(self._told(calls.encode(batch)))

    def _told(self, body: Body) -> Body:
        owned = self._owned
        return calls.encode_body((owned.epoch, owned.fingerprint(self._call.group - 1), body), body)  # a ShardAnswer

    async def _large(self, batch: HitBatch) -> Body:
        body = self._told(await encoded(self._of.node, batch))
        self._observe(None, self._of.node.now())
        return body

    def _observe(self, error: NeedleError | None, now: float) -> None:
        self._of.node.observe(OBSERVED, now - self._start, error)
        self._tell(error)

    def _tell(self, error: NeedleError | None) -> None:
        """That it was slow, if it was."""
        if self._parts is not None:
            watch, began = self._of.documents.watch, self._start
            watch.ended(OBSERVED, self._call, self._key, began, self._parts, self._explained, error)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, NeedleError):
            add_address(error, self._of.node)
            self._observe(error, self._of.node.now())
        self.set_exception(error)

    def _go_on(self, work: Coroutine[Any, Any, Body]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._went_on)

    def _went_on(self, task: asyncio.Task[Body]) -> None:
        error = _given_up() if task.cancelled() else task.exception()
        if self._went >= 0 and self._of.node.now() - self._went < self._of.documents.watch.slow:
            self._tell(error if isinstance(error, NeedleError) else None)  # else the long way has told it by itself
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def cancel(self) -> None:
        """Its caller has gone, or the node stops: it must not take a worker from others. It is answered now: a node
        that stops closes its connections before a task has ended."""
        if self.done():
            return
        if self._task is not None:
            self._task.cancel()
        else:
            self._end()
            self._hosted.batcher.forget(self._asked.collection, self._found)
            forget((self._found,))  # it may just have failed
            self._tell(_given_up())  # of all searches these may be the slowest
        self.set_exception(_given_up())


def _given_up() -> Unavailable:
    return Unavailable("the search was given up: its caller has gone, or the node is stopping")


def _is_usual(request: SearchRequest) -> bool:
    scored = request.keywords or request.sparse is not None
    return not scored and not request.explain and request.k < LARGE_ROWS
