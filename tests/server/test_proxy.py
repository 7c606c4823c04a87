"""A client that knows nothing of shards works through any node of a cluster."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import (
    AlreadyExists,
    CollectionNotFound,
    InvalidArgument,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    VersionMismatch,
)
from needle.base.filters.builder import Filter
from needle.base.ids import shard_group
from needle.base.model import WriteResult
from needle.connecting import system_caller
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.protocol import calls
from needle.protocol.calls import WriteCall
from needle.protocol.commands import Insert, OpenSession, Session, encode
from proof.plain_client import PlainClient


async def test_a_plain_client_through_each_node(tmp_path: Path) -> None:
    ports = free_ports(3)
    cluster = DistributedCluster(ClusterConfig(shard_count=4, replication_factor=1))
    caller = system_caller("needle")
    try:
        addresses = [f"127.0.0.1:{port}" for port in ports]
        for n, address in enumerate(addresses):
            await cluster.add_local_node(f"node-{n}", address, str(tmp_path / f"node-{n}"))
        await cluster.start()
        client = PlainClient(caller, addresses, rng=random.Random(1))
        await client.create_collection("default", dimensions=4)
        rows = np.random.default_rng(1).normal(size=(200, 4)).astype("f4")
        ids = [f"doc-{n}" for n in range(200)]
        results = await client.insert_batch(ids=ids, vectors=rows, metadatas=[{"n": n} for n in range(200)])
        assert sum(result.count for result in results) == 200
        assert [spec.name for spec in await client.collections()] == ["default"]
        assert await client.count() == 200
        expected = [hit.id for hit in await cluster.search(rows[9], 8, exact=True)]
        for mode in ("strong", "leased", "eventual"):
            for session in {False, mode == "eventual"}:
                hits = await client.search(rows[9], 8, exact=True, mode=mode, session=session)
                assert [hit.id for hit in hits] == expected
        assert [hit.id for hit in await client.search(rows[9], 3, Filter.eq("n", 9))] == ["doc-9"]
        assert [doc.id for doc in await client.get_many(["doc-3", "x", "doc-1"])] == ["doc-3", "doc-1"]
        with pytest.raises(AlreadyExists):
            await client.insert_if_absent("doc-3", rows[0])
        document = await client.get("doc-3")
        assert document is not None
        await client.compare_and_set("doc-3", document.version, rows[0])
        with pytest.raises(VersionMismatch):
            await client.compare_and_set("doc-3", document.version, rows[0])
        assert (await client.delete(["doc-3", "doc-4"])).count == 2
        with pytest.raises(CollectionNotFound):
            await client.count(collection="nothing")

        async def send(address: str, session: Session, value: int) -> WriteResult:
            command = Insert("default", ["cas"], rows[value].tobytes(), [b""], 0, session)
            body = calls.encode(WriteCall(shard_group(0), encode(command), 5.0))
            return calls.decode(await caller.call(address, calls.WRITE, body, 5), WriteResult)

        # a repeated write is executed once, and another node does not guess
        body = calls.encode(WriteCall(shard_group(0), encode(OpenSession(1)), 5.0))
        opened = calls.decode(await caller.call(addresses[1], calls.WRITE, body, 5), WriteResult)
        session = Session(opened.index, 1, 1)
        first, again = await asyncio.gather(send(addresses[1], session, 1), send(addresses[1], session, 1))
        assert first == again
        assert await send(addresses[1], session, 2) == first
        with pytest.raises(SessionExpired):
            await send(addresses[0], session, 1)
        with pytest.raises(AlreadyExists):
            await send(addresses[1], Session(opened.index, 2, 2), 1)
        with pytest.raises(InvalidArgument, match="knows the map"):
            command = Insert("default", ["p", "q"], rows[:2].tobytes(), [b"", b""], 0)
            body = calls.encode(WriteCall(shard_group(0), encode(command), 5.0))
            await caller.call(addresses[1], calls.WRITE, body, 5)
        await client.drop_collection("default")
        assert await client.collections() == []
    finally:
        await caller.close()
        await cluster.stop()


async def test_one_address_of_any_node_is_enough_whatever_shard_0_does(tmp_path: Path) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=3, replication_factor=1, dimensions=4))
    caller = system_caller("needle")
    try:
        addresses = {f"node-{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(3))}
        for node, address in addresses.items():
            await cluster.add_local_node(node, address, str(tmp_path / node))
        await cluster.start()
        topology = (await cluster.client()).topology()
        keys = {cluster.shard_for(f"doc-{n}"): f"doc-{n}" for n in range(100)}
        assert len(keys) == 3
        for node, address in addresses.items():
            client = PlainClient(caller, [address], rng=random.Random(1))
            for key in keys.values():
                await client.insert(key, [1.0, 2.0, 3.0, 4.0], {"by": node}, timeout=20)
                document = await client.get(key, timeout=20)
                assert document is not None
                assert document.metadata == {"by": node}

        # without the only replica of shard 0 the other shards are served as before
        holder = topology.shards[0].replicas[0]
        await next(node for node in cluster.local_nodes() if node.node_id == holder).stop(hand_over=False)
        other = next(node for node in addresses if node not in (holder, topology.catalog[0]))
        client = PlainClient(caller, [addresses[other]], rng=random.Random(1))
        served = next(key for shard, key in keys.items() if topology.shards[shard].replicas == (other,))
        await client.insert(served, [4.0, 3.0, 2.0, 1.0], {"by": "late"}, timeout=20)
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await client.insert(keys[0], [4.0, 3.0, 2.0, 1.0], timeout=1)
    finally:
        await caller.close()
        await cluster.stop()
