"""Whoever waits for a topology can be cancelled at any moment, also in the one in which a topology comes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from needle.routing.topology import NodeState, Topology
from needle.server.catalog.adoption import Adoption
from needle.server.hosting import Hosting


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_in_the_turn_of_a_topology_is_not_lost(turns: int) -> None:
    """It was: asyncio.wait_for of Python 3.11 swallows it. Registration then went on forever, and the node never
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


class Held:
    """A replica of a shard, and of the catalog: counts what is done with it."""

    def __init__(self) -> None:
        self.replica = self
        self.stops = self.closes = 0

    async def stop(self) -> None:
        self.stops += 1
        await asyncio.sleep(0)

    def close(self) -> None:
        self.closes += 1


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5, 50])
async def test_what_is_being_closed_when_the_node_stops_is_closed_with_the_rest(turns: int) -> None:
    """It was forgotten: its background work went on, and its files stayed open, until the process ended."""
    shard, catalog = Held(), Held()

    async def close_group(_: int) -> None:
        await asyncio.sleep(0)

    node: Any = SimpleNamespace(
        node_id="a",
        cluster=SimpleNamespace(incarnation=1),
        groups={2: shard},
        host=SimpleNamespace(engine=SimpleNamespace(close_group=close_group)),
        catalog=catalog,
        ports=SimpleNamespace(search_threads=1, search_pool=None, spent=None),
    )
    told: Any = SimpleNamespace(
        node=lambda _: SimpleNamespace(incarnation=1, state=NodeState.ACTIVE), hosted_by=lambda _: [], catalog=()
    )
    hosting = Hosting(node, lambda _: None)
    adopting = asyncio.ensure_future(Adoption(node, hosting)._open_and_close(told))
    for _ in range(turns):
        await asyncio.sleep(0)
    adopting.cancel()
    await asyncio.gather(adopting, return_exceptions=True)
    await hosting.stop_replicas()
    hosting.close_catalog()
    hosting.close_replicas()
    assert shard.stops and shard.closes and catalog.closes
    if turns == 50:
        assert (shard.stops, shard.closes, catalog.closes) == (1, 1, 1)
