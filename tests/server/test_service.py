"""What a node of a cluster refuses: other epochs, other shards' documents, collections behind the catalog."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from needle.base.errors import InvalidArgument, StaleEpoch, Unavailable, UnknownMethod
from needle.base.ids import shard_group
from needle.base.model import CollectionSpec, ReadMode, WriteResult
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol import calls, catalog_commands, commands
from needle.protocol.calls import CollectionsCall, Freshness, GetCall, WriteCall
from needle.protocol.peer_calls import (
    CATALOG,
    FOUND,
    CatalogCall,
    FoundCall,
    ShardAnswer,
)
from needle.routing.topology import Ownership


async def test_calls_that_do_not_fit_the_map_are_refused(tmp_path: Path) -> None:
    ports = free_ports(1)
    address = f"127.0.0.1:{ports[0]}"
    cluster = DistributedCluster(ClusterConfig(shard_count=3, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", address, str(tmp_path / "node-1"))
        await cluster.start()
        client = await cluster.client()
        topology = client.topology()
        assert topology.map is not None
        epoch = topology.map.epoch
        stored = topology.collections[0].stored_name
        mine, other = cluster.shard_for("doc-1"), (cluster.shard_for("doc-1") + 1) % 3
        row = np.zeros(2, "<f4").tobytes()[:4] + np.ones(1, "<f4").tobytes()

        async def write(epoch: int, shard: int, command: commands.Command) -> WriteResult:
            body = calls.encode(WriteCall(shard_group(shard), commands.encode(command), 2.0, epoch))
            return calls.decode(await client._caller.call(address, calls.WRITE, body, 5), WriteResult)

        insert = commands.Insert(stored, ["doc-1"], row, [b"{}"])
        assert (await write(epoch, mine, insert)).count == 1
        with pytest.raises(StaleEpoch) as astray:
            await write(epoch, other, insert)
        assert astray.value.details["owned"] is False
        with pytest.raises(StaleEpoch):
            await write(epoch, other, commands.Delete(stored, ["doc-1"]))
        with pytest.raises(StaleEpoch) as old:
            await write(-1, mine, insert)
        assert old.value.details["version"] == topology.version
        with pytest.raises(Unavailable, match="does not know the shard map"):
            await write(epoch + 1, mine, insert)
        with pytest.raises(InvalidArgument, match="catalog"):
            await write(epoch, mine, commands.DropCollection(stored))

        async def read(method: str, call: object) -> ShardAnswer:
            return calls.decode(await client._caller.call(address, method, calls.encode(call), 5), ShardAnswer)

        fresh = Freshness(ReadMode.STRONG, 0, 0.0, 2.0)
        answer = await read(calls.COLLECTIONS, CollectionsCall(shard_group(mine), fresh, epoch))
        assert (answer.epoch, answer.fingerprint) == (epoch, Ownership(topology.map).fingerprint(mine))
        with pytest.raises(StaleEpoch):
            await read(calls.GET, GetCall(shard_group(mine), stored, ["doc-1"], False, fresh, -1))

        # what an earlier release asked for: the members of a group are the catalog's to say, and change step by step
        with pytest.raises(UnknownMethod, match="another release"):
            await client._caller.call(address, "membership", calls.encode((shard_group(0), ["node-1"], [])), 5)
        at_once = catalog_commands.encode(catalog_commands.SetReplicas(0, ["node-1"], []))
        with pytest.raises(InvalidArgument, match="AssignReplicas"):
            await client._caller.call(address, CATALOG, calls.encode(CatalogCall(at_once, 2.0)), 5)

        # the catalog refuses what its shards would refuse, and a founded node another cluster
        for spec in (CollectionSpec(name=" x", dimensions=2), CollectionSpec(name="x", dimensions=0)):
            command = catalog_commands.encode(catalog_commands.CreateCollection(spec, False, 1))
            with pytest.raises(InvalidArgument):
                await client._caller.call(address, CATALOG, calls.encode(CatalogCall(command, 2.0)), 5)
        with pytest.raises(InvalidArgument, match="another cluster"):
            await client._caller.call(address, FOUND, calls.encode(FoundCall(1, {"node-1": address})), 5)
        assert client.topology().collection(" x") is None
    finally:
        await cluster.stop()


async def test_a_collection_dropped_behind_a_shards_back_is_dropped_there_too(tmp_path: Path) -> None:
    """The catalog alone is told; the shard's leader follows, and documents of the old one never come back."""
    ports = free_ports(1)
    cluster = DistributedCluster(ClusterConfig(shard_count=2, replication_factor=1, dimensions=2))
    try:
        await cluster.add_local_node("node-1", f"127.0.0.1:{ports[0]}", str(tmp_path / "node-1"))
        await cluster.start()
        client = await cluster.client()
        await cluster.insert("doc-1", [1, 0])
        old = client.topology().collections[0]
        await client.change_catalog(catalog_commands.DropCollection("default", old.id), timeout=5)
        made = catalog_commands.CreateCollection(old.spec, False, 99)
        await client.change_catalog(made, timeout=5)
        assert await cluster.get("doc-1") is None
        await cluster.insert("doc-2", [1, 0])
        assert await cluster.count() == 1
        node = cluster.local_nodes()[0]
        new = client.topology().collections[0]
        assert new.id != old.id
        for group in (1, 2):
            replica = node.groups[group].replica
            await wait_for(lambda r=replica: [s.name for s in r.collections()] == [new.stored_name], 60)  # type: ignore[misc]
        assert msgspec.structs.replace(new.stored_spec, name="default") == old.spec
    finally:
        await cluster.stop()
