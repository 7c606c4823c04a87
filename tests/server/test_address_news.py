"""Asking others where a node is that speaks and is not known."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from needle.base.config import RaftConfig
from needle.server.address_book import AddressBook
from needle.server.asking import AddressNews


async def test_a_node_that_stops_asks_for_nobody() -> None:
    """Its listener takes messages for a moment longer; what they began would outlive the node."""
    config = RaftConfig(node_id="node-1", cluster_nodes=["node-1=h1:1"], data_dir="d")
    node = SimpleNamespace(
        node_id="node-1", config=config, addresses=dict, book=AddressBook({"node-1": "h1:1"}, {}, lambda _: None)
    )
    news, before = AddressNews(node), asyncio.all_tasks()  # type: ignore[arg-type]
    news.heard_from("node-1")
    assert asyncio.all_tasks() == before
    news.heard_from("node-2")
    news.heard_from("node-2")
    assert len(asyncio.all_tasks() - before) == 1
    news.end()
    news.heard_from("node-2")
    await asyncio.gather(*(asyncio.all_tasks() - before), return_exceptions=True)
    news.heard_from("node-2")
    assert asyncio.all_tasks() == before
