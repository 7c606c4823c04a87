"""What a client that knows no catalog cannot do."""

from __future__ import annotations

from collections.abc import Sequence

from needle.base.errors import InvalidArgument
from needle.base.model import IndexParams, ReadMode, VectorChange, VectorSpec, WriteResult
from needle.client.feed_calls import FeedCalls
from needle.routing.topology import CollectionInfo

UNKNOWN = InvalidArgument("this client does not know the catalog")


class WithoutCatalog:
    """A part of `DocumentCalls`."""

    def feeding(self) -> FeedCalls:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def alter_collection(
        self,
        name: str,
        ef_search: int,
        ttl: float,
        timeout: float,
        index: IndexParams | None = None,
        vectors: Sequence[VectorChange] = (),
    ) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def declare_field(self, name: str, path: str, declared: bool, timeout: float) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def declare_sparse(
        self, name: str, field: str, declared: bool, timeout: float, *, fits: bool = True
    ) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def add_vector(
        self, name: str, vector: str, spec: VectorSpec, if_absent: bool, timeout: float
    ) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def drop_vector(self, name: str, vector: str, timeout: float) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def set_alias(self, alias: str, collection: str, timeout: float) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def remove_alias(self, alias: str, timeout: float) -> WriteResult:
        """Only who knows the catalog can."""
        raise UNKNOWN

    async def described(self, mode: ReadMode, timeout: float) -> tuple[list[CollectionInfo], dict[str, str]]:
        """Only who knows the catalog can."""
        raise UNKNOWN
