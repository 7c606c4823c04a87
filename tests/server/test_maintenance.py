"""When a node has given up what it leads, and when it is back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from needle.base.ids import CATALOG_GROUP, shard_group
from needle.server.upkeep.maintenance import Maintenance

SHARD = shard_group(0)


class Host:
    """Leads `led`; counts what is waited for."""

    stopped = False

    def __init__(self, *led: int) -> None:
        self.led = set(led)
        self.waited: list[int] = []

    def set_maintenance(self, on: bool) -> None:
        return

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
    node_id = "node-1"
    catalog: object | None = None

    def __init__(self, host: Host) -> None:
        self.host = host
        self.groups: dict[int, Hosted] = {}
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time

    def reading(self) -> int:
        return 0


async def test_the_catalog_is_led_elsewhere_too() -> None:
    """Otherwise whoever stops the node next has the whole cluster wait for an election of the catalog's."""
    node = Node(Host(CATALOG_GROUP))
    node.groups[SHARD] = Hosted(SHARD)
    maintenance = Maintenance(node)  # type: ignore[arg-type]
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
    await Maintenance(node).set(False, 1.0)  # type: ignore[arg-type]
    assert node.host.waited == [SHARD]
