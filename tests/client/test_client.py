"""The client: one shard is the default, nodes that refuse to talk are told from those that are unknown, and a cluster
may be made late."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from catalog.catalog_util import topology
from client.fake_shards import VirtualTime
from harness.connected import Connected
from harness.scripted_network import ADDRESSES, VECTOR, Network, client_of, numbers
from needle.base.errors import ClientClosed, ConnectionLost, InvalidArgument, Unavailable, WrongCluster
from needle.base.parts import Body
from needle.client import Client
from needle.client.health import ClusterHealth
from needle.client.known_topology import AskedTopology
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.topology import Topology

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy:DeprecationWarning")


@pytest.fixture
def event_loop_policy() -> VirtualTime:
    return VirtualTime()


async def test_a_cluster_of_one_shard_needs_no_number_of_it() -> None:
    network = Network()
    client = client_of(network)
    assert await client.leader() == await client.leader() == await client.leader(0) == "n1"
    assert client.nodes() == ADDRESSES
    with pytest.raises(InvalidArgument, match="shard = 1"):
        await client.leader(1)
    network.down = set(ADDRESSES)
    health = await client.health_check(timeout=0.2)
    assert isinstance(health, ClusterHealth)
    assert [shard.state for shard in health.shards.values()] == ["unavailable"]
    assert len(health.shards[0].problems) == 4, "no leader, and three nodes that do not answer"
    assert health.shards[0].share == 1.0


async def test_a_cluster_none_of_whose_nodes_ever_answered_has_no_shards_to_name() -> None:
    network = Network()
    network.down = set(ADDRESSES)
    client = client_of(network, Topology())
    assert (await client.health_check(timeout=0.2)).shards == {}
    assert await client.leader() is None and await client.catalog_leader() is None
    with pytest.raises(Unavailable, match="no shards yet"):
        await client.node_status("n1")


@pytest.mark.parametrize("refusal", [WrongCluster("another cluster"), ClientClosed("this client is closed")], ids=type)
async def test_nodes_that_refuse_to_talk_are_not_taken_for_unknown_ones(refusal: Exception) -> None:
    class Refusing(Network):
        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            raise refusal

    client = client_of(Refusing())
    for call in (client.leader, client.status):
        with pytest.raises(type(refusal)):
            await call()
    with pytest.raises(type(refusal)):
        await client.node_status("n1")


async def test_a_write_of_unknown_fate_keeps_its_number_over_leaders_and_operators_calls() -> None:
    class Restless(Network):
        """The leader that loses a write loses its office, while an operator asks who leads."""

        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            try:
                return await super().call(address, method, body, timeout)
            except ConnectionLost:
                self.elect({"n1": "n2", "n2": "n3"}[str(self.leader)])
                asked.append(asyncio.create_task(client.leader()))
                raise

    asked: list[asyncio.Task[str | None]] = []
    network = Restless()
    client = client_of(network)
    await client.insert("first", VECTOR)
    network.writes.clear()
    network.script = [ConnectionLost("gone"), ConnectionLost("gone")]
    await client.insert("again", VECTOR)
    assert [node for node, _ in network.writes] == ["n1", "n2", "n3"]
    assert len(set(numbers(network))) == 1
    assert network.sessions == 1
    assert {await task for task in asked} <= {"n2", "n3"}


class Sharded(Connected):
    """Nodes of a cluster that is made when `now` is set; node-2 leads everything."""

    def __init__(self) -> None:
        self.now = Topology()

    async def call(self, address: str, method: str, body: Body, timeout: float) -> bytes:
        node = f"node-{address.split(':')[0].rpartition('.')[2]}"
        if method == TOPOLOGY:
            known = calls.decode(bytes(body), TopologyCall).version  # type: ignore[arg-type]
            return calls.encode(TopologyAnswer(node, self.now if self.now.version > known else None))
        assert method == SHARD_LEADER
        return calls.encode(LeaderAnswer(node, "node-2", 1, self.now.addresses()))


async def test_a_sharded_cluster_that_is_not_made_yet_says_so_and_is_found_once_it_is() -> None:
    network = Sharded()
    shards = ClusterShards(network, AskedTopology(network, ["10.0.0.1:5000"], network.now), rng=random.Random(1))
    client = Client(network, shards, Router(shards))
    assert await client.leader() is None and await client.catalog_leader() is None
    for call in (client.status, client.catalog_status, client.digests):
        with pytest.raises(Unavailable, match="a majority of its cluster_nodes, or make it"):
            await call()
    network.now = msgspec.structs.replace(topology(shards=2, nodes=3), version=7)
    assert await client.catalog_leader() == "node-2"
    network.now = Topology()
    assert await client.leader(1) == "node-2"
    with pytest.raises(InvalidArgument, match="from 0 to 1"):
        await client.leader()
