"""`NeedleEmbeddingRetriever`: a component for pipelines."""

from __future__ import annotations

import asyncio
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy
from haystack_integrations.document_stores.needle.document_store import NeedleDocumentStore


@component
class NeedleEmbeddingRetriever:
    """The documents nearest to an embedding."""

    def __init__(
        self,
        *,
        document_store: NeedleDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """filter_policy: whether filters given to `run` replace those given here, or are merged with them."""
        if not isinstance(document_store, NeedleDocumentStore):
            raise ValueError(f"document_store is a NeedleDocumentStore, not a {type(document_store).__name__}")
        self.document_store = document_store
        self.filters = filters or {}
        self.top_k = top_k
        self.filter_policy = (
            filter_policy if isinstance(filter_policy, FilterPolicy) else FilterPolicy.from_str(filter_policy)
        )

    def to_dict(self) -> dict[str, Any]:
        """For `Pipeline.dumps`."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NeedleEmbeddingRetriever:
        """What `to_dict` gave."""
        given = data["init_parameters"]
        given["document_store"] = NeedleDocumentStore.from_dict(given["document_store"])
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """documents: nearest first."""
        merged = apply_filter_policy(self.filter_policy, self.filters, filters)
        found = self.document_store.embedding_retrieval(query_embedding, filters=merged, top_k=top_k or self.top_k)
        return {"documents": found}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)
