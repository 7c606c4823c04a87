"""A small write goes without a task (docs/adr/0009), whoever calls, and is decoded and hashed once on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from needle.base.access import NODE, WRITER, Identity
from needle.base.errors import Forbidden, TooManyRequests
from needle.base.ids import shard_group
from needle.base.model import WriteResult
from needle.base.rates import Rates
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls, commands
from needle.protocol.calls import WriteCall
from needle.routing import strategy
from needle.rpc.promise import Promise
from needle.server import call_rates
from needle.server.node import Node
from needle.server.service.audited import Audited

ROW = b"\0\0\x80?" * 2


class World:
    """One node with two shards."""

    def __init__(self, cluster: DistributedCluster, node: Node) -> None:
        self.cluster, self.node = cluster, node

    async def insert(self, identity: Identity, id: str, metadata: bytes = b"{}") -> Any:
        """What the node answers to a call that a client of this identity has routed, awaited if it is no promise."""
        topology = self.node.topology
        assert topology.map is not None
        stored = topology.collections[0].stored_name
        data = commands.encode(commands.Insert(stored, [id], ROW, [metadata]))
        body = calls.encode(WriteCall(shard_group(self.cluster.shard_for(id)), data, 5.0, topology.map.epoch))
        peer: Any = SimpleNamespace(node_id="", within="", remote="h:1", identity=identity)
        return self.node.service.on_request(peer, calls.WRITE, body)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    config = ClusterConfig(shard_count=2, replication_factor=1, dimensions=2)
    cluster = DistributedCluster(config)
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "node-1"))
        await cluster.start()
        await cluster.insert_batch([(f"first-{n}", [1, 1], {}) for n in range(8)])  # both shards know the collection
        yield World(cluster, cluster.local_nodes()[0])
    finally:
        await cluster.stop()


def limited() -> Identity:
    identity = Identity("limited", WRITER)
    identity.limit(Rates(documents=0.001))
    return identity


CALLERS = {
    "anybody": lambda: Identity("", NODE),
    "a writer": lambda: Identity("writer", WRITER),
    "a limited key": limited,
    "a key of a collection": lambda: Identity("some", WRITER, frozenset({"default"}), since=7),
    "a key of a filter": lambda: Identity("tenant", WRITER, filter=b'{"tenant":"a"}', since=7),
}


@pytest.mark.parametrize("who", CALLERS)
async def test_a_small_write_is_proposed_at_once(world: World, who: str) -> None:
    answer = await world.insert(CALLERS[who](), "a", b'{"tenant":"a"}')
    assert isinstance(answer, Promise), "a task would cost more than most of the write"
    assert calls.decode(await answer, WriteResult).count == 1
    assert await world.cluster.get("a") is not None


async def test_it_is_decoded_once_and_its_id_hashed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(name: str, fn: Any) -> Any:
        def call(*arguments: Any) -> Any:
            seen.append(name)
            return fn(*arguments)

        return call

    monkeypatch.setattr(commands, "decode", counted("decode", commands.decode))
    monkeypatch.setattr(strategy, "key_hash", counted("hash", strategy.key_hash))
    monkeypatch.setattr(call_rates, "routing_key", lambda *_: b"")  # of one write a second
    monkeypatch.setattr(world.cluster, "shard_for", {"a": world.cluster.shard_for("a")}.__getitem__)
    seen.clear()
    answer = await world.insert(Identity("", NODE), "a")
    assert sorted(seen) == ["decode", "hash"]
    await answer


async def test_a_limited_key_pays_for_what_it_wrote(world: World) -> None:
    identity = limited()
    for id in ("a", "b"):  # the first uses up what there was
        await (await world.insert(identity, id))
    with pytest.raises(TooManyRequests):
        await (await world.insert(identity, "c"))
    assert await world.cluster.get("c") is None


async def test_what_the_log_refuses_a_bound_key_is_refused_and_written_down(world: World) -> None:
    told: list[tuple[str, str]] = []
    node = world.node
    audit: Any = SimpleNamespace(note=lambda door, call, error, **more: told.append((error.code, more["key"])))
    service: Any = node.service
    service._audited = Audited(audit, node.ports.clock, node.ports.rng, service._begin)
    answer = await world.insert(CALLERS["a key of a filter"](), "a", b'{"tenant":"b"}')
    assert isinstance(answer, Promise)
    with pytest.raises(Forbidden):
        await answer
    assert told == [("forbidden", "tenant")]
    assert await world.cluster.get("a") is None
