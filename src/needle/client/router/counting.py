"""The part of the router that counts documents."""

from __future__ import annotations

from needle.base.model import ReadMode
from needle.client.router.routes import Routes
from needle.client.router.scanning import count_in_shards, facet_in_shards
from needle.protocol.calls import FacetAnswer


class Counting:
    """See `Router`."""

    _routes: Routes

    async def count(
        self,
        collection: str,
        filter_json: bytes,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
    ) -> int:
        """How many documents match a filter (b"": all)."""
        fresh = self._routes.fresh(mode, max_staleness, session)
        return await self._routes.named(
            collection,
            timeout,
            lambda stored, left: count_in_shards(stored, filter_json, left, self._routes, fresh),
        )

    async def facet(
        self,
        collection: str,
        field: str,
        filter_json: bytes,
        limit: int,
        mode: ReadMode,
        timeout: float,
        *,
        max_staleness: float = 0.0,
        session: bool = False,
    ) -> FacetAnswer:
        """How many documents that match a filter (b"": all) have each value of a field; see FacetCall."""
        fresh = self._routes.fresh(mode, max_staleness, session)
        return await self._routes.named(
            collection,
            timeout,
            lambda stored, left: facet_in_shards(stored, field, filter_json, limit, left, self._routes, fresh),
        )
