"""Texts of requests become vectors on this node, where its extra `demo` is installed: in a thread, and bounded."""

from __future__ import annotations

from typing import Any, Final

from needle.base import plain
from needle.base.errors import ConfigError, InvalidArgument, invalid
from needle.base.model import ReadMode
from needle.client.embedding import WORDLLAMA, check_texts, padded_bytes
from needle.client.texts import embedded
from needle.client.values import Vectors, check_name
from needle.server.http.call import Call

TEXTS_BYTES_MAX: Final = 256 * 1024
"""Of one request."""


async def of_text(call: Call, vector: Any, text: str | None, mode: ReadMode = ReadMode.STRONG) -> tuple[Any, float]:
    """The request's vector, or that of its text; and the seconds that are left. Raises InvalidArgument for both, and
    as `embedded`."""
    if text is None:
        return vector, call.body.timeout
    if vector is not None:
        raise InvalidArgument("give either a vector or a text, not both", field="text")
    rows, left = await _embedded(call, [plain.text(text, "text", "a text that is not empty")], "text", mode)
    return rows[0], left


async def of_texts(
    call: Call, vectors: Any, texts: list[str] | None, mode: ReadMode = ReadMode.STRONG
) -> tuple[Any, float]:
    """`of_text` of many; one of both must be there."""
    if (vectors is None) == (texts is None):
        raise InvalidArgument("give either vectors or texts", field="vectors")
    if texts is None:
        return vectors, call.body.timeout
    return await _embedded(call, texts, "texts", mode)


async def _embedded(call: Call, texts: list[str], field: str, mode: ReadMode) -> tuple[Vectors, float]:
    given = check_texts(texts, field)
    if (size := sum(len(text.encode()) for text in given)) > TEXTS_BYTES_MAX:
        raise invalid(field, f"{size:,} bytes", f"at most {TEXTS_BYTES_MAX:,} bytes together")
    call.share.take(padded_bytes(given) + 4 * WORDLLAMA.dimensions * len(given))
    name, seconds = check_name(call.collection), call.body.timeout
    try:
        return await embedded(call.router, WORDLLAMA, given, name, seconds, mode, call.blocking)
    except ConfigError as error:
        text = f"this node makes no vectors of texts: give vectors, or ask a node that does; {error.message}"
        raise ConfigError(text, field=field) from None
