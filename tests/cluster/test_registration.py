"""A node that moved: it tells the others itself, tries again soon, and goes on telling those that were away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cluster.catalog_util import topology
from cluster.fake_shards import virtually
from needle.base import protocol
from needle.base.errors import ConnectionLost, InvalidArgument, NeedleError, NoQuorum
from needle.base.protocol import AddressBook
from needle.base.routing.topology import NodeInfo
from needle.server.cluster_registration import LOOK_SECONDS, Registration


class FakeNode:
    """The first node of a cluster, at another address than the catalog knows."""

    def __init__(self, address: str = "elsewhere:1") -> None:
        self.topology = topology(shards=1)
        first = self.topology.nodes[0]
        self.node_id = first.id
        self.mine = msgspec.structs.replace(first, address=address or first.address)
        self.host = SimpleNamespace(stopped=False)
        self.peers: Any = self
        self.shards: Any = self
        self.told: list[tuple[float, str, str, dict[str, str]]] = []
        self.tries: list[float] = []
        self.refusals: list[NeedleError] = []
        self.fatal: list[NeedleError] = []

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def info(self) -> NodeInfo:
        return self.mine

    def _fatal(self, error: NeedleError) -> None:
        self.fatal.append(error)

    async def wait_topology(self, version: int, timeout: float) -> bool:
        await asyncio.sleep(timeout)
        return False

    async def call(self, node: str, method: str, body: bytes, timeout: float) -> bytes:
        self.told.append((self.now(), node, method, protocol.decode(body, AddressBook).addresses))
        raise ConnectionLost("away")

    async def command(self, command: Any, timeout: float) -> None:
        self.tries.append(self.now())
        if self.refusals:
            raise self.refusals.pop(0)
        nodes = (command.node, *self.topology.nodes[1:])
        self.topology = msgspec.structs.replace(self.topology, nodes=nodes, version=self.topology.version + 1)

    async def run_for(self, seconds: float) -> None:
        task = asyncio.get_running_loop().create_task(Registration(self).run())
        await asyncio.sleep(seconds)
        self.host.stopped = True
        task.cancel()


def test_it_tells_all_others_before_it_registers_and_tries_every_second() -> None:
    async def work() -> None:
        node = FakeNode()
        node.refusals = [NoQuorum("no leader yet")] * 3
        await node.run_for(5)
        assert node.tries == pytest.approx([0, 1, 2, 3], abs=0.01)
        others = {info.id for info in node.topology.nodes} - {node.node_id}
        assert {name for _, name, _, _ in node.told} == others
        assert len(node.told) == 4 * len(others)
        assert all(told == {node.node_id: "elsewhere:1"} for _, _, _, told in node.told)
        assert node.topology.address_of(node.node_id) == "elsewhere:1"

    virtually(work())


def test_it_goes_on_telling_those_that_were_away() -> None:
    async def work() -> None:
        node = FakeNode("")
        await node.run_for(2.5 * LOOK_SECONDS)
        assert node.tries == []
        assert sorted({round(when / LOOK_SECONDS) for when, _, _, _ in node.told}) == [0, 1, 2]

    virtually(work())


def test_a_node_that_the_catalog_refuses_stops() -> None:
    async def work() -> None:
        node = FakeNode()
        node.refusals = [InvalidArgument("another data directory", field="node")]
        await node.run_for(5)
        assert len(node.tries) == len(node.fatal) == 1

    virtually(work())
