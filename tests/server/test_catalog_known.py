"""A node that has not heard what the catalog says of aliases and of times to live leads a shard only once it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from needle.base.errors import NeedleError, StaleEpoch, Unavailable
from needle.base.ids import shard_group
from needle.base.model import WriteResult
from needle.client import Client
from needle.distributed import RaftCluster, RaftConfig, connect
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol.commands import KnowCatalog
from needle.routing.topology import Topology
from needle.server.node import Node
from needle.shard.catalog_known import CatalogKnown
from shard.replica_util import Log, open_replica

GROUP = shard_group(0)


def test_the_log_says_what_must_be_known_and_it_never_falls(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    for version, known in ((5, 5), (3, 5), (9, 9)):
        assert isinstance(replica.apply(log.add(KnowCatalog(77, version)))[0], WriteResult)
        assert replica.view.catalog == CatalogKnown(77, known)
    replica.close()
    replica = open_replica(tmp_path)
    assert replica.view.catalog.missing(77, 8) == 9 and replica.view.catalog.missing(77, 9) == 0
    assert replica.view.catalog.missing(78, 1) == 0  # a catalog that was made again counts again
    replica.apply(log.add(KnowCatalog(78, 2)))
    assert replica.view.catalog == CatalogKnown(78, 2)
    replica.close()


@asynccontextmanager
async def three_nodes(directory: Path) -> AsyncIterator[list[RaftCluster]]:
    ports = free_ports(3)
    names = [f"node-{n + 1}={ports[n]}" for n in range(3)]
    nodes = [name.replace("=", "=127.0.0.1:") for name in names]
    async with AsyncExitStack() as stack:
        clusters = []
        for name in ("node-1", "node-2", "node-3"):
            config = RaftConfig(
                node_id=name,
                cluster_nodes=nodes,
                data_dir=str(directory / name),
                election_timeout=timedelta(milliseconds=600),
                heartbeat_interval=0.05,
                dimensions=2,
            )
            clusters.append(await stack.enter_async_context(RaftCluster(config)))
        await asyncio.gather(*(cluster.wait_ready() for cluster in clusters))
        yield clusters


class Deaf:
    """A node that hears nothing of the catalog until `hears`; it leads the shard when `leads` returns."""

    def __init__(self, node: Node) -> None:
        self._adoption = node._adoption
        self._adopt = node._adoption.adopt
        self._missed: Topology | None = None
        self._node = node
        node._adoption.adopt = self._miss  # type: ignore[method-assign]

    async def _miss(self, topology: Topology, *, save: bool = True) -> None:
        if self._missed is None or topology.version > self._missed.version:
            self._missed = topology

    async def hears(self) -> None:
        self._adoption.adopt = self._adopt  # type: ignore[method-assign]
        assert self._missed is not None
        await self._adopt(self._missed)

    async def leads(self, others: list[RaftCluster]) -> None:
        name = self._node.node_id
        await others[0].step_down(name)
        await wait_for(lambda: self._node.host.is_leader(GROUP), 60, f"{name} leading")


async def filled(client: Client) -> None:
    for name, count in (("a", 3), ("b", 5)):
        await client.create_collection(name, dimensions=2)
        ids = [f"{n}" for n in range(count)]
        await client.insert_each(ids=ids, vectors=[[1.0, n] for n in range(count)], collection=name)
    await client.set_alias("x", "a")


@pytest.mark.parametrize("changed", ["alias", "ttl"])
async def test_a_new_leader_that_has_not_heard_of_it_serves_nothing_by_it(changed: str, tmp_path: Path) -> None:
    """Neither what an alias meant before, nor what a time to live was, to clients that have not heard either."""
    async with three_nodes(tmp_path) as clusters:
        addresses = _addresses(clusters)
        async with connect(addresses) as client, connect(addresses) as other:
            await filled(client)
            assert await other.count(collection="x") == 3
            late = next(one for one in clusters if not one.is_leader())
            deaf, stale = Deaf(_node(late)), other.topology()
            if changed == "alias":
                await client.set_alias("x", "b")
            else:
                await client.alter_collection("a", ttl=3600)
            await deaf.leads([one for one in clusters if one is not late])

            async def asked(call: Any) -> Any:
                other._shards._known._now = stale  # as if it had heard nothing
                return await call()

            calls = (
                lambda: other.count(collection="x", timeout=1.5),
                lambda: other.search([1, 1], 9, collection="x", timeout=1.5),
                lambda: other.insert("new", [1, 1], collection="x", timeout=1.5),
                lambda: other.scan_page(collection="x", consistent=True, timeout=1.5),
            )
            for call in calls:
                with pytest.raises(Unavailable) as refused:
                    await asked(call)
                assert not isinstance(refused.value, StaleEpoch)
            await deaf.hears()
            name, count = ("b", 5) if changed == "alias" else ("a", 3)
            assert await asked(calls[0]) == len(await asked(calls[1])) == count
            await asked(calls[2])
            assert ((await client.get("new", collection=name)).expires_at is None) == (changed == "alias")
            assert await client.count(collection=name) == count + 1
            assert len((await asked(calls[3])).documents) == count + 1


def _addresses(clusters: list[RaftCluster]) -> list[str]:
    return [one.split("=")[1] for one in clusters[0].config.cluster_nodes]


def _node(cluster: RaftCluster) -> Node:
    node = cluster._node
    assert node is not None
    return node


async def test_an_alias_switch_writes_one_entry_into_each_shard(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as clusters, connect(_addresses(clusters)) as client:
        await filled(client)
        known = next(_node(one).groups[GROUP].replica.view.catalog for one in clusters if one.is_leader())
        again = await client.set_alias("x", "a")  # it is so already
        assert known.version > 0 and again is not None
        leader = next(one for one in clusters if one.is_leader())
        before = _node(leader).host.status(GROUP).last_index
        for turn in range(3):
            await client.set_alias("x", "ba"[turn % 2])
        after = _node(leader).host.status(GROUP).last_index
        assert 3 <= after - before <= 4
        with pytest.raises(NeedleError):
            await client.set_alias("x", "none")
        assert _node(leader).host.status(GROUP).last_index == after
