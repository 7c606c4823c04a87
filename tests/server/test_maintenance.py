"""When a node has given up what it leads, and when it is back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.errors import NotLeader, Unavailable
from needle.base.ids import CATALOG_GROUP, shard_group
from needle.base.model import WriteResult
from needle.catalog.state import execute
from needle.protocol.catalog_commands import MaintainNode
from needle.routing.topology import NodeInfo, Topology
from needle.server.upkeep.maintenance import Maintenance

SHARD = shard_group(0)


class Host:
    """Leads `led`; counts what is waited for."""

    stopped = False
    maintenance = False

    def __init__(self, *led: int) -> None:
        self.heirs = SimpleNamespace(resting=frozenset())
        self.led = set(led)
        self.waited: list[int] = []

    def set_maintenance(self, on: bool) -> None:
        self.maintenance = on

    def is_leader(self, group: int) -> bool:
        return group in self.led

    def leader(self, group: int) -> str:
        return "node-2"

    def status(self, group: int) -> SimpleNamespace:
        return SimpleNamespace(voters=["node-1", "node-2"])

    async def wait_applied(self, group: int, index: int, timeout: float) -> None:
        self.waited.append(group)


class Hosted:
    """A replica whose leader is asked; `asked` happens meanwhile."""

    def __init__(self, group: int, asked: Any = lambda: None) -> None:
        self.group = group
        self._asked = asked

    async def leader_index(self, timeout: float) -> int:
        self._asked()
        return 1


class Node:
    """A node whose catalog refuses commands while `silent`, and else executes them at once."""

    node_id = "node-1"
    catalog: object | None = None
    silent = False

    def __init__(self, host: Host) -> None:
        self.host = host
        self.maintenance = Maintenance(self)  # type: ignore[arg-type]
        self.known = Topology(
            version=1,
            nodes=(NodeInfo(id="node-1", address="h:1", incarnation=1), NodeInfo(id="n", address="h:2", incarnation=1)),
        )
        self.topology = self.known
        self.groups: dict[int, Hosted] = {}
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time

    def reading(self) -> int:
        return 0

    @property
    def shards(self) -> Node:
        return self

    async def command(self, command: MaintainNode, timeout: float) -> WriteResult:
        if self.silent:
            raise Unavailable("the catalog has no leader")
        index = self.known.version + 1
        self.known, result = execute(self.known, index, command)
        assert isinstance(result, WriteResult)
        return result

    async def wait_topology(self, version: int, timeout: float) -> bool:
        self.adopt()
        return True

    def adopt(self) -> None:
        """Hear what the catalog says."""
        self.topology = self.known
        self.maintenance.follow()


async def test_the_catalog_is_led_elsewhere_too() -> None:
    """Otherwise whoever stops the node next has the whole cluster wait for an election of the catalog's."""
    node = Node(Host(CATALOG_GROUP))
    node.groups[SHARD] = Hosted(SHARD)
    maintenance = node.maintenance
    assert await maintenance.led_elsewhere(1.0)  # it has no replica of it
    node.catalog = object()
    assert not await maintenance.led_elsewhere(1.0)
    node.host.led.clear()
    assert await maintenance.led_elsewhere(1.0)


async def test_shards_that_come_and_go_while_a_node_catches_up_are_no_error() -> None:
    node = Node(Host())
    other, new = shard_group(1), shard_group(2)

    def change() -> None:
        del node.groups[other]
        node.groups[new] = Hosted(new)

    node.groups = {SHARD: Hosted(SHARD, change), other: Hosted(other)}
    await node.maintenance.set(False, 100.0)
    assert node.host.waited == [SHARD]


async def test_who_comes_back_while_leadership_moves_asks_the_next_leader() -> None:
    """It moves because this node, or another one that came back, may lead again."""
    node, refusals = Node(Host()), [NotLeader("this node does not lead shard 0"), Unavailable("no leader is known")]

    def moved() -> None:
        if refusals:
            raise refusals.pop()

    node.groups = {SHARD: Hosted(SHARD, moved)}
    await node.maintenance.set(False, 100.0)
    assert node.host.waited == [SHARD] and not refusals

    def nobody() -> None:
        raise NotLeader("this node does not lead shard 0")

    node.groups = {SHARD: Hosted(SHARD, nobody)}
    with pytest.raises(NotLeader):
        await node.maintenance.set(False, 20.0)


async def test_a_shard_that_is_given_away_while_it_is_waited_for_is_no_error() -> None:
    """An operator would read that a shard is closed, and that the node is not back."""
    node = Node(Host())
    other = shard_group(1)

    def given_away() -> None:
        del node.groups[SHARD]
        raise Unavailable("shard 0 is closed on node node-1")

    node.groups = {SHARD: Hosted(SHARD, given_away), other: Hosted(other)}
    await node.maintenance.set(False, 100.0)
    assert node.host.waited == [other]

    def fails() -> None:
        raise Unavailable("the leader does not answer")

    node.groups = {SHARD: Hosted(SHARD, fails)}
    with pytest.raises(Unavailable, match="does not answer"):
        await node.maintenance.set(False, 100.0)


async def test_a_node_is_in_maintenance_while_the_catalog_says_so() -> None:
    """A process that begins knows of nothing but the catalog's word."""
    node = Node(Host())
    await node.maintenance.set(True, 100.0)
    assert node.host.maintenance
    again = Node(Host())
    again.known = node.known
    again.adopt()
    assert again.host.maintenance
    await again.maintenance.set(False, 100.0)
    assert not again.host.maintenance and not again.topology.nodes[0].maintenance


async def test_who_leaves_is_out_before_the_catalog_has_a_leader() -> None:
    """It may be the only node that can lead it. What the catalog says of that maintenance later does not bring it back,
    a new one does."""
    node = Node(Host())
    await node.maintenance.set(True, 100.0)
    node.silent = True
    with pytest.raises(Unavailable):
        await node.maintenance.set(False, 100.0)
    assert not node.host.maintenance
    node.adopt()
    assert not node.host.maintenance and node.topology.nodes[0].maintenance
    node.silent = False
    await node.maintenance.set(False, 100.0)
    await node.command(MaintainNode("node-1", True), 1.0)
    node.adopt()
    assert node.host.maintenance


async def test_a_node_that_stops_stays_out_of_leadership_whatever_it_hears() -> None:
    node = Node(Host())
    await node.maintenance.give_away(100.0)
    node.adopt()
    assert node.host.maintenance
