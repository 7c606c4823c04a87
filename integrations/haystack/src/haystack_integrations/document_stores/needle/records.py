"""Between Haystack's documents and Needle's.

Stored as metadata: `content`, `meta`, `embedded`, `length`, `dates`, and `blob` and `sparse_embedding` where there are.

- A document without an embedding has a vector that stands in for one, and `embedded` is false: retrieval by embeddings
  never finds it.
- A collection with the metric cosine keeps directions only; `length` is that of the embedding, which is given back.
- Haystack orders dates that have no time zone. Needle orders instants; `dates` has, under the same names, what in
  `meta` is a date in ISO format, in UTC where it names no zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from haystack.dataclasses import ByteStream, Document, SparseEmbedding

import needle

EMBEDDED: Final = "embedded"


def stored(document: Document, dimensions: int) -> tuple[str, list[float], dict[str, Any]]:
    """Id, vector and metadata. Raises ValueError for an embedding of another number of dimensions."""
    kept: dict[str, Any] = {
        "content": document.content,
        "meta": document.meta,
        EMBEDDED: document.embedding is not None,
    }
    if document.blob is not None:
        kept["blob"] = document.blob.to_dict()
    if document.sparse_embedding is not None:
        kept["sparse_embedding"] = document.sparse_embedding.to_dict()
    vector = document.embedding
    if vector is None:
        vector = [1.0] + [0.0] * (dimensions - 1)
    elif len(vector) != dimensions:
        text = f"the embedding of {document.id!r} has {len(vector)} dimensions, and embedding_dim is {dimensions}"
        raise ValueError(text)
    if dates := dates_of(document.meta):
        kept["dates"] = dates
    kept["length"] = float(np.linalg.norm(vector)) if document.embedding is not None else 0.0
    return document.id, vector, kept


def document_of(id_: str, vector: Any, kept: Any, score: float | None = None) -> Document:
    """What was stored, its embedding rounded to float32."""
    blob, sparse = kept.get("blob"), kept.get("sparse_embedding")
    return Document(
        id=id_,
        content=kept.get("content"),
        meta=kept.get("meta") or {},
        blob=None if blob is None else ByteStream.from_dict(blob),
        sparse_embedding=None if sparse is None else SparseEmbedding.from_dict(sparse),
        embedding=_embedding(vector, kept),
        score=score,
    )


def dates_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What in metadata is a date, as an instant; objects as far as they have some."""
    found: dict[str, Any] = {}
    for name, value in meta.items():
        kept = dates_of(value) if isinstance(value, Mapping) else instant_of(value)
        if kept:
            found[name] = kept.isoformat() if isinstance(kept, datetime) else kept
    return found


def instant_of(value: Any) -> datetime | None:
    """Of a date in ISO format, with a day at least; in UTC where it names no zone."""
    if isinstance(value, str):
        if not value[:4].isdigit() or value[4:5] != "-" or value[7:8] != "-":
            return None
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _embedding(vector: Any, kept: Any) -> list[float] | None:
    if vector is None or not kept.get(EMBEDDED):
        return None
    length = np.linalg.norm(vector)
    return (vector * (kept["length"] / length)).tolist() if length else vector.tolist()


def retrieved(hits: Iterable[needle.Hit]) -> list[Document]:
    """Nearest first, with needle's scores: higher is nearer."""
    return [document_of(hit.id, hit.vector, hit.metadata, hit.score) for hit in hits]


def check_documents(documents: Any) -> Sequence[Document]:
    """Raises ValueError for what is not a list of Documents."""
    if not isinstance(documents, list) or not all(isinstance(one, Document) for one in documents):
        raise ValueError("documents is not a list of Documents")
    return documents
