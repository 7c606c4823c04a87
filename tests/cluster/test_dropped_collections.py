"""After a drop was acknowledged nobody writes to the dropped collection or reads it, whoever has not heard of it."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client.fake_shards import FakeShards, virtually
from needle.base.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InvalidArgument,
    NoQuorum,
    OutcomeUnknown,
    Unavailable,
    WrongCluster,
)
from needle.base.ids import shard_group
from needle.base.model import ReadMode, SearchRequest, WriteResult
from needle.client.known_topology import AskedTopology
from needle.client.router.router import Router
from needle.client.shards import ClusterShards
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import catalog_commands, commands
from needle.protocol.peer_calls import FoundCall
from needle.routing.topology import Topology
from needle.server.catalog.founding import create_cluster

ROW = np.ones(2, "<f4").tobytes()


class Shards(FakeShards):
    """Knows of drops. synced: the versions that shards confirmed."""

    def __init__(self) -> None:
        super().__init__(shards=3)
        self.synced: list[tuple[int, int]] = []

    async def command(self, command: catalog_commands.CatalogCommand, timeout: float) -> WriteResult:
        assert isinstance(command, catalog_commands.DropCollection)
        left = tuple(info for info in self.real.collections if info.id != command.id)
        self.real = self.known = msgspec.structs.replace(self.real, collections=left, version=self.real.version + 1)
        return WriteResult(version=self.real.version, index=self.real.version)

    async def sync(self, shard: int, version: int, timeout: float, *, by_log: bool = False) -> None:
        if shard in self.dead:
            await asyncio.sleep(timeout)
            raise NoQuorum(f"shard {shard} is dead")
        self.synced.append((shard, version))


def test_a_drop_is_acknowledged_only_when_every_shard_has_confirmed_it() -> None:
    async def work() -> None:
        shards = Shards()
        router, last = Router(shards), shards.real.version + 1
        shards.dead = {1}
        with pytest.raises(OutcomeUnknown, match="shards 1 did not confirm"):
            await router.drop_collection("default", 1.0)
        assert shards.real.collections == ()
        assert shards.synced == [(0, last), (2, last)]
        with pytest.raises(OutcomeUnknown):  # nor does asking again make it so
            await router.drop_collection("default", 1.0)
        shards.dead, shards.synced = set(), []
        with pytest.raises(CollectionNotFound):
            await router.drop_collection("default", 1.0)
        assert shards.synced == [(shard, last) for shard in range(3)]

    virtually(work())


def test_an_old_map_does_not_hide_the_collection_that_was_made_anew() -> None:
    async def work() -> None:
        shards = Shards()
        router, old = Router(shards), shards.real
        again = msgspec.structs.replace(old.collections[0], id=9)
        shards.real = msgspec.structs.replace(old, collections=(again,), version=old.version + 2)
        await router.drop_collection("default", 1.0)
        assert shards.real.collections == ()

    virtually(work())


class OldRouter(Router):
    """Of a client that hears nothing of the catalog any more."""

    def __init__(self, cluster: DistributedCluster, old: Topology) -> None:
        async def hears_nothing(*_: Any) -> Topology:
            return old

        known = AskedTopology(cluster._caller, cluster.nodes().values(), old)
        known.refresh = known.confirmed = hears_nothing  # type: ignore[method-assign]
        super().__init__(ClusterShards(cluster._caller, known, rng=random.Random(1)))


async def started(tmp_path: Path, shards: int) -> DistributedCluster:
    cluster = DistributedCluster(ClusterConfig(shard_count=shards, replication_factor=1, dimensions=2))
    await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
    await cluster.start()
    return cluster


def old_router(cluster: DistributedCluster, old: Topology) -> OldRouter:
    return OldRouter(cluster, old)


async def test_a_leader_that_has_not_heard_of_a_drop_does_not_make_the_collection_again(tmp_path: Path) -> None:
    cluster = await started(tmp_path, 1)
    try:
        client = await cluster.client()
        await cluster.insert("doc-1", [1, 0])
        node, old = cluster.local_nodes()[0], client.topology()
        stale = old_router(cluster, old)
        await stale.insert("default", "doc-2", ROW, b"", None, 5.0)
        await cluster.drop_collection("default")
        await node._background.end()  # it follows the catalog no more, as if it had been cut off before the drop
        node.topology = old
        with pytest.raises((CollectionNotFound, DeadlineExceeded, OutcomeUnknown)):
            await stale.insert("default", "doc-3", ROW, b"", None, 1.0)
        with pytest.raises((CollectionNotFound, DeadlineExceeded)):
            await stale.search(SearchRequest(collection="default", vector=ROW, k=3), ReadMode.STRONG, 1.0)
        assert node.groups[shard_group(0)].replica.collections() == []
    finally:
        await cluster.stop()


async def test_a_creation_still_in_the_log_is_dropped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that gave up waiting for its creation of the collection, which commits later."""
    cluster = await started(tmp_path, 1)
    try:
        client = await cluster.client()
        node, group = cluster.local_nodes()[0], shard_group(0)
        await node._background.end()
        spec = client.topology().collections[0]
        await client.change_catalog(catalog_commands.DropCollection("default", spec.id), timeout=5)
        await node.adopt(node.catalog.topology)  # type: ignore[union-attr]
        await node.reconciler.reconcile(group, 5)
        create = commands.encode(commands.CreateCollection(spec.stored_spec, True))
        machine, committed = node.host.engine.groups[group].machine, threading.Event()
        apply = machine.apply

        def late(entries: Any) -> list[Any]:
            committed.wait(5)
            return apply(entries)

        monkeypatch.setattr(machine, "apply", late)
        waiting = asyncio.ensure_future(node.host.propose(group, create, 5))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, committed.set)
        await node.reconciler.reconcile(group, 5)
        await waiting
        assert node.groups[group].replica.collections() == []
    finally:
        await cluster.stop()


async def test_a_creation_confirmed_in_an_earlier_term_is_not_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await started(tmp_path, 1)
    try:
        client = await cluster.client()
        node, group = cluster.local_nodes()[0], shard_group(0)
        await node._background.end()
        spec = msgspec.structs.replace(client.topology().collections[0].spec, name="other")
        await client.change_catalog(catalog_commands.CreateCollection(spec, False, 7), timeout=5)
        confirmed, proposed = node.confirmed, []

        async def slowly(timeout: float) -> Topology:
            found = await confirmed(timeout)
            monkeypatch.setattr(node.host, "term", lambda _: 99)  # meanwhile others led, and it leads again
            return found

        async def note(*call: Any) -> None:
            proposed.append(call)

        monkeypatch.setattr(node, "confirmed", slowly)
        monkeypatch.setattr(node.host, "propose", note)
        with pytest.raises(Unavailable, match="got another leader"):
            await node.reconciler.reconcile(group, 5)
        assert proposed == []
    finally:
        monkeypatch.undo()
        await cluster.stop()


async def test_what_the_catalog_does_not_know_is_kept_and_reported(tmp_path: Path) -> None:
    """A collection of before the catalog was restored from an older copy, or made again; and one of a fixed cluster."""
    cluster = await started(tmp_path, 1)
    try:
        client = await cluster.client()
        node, group = cluster.local_nodes()[0], shard_group(0)
        for name in ("default", "films@9000000", "x@y"):
            spec = msgspec.structs.replace(client.topology().collections[0].spec, name=name)
            await node.host.propose(group, commands.encode(commands.CreateCollection(spec)), 5)
        await cluster.create_collection("books", dimensions=2)
        await cluster.drop_collection("books")
        held = [spec.name for spec in node.groups[group].replica.collections()]
        assert sorted(held) == sorted(["default", "films@9000000", "x@y", client.topology().collections[0].stored_name])
        health = await cluster.health_check()
        assert not health.healthy
        assert "knows nothing: default, films@9000000, x@y" in str(health.shards[0].problems)
    finally:
        await cluster.stop()


async def test_a_catalog_that_was_made_anew_is_not_followed(tmp_path: Path) -> None:
    cluster = await started(tmp_path, 1)
    try:
        await cluster.insert("doc-1", [1, 0])
        node = cluster.local_nodes()[0]
        again = msgspec.structs.replace(node.topology, founding=7, version=1000, collections=())
        with pytest.raises(WrongCluster, match="made again"):
            await node.adopt(again)
        assert await cluster.count() == 1
        node.cluster = msgspec.structs.replace(node.cluster, uid=0)  # as if cluster.json had been lost
        with pytest.raises(InvalidArgument, match="holds replicas"):
            await node.found(FoundCall(1, {}))
    finally:
        await cluster.stop()


async def test_nodes_of_a_cluster_are_not_founded_again_together_with_new_ones(tmp_path: Path) -> None:
    cluster = await started(tmp_path, 1)
    other = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=1))
    try:
        await other.add_local_node("node-2", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-2"))
        both = {**cluster.nodes(), **other.nodes()}
        with pytest.raises(InvalidArgument, match="--join"):
            await create_cluster(cluster._caller, other.config.settings_with(1), both, rng=random.Random(1))
        three = ClusterConfig(shard_count=1).settings_with(3)
        with pytest.raises(InvalidArgument, match="replication_factor = 3 is not allowed: at most 2"):
            await create_cluster(cluster._caller, three, both, rng=random.Random(1))
    finally:
        await other.stop()
        await cluster.stop()
