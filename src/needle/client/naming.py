"""The methods about what collections are called and are like: aliases, descriptions, what may be changed of one.

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from needle.base.errors import CollectionNotFound
from needle.base.model import IndexParams, Metric, ReadMode, WriteResult
from needle.client import values
from needle.client.changes import DEFAULT_COLLECTION, TIMEOUT
from needle.client.document_calls import DocumentCalls


class CollectionDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of a collection. id: tells it from others of its name, before and after it. shards: how
    many documents each shard holds. aliases: its other names."""

    name: str
    id: int
    dimensions: int
    metric: Metric
    index: IndexParams
    documents: int
    shards: dict[int, int]
    aliases: list[str]


class NamingMethods(ABC):
    """Aliases, and what collections are like."""

    @abstractmethod
    async def _documents(self) -> DocumentCalls:
        """See DocumentMethods."""

    async def set_alias(self, alias: str, collection: str, *, timeout: float = TIMEOUT) -> WriteResult:
        """Make `alias` another name of a collection, or let it lead to another one than before. Every call takes it for
        a name. A call does all its work in one collection: that of before, if it began before this returned, or the new
        one. Raises CollectionNotFound, CollectionExists (a collection has this name); InvalidArgument for an alias of
        an alias or of itself; OutcomeUnknown when a shard does not confirm that it knows (docs/documents.md)."""
        name, leads_to = values.check_name(alias, "alias"), values.check_name(collection)
        return await (await self._documents()).set_alias(name, leads_to, values.check_timeout(timeout))

    async def remove_alias(self, alias: str, *, timeout: float = TIMEOUT) -> WriteResult:
        """Remove an alias; its collection stays. Raises CollectionNotFound, and OutcomeUnknown as `set_alias`."""
        name, seconds = values.check_name(alias, "alias"), values.check_timeout(timeout)
        return await (await self._documents()).remove_alias(name, seconds)

    async def aliases(self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: float = TIMEOUT) -> dict[str, str]:
        """The collection of each alias."""
        wanted, seconds = values.choose(mode, ReadMode, "mode"), values.check_timeout(timeout)
        return (await (await self._documents()).described(wanted, seconds))[1]

    async def describe_collection(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        timeout: float = TIMEOUT,
    ) -> CollectionDescription:
        """What a collection is like, by its name or an alias. Raises CollectionNotFound."""
        wanted, name = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        seconds, documents = values.check_timeout(timeout), await self._documents()
        collections, aliases = await documents.described(wanted, seconds)
        found = {info.spec.name: info for info in collections}.get(aliases.get(name, name))
        if found is None:
            raise CollectionNotFound(f"there is no collection {name[:80]!r}", collection=name[:80])
        spec = found.spec
        shards = (await documents.counts(wanted, seconds)).get(spec.name, {})
        return CollectionDescription(
            name=spec.name,
            id=found.id,
            dimensions=spec.dimensions,
            metric=spec.metric,
            index=spec.index,
            documents=sum(shards.values()),
            shards=shards,
            aliases=sorted(alias for alias, leads_to in aliases.items() if leads_to == spec.name),
        )

    async def alter_collection(
        self, collection: str = DEFAULT_COLLECTION, *, ef_search: int, timeout: float = TIMEOUT
    ) -> WriteResult:
        """Change a collection. ef_search: how accurate searches are that do not say it themselves. Raises
        CollectionNotFound."""
        name, seconds = values.check_name(collection), values.check_timeout(timeout)
        wanted = values.check_count(ef_search, "ef_search")
        return await (await self._documents()).alter_collection(name, wanted, seconds)
