"""The methods that count documents.

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from needle.base.errors import CollectionNotFound
from needle.base.filters.builder import field_path
from needle.base.model import ReadMode
from needle.client import values
from needle.client.document_calls import Facet, OverDocuments
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT, FilterLike
from needle.client.values import Seconds


class CountMethods(OverDocuments):
    """What tells how many documents there are."""

    async def count(
        self,
        filter: FilterLike = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        mode: ReadMode | str = ReadMode.STRONG,
        timeout: Seconds = TIMEOUT,
    ) -> int:
        """How many documents a collection holds that match a filter, all shards together. Raises
        CollectionNotFound."""
        wanted, name = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        seconds, matches = values.check_timeout(timeout), values.filter_bytes(filter)
        return await (await self._documents()).count(name, matches, wanted, seconds)

    async def facet(
        self,
        field: str,
        filter: FilterLike = None,
        *,
        limit: int = 10,
        collection: str = DEFAULT_COLLECTION,
        mode: ReadMode | str = ReadMode.STRONG,
        timeout: Seconds = TIMEOUT,
    ) -> Facet:
        """How many documents that match a filter have each value of a field, exactly, all shards together. field: a
        path; of an array each element counts. limit: of the values with the most documents, how many to tell. Raises
        InvalidArgument for a field with more than 20,000 values, or 2 MiB of them, in the documents of a shard that
        match; CollectionNotFound."""
        wanted, name = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        seconds, matches = values.check_timeout(timeout), values.filter_bytes(filter)
        path, most = ".".join(field_path(field, "field")), values.check_count(limit, "limit")
        documents = await self._documents()
        return Facet.of(await documents.facet(name, path, matches, most, wanted, seconds))

    async def counts(
        self,
        *,
        collection: str = DEFAULT_COLLECTION,
        mode: ReadMode | str = ReadMode.STRONG,
        timeout: Seconds = TIMEOUT,
    ) -> dict[int, int]:
        """How many documents of a collection each shard holds. Raises CollectionNotFound."""
        wanted, name = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        seconds = values.check_timeout(timeout)
        held = await (await self._documents()).counts(wanted, seconds)
        if name not in held:
            raise CollectionNotFound(f"there is no collection {name!r}", collection=name)
        return held[name]
