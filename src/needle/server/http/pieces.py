"""Decoding a large JSON body in pieces: a decoder holds the interpreter until it is done, and with it everybody.

Invariant: what comes out means what the type's decoder makes of the same bytes, and what that refuses is refused in its
words. The lists that can be long are passed over first, and then read element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from needle.base.decoding import DECODE_ERRORS
from needle.server.http.bodies import Body, InsertDocuments, NamedVectors, Texts, VectorType

JSON_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of a body of JSON: to pass over it takes some 2 ms a MiB."""


class PassedOver(Body, frozen=True, kw_only=True):
    """InsertDocuments, with what is long left as it is."""

    ids: list[str]
    vectors: msgspec.Raw = msgspec.Raw(b"null")
    texts: Texts | None = None
    vector_type: VectorType = "float32"
    named_vectors: NamedVectors | None = None
    metadatas: msgspec.Raw = msgspec.Raw(b"null")
    expires_at: str | list[str | None] | None = None


_passed_over = msgspec.json.Decoder(PassedOver)
_parts = msgspec.json.Decoder(list[msgspec.Raw])
_row = msgspec.json.Decoder(list[float])
_value = msgspec.json.Decoder()
_whole = msgspec.json.Decoder(InsertDocuments)


def large_decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """Decodes large bodies of a type."""
    return insert_documents if kind is InsertDocuments else msgspec.json.Decoder(kind).decode


def insert_documents(data: bytes) -> InsertDocuments:
    """Its vectors are rows of float32, unless they are binary. Raises DECODE_ERRORS."""
    try:
        found = _passed_over.decode(data)
        if _start(found.vectors) != b"[":
            return _whole.decode(data)  # binary: one long text; or texts instead, which are few
        with np.errstate(over="ignore"):  # what becomes infinite is refused by its place
            rows: Any = [np.array(_row.decode(part), np.float32) for part in _parts.decode(found.vectors)]
        metadatas = None
        if _start(found.metadatas) != b"n":
            metadatas = [_value.decode(part) for part in _parts.decode(found.metadatas)]
    except DECODE_ERRORS:
        return _whole.decode(data)  # which says what is wrong, and where
    if len({len(row) for row in rows}) > 1:
        return _whole.decode(data)  # refused later, by what was sent
    return InsertDocuments(
        timeout=found.timeout,
        ids=found.ids,
        vectors=rows,
        texts=found.texts,
        vector_type=found.vector_type,
        named_vectors=found.named_vectors,
        metadatas=metadatas,
        expires_at=found.expires_at,
    )


def _start(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])
