"""Between LangChain's documents and Needle's: pure functions that the store's blocking and asynchronous methods share.

A document is its text under one field of the metadata, `text_field`, with its own metadata beside it, so that filters
name its fields as they are.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from needle import Filter, Hit, InvalidArgument, translate


def batch_of(
    texts: Sequence[str], metadatas: Sequence[Mapping[str, Any]] | None, ids: Sequence[str | None] | None, field: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Ids and metadata to be stored; who has no id gets a random one. Raises ValueError for lists of different lengths,
    and for metadata that uses the text's field."""
    for name, given in (("metadatas", metadatas), ("ids", ids)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"{name} has {len(given)} members, and there are {len(texts)} texts")
    named = [id_ or str(uuid.uuid4()) for id_ in ids or [None] * len(texts)]
    stored = []
    for text, metadata in zip(texts, metadatas or [{}] * len(texts), strict=True):
        if field in metadata:
            raise ValueError(f"metadata may not use {field!r}, where the text is kept: choose another text_field")
        stored.append({**metadata, field: text})
    return named, stored


def document_of(id_: str, metadata: Mapping[str, Any], field: str) -> Document:
    """Of what is stored. A document that another program stored without the text has an empty one."""
    rest = {name: value for name, value in metadata.items() if name != field}
    text = metadata.get(field, "")
    return Document(id=id_, page_content=text if isinstance(text, str) else str(text), metadata=rest)


def scored(hits: Iterable[Hit], field: str) -> list[tuple[Document, float]]:
    """With distances: lower is nearer."""
    return [(document_of(hit.id, hit.metadata or {}, field), hit.distance) for hit in hits]


def filter_of(given: Filter | Mapping[str, Any] | None) -> Filter | None:
    """A needle.Filter as it is; a mapping as LangChain's other stores take it (`{"year": {"$gte": 2020}}`). Raises
    InvalidArgument naming what is not understood."""
    if given is None or isinstance(given, Filter):
        return given
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"filter is a needle.Filter or a mapping, not a {type(given).__name__}", field="filter")
    return translate.langchain(given)
