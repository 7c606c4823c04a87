"""The methods for documents and collections, written once: of the client, of the embedded clusters and of ShardRouter.

Here values become bytes and answers become values; where they go is what `_documents` hands out, a `DocumentCalls`.
Invariants: bad input raises InvalidArgument before anything is sent, or a cluster is started for it (with texts, before
any document is sent: what model the collection names is asked first); writes are
acknowledged after quorum commit and apply, and executed exactly once even when they are repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import msgspec

from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument, NeedleError
from needle.base.model import (
    CollectionSpec,
    Document,
    IndexParams,
    Metric,
    ReadMode,
    VectorSpec,
    WriteResult,
    metrics_of,
)
from needle.base.text import TextField
from needle.base.text_checks import text_field
from needle.client import answers, named_values, values
from needle.client.changes import ChangeMethods, check_ids_are_meant
from needle.client.columns import Columns, Documents, as_columns
from needle.client.counting import CountMethods
from needle.client.document_calls import BatchPart, DocumentCalls, find_collection
from needle.client.embedding import check_dimensions, check_model, dimensions_of
from needle.client.feeds import DEFAULT_COLLECTION, TIMEOUT, FilterLike
from needle.client.naming import NamingMethods
from needle.client.searches import SearchMethods, made
from needle.client.texts import vector_of, vectors_of
from needle.client.values import Seconds
from needle.protocol import calls


class DocumentMethods(SearchMethods, ChangeMethods, NamingMethods, CountMethods):
    """What can be done with documents and collections."""

    # --- writes ------------------------------------------------------------------------------------------------------
    async def insert(
        self,
        id: str,
        vector: Any = None,
        metadata: Any = None,
        *,
        text: str | None = None,
        expires_at: Any = None,
        if_matches: FilterLike = None,
        vectors: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Insert a document, or replace the one with this id.

        vector: `dimensions` numbers, anything numpy makes a float32 array of. text: instead, what the vector is made
        of, by the model that the collection names; put it into the metadata, too, if it is to be kept. Raises
        InvalidArgument if the collection names no model, or another one than the client's; ConfigError if the model is
        not installed. metadata: any JSON value. expires_at: a datetime with a time zone, or RFC 3339 text, after which
        the document is deleted; "never"; None for what the collection's ttl says. if_matches: if there is one, only if
        it matches this filter, as it is stored; ConditionFailed otherwise. vectors: named ones, by name, of those that
        the collection has; a document that is replaced keeps none of its own (docs/named-vectors.md)."""
        return await self._put(id, vector, text, metadata, None, collection, timeout, if_matches, expires_at, vectors)

    async def insert_if_absent(
        self,
        id: str,
        vector: Any = None,
        metadata: Any = None,
        *,
        text: str | None = None,
        expires_at: Any = None,
        vectors: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Insert a document; raises AlreadyExists (details["version"]) if there is one with this id. text,
        expires_at, vectors: see `insert`."""
        return await self._put(id, vector, text, metadata, 0, collection, timeout, None, expires_at, vectors)

    async def compare_and_set(
        self,
        id: str,
        expected_version: int,
        vector: Any = None,
        metadata: Any = None,
        *,
        text: str | None = None,
        expires_at: Any = None,
        if_matches: FilterLike = None,
        vectors: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Replace a document only if its version is `expected_version` (0: only if there is none); raises
        VersionMismatch (details["actual"]) or AlreadyExists otherwise. text, if_matches, expires_at,
        vectors: see `insert`."""
        expected = values.check_count(expected_version, "expected_version", 0)
        return await self._put(
            id, vector, text, metadata, expected, collection, timeout, if_matches, expires_at, vectors
        )

    async def _put(
        self,
        id: str,
        vector: Any,
        text: str | None,
        metadata: Any,
        expected: int | None,
        collection: str,
        timeout: Seconds,
        if_matches: FilterLike = None,
        expires_at: Any = None,
        vectors: Mapping[str, Any] | None = None,
    ) -> WriteResult:
        name, where = values.check_id(id), values.check_name(collection)
        if text is None:
            data = values.vector_bytes(vector)
        json, matches = values.metadata_bytes(metadata), values.filter_bytes(if_matches, "if_matches")
        expires, named = values.expiry(expires_at), named_values.of_one(vectors)
        if text is not None:  # last: what else is wrong is refused before the catalog is asked
            vector, timeout = await vector_of(self.embedder, self._documents, vector, text, collection, timeout)
            data = values.vector_bytes(vector)
        seconds = values.check_timeout(timeout)
        documents, last = await self._documents(), (named,) if named else ()
        return await documents.insert(where, name, data, json, expected, seconds, matches, expires, *last)

    async def insert_each(
        self,
        documents: Documents | None = None,
        *,
        ids: Iterable[str] | None = None,
        vectors: Any = None,
        texts: Iterable[str] | None = None,
        metadatas: Sequence[Any] | None = None,
        expires_at: Any = None,
        named_vectors: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> dict[str, WriteResult | NeedleError]:
        """Insert or replace many documents: (id, vector[, metadata]) tuples; or a table with the columns id and vector,
        all others being metadata, which is anything with the Arrow PyCapsule protocol; or ids, a 2-d array of vectors
        and optionally metadatas, one a row. texts: instead of vectors, what these are made of, as in `insert`.
        expires_at: see `insert`; for all of them, or a list of one a document. Returns the outcome of every id: the
        result of the log entry that carries it; OutcomeUnknown if it may or may not be written; any other error if it
        is not. Of documents with one id the last one counts, as if written one by one. named_vectors: by name a list
        with a vector for each document, or None for one without.

        Split into log entries of at most 1 MiB of one shard; each entry is all or nothing, and all its ids share one
        result object (`count` documents).
        """
        vectors, timeout = await vectors_of(self.embedder, self._documents, vectors, texts, collection, timeout)
        batch = as_columns(documents, ids, vectors, metadatas, expires_at, named_vectors)
        names, parts = batch.ids, await insert_parts(self._documents, batch, collection, timeout)
        outcomes: dict[str, Any] = dict.fromkeys(names)
        for rows, outcome in parts:
            outcomes.update(dict.fromkeys([names[at] for at in rows], outcome))
        return outcomes

    async def delete(
        self,
        ids: str | Iterable[str],
        *,
        if_matches: FilterLike = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Delete one document or several, all or nothing in each shard; absent ids are fine. existed: whether any was
        there; count: how many were. if_matches: only if all that are there match this filter, as they are stored;
        ConditionFailed otherwise."""
        check_ids_are_meant(ids)
        names, name, seconds = values.different_ids(ids), values.check_name(collection), values.check_timeout(timeout)
        return await (await self._documents()).delete(
            name, names, seconds, values.filter_bytes(if_matches, "if_matches")
        )

    # --- reads -------------------------------------------------------------------------------------------------------
    @overload
    async def get(  # type: ignore[overload-overlap]  # a str is an iterable of str, but it means one id
        self,
        ids: str,
        *,
        mode: ReadMode | str = ...,
        collection: str = ...,
        with_vectors: bool = ...,
        vectors: Iterable[str] | None = ...,
        fields: Iterable[str] | None = ...,
        session: bool = ...,
        max_staleness: Seconds | None = ...,
        timeout: Seconds = ...,
    ) -> Document | None: ...
    @overload
    async def get(
        self,
        ids: Iterable[str],
        *,
        mode: ReadMode | str = ...,
        collection: str = ...,
        with_vectors: bool = ...,
        vectors: Iterable[str] | None = ...,
        fields: Iterable[str] | None = ...,
        session: bool = ...,
        max_staleness: Seconds | None = ...,
        timeout: Seconds = ...,
    ) -> list[Document]: ...
    async def get(
        self,
        ids: str | Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        vectors: Iterable[str] | None = None,
        fields: Iterable[str] | None = None,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> Document | list[Document] | None:
        """One document, or None; or for several ids a list of those that exist, in the order asked. An id that is too
        long for a document is one that none has. vectors: names of named vectors to come with it. See `search` for
        mode, fields, session and max_staleness."""
        names = values.one_or_more(ids)
        reading = values.reading(mode, session, max_staleness)
        name, whole = values.check_name(collection), values.check_flag(with_vectors, "with_vectors")
        seconds, shown = values.check_timeout(timeout), values.field_paths(fields)
        documents = await self._documents()
        batch = await documents.get(
            name,
            names,
            whole,
            reading.mode,
            seconds,
            max_staleness=reading.max_staleness,
            session=reading.session,
            fields=shown,
            **({} if vectors is None else {"named": named_values.names(vectors)}),
        )
        found = await made(documents, calls.batch_bytes(batch), answers.documents, batch, vectors is not None)
        if isinstance(ids, str):
            return found[0] if found else None
        return found

    async def get_many(
        self,
        ids: Iterable[str],
        *,
        mode: ReadMode | str = ReadMode.STRONG,
        collection: str = DEFAULT_COLLECTION,
        with_vectors: bool = True,
        vectors: Iterable[str] | None = None,
        fields: Iterable[str] | None = None,
        session: bool = False,
        max_staleness: Seconds | None = None,
        timeout: Seconds = TIMEOUT,
    ) -> list[Document]:
        """`get` of several ids: those that exist, in the order asked."""
        return await self.get(
            values.check_ids(ids),
            mode=mode,
            collection=collection,
            with_vectors=with_vectors,
            vectors=vectors,
            fields=fields,
            session=session,
            max_staleness=max_staleness,
            timeout=timeout,
        )

    # --- collections -------------------------------------------------------------------------------------------------
    async def create_collection(
        self,
        name: str,
        *,
        dimensions: int | None = None,
        metric: Metric | str | None = None,
        index: IndexParams | str | None = None,
        ttl: Any = None,
        model: str | None = None,
        text: TextField | Mapping[str, Any] | str | None = None,
        dtype: DType | str | None = None,
        vectors: Mapping[str, VectorSpec] | None = None,
        sparse: Iterable[str] | None = None,
        like: str | None = None,
        if_absent: bool = False,
        timeout: Seconds = TIMEOUT,
    ) -> WriteResult:
        """Create a collection. metric: cosine if none is named, hamming for bits. index: parameters, or in words a kind
        such as "hnsw_sq8", a preset such as "high_recall", or both as "hnsw_sq8:high_recall" (docs/index-selection.md).
        ttl: seconds (or a timedelta) after its last write at which a document is deleted, unless that write named an
        `expires_at`. model: the name of the model whose vectors of texts it holds, such as "wordllama"; methods take
        `text` then, and `dimensions` may be left out if the client knows the model. text: by which text documents are
        found with `search(keywords=...)`: a field of metadata, or {"field": ..., "language": ...}. dtype: as which
        numbers vectors are kept: "float32", which is usual, "float16", "int8" or "bit" (docs/index-selection.md).
        vectors: further ones that documents may have, by name (docs/named-vectors.md). sparse: fields of metadata that
        are sparse vectors (docs/sparse-vectors.md). like: a collection, or an alias of one, whose settings it gets
        where no other is named, with its declared indexes of fields; no documents. With it, ttl=0, model="" and text=""
        are none, and so is sparse=[]. Raises CollectionExists, unless if_absent and the one there is equal;
        CollectionNotFound for `like`."""
        named = values.check_name(name, "name")
        given: dict[str, Any] = {
            "dimensions": None if dimensions is None else values.check_count(dimensions, "dimensions"),
            "metric": _metric(metric, dtype),
            "index": None if index is None else values.check_index(index),
            "ttl": None if ttl is None else values.check_ttl(ttl, *([] if like is None else [0.0])),
            "model": None if model is None else check_model(model),
            "dtype": None if dtype is None else values.choose(dtype, DType, "dtype"),
        }
        if given["dimensions"] is None and model and like is None:
            given["dimensions"] = dimensions_of(model, self.embedder)
        said = {field: value for field, value in given.items() if value is not None}
        if text is not None:
            said["text"] = text_field(text)
        absent, seconds = values.check_flag(if_absent, "if_absent"), values.check_timeout(timeout)
        named_specs, few = named_values.specs(vectors), named_values.sparse_names(sparse)
        if like is None:
            if "dimensions" not in said:
                raise InvalidArgument("dimensions are to be named, or a collection to be `like`", field="dimensions")
            spec = CollectionSpec(name=named, **said)
            check_dimensions(spec, self.embedder)
            more: tuple[Any, ...] = ((), named_specs, few) if named_specs or few else ()
            return await (await self._documents()).create_collection(spec, absent, seconds, *more)
        other, documents = values.check_name(like, "like"), await self._documents()
        found = find_collection(other, *await documents.described(ReadMode.STRONG, seconds))
        spec = msgspec.structs.replace(found.spec, name=named, **said)
        check_dimensions(spec, self.embedder)
        named_specs = [(one.name, one.spec) for one in found.vectors] if vectors is None else named_specs
        few = list(found.sparse) if sparse is None else few
        more = (found.fields, named_specs, few) if named_specs or few else (found.fields,)
        return await documents.create_collection(spec, absent, seconds, *more)

    async def drop_collection(self, name: str, *, timeout: Seconds = TIMEOUT) -> WriteResult:
        """Delete a collection and all its documents. Raises CollectionNotFound; OutcomeUnknown when it is gone from the
        catalog and shards, which it names, have not confirmed that yet (docs/sharding.md)."""
        checked, seconds = values.check_name(name, "name"), values.check_timeout(timeout)
        return await (await self._documents()).drop_collection(checked, seconds)

    async def collections(
        self, *, mode: ReadMode | str = ReadMode.STRONG, timeout: Seconds = TIMEOUT
    ) -> list[CollectionSpec]:
        """All collections, by name."""
        wanted, seconds = values.choose(mode, ReadMode, "mode"), values.check_timeout(timeout)
        return await (await self._documents()).collections(wanted, seconds)


async def insert_parts(
    documents: Callable[[], Awaitable[DocumentCalls]],
    batch: Columns,
    collection: str,
    timeout: Seconds,
    *,
    whole: bool = False,
) -> list[BatchPart]:
    """What became of a batch. whole: as in `DocumentCalls.insert_batch`."""
    name, seconds = values.check_name(collection), values.check_timeout(timeout)
    if not batch.ids:
        return []
    return await (await documents()).insert_batch(
        name, batch.ids, batch.rows(), batch.metadata, seconds, batch.expires, whole=whole,
        **({"named": batch.named} if batch.named else {}),
    )  # fmt: skip


def _metric(named: Any, dtype: Any) -> Metric | None:
    """Of bits there is but one, which need not be named."""
    if named is None:
        return metrics_of(DType.BIT)[0] if dtype == DType.BIT else None
    return values.choose(named, Metric, "metric")
