"""Haystack's document store over Needle."""

from haystack_integrations.document_stores.needle.document_store import NeedleDocumentStore

__all__ = ["NeedleDocumentStore"]
