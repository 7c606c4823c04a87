"""One client of both kinds: a fixed cluster is a shard without a catalog, a sharded one may be made late."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from cluster.catalog_util import topology
from harness.scripted_network import ADDRESSES, VECTOR, Network, numbers
from needle.base.errors import ClientClosed, ConnectionLost, InvalidArgument, Unavailable, WrongCluster
from needle.base.parts import Body
from needle.client import Client
from needle.client.health import ClusterHealth
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.protocol.catalog_commands import RemoveNode
from needle.protocol.peer_calls import SHARD_LEADER, TOPOLOGY, TopologyAnswer, TopologyCall
from needle.routing.topology import Topology


async def test_a_fixed_cluster_is_one_shard_without_a_catalog() -> None:
    network = Network()
    client = Client(network, ADDRESSES.values(), rng=random.Random(1))
    assert not client.has_catalog
    assert await client.leader() == await client.leader() == await client.leader(0) == "n1"
    assert client.nodes() == ADDRESSES == (await client.refresh_topology(timeout=1)).addresses()
    assert client.topology().shards[0].replicas == ("n1", "n2", "n3")
    with pytest.raises(InvalidArgument, match="shard = 1"):
        await client.leader(1)
    with pytest.raises(InvalidArgument, match="no catalog"):
        await client.change_catalog(RemoveNode("n1"))
    with pytest.raises(InvalidArgument, match="not sharded"):
        await client.describe_node("n1")
    for call in (client.set_replicas(0, ["n2"]), client.set_catalog_nodes(["n2"]), client.remove_node("n1")):
        with pytest.raises(InvalidArgument, match="change_membership"):
            await call
    with pytest.raises(InvalidArgument, match="no catalog to confirm"):
        await client.refresh_topology(confirmed=True)
    network.down = set(ADDRESSES)
    health = await client.health_check(timeout=0.2)
    assert isinstance(health, ClusterHealth)
    assert [shard.state for shard in health.shards.values()] == ["unavailable"]
    assert len(health.shards[0].problems) == 4, "no leader, and three nodes that do not answer"
    assert health.shards[0].share == 1.0


async def test_a_cluster_none_of_whose_nodes_ever_answered_is_unavailable() -> None:
    network = Network()
    network.down = set(ADDRESSES)
    client = Client(network, ADDRESSES.values(), rng=random.Random(1))
    shard = (await client.health_check(timeout=0.2)).shards[0]
    assert (shard.state, shard.total_followers, shard.problems) == ("unavailable", 0, ["no replica leads"])
    assert await client.leader() is None
    with pytest.raises(InvalidArgument, match="the nodes that answer"):
        await client.node_status("n1")


@pytest.mark.parametrize("refusal", [WrongCluster("another cluster"), ClientClosed("this client is closed")], ids=type)
async def test_nodes_that_refuse_to_talk_are_not_taken_for_unknown_ones(refusal: Exception) -> None:
    class Refusing(Network):
        async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
            raise refusal

    client = Client(Refusing(), ADDRESSES.values(), rng=random.Random(1))
    for call in (client.leader, client.cluster_status, client.refresh_topology):
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
    client = Client(network, ADDRESSES.values(), rng=random.Random(1))
    await client.insert("first", VECTOR)
    network.writes.clear()
    network.script = [ConnectionLost("gone"), ConnectionLost("gone")]
    await client.insert("again", VECTOR)
    assert [node for node, _ in network.writes] == ["n1", "n2", "n3"]
    assert len(set(numbers(network))) == 1
    assert network.sessions == 1
    assert {await task for task in asked} <= {"n2", "n3"}


class Sharded:
    """Nodes of a sharded cluster that is made when `now` is set; node-2 leads everything."""

    def __init__(self) -> None:
        self.now = Topology()

    async def call(self, address: str, method: str, body: Body, timeout: float) -> bytes:
        node = f"node-{address.split(':')[0].rpartition('.')[2]}"
        if method == TOPOLOGY:
            known = calls.decode(bytes(body), TopologyCall).version  # type: ignore[arg-type]
            return calls.encode(TopologyAnswer(node, self.now if self.now.version > known else None))
        assert method == SHARD_LEADER
        return calls.encode(LeaderAnswer(node, "node-2", 1, self.now.addresses()))

    def connected(self, address: str) -> bool:
        return True

    async def connect(self, address: str, timeout: float) -> None:
        raise AssertionError("connected() says there is no need")

    async def close(self) -> None:
        return


async def test_a_sharded_cluster_that_is_not_made_yet_says_so_and_is_found_once_it_is() -> None:
    network = Sharded()
    shards = ClusterShards(network, ["10.0.0.1:5000"], network.now, rng=random.Random(1))
    client = Client(network, ["10.0.0.1:5000"], rng=random.Random(1), sharded=(shards, Router(shards)))
    assert client.has_catalog
    for call in (client.leader, client.status, client.catalog_leader, client.catalog_status, client.digests):
        with pytest.raises(Unavailable, match="needle cluster create"):
            await call()
    network.now = msgspec.structs.replace(topology(shards=2, nodes=3), version=7)
    assert await client.catalog_leader() == "node-2"
    network.now = Topology()
    assert await client.leader(1) == "node-2"
    with pytest.raises(InvalidArgument, match="from 0 to 1"):
        await client.leader()
    with pytest.raises(InvalidArgument, match="no members"):
        await client.change_membership(["node-1"])
