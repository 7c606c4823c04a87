"""Which calls are spans: a new method about documents is one, or it is said here that it is not."""

from __future__ import annotations

import inspect

from needle.client.client import Client
from needle.client.document_calls import DocumentCalls
from needle.client.router.router import Router
from needle.client.traced import CALLS, ROUTED

OF_THE_CATALOG = {
    *("add_vector", "alter_collection", "declare_field", "declare_sparse", "described", "drop_vector", "remove_alias"),
    "set_alias",
}


def test_every_call_about_documents_is_a_span() -> None:
    """Counts by value were none: what a trace told of them began at the shards."""
    calls = {name for name, one in inspect.getmembers(DocumentCalls, inspect.iscoroutinefunction) if name[0] != "_"}
    assert calls - set(ROUTED) == OF_THE_CATALOG
    assert set(ROUTED) <= calls | {"change_where"}
    named = {name for name in ROUTED if inspect.iscoroutinefunction(getattr(Client, name, None))}
    assert named <= set(CALLS)
    assert {"update_vector", "delete_vector"} <= set(CALLS)  # which have no name of their own below
    assert all(inspect.iscoroutinefunction(getattr(Client, name)) for name in CALLS)
    assert all(callable(getattr(Router, name)) for name in ROUTED)
