"""Client and router that make OpenTelemetry spans of what is called; used only where the process has a tracer.

Invariant: they answer what the classes below them answer. It must not know what a call does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from needle.client.client import Client
from needle.client.directory import Caller
from needle.client.embedding import Embedder
from needle.client.router.router import Router
from needle.client.router.routes import Shards
from needle.client.shards import ClusterShards
from needle.tracing import CLIENT, INTERNAL, NAME, Spans, spans

CALLS: Final = (
    "insert", "insert_if_absent", "compare_and_set", "insert_batch", "insert_each", "delete", "delete_where", "get",
    "get_many", "patch", "patch_where", "replace_metadata", "update_vector", "update_vectors", "count", "counts",
    "facet", "search", "search_many", "search_strong", "search_leased", "search_eventual", "search_partial",
    "hybrid_search", "delete_vector", "collections", "create_collection", "drop_collection", "scan_page",
)  # fmt: skip
ROUTED: Final = (
    "insert", "insert_batch", "delete", "patch", "update_vectors", "change_where", "search", "search_many", "get",
    "count", "facet", "scan", "counts", "sizes", "collections", "create_collection", "drop_collection",
)  # fmt: skip


class TracedClient(Client):
    """A client whose calls are spans, below that which is current where they are made."""

    spans: Spans


class TracedRouter(Router):
    """A router whose requests are spans, between the client's and those of the shards."""

    spans: Spans


def _traced(plain: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
    @functools.wraps(plain)
    async def call(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.spans.under(name, kind):
            return await plain(self, *arguments, **options)

    return call


for _name in CALLS:
    setattr(TracedClient, _name, _traced(getattr(Client, _name), f"{NAME}.{_name}", CLIENT))
for _name in ROUTED:
    setattr(TracedRouter, _name, _traced(getattr(Router, _name), f"{NAME}.route.{_name}", INTERNAL))


def router_of(shards: Shards, **options: Any) -> Router:
    """A Router with these options; one that makes spans where there is a tracer."""
    if (found := spans()) is None:
        return Router(shards, **options)
    made = TracedRouter(shards, **options)
    made.spans = found
    return made


def client_of(caller: Caller, shards: ClusterShards, router: Router, embedder: Embedder | None = None) -> Client:
    """A Client of these; one that makes spans where there is a tracer."""
    if (found := spans()) is None:
        return Client(caller, shards, router, embedder)
    made = TracedClient(caller, shards, router, embedder)
    made.spans = found
    return made
