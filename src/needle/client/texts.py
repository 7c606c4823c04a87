"""Texts in the place of vectors, for all methods that take them.

Invariant: a text becomes a vector only of the model that its collection names, as the catalog had it after the call
began (for eventual reads: as any node has it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from needle.base import plain
from needle.base.errors import InvalidArgument
from needle.base.model import ReadMode
from needle.base.runtime import Blocking, beside
from needle.client import values
from needle.client.document_calls import DocumentCalls, find_collection
from needle.client.embedding import WORDLLAMA, Embedder, check_takes, check_texts, rows_of
from needle.client.values import Seconds, Vectors

Documents = Callable[[], Awaitable[DocumentCalls]]


async def vector_of(
    given: Embedder | None,
    documents: Documents,
    vector: Any,
    text: Any,
    collection: str,
    timeout: Seconds,
    mode: ReadMode | str = ReadMode.STRONG,
    field: str = "vector",
) -> tuple[Any, Seconds]:
    """The vector that was given, or that of the text; and the seconds that are left. given: the embedder, if there is
    one of the caller's own. Raises InvalidArgument for both, and as `embedded`."""
    if text is None:
        return vector, timeout
    if vector is not None:
        raise InvalidArgument(f"give either {field} or text, not both", field="text")
    texts = [plain.text(text, "text", "a text that is not empty")]
    rows, left = await _checked(given, documents, texts, collection, timeout, mode)
    return rows[0], left


async def vectors_of(
    given: Embedder | None,
    documents: Documents,
    vectors: Any,
    texts: Any,
    collection: str,
    timeout: Seconds,
    mode: ReadMode | str = ReadMode.STRONG,
    field: str = "vectors",
) -> tuple[Any, Seconds]:
    """`vector_of` of many."""
    if texts is None:
        return vectors, timeout
    if vectors is not None:
        raise InvalidArgument(f"give either {field} or texts, not both", field="texts")
    return await _checked(given, documents, check_texts(texts, "texts"), collection, timeout, mode)


async def _checked(
    given: Embedder | None,
    documents: Documents,
    texts: list[str],
    collection: str,
    timeout: Seconds,
    mode: ReadMode | str,
) -> tuple[Vectors, float]:
    name, seconds = values.check_name(collection), values.check_timeout(timeout)
    read, asked = values.choose(mode, ReadMode, "mode"), await documents()
    return await embedded(asked, given or WORDLLAMA, texts, name, seconds, read, asked.blocking)


async def embedded(
    documents: DocumentCalls,
    embedder: Embedder,
    texts: list[str],
    collection: str,
    timeout: float,
    mode: ReadMode,
    blocking: Blocking | None,
) -> tuple[Vectors, float]:
    """The vectors of texts for a collection, and the seconds of `timeout` that are left. Raises InvalidArgument if it
    names another model than the embedder's, or none; CollectionNotFound; ConfigError where WordLlama is not
    installed."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    collections, aliases = await documents.described(mode, timeout)
    check_takes(find_collection(collection, collections, aliases).spec, embedder)
    rows = await beside(blocking, rows_of, embedder, texts)
    return rows, max(0.001, deadline - clock())
