"""Haystack's retriever over Needle."""

from haystack_integrations.components.retrievers.needle.embedding_retriever import NeedleEmbeddingRetriever

__all__ = ["NeedleEmbeddingRetriever"]
