"""The part of the router that is about collections: what they hold, and what the catalog has of them."""

from __future__ import annotations

from collections.abc import Sequence

from needle.base.model import CollectionSpec, IndexParams, ReadMode, VectorChange, VectorSpec, WriteResult
from needle.client.router import collections
from needle.client.router.routes import Routes
from needle.client.router.sizes import HeldByShards, Only, held_by_shards
from needle.routing.topology import CollectionInfo


class OfCollections:
    """See `Router`."""

    _routes: Routes

    async def counts(self, mode: ReadMode, timeout: float) -> dict[str, dict[int, int]]:
        """Documents of each collection by shard."""
        held = await self._held(mode, timeout, False)
        return {name: {shard: one.documents for shard, one in shards.items()} for name, shards in held.items()}

    async def sizes(self, mode: ReadMode, timeout: float, only: Only = None) -> HeldByShards:
        """Documents of each collection, or of one, by shard, and how large it is there."""
        return await self._held(mode, timeout, True, only)

    async def _held(self, mode: ReadMode, timeout: float, sizes: bool, only: Only = None) -> HeldByShards:
        fresh, topology = self._routes.fresh(mode, 0.0, False), self._routes.shards.topology
        return await held_by_shards(self._routes.fan_out, topology, fresh, timeout, sizes=sizes, only=only)

    # --- collections -------------------------------------------------------------------------------------------------
    async def collections(self, mode: ReadMode, timeout: float) -> list[CollectionSpec]:
        """As `collections.listed`."""
        return await collections.listed(self._routes.shards, mode, timeout)

    async def create_collection(
        self,
        spec: CollectionSpec,
        if_absent: bool,
        timeout: float,
        fields: Sequence[str] = (),
        vectors: Sequence[tuple[str, VectorSpec]] = (),
        sparse: Sequence[str] = (),
    ) -> WriteResult:
        """As `collections.create`."""
        return await collections.create(self._routes.shards, spec, if_absent, timeout, fields, vectors, sparse)

    async def add_vector(
        self, name: str, vector: str, spec: VectorSpec, if_absent: bool, timeout: float
    ) -> WriteResult:
        """As `collections.add_vector`."""
        return await collections.add_vector(self._routes.shards, name, vector, spec, if_absent, timeout)

    async def drop_vector(self, name: str, vector: str, timeout: float) -> WriteResult:
        """As `collections.drop_vector`."""
        return await collections.drop_vector(self._routes.shards, name, vector, timeout)

    async def drop_collection(self, name: str, timeout: float) -> WriteResult:
        """As `collections.drop`."""
        return await collections.drop(self._routes.shards, name, timeout)

    async def alter_collection(
        self,
        name: str,
        ef_search: int,
        ttl: float,
        timeout: float,
        index: IndexParams | None = None,
        vectors: Sequence[VectorChange] = (),
    ) -> WriteResult:
        """As `collections.alter`."""
        return await collections.alter(self._routes.shards, name, ef_search, ttl, timeout, index, vectors)

    async def declare_field(self, name: str, path: str, declared: bool, timeout: float) -> WriteResult:
        """As `collections.declare_field`."""
        return await collections.declare_field(self._routes.shards, name, path, declared, timeout)

    async def declare_sparse(
        self, name: str, field: str, declared: bool, timeout: float, *, fits: bool = True
    ) -> WriteResult:
        """As `collections.declare_sparse`."""
        return await collections.declare_sparse(self._routes.shards, name, field, declared, timeout, fits=fits)

    async def set_alias(self, alias: str, collection: str, timeout: float) -> WriteResult:
        """As `collections.set_alias`."""
        return await collections.set_alias(self._routes.shards, alias, collection, timeout)

    async def remove_alias(self, alias: str, timeout: float) -> WriteResult:
        """As `collections.remove_alias`."""
        return await collections.remove_alias(self._routes.shards, alias, timeout)

    async def described(self, mode: ReadMode, timeout: float) -> tuple[list[CollectionInfo], dict[str, str]]:
        """As `collections.described`."""
        return await collections.described(self._routes.shards, mode, timeout)
