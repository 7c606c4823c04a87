"""Which nodes a client asks: those that hold the shard, and are where the newest topology says."""

from __future__ import annotations

import pytest

from catalog.catalog_util import topology
from harness.connected import Connected
from harness.scripted_network import Network, client_of, one_shard
from needle.base.errors import ConnectionLost, InvalidArgument, Unavailable
from needle.client.directory import Directory
from needle.client.nodes import address_of
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.routing.topology import NodeInfo, ShardInfo, Topology


class Nodes(Connected):
    """At each address what is answered there; nothing for a node that is down."""

    def __init__(self, **answers: LeaderAnswer) -> None:
        self.at = {f"h:{name[1]}": answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked.append(address)
        if address not in self.at:
            raise ConnectionLost("down", address=address)
        return calls.encode(self.at[address])


def says(node: int, leader: int | None, term: int, *members: int) -> LeaderAnswer:
    return LeaderAnswer(f"n{node}", f"n{leader}" if leader else None, term, {f"n{m}": f"h:{m}" for m in members})


async def find(directory: Directory, nodes: Nodes) -> tuple[str | None, list[str]]:
    """The leader, and who was asked for it."""
    nodes.asked = []
    return await directory.find_leader(2.0), sorted(nodes.asked)


def holding(**replicas: str) -> Topology:
    """A cluster whose one shard is held by these nodes, at these addresses."""
    info = ShardInfo(shard=0, replicas=tuple(replicas), founders=tuple(replicas))
    nodes = tuple(NodeInfo(id=node, address=address, incarnation=1) for node, address in replicas.items())
    return Topology(nodes=nodes, shards=(info,))


async def test_nodes_are_those_of_the_newest_topology() -> None:
    now = holding(n1="h:1", n2="h:2", n3="h:3")
    nodes = Nodes(**{f"n{n}": says(n, 2, 3, 1, 2, 3) for n in (1, 2, 3, 4)})
    directory = Directory(nodes, 0, lambda: now)
    assert await find(directory, nodes) == ("h:2", ["h:1", "h:2", "h:3"])
    now = holding(n2="h:2", n4="h:4")  # the others hold nothing of it any more
    assert await find(directory, nodes) == ("h:2", ["h:2", "h:4"])
    now = holding(n2="h:4", n4="h:2")
    nodes.at = {"h:4": says(2, 2, 3), "h:2": says(4, 2, 3)}
    assert await find(directory, nodes) == ("h:4", ["h:2", "h:4"])


async def test_what_concerns_one_node_is_not_sent_to_another_that_has_its_address_now() -> None:
    network = Network()
    network.is_at = {"h:1": "n2", "h:2": "n1", "h:3": "n3"}
    client = client_of(network)
    with pytest.raises(Unavailable, match="n1 is not at h:1"):
        await address_of(client._shards, "n1")
    network.now = one_shard(2, n1="h:2", n2="h:1")  # the catalog has heard of the swap
    assert await address_of(client._shards, "n1") == "h:2"
    assert await address_of(client._shards, "n2") == "h:1"
    with pytest.raises(InvalidArgument, match="n4"):
        await address_of(client._shards, "n4")


async def test_nodes_of_a_shard_that_never_answered_are_named() -> None:
    now = topology(shards=1, nodes=3)
    directory = Directory(Nodes(), 0, lambda: now)
    await find(directory, Nodes())
    told = directory.explain(0.0)
    assert told.startswith("3 of 3 nodes did not answer")
    assert all(f"{node} at {now.address_of(node)}" in told for node in ("node-1", "node-2", "node-3"))
