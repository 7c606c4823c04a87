"""A search of several shards that this node holds, in one call: each is read as if it were asked alone, and the hits of
all are merged here, so that k of them travel.

Invariant: a shard that was not searched as its call demands is refused by its own error, and gives no hits; the others
do. It must not know how a shard is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from needle.base.errors import NeedleError, invalid
from needle.base.ids import GroupId
from needle.base.model import Claim, HitBatch, ReadMode, SearchRequest
from needle.base.parts import Body
from needle.client.router.hedging import forget
from needle.client.router.merge import chosen, nearest, of_shard
from needle.protocol import calls
from needle.protocol.calls import QUERIES_MAX, Freshness, SearchCall, SearchManyCall, batch_bytes
from needle.protocol.node_calls import AskedShard, NodeHits, Refused, SearchedShard, SearchShardsCall
from needle.server.replica import HostedReplica
from needle.server.service.documents import ShardDocuments
from needle.server.service.reads import MANY_BYTES_MAX, Reads
from needle.server.service.served import LARGE_ROWS, ServedNode, add_address, call_timeout, encoded
from needle.server.service.shares import Work

Told = tuple[SearchedShard, list[HitBatch]]
_Begun = tuple[HostedReplica, SearchRequest, "asyncio.Future[int]", "asyncio.Future[HitBatch]"]


class NodeSearches:
    """See the module."""

    def __init__(self, node: ServedNode, documents: ShardDocuments, reads: Reads) -> None:
        self._node = node
        self._documents = documents
        self._reads = reads

    async def search(self, call: SearchShardsCall, key: str = "") -> Body:
        """key: the name of the caller's API key. Raises InvalidArgument for what no shard could answer."""
        _check(call)
        self._documents.bulk.called(Work.SEARCH)
        loop, start = asyncio.get_running_loop(), self._node.now()
        early = await self._early(call)
        seconds = call.freshness.timeout - (self._node.now() - start)
        left = {one.group: self._of_shard(call, one, seconds, key) for one in call.shards if one.group not in early}
        tasks = {group: loop.create_task(work) for group, work in left.items()}
        try:
            if tasks:
                early.update(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()
        found = [early[one.group] for one in call.shards]
        answered = {place: batches for place, (_, batches) in enumerate(found) if batches}
        rows = sum(len(batch.ids) for batches in answered.values() for batch in batches)
        count = max(1, call.count) if answered else 0
        if rows >= LARGE_ROWS:
            hits = await self._node.blocking(merged, answered, call.request.k, count)
        else:
            hits = merged(answered, call.request.k, count)
        if call.count and sum(map(batch_bytes, hits.batches)) > MANY_BYTES_MAX:
            raise invalid("queries", f"{count} vectors", "fewer: their hits have too many bytes for one answer")
        body = await encoded(self._node, hits)
        return calls.encode_body((call.epoch, [shard for shard, _ in found], body), body)  # a SearchShardsAnswer

    async def _early(self, call: SearchShardsCall) -> dict[GroupId, Told]:
        """Leased searches whose lease holds, and strong ones that most likely see now what their rounds will ask for,
        without a task for each: all begin before the first is waited for. Who is not in the answer has to be read as if
        this had not been: no error of this counts. None if somebody follows the call: then each shard's part is told by
        itself."""
        node, documents = self._node, self._documents
        owned, begun = node.ownership, dict[GroupId, _Begun]()
        if owned is None or owned.epoch != call.epoch or call.count or documents.watch.follows():
            return {}
        timeout, start = call_timeout(call.freshness.timeout), node.now()
        told: dict[GroupId, Told] = {}
        self._reads.reading += 1
        try:
            for one in call.shards:
                with contextlib.suppress(NeedleError):
                    one_begun = self._begin(call, one, owned.claim(one.group - 1), timeout)
                    if one_begun is not None:
                        begun[one.group] = one_begun
            for group, (_, _, confirmed, found) in begun.items():
                with contextlib.suppress(NeedleError):
                    batch, index = await found, await confirmed
                    if batch.applied_index >= index:
                        shard = SearchedShard(owned.fingerprint(group - 1), batch.applied_index)
                        told[group] = shard, [of_shard(group - 1, self._reads.told(batch))]
        finally:
            self._reads.reading -= 1
            for hosted, request, confirmed, found in begun.values():
                if not found.done():
                    hosted.batcher.forget(request.collection, found)
                forget((confirmed, found))  # whoever is asked again says why
        if node.ownership is not owned:
            return {}
        for group in [group for group in told if documents.lacks(group)]:
            del told[group]
        seconds = node.now() - start
        for group in told:
            hosted, request, _, _ = begun[group]
            hosted.calls.searched(node.now())
            hosted.recall.saw(request)
            node.observe("shard_search", seconds, None)
        return told

    def _begin(self, call: SearchShardsCall, one: AskedShard, claim: Claim, timeout: float) -> _Begun | None:
        """None for a shard that must be waited for first. Raises what `Host.begin_read` and the batcher do."""
        hosted = self._node.groups.get(one.group)
        fresh = Freshness(call.freshness.mode, max(one.min_index, claim.since))
        if hosted is None or (confirmed := self._confirming(one.group, fresh, timeout)) is None:
            return None
        request = self._reads.as_searched(call.request, claim, explain=call.request.explain)
        try:
            return hosted, request, confirmed, hosted.batcher.begin(request, timeout)
        except NeedleError:
            confirmed.cancel()
            raise

    def _confirming(self, group: GroupId, fresh: Freshness, timeout: float) -> asyncio.Future[int] | None:
        """The index that a search which begins now has to see, once that is known; None if it must wait to begin."""
        host = self._node.host
        if fresh.mode is not ReadMode.LEASED:
            return host.begin_read(group, timeout) if self._reads.may_search_early(group, fresh) else None
        index = host.leased_index(group)
        if index is None or max(index, fresh.min_index) > host.applied_index(group):
            return None
        known: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        known.set_result(index)
        return known

    async def _of_shard(self, call: SearchShardsCall, asked: AskedShard, seconds: float, key: str) -> Told:
        """What one shard says of itself, and its hits for each vector; [] if it was not searched."""
        group = asked.group
        fresh = Freshness(call.freshness.mode, asked.min_index, call.freshness.max_staleness, seconds)
        one: Any = SearchCall(group, call.request, fresh, call.epoch)
        run: Any = self._reads.search
        if call.count:
            one, run = SearchManyCall(group, call.request, call.count, fresh, call.epoch), self._reads.search_many
        observed, node = "shard_search_many" if call.count else "shard_search", self._node
        watched = self._documents.watch.begin(observed, one, key)
        start, failure = node.now(), None
        try:
            owned, answer = await self._documents.read(run, one)
        except NeedleError as error:
            failure = error
            add_address(error, node)
            return SearchedShard(refused=Refused.of(error)), []
        finally:
            node.observe(observed, node.now() - start, failure)
            if watched is not None:
                watched.end(failure)
        batches = answer.batches if call.count else [answer]
        shard = group - 1
        applied = min(batch.applied_index for batch in batches)
        return SearchedShard(owned.fingerprint(shard), applied), [of_shard(shard, batch) for batch in batches]


def merged(answered: dict[int, list[HitBatch]], k: int, count: int) -> NodeHits:
    """The k nearest of all shards for each vector. answered: by their places in the call."""
    hits = NodeHits([], [])
    for at in range(count):
        places, batches = list(answered), [found[at] for found in answered.values()]
        rows = nearest(batches, k, places)
        hits.batches.append(chosen(batches, rows))
        hits.places.append([places[which] for which, _ in rows])
    return hits


def _check(call: SearchShardsCall) -> None:
    groups: Sequence[GroupId] = [one.group for one in call.shards]
    if len({*groups}) != len(groups):
        raise invalid("shards", groups, "each shard once")
    if not call.epoch:
        raise invalid("epoch", call.epoch, "of the shard map by which the shards were chosen")
    if call.request.k < 1:
        raise invalid("k", call.request.k, "1 or more")
    if not 0 <= call.count <= QUERIES_MAX:
        raise invalid("count", call.count, f"0 to {QUERIES_MAX}")
    if call.request.keywords or call.request.words is not None:
        raise invalid("keywords", call.request.keywords, "in a call of one shard")
    if call.request.sparse is not None:
        raise invalid("sparse", call.request.sparse.name, "in a call of one shard")
    if call.request.group_by:
        raise invalid("group_by", call.request.group_by, "in a call of one shard")
