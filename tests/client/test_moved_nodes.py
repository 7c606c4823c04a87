"""A client whose topology is old finds nodes that have moved since, also when none of a shard is where it was."""

from __future__ import annotations

import random

import msgspec
import pytest

from catalog.catalog_util import spec, topology
from client.fake_shards import virtually
from harness.connected import Connected
from needle.base.errors import ConnectionLost, NotLeader
from needle.base.model import ReadMode, SearchRequest, WriteResult
from needle.client.known_topology import AskedTopology
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls, commands
from needle.protocol.calls import GroupCall, LeaderAnswer, WriteCall
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.topology import CollectionInfo, Topology

VECTOR = b"\0" * 8
LEADER = "node-2"


class Moved(Connected):
    """A network on which nodes are where `now` says; node-2 leads every shard."""

    def __init__(self, now: Topology) -> None:
        self.now = self.told = now
        """told: where nodes that do not lead take the others to be."""
        self.reached: list[str] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        node = next((info.id for info in self.now.nodes if info.address == address), None)
        if node is None:
            raise ConnectionLost(f"nobody listens on {address}")
        self.reached.append(node)
        if method == TOPOLOGY:
            known = calls.decode(body, TopologyCall).version
            return calls.encode(TopologyAnswer(node, self.now if self.now.version > known else None))
        if method == SHARD_LEADER:
            calls.decode(body, GroupCall)
            return calls.encode(LeaderAnswer(node, LEADER, 1, self.told.addresses()))
        assert method == calls.WRITE
        if node != LEADER:
            raise NotLeader(f"{LEADER} does", leader=LEADER, leader_address=self.told.address_of(LEADER))
        command = commands.decode(calls.decode(body, WriteCall).command)
        return calls.encode(WriteResult(version=1, index=5 if isinstance(command, commands.OpenSession) else 6))


def moved(old: Topology, *names: str) -> Topology:
    nodes = tuple(
        msgspec.structs.replace(info, address=f"10.9.9.{n}:5000") if info.id in names else info
        for n, info in enumerate(old.nodes)
    )
    return msgspec.structs.replace(old, nodes=nodes, version=old.version + 1)


@pytest.mark.parametrize("names", [[LEADER], ["node-1", "node-2", "node-3"]])
def test_moved_nodes_are_found(names: list[str]) -> None:
    async def work() -> None:
        made = CollectionInfo(id=7, spec=spec("default", 2))
        old = msgspec.structs.replace(topology(shards=1, nodes=4), collections=(made,))
        network = Moved(old)
        shards = ClusterShards(network, AskedTopology(network, ["10.0.0.4:5000"], old), rng=random.Random(1))
        router = Router(shards)
        first = await router.insert("default", "a", VECTOR, b"", None, 5.0)
        network.now = moved(old, *names)
        again = await router.insert("default", "a", VECTOR, b"", None, 5.0)
        assert first.index == again.index == 6
        assert shards.topology() == network.now

    virtually(work())


def test_an_eventual_read_finds_moved_nodes() -> None:
    async def work() -> None:
        made = CollectionInfo(id=7, spec=spec("default", 2))
        old = msgspec.structs.replace(topology(shards=1, nodes=4), collections=(made,))
        network = Moved(moved(old, "node-1", "node-2", "node-3"))
        shards = ClusterShards(network, AskedTopology(network, ["10.0.0.4:5000"], old), rng=random.Random(1))
        request = SearchRequest(collection="default", vector=VECTOR, k=1)
        with pytest.raises(AssertionError):  # it comes to a node, which this network does not let search
            await Router(shards).search(request, ReadMode.EVENTUAL, 5.0)
        assert shards.topology() == network.now

    virtually(work())


@pytest.mark.parametrize("heard", [True, False], ids=["nodes-heard-of-it", "nodes-did-not-hear-of-it"])
def test_nodes_that_swapped_addresses_are_found(heard: bool) -> None:
    async def work() -> None:
        made = CollectionInfo(id=7, spec=spec("default", 2))
        old = msgspec.structs.replace(topology(shards=1, nodes=4), collections=(made,))
        network = Moved(old)
        shards = ClusterShards(network, AskedTopology(network, ["10.0.0.4:5000"], old), rng=random.Random(1))
        router = Router(shards)
        await router.insert("default", "a", VECTOR, b"", None, 5.0)
        there = {"node-1": old.address_of("node-2"), "node-2": old.address_of("node-1")}
        nodes = tuple(msgspec.structs.replace(n, address=there.get(n.id) or n.address) for n in old.nodes)
        network.now = msgspec.structs.replace(old, nodes=nodes, version=old.version + 1)
        if heard:
            network.told = network.now
        assert (await router.insert("default", "a", VECTOR, b"", None, 5.0)).index == 6

    virtually(work())
