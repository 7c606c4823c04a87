"""A search of the shards that may have what it asks for, and one answer made of theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from needle.base.errors import DocumentNotFound, Unavailable
from needle.base.ids import shard_group
from needle.base.model import HitBatch, SearchRequest
from needle.client.document_calls import Found
from needle.client.router.fan_out import Answers, FanOut
from needle.client.router.grouping import asking, merged_groups
from needle.client.router.merge import Merged, merged_hits, merged_searches
from needle.client.router.pruning import matching_shards
from needle.client.router.routes import BESIDE_BYTES
from needle.protocol import calls
from needle.protocol.calls import DocumentBatch, Freshness, SearchCall, SearchManyCall
from needle.protocol.node_calls import AskedShard, SearchShardsCall
from needle.routing.topology import vector_called

ROUNDS_MAX = 8
"""Of a search by groups: how often all shards are asked."""

Beside = Callable[..., Awaitable[Any]]
"""Runs what takes time by the byte: how many bytes, a function, its arguments."""


async def search(
    fan_out: FanOut,
    request: SearchRequest,
    fresh: Callable[[int], Freshness],
    timeout: float,
    beside: Beside,
    saw: Callable[[int, int], None],
    monotonic: Callable[[], float],
    *,
    partial: bool,
) -> Found:
    """saw: told of the log index at which each shard was searched. partial: answer without shards that cannot."""
    asked, left, began = request, timeout, monotonic()
    for _ in range(ROUNDS_MAX):
        answers = await _asked(fan_out, asked, fresh, left, partial)
        start, size = monotonic(), answers.size()
        merge: Callable[[Answers, SearchRequest], Merged] = merged_groups if asked.group_by else merged_hits
        if size <= BESIDE_BYTES:
            applied, merged, lacking = merge(answers, asked)
        else:
            applied, merged, lacking = await beside(size, merge, answers, asked)
        if not lacking:
            break
        asked, left = asking(request, lacking), max(0.001, timeout - (monotonic() - began))
    else:
        raise Unavailable(f"documents changed while their groups were put together, {ROUNDS_MAX} times; ask again")
    for shard, index in applied.items():
        saw(shard, index)
    fanout = len(applied) + len(answers.missing)
    fan_out.stats.searched(fanout, monotonic() - start)
    return Found(merged, answers.missing, answers.gaps, applied, fanout, answers.epoch, size)


def _asked(
    fan_out: FanOut, request: SearchRequest, fresh: Callable[[int], Freshness], timeout: float, partial: bool
) -> Coroutine[Any, Any, Answers]:
    def together(shards: list[AskedShard], fresh: Freshness, epoch: int) -> SearchShardsCall:
        return SearchShardsCall(shards, request, fresh, epoch)

    return fan_out.read(
        calls.SEARCH,
        lambda shard, fresh, epoch: SearchCall(shard_group(shard), request, fresh, epoch),
        lambda owned: matching_shards(owned, request.filter),
        fresh,
        timeout,
        partial=partial,
        # Which groups are nearest, all shards must say; searches by words or sparse vectors are a shard's each.
        together=None if request.group_by or request.keywords or request.sparse is not None else together,
    )


async def search_many(
    fan_out: FanOut,
    request: SearchRequest,
    count: int,
    fresh: Callable[[int], Freshness],
    timeout: float,
    beside: Beside,
) -> tuple[dict[int, int], list[HitBatch]]:
    """`search` for `count` vectors, which all are in the request's: the log index that each shard surely saw, and the
    hits of each."""
    answers = await fan_out.read(
        calls.SEARCH_MANY,
        lambda shard, fresh, epoch: SearchManyCall(shard_group(shard), request, count, fresh, epoch),
        lambda owned: matching_shards(owned, request.filter),
        fresh,
        timeout,
        together=lambda shards, fresh, epoch: SearchShardsCall(shards, request, fresh, epoch, count),
    )
    seen, batches = await beside(answers.size(), merged_searches, answers, request, count)
    return seen, batches


def near(request: SearchRequest, found: DocumentBatch) -> SearchRequest:
    """The search for what is like a document, with its vector. Raises DocumentNotFound."""
    if not found.ids:
        name = request.like[:80]
        raise DocumentNotFound(f"there is no document {name!r} that others could be like", id=name)
    if not request.vector_name:
        return msgspec.structs.replace(request, vector=found.vectors)
    if not found.named:
        name, vector = request.like[:80], vector_called(request.vector_name)
        raise DocumentNotFound(f"document {name!r} has no vector {vector!r} that others could be like", id=name)
    return msgspec.structs.replace(request, vector=found.named[0].vectors)
