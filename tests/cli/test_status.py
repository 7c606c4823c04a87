"""What `needle status` says beside the conditions of each shard."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cli.test_conditions import view
from cluster.catalog_util import topology
from needle.base.errors import NoQuorum
from needle.base.model import RaftStatus
from needle.catalog.state import execute
from needle.cli.status import look
from needle.client.health import ReplicaStatus
from needle.protocol.catalog_commands import AddShard, RetireShard
from needle.routing.topology import Topology


class FakeClient:
    """A shard on three nodes that are well, and a catalog that says `told`."""

    def __init__(self, told: RaftStatus | NoQuorum) -> None:
        now = topology(shards=1, nodes=3)
        now = execute(now, 2, AddShard(1, ["node-1"]))[0]
        self.now = execute(now, 3, RetireShard(1))[0]
        assert self.now.shards[1].retired
        self.told = told

    async def cluster_status(self, *, timeout: float) -> list[ReplicaStatus]:
        nodes = self.now.shards[0].replicas
        states = {node: "Leader" if node == nodes[0] else "Follower" for node in nodes}
        return [
            ReplicaStatus(shard=0, node=node, address=f"{node}:1", status=view(node, state).status)
            for node, state in states.items()
        ]

    async def catalog_status(self, *, timeout: float) -> RaftStatus:
        if isinstance(self.told, NoQuorum):
            raise self.told
        return self.told

    def topology(self) -> Topology:
        return self.now


def seen(told: RaftStatus | NoQuorum) -> list[tuple[str, str, str]]:
    client: Any = FakeClient(told)
    found = asyncio.run(look(client, [])).conditions
    return [(one.severity, one.name, one.subject) for one in found]


@pytest.fixture
def well() -> RaftStatus:
    status = view("node-1", "Leader").status
    assert status is not None
    return status


def test_a_shard_that_was_given_up_needs_no_leader(well: RaftStatus) -> None:
    assert seen(well) == []


def test_what_the_catalog_waits_for_is_said(well: RaftStatus) -> None:
    waits = msgspec.structs.replace(well, waits_for="node-4 does not answer")
    assert seen(waits) == [("warning", "replicas not in place", "catalog: node-4 does not answer")]


def test_a_catalog_without_a_leader_is_critical() -> None:
    assert seen(NoQuorum("nobody leads")) == [("critical", "no leader", "catalog: nobody leads")]
