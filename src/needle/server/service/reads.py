"""What a replica on this node answers to reads: searches, documents by id, collections.

Invariant: a strong or leased read is answered only after its confirmed index is applied here. It must not know
sockets or encodings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from needle.base.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InMaintenance,
    InvalidArgument,
    StaleEpoch,
    TooStale,
    Unavailable,
    invalid,
)
from needle.base.filters.builder import field_path
from needle.base.ids import GroupId
from needle.base.model import Claim, CollectionSpec, HitBatch, ReadMode, SearchRequest
from needle.base.request import Stopwatch, current
from needle.base.tracebacks import release
from needle.protocol.calls import (
    MANY_BYTES_MAX,
    CollectionsAnswer,
    CollectionsCall,
    CountAnswer,
    CountCall,
    DocumentBatch,
    FacetAnswer,
    FacetCall,
    Freshness,
    GetCall,
    ScanAnswer,
    ScanCall,
    SearchCall,
    SearchManyAnswer,
    SearchManyCall,
    check_queries,
    expiries,
    told_counts,
)
from needle.protocol.named import Named
from needle.routing.stored_collections import StoredCollections
from needle.server.replica import HostedReplica
from needle.server.service.served import ServedNode, bytes_of, call_timeout
from needle.server.service.watched import noted
from needle.shard.documents.projection import projection
from needle.shard.documents.records import StoredDocument
from needle.shard.fields.builders import BeingIndexed
from needle.shard.joined_calls import JoinedCalls
from needle.shard.named_reads import Wanted, get_named, scan_named
from needle.shard.reads import Page
from needle.shard.search_batcher import AGAIN_SECONDS
from needle.shard.searching import SHORT_K
from needle.shard.state_machine import Replica

_EVENTUAL, _STRONG = ReadMode.EVENTUAL, ReadMode.STRONG
SCAN_MAX = 10_000
QUERIES_AT_ONCE = 32
SLICES_MAX = 1024
GET_MAX = 10_000


class Reads:
    """See the module. reading: searches and gets that run. claim, everywhere: what a shard must own to answer."""

    def __init__(self, node: ServedNode, gets: JoinedCalls | None = None) -> None:
        """gets: has those that begin in one turn of the event loop go to a thread together; None: each by itself."""
        self._node, self._gets = node, gets
        self._host = node.host
        self.reading = 0
        self._collections = StoredCollections()

    def as_searched(self, request: SearchRequest, claim: Claim | None, *, explain: bool) -> SearchRequest:
        """For the shard: how accurate a search is that does not say it is the catalog's to say, now."""
        usual = 0
        if not request.ef_search:
            info = self._collections.find(self._node.topology, request.collection)
            usual = 0 if info is None else info.usual_ef(request.vector_name)
        return msgspec.structs.replace(request, claim=claim, explain=explain, usual_ef=usual)

    async def fresh(self, group: GroupId, fresh: Freshness) -> HostedReplica:
        """Wait until this replica may answer a read of that freshness."""
        hosted, host, waiting = self._node.hosted(group), self._host, Stopwatch(self._node.now)
        timeout = call_timeout(fresh.timeout)
        if fresh.mode is not _EVENTUAL:
            read = host.read_index if fresh.mode is _STRONG else host.read_leased
            await read(group, timeout)
        else:
            host.check_serves(group)
            if host.maintenance:
                raise InMaintenance(f"node {self._node.node_id} is in maintenance and serves no eventual reads")
            if fresh.max_staleness:
                await hosted.be_fresh(fresh.max_staleness, timeout * 0.9)
        if fresh.min_index > host.applied_index(group):
            try:
                await host.wait_applied(group, fresh.min_index, timeout * 0.9)
            except DeadlineExceeded as error:
                applied = host.applied_index(group)
                raise TooStale(
                    f"node {self._node.node_id} has applied index {applied}, the session needs {fresh.min_index}",
                    applied=applied,
                    wanted=fresh.min_index,
                ) from error
        waiting.stop("confirm")
        return hosted

    async def search(self, call: SearchCall, claim: Claim | None = None) -> HitBatch:
        """Raises TooStale, InMaintenance, CollectionNotFound, and what the round of a strong read raises."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call_timeout(call.freshness.timeout)
        self.reading += 1
        try:
            about, asked = current.get(), call.request
            explains = asked.explain or (about is not None and about.explains and not asked.bound)
            request = self.as_searched(asked, claim, explain=explains)
            scored = bool(asked.keywords) or asked.sparse is not None
            if scored:
                found = await self._scored(call, request)
            elif call.freshness.mode is _STRONG and self.may_search_early(call.group, call.freshness):
                found = await self._search_early(call, request)
            else:
                hosted = await self.fresh(call.group, call.freshness)
                found = await self._search(hosted, request, deadline - loop.time())
            if not scored and (answered := self._node.groups.get(call.group)) is not None:
                answered.recall.saw(request)
            (found,) = noted(about, [self.told(found)], asked=asked.explain)
            return found
        finally:
            self.reading -= 1

    async def _search(self, hosted: HostedReplica, request: SearchRequest, timeout: float) -> HitBatch:
        searching = Stopwatch(self._node.now)
        found = await hosted.batcher.search(request, timeout)
        searching.stop("search")
        return found

    async def _scored(self, call: SearchCall, request: SearchRequest) -> HitBatch:
        builders, clock = self._node.hosted(call.group).builders, self._node.now

        def read(replica: Replica, go_on: Callable[[], None]) -> HitBatch:
            return replica.reads().scored(request, request.claim, go_on, builders, clock)

        found: HitBatch = await self._read(call.group, call.freshness, read)
        return found

    async def search_many(self, call: SearchManyCall, claim: Claim | None = None) -> SearchManyAnswer:
        """Raises what `search` does; a few at a time, so that others get their turn and the answer has a bound."""
        request, count = self.as_searched(call.request, claim, explain=call.request.explain), call.count
        check_queries(count, request.vector)
        if request.keywords:
            raise invalid("keywords", request.keywords, "one search in a call")
        if request.sparse is not None:
            raise invalid("sparse", request.sparse.name, "one search in a call")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call_timeout(call.freshness.timeout)
        width, found, size = len(request.vector) // count, list[HitBatch](), 0
        self.reading += 1
        try:
            hosted = await self.fresh(call.group, call.freshness)
            search = hosted.batcher.search
            for start in range(0, count, QUERIES_AT_ONCE):
                places = range(start, min(start + QUERIES_AT_ONCE, count))
                single = [request.vector[at * width : (at + 1) * width] for at in places]
                asked = [msgspec.structs.replace(request, vector=one) for one in single]
                tasks = [loop.create_task(search(one, deadline - loop.time())) for one in asked]
                try:
                    found += await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                size += await bytes_of(self._node, found[start:])
                if size > MANY_BYTES_MAX:
                    raise invalid("queries", f"{count} vectors", "fewer: their hits have too many bytes for one answer")
                for one in asked:
                    hosted.recall.saw(one)
        finally:
            self.reading -= 1
        return SearchManyAnswer(noted(current.get(), list(map(self.told, found)), asked=request.explain))

    def told(self, batch: HitBatch) -> HitBatch:
        """If it explains itself, with the name of this node."""
        if not batch.explained:
            return batch
        told = [msgspec.structs.replace(one, node=self._node.node_id) for one in batch.explained]
        return msgspec.structs.replace(batch, explained=told)

    def may_search_early(self, group: GroupId, fresh: Freshness) -> bool:
        """Whether a search will most likely see now what its round will ask for: no write is under way."""
        host = self._host
        return host.is_at_rest(group) and fresh.min_index <= host.applied_index(group)

    async def _search_early(self, call: SearchCall, request: SearchRequest) -> HitBatch:
        """Search while the round confirms this leader, instead of after it. What was found counts only if the round is
        confirmed and what it asks for was applied when the search looked; otherwise it is searched again."""
        hosted, loop = self._node.hosted(call.group), asyncio.get_running_loop()
        deadline = loop.time() + call.freshness.timeout
        confirmed = self._host.begin_read(call.group, call_timeout(call.freshness.timeout))
        found: HitBatch | None = None
        try:
            # These are true of this state, which may be old.
            try:
                found = await self._search(hosted, request, deadline - loop.time())
            except (InvalidArgument, CollectionNotFound, StaleEpoch) as error:
                release(error)
            waiting = Stopwatch(self._node.now)
            index = await confirmed
            waiting.stop("confirm")
        finally:
            confirmed.cancel()
        return (
            found
            if found is not None and found.applied_index >= index
            else await self._search(hosted, request, deadline - loop.time())
        )

    async def get(self, call: GetCall, claim: Claim | None = None) -> DocumentBatch:
        check_ids(call)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + call_timeout(call.freshness.timeout)
        self.reading += 1
        try:
            hosted = await self.fresh(call.group, call.freshness)
            applied = self._host.applied_index(call.group)

            def read() -> DocumentBatch:
                if loop.time() > deadline:
                    raise DeadlineExceeded("the call's time was over before it could begin")
                wanted = Wanted(call.collection, call.ids, call.with_vectors, call.named)
                found, named = get_named(hosted.replica.reads(), wanted, claim, call.bound)
                return _columns(found, applied, projection(call.fields), named)

            batch: DocumentBatch = await self._while_wanted(read, self._gets if len(call.ids) <= SHORT_K else None)
        finally:
            self.reading -= 1
        return batch

    async def count(self, call: CountCall, claim: Claim | None = None) -> CountAnswer:
        """Raises what `get` does."""
        builders = self._node.hosted(call.group).builders

        def read(replica: Replica, go_on: Callable[[], None]) -> CountAnswer:
            found = replica.count_matching(call.collection, call.filter, claim, go_on, builders, call.bound)
            return CountAnswer(*found)

        answer: CountAnswer = await self._read(call.group, call.freshness, read)
        return answer

    async def facet(self, call: FacetCall, claim: Claim | None = None) -> FacetAnswer:
        """Raises what `get` does; InvalidArgument for a field with too many values."""
        builders, path = self._node.hosted(call.group).builders, field_path(call.field, "field")

        def read(replica: Replica, go_on: Callable[[], None]) -> FacetAnswer:
            wanted = (path, call.filter, call.bound)
            found, applied = replica.reads().value_counts(call.collection, wanted, claim, go_on, builders)
            return told_counts(found.values, found.counts, call.limit, found.documents, found.without, applied)

        answer: FacetAnswer = await self._read(call.group, call.freshness, read)
        return answer

    async def scan(self, call: ScanCall, claim: Claim | None = None) -> ScanAnswer:
        """Raises what `get` does."""
        which, of = call.slice
        if not 1 <= call.limit <= SCAN_MAX:
            raise invalid("limit", call.limit, f"1 to {SCAN_MAX} documents a page")
        if not 0 <= which < of <= SLICES_MAX:
            raise invalid("slice", list(call.slice), f"(i, n) with 0 <= i < n <= {SLICES_MAX}")

        if call.order is not None and not call.order.known():
            raise invalid("cursor", list(call.order.key), "of a scan in the order of a field")

        builders = self._node.hosted(call.group).builders

        def read(replica: Replica, go_on: Callable[[], None]) -> ScanAnswer:
            held = replica.view.collection(call.collection)
            given = [replica.view.vector(held, name) for name in {*call.named}] + [held] * call.with_vectors
            width = sum(4 * one.record.spec.form.numbers for one in given)
            pin = None if call.pin is None else (call.pin.open[0][1], call.pin.token)
            page = Page(
                call.collection, call.filter, call.after, call.limit, call.with_vectors, call.slice, width, call.bound,
                pin, call.order,
            )  # fmt: skip
            found, named = scan_named(replica.reads(), page, call.named, claim, go_on, builders)
            documents = _columns(found.documents, found.applied, projection(call.fields), named)
            return ScanAnswer(documents, found.reached, pin=call.pin, keys=list(found.keys), key=found.key)

        answer: ScanAnswer = await self._read(call.group, call.freshness, read)
        return answer

    async def _read(
        self, group: GroupId, freshness: Freshness, read: Callable[[Replica, Callable[[], None]], Any]
    ) -> Any:
        """Run in a search thread once the replica is fresh enough; until the call's time is over or its caller gone.
        While it needs a field's index that it may not make now, it waits without a thread."""
        loop = asyncio.get_running_loop()
        deadline, gone = loop.time() + call_timeout(freshness.timeout), False

        def go_on() -> None:
            if gone or loop.time() > deadline:
                raise DeadlineExceeded("the call's time was over before it was done")

        self.reading += 1
        try:
            hosted = await self.fresh(group, freshness)

            def run() -> Any:
                go_on()
                return read(hosted.replica, go_on)

            while True:
                try:
                    return await self._while_wanted(run)
                except BeingIndexed as waits:
                    if deadline - loop.time() < AGAIN_SECONDS:
                        raise DeadlineExceeded(f"{waits}, and this one's was not made in its time") from None
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            gone = True
            self.reading -= 1

    async def _while_wanted(self, read: Callable[[], Any], joined: JoinedCalls | None = None) -> Any:
        """Run in a search thread, unless the caller is gone before its turn comes. joined: with others, if short."""
        wanted, reading = True, Stopwatch(self._node.now)

        def run() -> Any:
            if not wanted:
                raise Unavailable("the caller has gone")
            return read()

        try:
            return await (self._node.blocking(run) if joined is None else joined.run(run))
        finally:
            wanted = False
            reading.stop("read")

    async def collections(self, call: CollectionsCall, claim: Claim | None = None) -> CollectionsAnswer:
        if call.bound:
            answer: CollectionsAnswer = await self._counted(call, claim)
            return answer
        hosted = await self.fresh(call.group, call.freshness)
        applied = self._host.applied_index(call.group)
        if call.sizes:
            sizes = await self._node.blocking(hosted.replica.sizes, claim, call.only)
            counts = [(spec, size.documents) for spec, size in sizes]
        else:
            sizes, counts = (
                [],
                await self._node.blocking(hosted.replica.counts, claim, call.only),
            )  # there may be thousands
        return CollectionsAnswer(
            [spec for spec, _ in counts], [count for _, count in counts], applied, [size for _, size in sizes]
        )

    async def _counted(self, call: CollectionsCall, claim: Claim | None) -> Any:
        """For a caller who is to hear of some documents only."""
        builders = self._node.hosted(call.group).builders

        def read(replica: Replica, go_on: Callable[[], None]) -> CollectionsAnswer:
            specs, counts, applied = list[CollectionSpec](), list[int](), replica.view.at.index
            for spec, _ in replica.counts(claim, call.only):
                with contextlib.suppress(CollectionNotFound):  # dropped by now
                    count, _ = replica.count_matching(spec.name, b"", claim, go_on, builders, call.bound)
                    specs.append(spec)
                    counts.append(count)
            return CollectionsAnswer(specs, counts, applied)

        return await self._read(call.group, call.freshness, read)


def check_ids(call: GetCall) -> None:
    """Raises InvalidArgument for more than one call may ask for."""
    if len(call.ids) > GET_MAX:
        raise invalid("ids", f"{len(call.ids)} ids", f"at most {GET_MAX} in one call")


def _columns(
    found: list[StoredDocument], applied: int, shown: Callable[[bytes], bytes], named: list[Named]
) -> DocumentBatch:
    return DocumentBatch(
        [document.id for document in found],
        [document.version for document in found],
        [shown(document.metadata) for document in found],
        b"".join(document.vector for document in found),
        applied,
        expiries([document.expires for document in found]),
        named,
    )
