"""A search of several shards that this node holds, in one call: each is read as if it were asked alone, and the hits of
all are merged here, so that k of them travel.

Invariant: a shard that was not searched as its call demands is refused by its own error, and gives no hits; the others
do. It must not know how a shard is searched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from needle.base.errors import NeedleError, invalid
from needle.base.ids import GroupId
from needle.base.model import HitBatch
from needle.base.parts import Body
from needle.client.router.merge import chosen, nearest, of_shard
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall, SearchManyCall, batch_bytes
from needle.protocol.node_calls import NodeHits, Refused, SearchedShard, SearchShardsCall
from needle.server.service.documents import ShardDocuments
from needle.server.service.reads import MANY_BYTES_MAX, Reads
from needle.server.service.served import LARGE_ROWS, ServedNode, add_address, encoded


class NodeSearches:
    """See the module."""

    def __init__(self, node: ServedNode, documents: ShardDocuments, reads: Reads) -> None:
        self._node = node
        self._documents = documents
        self._reads = reads

    async def search(self, call: SearchShardsCall, key: str = "") -> Body:
        """key: the name of the caller's API key. Raises InvalidArgument for what no shard could answer."""
        _check(call)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._of_shard(call, one.group, one.min_index, key)) for one in call.shards]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        answered = {place: batches for place, (_, batches) in enumerate(found) if batches}
        rows = sum(len(batch.ids) for batches in answered.values() for batch in batches)
        count = max(1, call.count)
        if rows >= LARGE_ROWS:
            hits = await self._node.blocking(merged, answered, call.request.k, count)
        else:
            hits = merged(answered, call.request.k, count)
        if call.count and sum(map(batch_bytes, hits.batches)) > MANY_BYTES_MAX:
            raise invalid("queries", f"{count} vectors", "fewer: their hits have too many bytes for one answer")
        body = await encoded(self._node, hits)
        return calls.encode_body((call.epoch, [shard for shard, _ in found], body), body)  # a SearchShardsAnswer

    async def _of_shard(
        self, call: SearchShardsCall, group: GroupId, min_index: int, key: str
    ) -> tuple[SearchedShard, list[HitBatch]]:
        """What one shard says of itself, and its hits for each vector; [] if it was not searched."""
        fresh = Freshness(call.freshness.mode, min_index, call.freshness.max_staleness, call.freshness.timeout)
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
    if call.request.group_by:
        raise invalid("group_by", call.request.group_by, "in a call of one shard")
