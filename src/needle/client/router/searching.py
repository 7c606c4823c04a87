"""A search of the shards that may have what it asks for, and one answer made of theirs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from needle.base.errors import DocumentNotFound, Unavailable, invalid
from needle.base.ids import shard_group
from needle.base.model import HitBatch, SearchRequest
from needle.client.document_calls import Found
from needle.client.router.by_node import Together
from needle.client.router.fan_out import Answers, FanOut
from needle.client.router.grouping import asking, merged_groups
from needle.client.router.merge import Merged, Wanted, merged_hits, merged_searches, weight
from needle.client.router.pruning import matching_shards
from needle.client.router.routes import BESIDE_BYTES
from needle.client.together import together
from needle.protocol import calls
from needle.protocol.calls import (
    MANY_BYTES_MAX,
    DocumentBatch,
    Freshness,
    SearchCall,
    SearchManyCall,
    batch_bytes,
    check_queries,
)
from needle.protocol.node_calls import READ_SHARDS, SEARCH_SHARDS, AskedShard, ReadShardsCall, SearchShardsCall
from needle.routing.topology import Ownership, vector_called

ROUNDS_MAX = 8
"""Of a search by groups: how often all shards are asked."""
SEARCHES_AT_ONCE = 8
"""Of several that are asked for in one call, and go by themselves."""

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
        # Shards that do not answer may take all the time: what the others have is put together after it.
        wanted = Wanted(monotonic, began + timeout * (2 if answers.missing else 1))
        merge: Callable[[Answers, SearchRequest], Merged] = merged_groups
        if not asked.group_by:
            merge = functools.partial(merged_hits, go_on=wanted)
        if (work := weight(size, asked)) <= BESIDE_BYTES:
            applied, merged, lacking = merge(answers, asked)
        else:
            applied, merged, lacking = await wanted.by(beside(work, merge, answers, asked))
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
    def hits(shards: list[AskedShard], fresh: Freshness, epoch: int) -> SearchShardsCall:
        return SearchShardsCall(shards, request, fresh, epoch)

    # Which groups are nearest, all shards must say; scores by words or sparse vectors are merged here, too.
    each = bool(request.group_by or request.keywords) or request.sparse is not None
    return fan_out.read(
        calls.SEARCH,
        lambda shard, fresh, epoch: SearchCall(shard_group(shard), request, fresh, epoch),
        _matching(request) if request.filter else _all,
        fresh,
        timeout,
        partial=partial,
        together=each_of_node(request) if each else Together(SEARCH_SHARDS, hits),
    )


def _matching(request: SearchRequest) -> Callable[[Ownership], Sequence[int]]:
    return lambda owned: matching_shards(owned, request.filter)


def _all(owned: Ownership) -> Sequence[int]:
    return owned.owners


def each_of_node(request: SearchRequest) -> Together:
    """A search whose answers of each shard are told by themselves, also by a node that holds several."""

    def each(shards: list[AskedShard], fresh: Freshness, epoch: int) -> ReadShardsCall:
        return ReadShardsCall(shards, fresh, epoch, search=SearchCall(0, request, fresh, epoch))

    return Together(READ_SHARDS, each)


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
    loop = asyncio.get_running_loop()
    wanted = Wanted(loop.time, loop.time() + timeout)
    answers = await fan_out.read(
        calls.SEARCH_MANY,
        lambda shard, fresh, epoch: SearchManyCall(shard_group(shard), request, count, fresh, epoch),
        _matching(request) if request.filter else _all,
        fresh,
        timeout,
        together=Together(
            SEARCH_SHARDS, lambda shards, fresh, epoch: SearchShardsCall(shards, request, fresh, epoch, count)
        ),
    )
    weighs = weight(answers.size(), request, count)
    seen, batches = await wanted.by(beside(weighs, merged_searches, answers, request, count, wanted))
    return seen, batches


async def search_each(
    fan_out: FanOut,
    request: SearchRequest,
    count: int,
    fresh: Callable[[int], Freshness],
    timeout: float,
    beside: Beside,
    saw: Callable[[int, int], None],
    monotonic: Callable[[], float],
) -> list[HitBatch]:
    """`search_many` by groups: each vector is searched for by itself, for all shards may have to be asked for it once
    more. Raises InvalidArgument for vectors, or bytes of hits, that one call of a shard may not be about."""
    check_queries(count, request.vector)
    loop, width = asyncio.get_running_loop(), len(request.vector) // count
    deadline, places, size = loop.time() + timeout, iter(range(count)), 0
    batches: dict[int, HitBatch] = {}

    async def work() -> None:
        nonlocal size
        for at in places:
            one = msgspec.structs.replace(request, vector=request.vector[at * width : (at + 1) * width])
            left = max(0.001, deadline - loop.time())
            found = await search(fan_out, one, fresh, left, beside, saw, monotonic, partial=False)
            batches[at], size = found.batch, size + batch_bytes(found.batch)
            if size > MANY_BYTES_MAX:
                raise invalid("queries", f"{count} vectors", "fewer: their hits have too many bytes for one answer")

    await together(*(work() for _ in range(min(count, SEARCHES_AT_ONCE))))
    return [batches[at] for at in range(count)]


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
