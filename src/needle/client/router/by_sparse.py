"""A search by a sparse vector: one round, for its scores need no statistics.

Invariant: a name that the collection does not have is refused, and not answered with no hits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from needle.base.errors import InvalidArgument, invalid
from needle.base.model import SearchRequest
from needle.client.document_calls import Found
from needle.client.router import searching
from needle.client.router.routes import Routes
from needle.protocol.calls import Freshness

HEAR_SECONDS = 1.0
"""To hear of a newer catalog, which there is."""


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
    left, known = max(0.001, deadline - loop.time()), routes.shards.topology().version
    try:
        return await searching.search(
            routes.fan_out, request, fresh, left, routes.beside, routes.saw, monotonic, partial=partial
        )
    except InvalidArgument as refused:
        if refused.details.get("field") == "sparse":  # it was dropped meanwhile: the next call will know
            left = max(0.001, deadline - loop.time())
            await routes.shards.refresh(known + 1, min(HEAR_SECONDS, left))
        raise
