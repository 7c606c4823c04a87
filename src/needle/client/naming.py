"""The methods about what collections are called and are like: aliases, descriptions, what may be changed of one.

A part of `DocumentMethods` (documents.py), which says what holds for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from needle.base.collection_sizes import NOT_TOLD, CollectionSize, FieldIndex, index_called
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument
from needle.base.filters.builder import field_path
from needle.base.model import IndexParams, Metric, ReadMode, VectorSpec, WriteResult
from needle.base.sparse import SPARSE_KIND
from needle.base.text import TextField
from needle.client import named_values, values
from needle.client.document_calls import Held, OverDocuments, find_collection
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT
from needle.client.named_values import spec_of
from needle.client.values import Seconds
from needle.routing.topology import CollectionInfo


class CollectionDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to know of a collection. id: tells it from others of its name, before and after it. shards: how
    many documents each shard holds; sizes: how large it is in each, but for those whose node is of a release that does
    not say. size: in all shards, None if one did not say. aliases: its other names. ttl: seconds that a document lives
    after its last write, None if that has no end. model: whose vectors of texts it holds, None if it names none. text:
    by which documents are found with keywords, None if it has none. dtype: as which type of numbers vectors are kept.
    fields: the declared indexes, by path, in all shards; none where no shard says sizes, as to an API key for some
    documents only, which `documents` counts. index: that it is to have; `size.index` says what its files are built as
    now. vectors: what the named ones are like that documents may have. sparse: the fields that are sparse vectors, and
    their indexes, as `fields`; "not_told" is the state of all where no shard says sizes."""

    name: str
    id: int
    dimensions: int
    metric: Metric
    index: IndexParams
    documents: int
    shards: dict[int, int]
    aliases: list[str]
    ttl: float | None = None
    sizes: dict[int, CollectionSize] = {}
    size: CollectionSize | None = None
    fields: dict[str, FieldIndex] = {}
    model: str | None = None
    text: TextField | None = None
    dtype: DType = DType.FLOAT32
    vectors: dict[str, VectorSpec] = {}
    sparse: dict[str, FieldIndex] = {}


class NamingMethods(OverDocuments):
    """Aliases, and what collections are like."""

    async def set_alias(self, alias: str, collection: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Make `alias` another name of a collection, or let it lead to another one than before. Every call takes it for
        a name. A call does all its work in one collection: that of before, if it began before this returned, or the new
        one. Raises CollectionNotFound, CollectionExists (a collection has this name); InvalidArgument for an alias of
        an alias or of itself; OutcomeUnknown when a shard does not confirm that it knows (docs/documents.md)."""
        name, leads_to = values.check_name(alias, "alias"), values.check_name(collection)
        return await (await self._documents()).set_alias(name, leads_to, values.check_timeout(timeout))

    async def remove_alias(self, alias: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Remove an alias; its collection stays. Raises CollectionNotFound, and OutcomeUnknown as `set_alias`."""
        name, seconds = values.check_name(alias, "alias"), values.check_timeout(timeout)
        return await (await self._documents()).remove_alias(name, seconds)

    async def aliases(self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: Seconds = TIMEOUT) -> dict[str, str]:
        """The collection of each alias."""
        wanted, seconds = values.choose(mode, ReadMode, "mode"), values.check_timeout(timeout)
        return (await (await self._documents()).described(wanted, seconds))[1]

    async def describe_collection(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        timeout: Seconds = TIMEOUT,
    ) -> CollectionDescription:
        """What a collection is like, by its name or an alias. Raises CollectionNotFound."""
        wanted, name = values.choose(mode, ReadMode, "mode"), values.check_name(collection)
        seconds, documents = values.check_timeout(timeout), await self._documents()
        collections, aliases = await documents.described(wanted, seconds)
        found = find_collection(name, collections, aliases)
        return _description(found, aliases, await documents.sizes(wanted, seconds, found))

    async def describe_collections(
        self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: Seconds = TIMEOUT
    ) -> list[CollectionDescription]:
        """What all collections are like, by name; with one call of each shard."""
        wanted, seconds = values.choose(mode, ReadMode, "mode"), values.check_timeout(timeout)
        documents = await self._documents()
        collections, aliases = await documents.described(wanted, seconds)
        held = await documents.sizes(wanted, seconds) if collections else {}
        return [_description(info, aliases, held) for info in collections]

    async def alter_collection(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        ef_search: int | None = None,
        ttl: Any = None,
        index: IndexParams | str | None = None,
        vectors: Mapping[str, Any] | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Change a collection. ef_search: how accurate searches are that do not say it themselves. ttl: seconds (or a
        timedelta) that a document lives after its last write, 0 for no end; it counts for writes from now on, documents
        that are there keep their instant. index: parameters, or a kind such as "hnsw_sq8", a preset such as
        "high_recall", or kind:preset: files of it are built in the background, and each shard goes over to them at one
        entry of its log; `describe_collection` shows how far it is, in `size.index` (docs/index-selection.md). Its
        ef_search counts at once; the former index brings it back, and whoever asks last is followed. vectors: the same
        of named vectors: {"title": {"index": "hnsw_sq8", "ef_search": 80}}, of which either may be left out;
        `size.vectors` shows how far they are. All of it is changed, or nothing. Raises CollectionNotFound;
        OutcomeUnknown when a shard does not confirm that it knows the new ttl."""
        name, seconds = values.check_name(collection), values.check_timeout(timeout)
        named = named_values.changes(vectors)
        if ef_search is None and ttl is None and index is None and not named:
            raise InvalidArgument("nothing is to be changed: give ef_search, ttl, index or vectors", field="ef_search")
        effort = 0 if ef_search is None else values.check_count(ef_search, "ef_search")
        lives = -1.0 if ttl is None else values.check_ttl(ttl, 0.0)
        wanted = None if index is None else values.check_index(index)
        if wanted is not None and effort:
            wanted = msgspec.structs.replace(wanted, ef_search=effort)
        more = (wanted, named) if named else (wanted,)
        return await (await self._documents()).alter_collection(name, effort, lives, seconds, *more)

    async def add_vector(
        self,
        collection: str,
        name: str,
        spec: VectorSpec,
        *,
        if_absent: bool = False,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Let documents of a collection have a further vector, of this name: those that are there get it by
        `update_vector(..., name=name)`, or when they are inserted again (docs/named-vectors.md). Raises
        CollectionNotFound; CollectionExists if there is one of that name, unless if_absent and it is equal."""
        where, named = values.check_name(collection), values.check_name(name, "name")
        absent, seconds = values.check_flag(if_absent, "if_absent"), values.check_timeout(timeout)
        return await (await self._documents()).add_vector(where, named, spec_of(spec), absent, seconds)

    async def drop_vector(self, collection: str, name: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Take a named vector from a collection and all its documents; all else of them stays. Raises
        CollectionNotFound; InvalidArgument if there is no such vector; OutcomeUnknown when a shard does not confirm
        that it is gone there."""
        where, named, seconds = (
            values.check_name(collection),
            values.check_name(name, "name"),
            values.check_timeout(timeout),
        )
        return await (await self._documents()).drop_vector(where, named, seconds)

    async def add_sparse(self, collection: str, name: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Let documents of a collection be found by the sparse vectors in their field `name` of metadata, also those
        that are there (docs/sparse-vectors.md). From then on a write whose field is no sparse vector is refused; of
        what was written before, such documents are no hits. `existed`: it was so before. Raises CollectionNotFound;
        InvalidArgument where `limits.field_index_bytes_max` does not hold its index, with nothing changed;
        OutcomeUnknown when a shard does not confirm that it knows."""
        return await self._sparse(collection, name, True, timeout)

    async def drop_sparse(self, collection: str, name: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Find no documents by the sparse vectors in this field any more. The field stays, as any other of metadata.
        Raises CollectionNotFound; InvalidArgument for a field that has none; OutcomeUnknown as `add_sparse`."""
        return await self._sparse(collection, name, False, timeout)

    async def _sparse(self, collection: str, name: str, declared: bool, timeout: Seconds) -> WriteResult:
        where, field = values.check_name(collection), values.check_name(name, "name")
        return await (await self._documents()).declare_sparse(where, field, declared, values.check_timeout(timeout))

    async def create_field_index(self, collection: str, field: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Have every replica keep an index of a field of metadata ("a.b" for one inside another): it is made in the
        background, also after a restart, and stays where others make place for new ones. Filters give the same answers
        with and without it. `describe_collection` tells when it is ready; `existed`: it was declared before. Raises
        CollectionNotFound; InvalidArgument where `limits.field_index_bytes_max` does not hold it, with nothing
        changed."""
        return await self._declare(collection, field, True, timeout)

    async def drop_field_index(self, collection: str, field: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Take a declaration back: the field is indexed only while searches filter on it. Raises CollectionNotFound;
        InvalidArgument for a field that is not declared."""
        return await self._declare(collection, field, False, timeout)

    async def _declare(self, collection: str, field: str, declared: bool, timeout: Seconds) -> WriteResult:
        name, seconds = values.check_name(collection), values.check_timeout(timeout)
        path = ".".join(field_path(field, "field"))
        return await (await self._documents()).declare_field(name, path, declared, seconds)


def _fields(declared: tuple[str, ...], held: Mapping[int, Held]) -> dict[str, FieldIndex]:
    """In all shards. Who says nothing of one has not heard of it yet."""
    told = [{} if one.size is None else one.size.fields for one in held.values()]
    none = FieldIndex(state="building")
    return {path: sum((one.get(path, none) for one in told), FieldIndex(state="ready")) for path in declared}


def _sparse_fields(names: tuple[str, ...], held: Mapping[int, Held]) -> dict[str, FieldIndex]:
    """Indexes are called by their kind, too."""
    if held and all(one.size is None for one in held.values()):
        return {name: FieldIndex(state=NOT_TOLD) for name in names}
    called = {name: index_called(name, SPARSE_KIND) for name in names}
    found = _fields(tuple(called.values()), held)
    return {name: found[long] for name, long in called.items()}


def _description(
    info: CollectionInfo, aliases: Mapping[str, str], all_held: Mapping[str, Mapping[int, Held]]
) -> CollectionDescription:
    spec, held = info.spec, all_held.get(info.spec.name, {})
    sizes = {shard: one.size for shard, one in held.items() if one.size is not None}
    return CollectionDescription(
        name=spec.name,
        id=info.id,
        dimensions=spec.dimensions,
        metric=spec.metric,
        index=spec.index,
        documents=sum(one.documents for one in held.values()),
        shards={shard: one.documents for shard, one in held.items()},
        aliases=sorted(alias for alias, leads_to in aliases.items() if leads_to == spec.name),
        ttl=spec.ttl or None,
        sizes=sizes,
        size=sum(sizes.values(), CollectionSize()) if len(sizes) == len(held) else None,
        fields=_fields(info.fields, held) if sizes or not held else {},
        model=spec.model or None,
        text=spec.text,
        dtype=spec.dtype,
        vectors={one.name: one.spec for one in info.vectors},
        sparse=_sparse_fields(info.sparse, held),
    )
