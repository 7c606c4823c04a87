"""Which node leads the catalog, and when background work looks."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.ids import CATALOG_GROUP
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.server.lasting import next_beat
from needle.server.upkeep.leaders import LeaderSpread
from proof.sim.event_loop import SimLoop


class Host:
    """Of node-1, which leads the catalog."""

    maintenance = False

    def __init__(self, *leaders: str | None) -> None:
        """leaders: of groups 1, 2, ... that have a replica here."""
        self._leaders = {CATALOG_GROUP: "node-1", **dict(enumerate(leaders, CATALOG_GROUP + 1))}
        self.transferred: list[tuple[int, str]] = []

    def groups(self) -> list[int]:
        return list(self._leaders)

    def leader(self, group: int) -> str | None:
        return self._leaders[group]

    def is_leader(self, group: int) -> bool:
        return self._leaders[group] == "node-1"

    def status(self, group: int) -> SimpleNamespace:
        peers = [
            SimpleNamespace(id=name, recently_active=name != "node-4", is_learner=False, lag_entries=0)
            for name in ("node-2", "node-3", "node-4")
        ]
        return SimpleNamespace(peers=peers)

    async def transfer(self, group: int, to: str, timeout: float) -> None:
        self.transferred.append((group, to))


class Willing:
    """Every node answers; `maintained` are in maintenance."""

    def __init__(self, *maintained: str) -> None:
        self._maintained = maintained

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        return calls.encode(LeaderAnswer(node, None, 1, {}, node in self._maintained, True))


async def transferred(host: Host, peers: Willing) -> list[tuple[int, str]]:
    groups = {group: None for group in host.groups() if group != CATALOG_GROUP}
    topology = SimpleNamespace(serving=["one shard"], hosted_by=lambda node: [])
    node: Any = SimpleNamespace(
        node_id="node-1", host=host, peers=peers, groups=groups, topology=topology, now=lambda: 100.0
    )
    await LeaderSpread(node)._look()
    return host.transferred


@pytest.mark.parametrize(
    ("leaders", "maintained", "expected"),
    [
        pytest.param(("node-3",), (), "node-3", id="the only shard"),
        pytest.param(("node-2", "node-3", "node-3"), (), "node-3", id="most of them"),
        pytest.param(("node-2", "node-1"), (), None, id="one of its own"),
        pytest.param((None,), (), None, id="nobody leads"),
        pytest.param(("node-4",), (), None, id="gone"),
        pytest.param(("node-3",), ("node-3",), None, id="in maintenance"),
        pytest.param(("node-5",), (), None, id="no voter of the catalog"),
    ],
)
async def test_the_catalog_is_led_by_a_node_that_leads_shards(
    leaders: tuple[str | None, ...], maintained: tuple[str, ...], expected: str | None
) -> None:
    moved = await transferred(Host(*leaders), Willing(*maintained))
    assert moved == ([] if expected is None else [(CATALOG_GROUP, expected)])


def test_what_looks_at_the_same_pace_wakes_the_loop_once() -> None:
    """Whenever it began, and however long its work took."""
    loop = SimLoop(random.Random(1))
    woken: dict[float, set[str]] = {}

    async def look(name: str, first: float, every: float, took: float) -> None:
        await asyncio.sleep(first)
        while loop.time() < 10:
            await next_beat(loop.time(), every)
            woken.setdefault(round(loop.time(), 6), set()).add(name)
            await asyncio.sleep(took)

    async def all_of_them() -> None:
        await asyncio.gather(look("a", 0.013, 0.1, 0.0), look("b", 0.047, 0.1, 0.001), look("c", 0.031, 0.5, 0.3))

    loop.run_until_complete(all_of_them())
    loop.close()
    assert len(woken) <= 103, "ten times a second, not twenty-two"
    assert sum("a" in names for names in woken.values()) >= 98
    assert sum("c" in names for names in woken.values()) >= 9
