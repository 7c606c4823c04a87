"""`needle cluster create`, called twice at once, and again with other nodes after it was interrupted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import CALM
from needle.base.config import RaftConfig
from needle.base.errors import InvalidArgument
from needle.base.ids import CATALOG_GROUP
from needle.connecting import system_caller
from needle.distributed import RaftCluster
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
async def waiting_nodes(directory: Path, count: int) -> AsyncIterator[tuple[RpcClient, dict[str, Node]]]:
    """Nodes without a list, in this process, and a caller."""
    async with AsyncExitStack() as stack:
        found = dict[str, Node]()
        for n, port in enumerate(free_ports(count), 1):
            name = f"n{n}"
            config = RaftConfig(node_id=name, listen=f"127.0.0.1:{port}", data_dir=str(directory / name), **CALM)
            found[name] = (await stack.enter_async_context(RaftCluster(config)))._running()
        caller = system_caller("needle")
        stack.push_async_callback(caller.close)
        yield caller, found


async def created(caller: Any, nodes: Mapping[str, Node], *names: str) -> Topology:
    addresses = {name: nodes[name].address for name in names}
    return await create_cluster(caller, SETTINGS, addresses, rng=random.SystemRandom(), timeout=30)


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


@pytest.mark.parametrize("then", [("n4", "n3", "n2", "n1"), ("n2", "n1", "n3"), ("n4", "n3", "n1")])
async def test_what_was_begun_with_one_catalog_goes_on_with_no_other(tmp_path: Path, then: tuple[str, ...]) -> None:
    """Two majorities of voters would each elect a leader of the catalog."""
    async with waiting_nodes(tmp_path, 4) as (caller, nodes):
        begun = {name: nodes[name].address for name in ("n1", "n2")}
        await caller.call(begun["n1"], FOUND, calls.encode(FoundCall(77, begun)), 5.0)  # and there it was interrupted
        with pytest.raises(InvalidArgument, match="begun with its catalog on n1, n2") as refused:
            await created(caller, nodes, *then)
        assert "Name the same nodes" in refused.value.message
        assert {name for name, node in nodes.items() if node.cluster.uid} == {"n1"}
        assert nodes["n1"].host.status(CATALOG_GROUP).voters == ["n1", "n2"]
        with pytest.raises(InvalidArgument, match="begun with its catalog on n1, n2"):
            await created(caller, nodes, "n1")


async def test_a_cluster_that_is_made_may_be_named_in_another_order(tmp_path: Path) -> None:
    async with waiting_nodes(tmp_path, 4) as (caller, nodes):
        made = await created(caller, nodes, "n1", "n2", "n3", "n4")
        for node in nodes.values():
            assert await node.wait_topology(1, 10)
        again = await created(caller, nodes, "n4", "n3", "n2", "n1")
        assert again.founding == made.founding
