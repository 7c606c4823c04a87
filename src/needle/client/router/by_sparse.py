"""A search by a sparse vector: one round, for its scores need no statistics.

Invariant: a name that the collection does not have is refused, and not answered with no hits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.errors import invalid
from needle.base.model import SearchRequest
from needle.client.document_calls import Found
from needle.client.router import searching
from needle.client.router.routes import Routes
from needle.protocol.calls import Freshness


async def search_sparse(
    routes: Routes,
    request: SearchRequest,
    fresh: Callable[[int], Freshness],
    timeout: float,
    monotonic: Callable[[], float],
    *,
    partial: bool,
) -> Found:
    """request: as shards know it. The rest as of `searching.search`. Raises InvalidArgument."""
    if request.sparse is None:
        raise invalid("sparse", None, "what is searched for")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    await routes.check_sparse(request.collection, request.sparse.name, timeout)
    left = max(0.001, deadline - loop.time())
    return await searching.search(
        routes.fan_out, request, fresh, left, routes.beside, routes.saw, monotonic, partial=partial
    )
