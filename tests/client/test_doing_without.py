"""What it would cost to do without a node, and that maintenance which would cost that is refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from client.test_restarting import led, peer
from needle.base.errors import InvalidArgument, NoQuorum
from needle.base.ids import CATALOG_GROUP, GroupId
from needle.base.model import RaftStatus, WriteResult
from needle.catalog.state import execute
from needle.client import nodes
from needle.client.client import Client
from needle.client.doing_without import costs
from needle.protocol.catalog_commands import CatalogCommand, MaintainNode
from needle.routing.topology import Topology

NOW = topology(shards=1, nodes=3)
WELL = led("node-1", peer("node-2"), peer("node-3"))


def resting(*names: str) -> Topology:
    found = tuple(msgspec.structs.replace(one, maintenance=1 if one.id in names else 0) for one in NOW.nodes)
    return msgspec.structs.replace(NOW, nodes=found)


@pytest.mark.parametrize(
    ("group", "now", "node", "expected"),
    [
        (WELL, NOW, "node-1", []),
        (WELL, resting("node-2"), "node-1", []),
        (
            led("node-1", peer("node-2"), peer("node-3", active=False)),
            NOW,
            "node-2",
            ["once it is stopped, shard 0 has no majority: node-3 does not answer"],
        ),
        (led("node-1", peer("node-2"), peer("node-3", active=False)), NOW, "node-3", []),  # more it cannot cost
        (
            led("node-1", peer("node-2"), peer("node-3", active=False)),
            resting("node-2"),
            "node-1",
            ["nobody could lead shard 0: node-3 does not answer; node-2 is in maintenance"],
        ),
        (
            led("node-1", peer("node-2", lag=500), peer("node-3", state="snapshot")),
            NOW,
            "node-1",
            ["nobody could lead shard 0: node-2 is 500 entries behind; node-3 fetches a snapshot"],
        ),
        (None, NOW, "node-1", ["shard 0 has no leader that answers"]),
        (led("node-1"), NOW, "node-1", []),  # the only replica goes on leading
        (led("node-1", peer("node-2")), NOW, "node-1", []),  # it has no majority without it at any time
        (led("node-2", peer("node-3")), NOW, "node-1", []),
    ],
)
def test_what_it_costs_to_do_without_a_node(
    group: RaftStatus | None, now: Topology, node: str, expected: list[str]
) -> None:
    assert costs(node, {1: group}, now) == expected


class Cluster:
    """The catalog, and what leaders of groups say of them."""

    def __init__(self, shard: RaftStatus | None) -> None:
        self.now = NOW
        catalog = led("node-1", peer("node-2"), peer("node-3"), group=CATALOG_GROUP)
        self.said: dict[GroupId, RaftStatus | None] = {CATALOG_GROUP: catalog, 1: shard}
        self.asked = 0
        self.client: Any = object.__new__(Client)
        self.client._shards = SimpleNamespace(
            confirmed=self.confirmed,
            command=self.command,
            topology=lambda: self.now,
            node_at=self.node_at,
            group=lambda shard: SimpleNamespace(leaders_status=lambda seconds: self.leaders_status(shard + 1)),
        )
        self.client._caller = SimpleNamespace(call=self.call)

    async def confirmed(self, timeout: float) -> Topology:
        return self.now

    async def command(self, command: CatalogCommand, timeout: float) -> Any:
        assert isinstance(command, MaintainNode)
        self.now, result = execute(self.now, self.now.version + 1, command)
        assert isinstance(result, WriteResult)
        return result

    async def node_at(self, address: str) -> str:
        return next(name for name, at in self.now.addresses().items() if at == address)

    async def call(self, *_: Any) -> bytes:
        return b""

    async def leaders_status(self, group: GroupId) -> RaftStatus:
        self.asked += 1
        found = self.said[group]
        if found is None:
            raise NoQuorum("nobody leads it")
        return found

    def resting(self) -> list[str]:
        return [info.id for info in self.now.nodes if info.maintenance]


async def test_maintenance_of_a_node_that_the_cluster_needs_is_refused_unless_it_is_forced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "SPARED_SECONDS", 0.0)
    cluster = Cluster(led("node-1", peer("node-2"), peer("node-3", active=False)))
    for ask in (cluster.client.enter_maintenance_mode, cluster.client.check_maintenance):
        with pytest.raises(InvalidArgument, match=r"shard 0 has no majority: node-3 does not answer.*--force"):
            await ask("node-2")
    assert cluster.resting() == []
    with pytest.raises(InvalidArgument, match="node-2 is not put"):  # by its address, too
        await cluster.client.enter_maintenance_mode(cluster.now.addresses()["node-2"])
    await cluster.client.enter_maintenance_mode("node-3")
    await cluster.client.check_maintenance("node-2", force=True)
    await cluster.client.enter_maintenance_mode("node-2", force=True)
    assert cluster.resting() == ["node-2", "node-3"]
    await cluster.client.enter_maintenance_mode("node-2")  # it is in maintenance: nothing more is asked for
    await cluster.client.check_maintenance("node-2")


async def test_an_election_is_waited_for() -> None:
    cluster = Cluster(None)
    asked = cluster.leaders_status

    async def elected(group: GroupId) -> RaftStatus:
        if cluster.asked > 2:
            cluster.said[1] = WELL
        return await asked(group)

    cluster.leaders_status = elected  # type: ignore[method-assign]
    await asyncio.wait_for(cluster.client.enter_maintenance_mode("node-2"), 10)
    assert cluster.resting() == ["node-2"]
