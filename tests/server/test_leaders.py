"""Which node leads the catalog, and when background work looks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.ids import CATALOG_GROUP
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.server.upkeep.leaders import LeaderSpread


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
    """Every node answers, after `takes` seconds; `maintained` are in maintenance."""

    def __init__(self, *maintained: str, takes: float = 0.1) -> None:
        self._maintained = maintained
        self._takes = takes
        self._now = 100.0

    def now(self) -> float:
        return self._now

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        self._now += self._takes
        return calls.encode(LeaderAnswer(node, None, 1, {}, node in self._maintained, True))


async def transferred(host: Host, peers: Willing) -> list[tuple[int, str]]:
    groups = {group: None for group in host.groups() if group != CATALOG_GROUP}
    topology = SimpleNamespace(serving=["one shard"], hosted_by=lambda node: [])
    config = SimpleNamespace(election_timeout=1.0)
    node: Any = SimpleNamespace(
        node_id="node-1", config=config, host=host, peers=peers, groups=groups, topology=topology, now=peers.now
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


async def test_where_answers_take_long_no_leader_is_moved() -> None:
    """It would be an election more, and the next one: heartbeats of the new leader come as late."""
    assert await transferred(Host("node-3"), Willing(takes=0.6)) == []
    assert await transferred(Host("node-3"), Willing(takes=0.4)) == [(CATALOG_GROUP, "node-3")]
