"""LangChain's vector store over Needle."""

from langchain_needle.vectorstore import NeedleVectorStore

__all__ = ["NeedleVectorStore"]
