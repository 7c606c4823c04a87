"""Haystack: documents written and retrieved by a pipeline.

pip install needle-haystack wordllama && python examples/haystack_pipeline.py
"""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before it is imported: it reports to its makers otherwise

from haystack import Document, Pipeline, component
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.needle import NeedleEmbeddingRetriever
from haystack_integrations.document_stores.needle import NeedleDocumentStore
from words import DIMENSIONS, Words, summaries

words, found = Words(), summaries()


@component
class TextEmbedder:
    """A question to its embedding."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        return {"embedding": words.embed([text])[0].tolist()}


store = NeedleDocumentStore(directory=":memory:", embedding_dim=DIMENSIONS)
rows = words.embed([one.text for one in found]).tolist()
store.write_documents(
    [
        Document(id=one.module, content=one.text, meta={"lines": one.lines}, embedding=row)
        for one, row in zip(found, rows, strict=True)
    ],
    DuplicatePolicy.OVERWRITE,
)
pipeline = Pipeline()
pipeline.add_component("embedder", TextEmbedder())
pipeline.add_component("retriever", NeedleEmbeddingRetriever(document_store=store, top_k=3))
pipeline.connect("embedder.embedding", "retriever.query_embedding")
long = {"field": "meta.lines", "operator": ">=", "value": 400}
answer = pipeline.run({"embedder": {"text": "wait for several sockets at once"}, "retriever": {"filters": long}})
print("long modules about sockets:")
for document in answer["retriever"]["documents"]:
    print(f"  {document.id:12} {document.content}")
store.close()
