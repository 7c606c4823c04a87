"""`NeedleVectorStore`: LangChain's VectorStore over a client of Needle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_needle.records import batch_of, document_of, filter_of, scored
from needle import Client, CollectionNotFound, Filter, Hits, InvalidArgument, Metric, SyncClient

Where = Filter | Mapping[str, Any] | None
"""A filter: a needle.Filter, or a mapping as LangChain's PGVector takes it."""


class NeedleVectorStore(VectorStore):
    """Documents in one collection of a Needle cluster. Every write is acknowledged by a majority of its shard, and
    every read sees it, unless `mode` says otherwise.

        with needle.connect_sync("127.0.0.1:7000") as client:
            store = NeedleVectorStore(embedding, client)

    embedding: makes vectors of texts and queries. client: serves the methods without `await`; without async_client also
    the asynchronous ones, in threads. async_client: serves the asynchronous methods, on the event loop that it was
    opened on. collection: made at the first call if it is not there, with the embedding's dimensions and `metric`
    ("cosine", "l2", "dot"), unless create is false. text_field: the field of the metadata that holds the text. mode:
    of reads ("strong", "leased", "eventual"). batch_size: texts embedded and written at a time.

    Scores are distances: lower is nearer. Relevance scores are 1 for what is nearest, and need the metric cosine or l2.
    """

    def __init__(
        self,
        embedding: Embeddings,
        client: SyncClient | None = None,
        *,
        async_client: Client | None = None,
        collection: str = "langchain",
        metric: str = "cosine",
        text_field: str = "text",
        mode: str = "strong",
        create: bool = True,
        batch_size: int = 1000,
    ) -> None:
        if client is None and async_client is None:
            raise ValueError("client = None is not allowed without async_client: needle.connect_sync makes one")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size} is not allowed: at least 1")
        self._embedding = embedding
        self._client_or_none = client
        self._async_client = async_client
        self._collection = collection
        self._metric = Metric(metric)
        self._text_field = text_field
        self._mode = mode
        self._create = create
        self._batch_size = batch_size
        self._is_there = False

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> NeedleVectorStore:
        """A store with these texts. kwargs: of the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> NeedleVectorStore:
        """As `from_texts`."""
        store = cls(embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    # --- writing ----------------------------------------------------------------------------------------------------
    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Insert or replace by id; returns the ids, random ones where none was given. Nothing is left out in silence: a
        text that cannot be stored raises, and those of the batches before it are stored."""
        _refuse(kwargs)
        said = list(texts)
        named, stored = batch_of(said, metadatas, ids, self._text_field)
        for part in self._parts(len(said)):
            vectors = self._embedding.embed_documents(said[part])
            self._ready(len(vectors[0]))
            self._client().insert_batch(
                ids=named[part], vectors=vectors, metadatas=stored[part], collection=self._collection
            )
        return named

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`."""
        _refuse(kwargs)
        said = list(texts)
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self.add_texts, said, metadatas, ids=ids)
        named, stored = batch_of(said, metadatas, ids, self._text_field)
        for part in self._parts(len(said)):
            vectors = await self._embedding.aembed_documents(said[part])
            await self._aready(client, len(vectors[0]))
            await client.insert_batch(
                ids=named[part], vectors=vectors, metadatas=stored[part], collection=self._collection
            )
        return named

    def delete(self, ids: Sequence[str] | None = None, *, filter: Where = None, **kwargs: Any) -> bool:
        """Delete by id, or what a filter finds; without both, all. What is not there is no error."""
        _refuse(kwargs)
        where = _deleted(ids, filter)
        try:
            if where is not None:
                self._client().delete_where(where, collection=self._collection)
            elif ids:
                self._client().delete(ids, collection=self._collection)
        except CollectionNotFound:
            if not self._create:
                raise
        return True

    async def adelete(self, ids: Sequence[str] | None = None, *, filter: Where = None, **kwargs: Any) -> bool:
        """As `delete`."""
        _refuse(kwargs)
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self.delete, ids, filter=filter)
        where = _deleted(ids, filter)
        try:
            if where is not None:
                await client.delete_where(where, collection=self._collection)
            elif ids:
                await client.delete(ids, collection=self._collection)
        except CollectionNotFound:
            if not self._create:
                raise
        return True

    # --- reading ----------------------------------------------------------------------------------------------------
    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those that are there, in the order of `ids`."""
        try:
            found = self._client().get(list(ids), with_vectors=False, mode=self._mode, collection=self._collection)
        except CollectionNotFound:
            if not self._create:
                raise
            return []
        return [document_of(one.id, one.metadata, self._text_field) for one in found]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`."""
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self.get_by_ids, ids)
        try:
            found = await client.get(list(ids), with_vectors=False, mode=self._mode, collection=self._collection)
        except CollectionNotFound:
            if not self._create:
                raise
            return []
        return [document_of(one.id, one.metadata, self._text_field) for one in found]

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k nearest with their distances. kwargs: of needle's `search`, as ef_search, exact, timeout."""
        return scored(self._search(embedding, k, filter, **kwargs), self._text_field)

    async def asimilarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score_by_vector`."""
        return scored(await self._asearch(embedding, k, filter, **kwargs), self._text_field)

    def similarity_search_with_score(  # type: ignore[override]
        self, query: str, k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k nearest to a text, with their distances."""
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter, **kwargs)

    async def asimilarity_search_with_score(  # type: ignore[override]
        self, query: str, k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`."""
        vector = await self._embedding.aembed_query(query)
        return await self.asimilarity_search_with_score_by_vector(vector, k, filter, **kwargs)

    def similarity_search(self, query: str, k: int = 4, filter: Where = None, **kwargs: Any) -> list[Document]:
        """The k nearest to a text."""
        return [found for found, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, filter: Where = None, **kwargs: Any) -> list[Document]:
        """As `similarity_search`."""
        return [found for found, _ in await self.asimilarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[Document]:
        """The k nearest to a vector."""
        return [found for found, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    async def asimilarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Where = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search_by_vector`."""
        found = await self.asimilarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        return [one for one, _ in found]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where = None,
        **kwargs: Any,
    ) -> list[Document]:
        """k of the fetch_k nearest that are unlike each other; lambda_mult: 1 for the nearest, 0 for the most unlike.
        The cluster chooses."""
        varied = _varied(k, fetch_k, lambda_mult)
        return [found for found, _ in scored(self._search(embedding, k, filter, **varied, **kwargs), self._text_field)]

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Where = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`."""
        varied = _varied(k, fetch_k, lambda_mult)
        hits = await self._asearch(embedding, k, filter, **varied, **kwargs)
        return [found for found, _ in scored(hits, self._text_field)]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Where = None, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, of a text."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, filter: Where = None, **kwargs: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._metric == Metric.COSINE:
            return lambda distance: 1.0 - distance / 2.0
        if self._metric == Metric.L2:
            return lambda distance: 1.0 / (1.0 + distance)
        raise ValueError("relevance scores need the metric cosine or l2: inner products have no bounds")

    # --- what they share --------------------------------------------------------------------------------------------
    def _client(self) -> SyncClient:
        if self._client_or_none is None:
            raise ValueError("this store has an async_client only: use the asynchronous methods, or give it a client")
        return self._client_or_none

    def _parts(self, count: int) -> list[slice]:
        return [slice(at, at + self._batch_size) for at in range(0, count, self._batch_size)]

    def _search(self, vector: Sequence[float], k: int, filter: Where, **kwargs: Any) -> Hits:
        asked = {"mode": self._mode, "collection": self._collection, **kwargs}
        client = self._client()
        try:
            return client.search(vector, k, filter_of(filter), **asked)
        except CollectionNotFound:
            if not self._create:
                raise
            return Hits([])

    async def _asearch(self, vector: Sequence[float], k: int, filter: Where, **kwargs: Any) -> Hits:
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self._search, vector, k, filter, **kwargs)
        asked = {"mode": self._mode, "collection": self._collection, **kwargs}
        try:
            return await client.search(vector, k, filter_of(filter), **asked)
        except CollectionNotFound:
            if not self._create:
                raise
            return Hits([])

    def _ready(self, dimensions: int) -> None:
        """Make the collection, once, if this store may. Raises CollectionExists if there is another one of its name."""
        if self._create and not self._is_there:
            self._client().create_collection(
                self._collection, dimensions=dimensions, metric=self._metric, if_absent=True
            )
            self._is_there = True

    async def _aready(self, client: Client, dimensions: int) -> None:
        if self._create and not self._is_there:
            await client.create_collection(self._collection, dimensions=dimensions, metric=self._metric, if_absent=True)
            self._is_there = True


def _varied(k: int, fetch_k: int, lambda_mult: float) -> dict[str, Any]:
    """Options of needle's search. Raises ValueError for a weight that is none."""
    if not 0.0 <= lambda_mult <= 1.0:
        raise ValueError(f"lambda_mult = {lambda_mult} is not allowed: from 0 to 1")
    return {"diversify": 1.0 - lambda_mult, "pool": max(k, fetch_k)}


def _deleted(ids: Sequence[str] | None, filter: Where) -> Filter | None:
    """What is deleted by a filter: all if nothing is said, as LangChain has it. None if ids say it."""
    if ids is not None and filter is not None:
        raise InvalidArgument("ids and filter are given: only one of both says what is deleted", field="filter")
    if ids is not None:
        return None
    return filter_of(filter) or Filter.parse({})


def _refuse(kwargs: Mapping[str, Any]) -> None:
    """What is not understood may not be passed over."""
    if kwargs:
        raise TypeError(f"not known here: {', '.join(sorted(kwargs))}")
