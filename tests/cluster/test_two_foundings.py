"""`needle cluster create`: its defaults, called twice at once, and again with other nodes after it was interrupted."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.calm import CALM
from needle.base.config import Limits, RaftConfig
from needle.base.errors import ClusterTooOld, InvalidArgument
from needle.base.ids import CATALOG_GROUP
from needle.base.model import CollectionSpec, IndexParams
from needle.connecting import system_caller
from needle.distributed import ClusterConfig, DistributedCluster, RaftCluster, ShardConfig
from needle.local.free_ports import free_ports
from needle.protocol import calls
from needle.protocol.peer_calls import FOUND, FoundCall
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import ClusterSettings, Topology
from needle.rpc.transport import RpcClient
from needle.server.catalog.founding import create_cluster
from needle.server.node import Node

SETTINGS = ClusterSettings(shard_count=1, replication_factor=1, strategy=CONSISTENT_HASH)


class Held:
    """A caller whose FOUND to some addresses waits for an event."""

    def __init__(self, caller: RpcClient, held: set[str], until: asyncio.Event) -> None:
        self._caller, self._held, self._until = caller, held, until

    async def call(self, address: str, method: str, body: Any, timeout: float) -> Any:
        if method == FOUND and address in self._held:
            await self._until.wait()
        answer = await self._caller.call(address, method, body, timeout)
        if method == FOUND:
            self._until.set()
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._caller, name)


@asynccontextmanager
async def waiting_nodes(directory: Path, count: int, **more: Any) -> AsyncIterator[tuple[RpcClient, dict[str, Node]]]:
    """Nodes without a list, in this process, and a caller."""
    async with AsyncExitStack() as stack:
        found = dict[str, Node]()
        for n, port in enumerate(free_ports(count), 1):
            name = f"n{n}"
            at = f"127.0.0.1:{port}"
            config = RaftConfig(node_id=name, listen=at, data_dir=str(directory / name), **{**CALM, **more})
            found[name] = (await stack.enter_async_context(RaftCluster(config)))._running()
        caller = system_caller("needle")
        stack.push_async_callback(caller.close)
        yield caller, found


async def created(caller: Any, nodes: Mapping[str, Node], *names: str) -> Topology:
    addresses = {name: nodes[name].address for name in names}
    return await create_cluster(caller, SETTINGS, addresses, rng=random.SystemRandom(), timeout=30)


async def test_the_first_collection_is_made_by_the_command_that_makes_the_cluster(tmp_path: Path) -> None:
    """As by settings: no crash leaves a cluster without it. Its length is bounded by what the nodes take."""
    async with waiting_nodes(tmp_path, 1, limits=Limits(dimensions_max=9000)) as (caller, nodes):
        addresses = {name: node.address for name, node in nodes.items()}
        for dimensions, taken in ((9001, False), (8999, True)):
            config = ShardConfig(dimensions=dimensions, index="hnsw_sq8", metric="dot")
            making = create_cluster(
                caller,
                config.settings_with(1),
                addresses,
                rng=random.Random(1),
                first=config.first_collection,
                timeout=30,
            )
            if taken:
                (made,) = (await making).collections
                assert (made.spec.name, made.spec.metric, made.spec.index.kind) == ("default", "dot", "hnsw_sq8")
                assert made.spec.dimensions == dimensions
            else:
                with pytest.raises(InvalidArgument, match=r"dimensions = 9001 is not allowed.*9000"):
                    await making


@pytest.mark.parametrize("name", ["a" * 255, "a\nb", " a"])
async def test_the_first_collection_is_checked_as_any_other(tmp_path: Path, name: str) -> None:
    """Shards would refuse it, or its name with what they put behind it, forever."""
    async with waiting_nodes(tmp_path, 1) as (caller, nodes):
        addresses, first = {"n1": nodes["n1"].address}, CollectionSpec(name=name, dimensions=2)
        with pytest.raises(InvalidArgument, match=r"collection = .* is not allowed"):
            await create_cluster(caller, SETTINGS, addresses, rng=random.Random(1), first=first, timeout=30)
        assert nodes["n1"].topology.settings is None


async def test_a_first_collection_that_a_node_cannot_read_begins_nothing(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 2) as (caller, nodes):
        nodes["n2"].ports = dataclasses.replace(nodes["n2"].ports, knows=3)
        addresses = {name: node.address for name, node in nodes.items()}
        first = CollectionSpec(name="default", dimensions=2, index=IndexParams(kind="hnsw_sq8"))
        with pytest.raises(ClusterTooOld, match=r"needs version 4 .* n2 \(3\)"):
            await create_cluster(caller, SETTINGS, addresses, rng=random.Random(1), first=first, timeout=30)
        assert not any(node.cluster.uid for node in nodes.values())
        first = CollectionSpec(name="default", dimensions=2, ttl=60.0)  # known since 2
        made = await create_cluster(caller, SETTINGS, addresses, rng=random.Random(1), first=first, timeout=30)
        assert made.cluster_version == 3


async def test_fewer_nodes_than_three_have_a_replica_each_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 2) as (_, nodes):
        cluster = DistributedCluster(ClusterConfig(dimensions=2))
        for name, node in nodes.items():
            await cluster.add_node(name, node.address)
        async with cluster:
            topology = (await cluster.client()).topology()
            assert [sorted(info.replicas) for info in topology.shards] == [["n1", "n2"]]
            await cluster.insert("a", [1, 2])
        again = DistributedCluster(ClusterConfig(dimensions=2))
        await again.add_node("n1", nodes["n1"].address)
        async with again:  # of the nodes that it was told of there is one
            assert await again.count() == 1


async def test_a_cluster_that_is_made_twice_at_once_is_one(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 3) as (caller, nodes):
        first, *rest = (node.address for node in nodes.values())
        both = asyncio.Event(), asyncio.Event()
        made = await asyncio.gather(
            created(Held(caller, {*rest}, both[0]), nodes, *nodes),
            created(Held(caller, {first}, both[1]), nodes, *nodes),
        )
        assert made[0].founding == made[1].founding
        assert len({node.cluster.uid for node in nodes.values()}) == 1


async def test_what_was_begun_with_one_catalog_goes_on_with_no_other(tmp_path: Path) -> None:
    """Two majorities of voters would each elect a leader of the catalog."""
    async with waiting_nodes(tmp_path, 4) as (caller, nodes):
        begun = {name: nodes[name].address for name in ("n1", "n2")}
        await caller.call(begun["n1"], FOUND, calls.encode(FoundCall(77, begun)), 5.0)  # and there it was interrupted
        for then in (("n4", "n3", "n1"), ("n1",)):
            with pytest.raises(InvalidArgument, match="begun with its catalog on n1, n2") as refused:
                await created(caller, nodes, *then)
            assert f"Name n2={begun['n2']} as well" in refused.value.message
            assert "replicas" in refused.value.message and "zones and weights" in refused.value.message
        assert {name for name, node in nodes.items() if node.cluster.uid} == {"n1"}
        assert nodes["n1"].host.status(CATALOG_GROUP).voters == ["n1", "n2"]
        other = calls.encode(FoundCall(77, {"n1": begun["n1"]}))  # as releases before do
        with pytest.raises(InvalidArgument, match="zones and weights, and the number of replicas"):
            await caller.call(begun["n1"], FOUND, other, 5.0)


@pytest.mark.parametrize("then", [("n4", "n3", "n2", "n1"), ("n2", "n1", "n3")])
async def test_what_was_begun_goes_on_with_other_nodes_beside(tmp_path: Path, then: tuple[str, ...]) -> None:
    """The catalog begins on the nodes that it was begun on, and goes where it would have been from the start."""
    async with waiting_nodes(tmp_path, 4) as (caller, nodes):
        begun = {name: nodes[name].address for name in ("n1", "n2")}
        await caller.call(begun["n1"], FOUND, calls.encode(FoundCall(77, begun)), 5.0)
        made = await created(caller, nodes, *then)
        assert {node.cluster.uid for name, node in nodes.items() if name in then} == {77}
        assert len(made.holders(CATALOG_GROUP).wanted) == 3
        assert nodes["n1"].cluster.voters.keys() == begun.keys() == nodes["n2"].cluster.voters.keys()


async def test_a_first_collection_that_was_refused_does_not_fix_the_replicas(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 2, limits=Limits(dimensions_max=100)) as (caller, nodes):
        addresses = {name: node.address for name, node in nodes.items()}

        async def making(replicas: int, dimensions: int) -> Topology:
            config = ShardConfig(replication_factor=replicas, dimensions=dimensions)
            settings, first = config.settings_with(1), config.first_collection
            return await create_cluster(caller, settings, addresses, rng=random.Random(1), first=first, timeout=30)

        with pytest.raises(InvalidArgument, match="dimensions = 101"):
            await making(1, 101)
        made = await making(2, 100)
        assert made.settings is not None and made.settings.replication_factor == 2
        assert set(made.catalog) == {"n1", "n2"}, "of two nodes both hold it where shards have two replicas"


async def test_a_cluster_that_is_made_may_be_named_in_another_order(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 4) as (caller, nodes):
        made = await created(caller, nodes, "n1", "n2", "n3", "n4")
        for node in nodes.values():
            assert await node.wait_topology(1, 10)
        again = await created(caller, nodes, "n4", "n3", "n2", "n1")
        assert again.founding == made.founding
