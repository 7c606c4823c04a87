"""Whoever waits for a topology can be cancelled at any moment, also in the one in which a topology comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from needle.routing.topology import Topology
from needle.server.catalog.adoption import Adoption


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_in_the_turn_of_a_topology_is_not_lost(turns: int) -> None:
    """It was: asyncio.wait_for of Python 3.11 swallows it. Registration then went on for ever, and the node never
    stopped, for who stops it waits for its tasks."""
    node: Any = SimpleNamespace(topology=Topology(), host=SimpleNamespace(stopped=False))
    adoption = Adoption(node, None)  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(adoption.wait(1, 3600.0))
    for _ in range(3):
        await asyncio.sleep(0)
    adoption._changed.set()
    adoption._changed = asyncio.Event()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=5)
    assert waiting.cancelled()
