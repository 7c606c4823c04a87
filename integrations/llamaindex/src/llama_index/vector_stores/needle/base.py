"""`NeedleVectorStore`: LlamaIndex's vector store over a client of Needle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.needle.filters import of_query, where
from llama_index.vector_stores.needle.records import nodes_of, result_of, stored

from needle import Client, CollectionNotFound, Filter, SyncClient

PREFETCH_FACTOR: Final = 4.0
"""Of the mode mmr, as elsewhere in LlamaIndex: among how many times as many the nodes are chosen."""


class NeedleVectorStore(BasePydanticVectorStore):
    """Nodes in one collection of a Needle cluster. Every write is acknowledged by a majority of its shard, and every
    read sees it, unless `mode` says otherwise.

    client: of `needle.connect_sync` or `needle.open_sync`. async_client: of `needle.connect`, for the asynchronous
    methods; without one they run the blocking ones in threads. collection_name: made at the first `add` if it is not
    there, with the nodes' dimensions and `metric` ("cosine", "l2", "dot"). mode: of reads ("strong", "leased",
    "eventual").
    """

    stores_text: bool = True
    collection_name: str = Field(default="llamaindex", description="Name of the collection")
    metric: str = Field(default="cosine", description="How near is measured: cosine, l2 or dot")
    mode: str = Field(default="strong", description="Mode of reads: strong, leased or eventual")
    _client: SyncClient = PrivateAttr()
    _async_client: Client | None = PrivateAttr(default=None)
    _is_there: bool = PrivateAttr(default=False)

    def __init__(
        self,
        client: SyncClient,
        *,
        async_client: Client | None = None,
        collection_name: str = "llamaindex",
        metric: str = "cosine",
        mode: str = "strong",
    ) -> None:
        super().__init__(collection_name=collection_name, metric=metric, mode=mode)  # type: ignore[call-arg]
        self._client = client
        self._async_client = async_client

    @classmethod
    def class_name(cls) -> str:
        return "NeedleVectorStore"

    @property
    def client(self) -> SyncClient:
        return self._client

    # --- writing ----------------------------------------------------------------------------------------------------
    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Insert or replace by id; returns the ids."""
        _refuse(kwargs)
        if not nodes:
            return []
        ids, vectors, kept = stored(nodes)
        if not self._is_there:
            self._client.create_collection(
                self.collection_name, dimensions=len(vectors[0]), metric=self.metric, if_absent=True
            )
            self._is_there = True
        self._client.insert_batch(ids=ids, vectors=vectors, metadatas=kept, collection=self.collection_name)
        return ids

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`."""
        _refuse(kwargs)
        if (client := self._async_client) is None or not nodes:
            return await asyncio.to_thread(self.add, nodes)
        ids, vectors, kept = stored(nodes)
        if not self._is_there:
            await client.create_collection(
                self.collection_name, dimensions=len(vectors[0]), metric=self.metric, if_absent=True
            )
            self._is_there = True
        await client.insert_batch(ids=ids, vectors=vectors, metadatas=kept, collection=self.collection_name)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a document."""
        _refuse(delete_kwargs)
        self._delete(where(None, doc_ids=[ref_doc_id]))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`."""
        _refuse(delete_kwargs)
        await self._adelete(where(None, doc_ids=[ref_doc_id]))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes of these ids that match. Raises ValueError if nothing is said: `clear` deletes all."""
        _refuse(delete_kwargs)
        self._delete(_chosen(node_ids, filters))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """As `delete_nodes`."""
        _refuse(delete_kwargs)
        await self._adelete(_chosen(node_ids, filters))

    def clear(self) -> None:
        """Delete all nodes; the collection stays."""
        self._delete(where(None))

    async def aclear(self) -> None:
        """As `clear`."""
        await self._adelete(where(None))

    # --- reading ----------------------------------------------------------------------------------------------------
    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes of these ids that match, in the order of ids; all if nothing is said."""
        asked = where(filters, node_ids=node_ids)
        try:
            return nodes_of(
                self._client.scan(asked, with_vectors=True, mode=self.mode, collection=self.collection_name)
            )
        except CollectionNotFound:  # it is made at the first `add`
            return []

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`."""
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self.get_nodes, node_ids, filters)
        asked = where(filters, node_ids=node_ids)
        try:
            scan = client.scan(asked, with_vectors=True, mode=self.mode, collection=self.collection_name)
            return nodes_of([one async for one in scan])
        except CollectionNotFound:
            return []

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nearest nodes. kwargs: of needle's `search`, as ef_search, exact, timeout."""
        vector, asked, options = self._asked(query, kwargs)
        try:
            return result_of(self._client.search(vector, query.similarity_top_k, asked, **options))
        except CollectionNotFound:
            return result_of([])

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`."""
        if (client := self._async_client) is None:
            return await asyncio.to_thread(self.query, query, **kwargs)
        vector, asked, options = self._asked(query, kwargs)
        try:
            return result_of(await client.search(vector, query.similarity_top_k, asked, **options))
        except CollectionNotFound:
            return result_of([])

    # --- what they share --------------------------------------------------------------------------------------------
    def _asked(self, query: VectorStoreQuery, kwargs: dict[str, Any]) -> tuple[list[float], Filter, dict[str, Any]]:
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            raise ValueError(f"mode = {query.mode.value!r} is not allowed: default or mmr")
        if query.query_embedding is None:
            raise ValueError("query_embedding = None is not allowed: the vector to search for")
        options = {"mode": self.mode, "collection": self.collection_name, **kwargs}
        if query.mode == VectorStoreQueryMode.MMR:
            factor = options.pop("mmr_prefetch_factor", PREFETCH_FACTOR)
            options["diversify"] = 1.0 - (0.5 if query.mmr_threshold is None else query.mmr_threshold)
            options["pool"] = max(query.similarity_top_k, int(query.similarity_top_k * factor))
        return query.query_embedding, of_query(query), options

    def _delete(self, asked: Filter) -> None:
        try:
            self._client.delete_where(asked, collection=self.collection_name)
        except CollectionNotFound:
            return

    async def _adelete(self, asked: Filter) -> None:
        if (client := self._async_client) is None:
            await asyncio.to_thread(self._delete, asked)
            return
        try:
            await client.delete_where(asked, collection=self.collection_name)
        except CollectionNotFound:
            return


def _chosen(node_ids: list[str] | None, filters: MetadataFilters | None) -> Filter:
    if node_ids is None and filters is None:
        raise ValueError("give node_ids or filters: clear() deletes all nodes")
    return where(filters, node_ids=node_ids)


def _refuse(kwargs: dict[str, Any]) -> None:
    """What is not understood may not be passed over."""
    if kwargs:
        raise TypeError(f"not known here: {', '.join(sorted(kwargs))}")
