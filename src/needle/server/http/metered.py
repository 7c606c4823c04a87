"""What a request costs an API key that may not ask for as much as it likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from needle.server.http import bodies


def documents_of(path: Mapping[str, str], body: Any, answer: Any) -> int:
    """How many documents a request that was answered has written, or asked for: of a search also those that it passes
    over, which cost as much as the others. Those of a stream are told in it."""
    if isinstance(answer, bodies.Written):
        return answer.count
    if isinstance(answer, bodies.InsertedDocuments):
        return answer.written
    if isinstance(answer, bodies.Hits | bodies.ManyHits):
        return int(body.k + body.offset) * len(getattr(body, "vectors", "1"))
    if isinstance(answer, bodies.Page):
        return int(body.limit)
    if isinstance(answer, bodies.Documents):
        return len(body.ids)
    return 1 if isinstance(answer, bodies.Document) else 0


def size_of(answer: Any) -> int:
    """About how many bytes an answer has, by how many things it lists."""
    lists = (getattr(answer, name, ()) for name in ("hits", "documents", "results"))
    return 512 * sum(len(found) for found in lists if isinstance(found, list))
