"""LlamaIndex's vector store over Needle."""

from llama_index.vector_stores.needle.base import NeedleVectorStore

__all__ = ["NeedleVectorStore"]
