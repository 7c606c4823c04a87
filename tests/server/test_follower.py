"""Following the catalog: a source that knows nothing new forever does not keep a node in the dark."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from client.fake_shards import virtually
from needle.base.config import RaftConfig
from needle.base.errors import ConnectionLost, DeadlineExceeded, LostState, Unavailable, UnknownMethod
from needle.protocol import calls
from needle.protocol.peer_calls import TopologyAnswer, TopologyCall
from needle.routing.topology import Topology
from needle.server.catalog.follower import CatalogFollower
from needle.server.cluster_files import ClusterFile


class FakeNode:
    """Knows version 1; others know `fresh` more, or nothing more, or are away."""

    def __init__(self, *, catalog: bool, fresh: str, away: tuple[str, ...] = ()) -> None:
        self.topology = topology()
        self.fresh = fresh
        self.away = away
        self.node_id = "node-1" if catalog else "node-6"
        self.config = RaftConfig(node_id=self.node_id, cluster_nodes=[f"{self.node_id}=me:1"], data_dir="unused")
        self.cluster = ClusterFile(incarnation=1, uid=7)
        self.catalog: Any = SimpleNamespace(topology=self.topology) if catalog else None
        self.host: Any = self
        self.caller: Any = self
        self.stopped = False
        self.asked: list[str] = []

    def applied_index(self, group: int) -> int:
        return 1

    async def wait_applied(self, group: int, index: int, timeout: float) -> None:
        await asyncio.sleep(timeout)
        raise DeadlineExceeded("nothing new")

    async def adopt(self, newer: Topology) -> None:
        if newer.version > self.topology.version:
            self.topology = newer

    async def belong_to(self, uid: int) -> None:
        raise AssertionError("it belongs to a cluster already")

    def seeds(self) -> list[str]:
        return []

    def reach(self, node: str) -> str | None:
        return self.topology.address_of(node)

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        call = calls.decode(body, TopologyCall)
        name = next(info.id for info in self.topology.nodes if info.address == address)
        self.asked.append(name)
        if name in self.away:
            raise ConnectionLost(f"{name} is away")
        await asyncio.sleep(call.wait)
        newer = msgspec.structs.replace(self.topology, version=9) if name == self.fresh else None
        return calls.encode(TopologyAnswer(name, newer if call.version < 9 else None))


@pytest.mark.parametrize("catalog", [True, False], ids=["holds the catalog", "does not"])
@pytest.mark.parametrize("away", [(), ("node-2",)])
def test_every_source_is_asked_in_turn(catalog: bool, away: tuple[str, ...]) -> None:
    async def work() -> None:
        node = FakeNode(catalog=catalog, fresh="node-3", away=away)
        task = asyncio.get_running_loop().create_task(CatalogFollower(node).run())
        await asyncio.sleep(8)
        task.cancel()
        assert node.topology.version == 9
        assert node.node_id not in node.asked
        assert len(node.asked) < 20

    virtually(work())


def test_a_node_that_was_away_while_the_catalog_went_elsewhere_learns_of_it_from_others() -> None:
    async def work() -> None:
        node = FakeNode(catalog=False, fresh="node-5", away=("node-1", "node-2", "node-3"))
        task = asyncio.get_running_loop().create_task(CatalogFollower(node).run())
        await asyncio.sleep(8)
        task.cancel()
        assert node.topology.version == 9

    virtually(work())


@pytest.mark.parametrize("refusal", [LostState, Unavailable])
@pytest.mark.parametrize("alone", [True, False], ids=["nobody to ask", "others to ask"])
def test_a_replica_that_refuses_at_once_does_not_take_the_event_loop(refusal: type[Unavailable], alone: bool) -> None:
    class Refusing(FakeNode):
        waits = 0

        async def wait_applied(self, group: int, index: int, timeout: float) -> None:
            self.waits += 1
            if self.waits > 100:
                raise AssertionError("it spins")
            raise refusal("this replica does not go on")

        def reach(self, node: str) -> str | None:
            return None if alone else super().reach(node)

    async def work() -> None:
        node = Refusing(catalog=True, fresh="")
        task = asyncio.get_running_loop().create_task(CatalogFollower(node).run())
        await asyncio.sleep(8)
        assert not task.done(), task
        task.cancel()

    virtually(work())


def test_a_node_of_a_fixed_cluster_that_was_named_to_join_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    class Fixed(FakeNode):
        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            raise UnknownMethod("no such call")

    async def work() -> None:
        task = asyncio.get_running_loop().create_task(CatalogFollower(Fixed(catalog=False, fresh="")).run())
        await asyncio.sleep(8)
        task.cancel()

    virtually(work())
    told = [record.args for record in caplog.records if "of an earlier release" in record.message]
    assert told and len(told) == len(set(told))


def test_a_seed_that_knows_no_cluster_itself_does_not_hide_the_one_that_does() -> None:
    class New(FakeNode):
        """Knows nothing yet; the first of its seeds does not either."""

        def __init__(self) -> None:
            super().__init__(catalog=False, fresh="node-3")
            self.full, self.topology = self.topology, Topology()

        def seeds(self) -> list[str]:
            return [info.address for info in self.full.nodes[:3]]

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            call = calls.decode(body, TopologyCall)
            name = next(info.id for info in self.full.nodes if info.address == address)
            await asyncio.sleep(call.wait)
            return calls.encode(TopologyAnswer(name, self.full if name == self.fresh else None))

    async def work() -> None:
        node = New()
        task = asyncio.get_running_loop().create_task(CatalogFollower(node).run())
        await asyncio.sleep(8)
        task.cancel()
        assert node.topology == node.full

    virtually(work())
