"""What a request costs an API key that may not ask for as much as it likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from needle.client.narrowed import pool_for
from needle.server.http import bodies
from needle.server.http.hybrid_bodies import HybridSearch


def documents_of(path: Mapping[str, str], body: Any, answer: Any) -> int:
    """How many documents a request that was answered has written, or asked for: of a search also those that it passes
    over, or chooses from, which cost as much as the others. Those of a stream are told in it."""
    if isinstance(answer, bodies.Written):
        return answer.count
    if isinstance(answer, bodies.InsertedDocuments):
        return answer.written
    if isinstance(answer, bodies.ManyHits):
        return _searched(body) * len(body.vectors or body.texts or ())
    if isinstance(answer, bodies.Hits):
        return _fused(body) if isinstance(body, HybridSearch) else _searched(body)
    if isinstance(answer, bodies.Page):
        return int(body.limit)
    if isinstance(answer, bodies.Documents):
        return len(body.ids)
    return 1 if isinstance(answer, bodies.Document) else 0


def _searched(body: bodies.SearchOptions) -> int:
    most = body.k + body.offset
    if body.diversify is not None:
        return max(most, body.pool or pool_for(most))
    return most * body.group_size


def _fused(body: HybridSearch) -> int:
    most = body.k + body.offset
    lists = (body.keywords is not None) + (body.sparse is not None)
    lists += any(one is not None for one in (body.vector, body.text, body.like))
    return lists * max(most, body.pool or pool_for(most))


def size_of(answer: Any) -> int:
    """About how many bytes an answer has, by how many things it lists."""
    lists = (getattr(answer, name, ()) for name in ("hits", "documents", "results", "values"))
    return 512 * sum(len(found) for found in lists if isinstance(found, list))
