"""A command of the catalog that not all nodes know is not sent: nodes of a release before pass over the fields of
structs that they do not know, and would do without what these say."""

from __future__ import annotations

import random

import msgspec
import pytest

from catalog.catalog_util import topology
from harness.connected import Connected
from needle.base.dtypes import DType
from needle.base.errors import ClusterTooOld
from needle.base.model import CollectionSpec, Metric, WriteResult
from needle.base.versions import KNOWN
from needle.client.known_topology import AskedTopology
from needle.client.shards import ClusterShards
from needle.protocol import calls
from needle.protocol.calls import LeaderAnswer
from needle.protocol.catalog_commands import CreateCollection
from needle.protocol.peer_calls import CATALOG, SHARD_LEADER, TOPOLOGY, TopologyAnswer
from needle.routing.topology import Topology

NEWEST = CreateCollection(
    CollectionSpec(name="a", dimensions=8, dtype=DType.BIT, metric=Metric.HAMMING), False, 1, [], []
)
PLAIN = CreateCollection(CollectionSpec(name="a", dimensions=4), False, 1)


class Nodes(Connected):
    """Nodes that take any command, as those do that do not know all of it. asked: the methods of all calls."""

    def __init__(self, now: Topology) -> None:
        self.now = now
        self.asked: list[str] = []

    async def call(self, address: str, method: str, body: bytes, timeout: float) -> bytes:
        self.asked.append(method)
        if method == TOPOLOGY:
            return calls.encode(TopologyAnswer("node-1", self.now))
        if method == SHARD_LEADER:
            return calls.encode(LeaderAnswer("node-1", "node-1", 1, self.now.addresses()))
        return calls.encode(WriteResult(version=1, index=1))

    def shards(self, known: Topology) -> ClusterShards:
        return ClusterShards(self, AskedTopology(self, ["10.0.0.1:5000"], known), rng=random.Random(1))


def at(version: int, *, newer: int = 0) -> Topology:
    """A cluster at a version. newer: by so many changes."""
    made = topology(shards=1, nodes=3)
    nodes = tuple(msgspec.structs.replace(one, knows=version) for one in made.nodes)
    return msgspec.structs.replace(made, nodes=nodes, cluster_version=version, version=made.version + newer)


async def test_it_is_refused_before_it_is_sent() -> None:
    network = Nodes(at(KNOWN - 1))
    with pytest.raises(ClusterTooOld, match=rf"node-1 \({KNOWN - 1}\)"):
        await network.shards(network.now).command(NEWEST, 5.0)
    assert CATALOG not in network.asked


async def test_who_has_not_heard_that_the_version_has_risen_asks_first() -> None:
    network = Nodes(at(KNOWN, newer=3))
    await network.shards(at(KNOWN - 1)).command(NEWEST, 5.0)
    assert network.asked[-1] == CATALOG


@pytest.mark.parametrize(("command", "version"), [(PLAIN, 1), (NEWEST, KNOWN)])
async def test_what_all_nodes_know_is_sent_at_once(command: CreateCollection, version: int) -> None:
    network = Nodes(at(version))
    await network.shards(network.now).command(command, 5.0)
    assert network.asked == [CATALOG]
