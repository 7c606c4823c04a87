"""LangChain: a retriever with a filter, and answers that differ from each other (MMR).

pip install langchain-needle wordllama && python examples/langchain_retriever.py
"""

from langchain_core.embeddings import Embeddings
from langchain_needle import NeedleVectorStore
from words import Words, summaries

import needle


class WordEmbeddings(Embeddings):
    """LangChain's interface to the model."""

    def __init__(self) -> None:
        self._words = Words()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._words.embed(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


found = summaries()
with needle.open_sync(":memory:") as client:
    store = NeedleVectorStore(WordEmbeddings(), client, collection="modules")
    store.add_texts(
        [one.text for one in found], [{"lines": one.lines} for one in found], ids=[one.module for one in found]
    )

    retriever = store.as_retriever(search_kwargs={"k": 3, "filter": {"lines": {"$gte": 500}}})
    print("long modules about e-mail:")
    for document in retriever.invoke("send an e-mail"):
        print(f"  {document.id:12} {document.page_content}")

    print("different from each other:")
    for document in store.max_marginal_relevance_search("compress a file", k=3, fetch_k=20):
        print(f"  {document.id:12} {document.page_content}")
