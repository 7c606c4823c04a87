"""LlamaIndex: an index over Needle, and a retriever with a filter.

pip install llama-index-vector-stores-needle wordllama && python examples/llamaindex_index.py
"""

from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.needle import NeedleVectorStore
from words import Words, summaries

import needle

_words = Words()


class WordEmbedding(BaseEmbedding):
    """LlamaIndex's interface to the model."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = _words.embed(texts).tolist()
        return rows

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> Any:
        return self._get_text_embedding(query)


with needle.open_sync(":memory:") as client:
    store = NeedleVectorStore(client, collection_name="modules")
    index = VectorStoreIndex(
        [TextNode(id_=one.module, text=one.text, metadata={"lines": one.lines}) for one in summaries()],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=WordEmbedding(),
    )
    short = MetadataFilters(filters=[MetadataFilter(key="lines", operator=FilterOperator.LT, value=600)])
    print("short modules about random numbers:")
    for scored in index.as_retriever(similarity_top_k=3, filters=short).retrieve("random numbers for secrets"):
        print(f"  {scored.node.node_id:12} {scored.score:.3f}  {scored.node.get_content()}")
