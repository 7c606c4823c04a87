"""A search of what one shard owns, in one coroutine: of a short search's time on a client, a good part was the layers
between it and the wire, each of which may have to begin again.

Invariant: what is answered here is what `Routes.named`, `searching.search` and `FanOut.read` would have answered, by
the same map and as fresh. What turns out otherwise (another map, a collection that the shard does not have) is asked
again on that way, with the time that is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from needle.base.errors import CollectionNotFound, NeedleError, StaleEpoch
from needle.base.ids import shard_group
from needle.base.model import SearchRequest
from needle.client.document_calls import Found
from needle.client.meaning import meant
from needle.client.router.fan_out import checked, no_agreement
from needle.client.router.merge import Wanted, hits_of_one, weight
from needle.client.router.routes import BESIDE_BYTES, Routes, said_of
from needle.protocol import calls
from needle.protocol.calls import Freshness, SearchCall
from needle.routing.topology import CollectionInfo, Ownership

LongWay = Callable[[float, int], Coroutine[Any, Any, Found]]
"""The search as any other one, given the seconds left, and the id of the collection that the shard did not have, or
0."""


def search_of_one(
    routes: Routes,
    request: SearchRequest,
    fresh: Callable[[int], Freshness],
    timeout: float,
    clock: Callable[[], float],
    long_way: LongWay,
) -> Coroutine[Any, Any, Found] | None:
    """None for a search that is none of these: of several shards, by an alias, in groups, by anything but a vector
    without a name. clock: as of searching.search."""
    if request.vector_name or request.like or request.group_by or request.keywords or request.sparse is not None:
        return None
    info = routes.known(request.collection)
    if info is None or info.spec.name != request.collection or meant.get() is not None:
        return None
    owned = routes.fan_out.owned_by_one()
    if owned is None:
        return None
    return _search(routes, request, info, owned, fresh, timeout, clock, long_way)


async def _search(
    routes: Routes,
    request: SearchRequest,
    info: CollectionInfo,
    owned: Ownership,
    fresh: Callable[[int], Freshness],
    timeout: float,
    clock: Callable[[], float],
    long_way: LongWay,
) -> Found:
    time, fan_out, [shard] = asyncio.get_running_loop().time, routes.fan_out, owned.owners
    deadline, tried = time() + timeout, 0
    inner = routes.as_stored(request, info.stored_name)

    def make(shard: int, fresh: Freshness, epoch: int) -> SearchCall:
        return SearchCall(shard_group(shard), inner, fresh, epoch)

    try:
        answer = await fan_out.asking(owned, shard, calls.SEARCH, make, fresh(shard), timeout)
        body = checked(owned, shard, answer)
        start, size = clock(), len(body)
        if (work := weight(size, inner)) <= BESIDE_BYTES:
            batch = hits_of_one(shard, body, inner)
        else:
            wanted = Wanted(clock, start + max(0.001, deadline - time()))
            batch = await wanted.by(routes.beside(work, hits_of_one, shard, body, inner, wanted))
    except CollectionNotFound:
        tried = info.id
    except StaleEpoch as stale:
        if (left := deadline - time()) <= 0.001:
            raise no_agreement(timeout, stale) from None
        await fan_out.renew(stale, left)
    except NeedleError as error:
        said_of(error, info)
        raise
    else:
        applied = batch.applied_index
        routes.saw(shard, applied)
        fan_out.stats.searched(1, clock() - start)
        return Found(batch, {}, [], {shard: applied}, 1, owned.epoch, size)
    return await long_way(max(0.001, deadline - time()), tried)
