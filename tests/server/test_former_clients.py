"""A client of a release before vectors of bits goes on beside them: what it could not read it does not hear of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

import needle
from catalog.catalog_util import topology
from needle import connecting
from needle.base.dtypes import DType
from needle.base.errors import CollectionExists, CollectionNotFound, InvalidArgument
from needle.base.model import CollectionSpec, Metric, VectorSpec
from needle.base.versions import BITS, KNOWN
from needle.client import Client
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.routing.collection_info import NamedVector
from needle.routing.topology import AliasInfo, CollectionInfo, Topology
from needle.rpc.transport import RpcClient
from needle.server.service.former_clients import readable

pytestmark = pytest.mark.asyncio(loop_scope="module")
OF_BITS: dict[str, Any] = {"dimensions": 64, "dtype": "bit", "metric": "hamming"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[DistributedCluster]:
    made = DistributedCluster(ClusterConfig(shard_count=2, replication_factor=1, dimensions=4))
    try:
        for n, port in enumerate(free_ports(2)):
            await made.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(module_path / f"node-{n}"))
        await made.start()
        yield made
    finally:
        await made.stop()


async def connected(cluster: DistributedCluster, monkeypatch: pytest.MonkeyPatch, knows: int) -> Client:
    """A client that says in its hello that it knows no more."""
    with monkeypatch.context() as patch:
        patch.setattr(connecting, "RpcClient", partial(RpcClient, knows=knows))
        return await needle.connect(sorted((await cluster.client()).topology().addresses().values()))


async def names(client: Client) -> list[str]:
    return sorted(one.name for one in await client.collections())


async def test_it_serves_who_is_connected_and_who_connects(
    cluster: DistributedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = await cluster.client(), await connected(cluster, monkeypatch, BITS - 1)
    rows = np.eye(4, dtype=np.float32)
    await old.insert_batch(ids=list("abcd"), vectors=rows)
    await new.create_collection("bits", **OF_BITS)
    await new.insert("x", np.ones(64), collection="bits")
    await new.set_alias("codes", "bits")
    await new.add_vector("default", "code", VectorSpec(dimensions=64, dtype=DType.BIT, metric=Metric.HAMMING))
    await new.update_vector("a", np.ones(64), name="code")
    later = await connected(cluster, monkeypatch, BITS - 1)
    try:
        await old.create_collection("plain", dimensions=4)  # so it has to hear of all that was before
        for client in (old, later):
            assert await names(client) == ["default", "plain"]
            assert [hit.id for hit in await client.search(rows[1], 1)] == ["b"]
            described = await client.describe_collections()
            assert sorted(one.name for one in described) == ["default", "plain"]
            assert [one.documents for one in described if one.name == "default"] == [4]
            assert not client.topology().aliases and not any(one.vectors for one in client.topology().collections)
            for name in ("bits", "codes"):
                with pytest.raises(CollectionNotFound):
                    await client.search(np.ones(64), 1, collection=name)
            with pytest.raises(InvalidArgument, match="code"):
                await client.search(np.ones(64), 1, vector_name="code")
            with pytest.raises(CollectionExists, match="dtype bit"):
                await client.create_collection("bits", dimensions=4)
        await old.patch("a", set={"n": 1})
        found = await new.get("a", vectors=["code"])
        assert found is not None and found.metadata == {"n": 1}
        assert (found.vectors or {})["code"].tolist() == [255] * 8  # what it knows nothing of stays
        assert [hit.id for hit in await new.search(np.ones(64), 1, collection="codes")] == ["x"]
        assert await names(new) == ["bits", "default", "plain"]
        await new.remove_alias("codes")
        await new.drop_collection("bits")
        await new.drop_collection("plain")
        await later.create_collection("last", dimensions=4)
        assert await names(later) == await names(new) == ["default", "last"]
    finally:
        await old.close()
        await later.close()


def info(number: int, name: str, *, bits: bool = False, vectors: tuple[NamedVector, ...] = ()) -> CollectionInfo:
    more: dict[str, Any] = {"dtype": DType.BIT, "metric": Metric.HAMMING} if bits else {}
    return CollectionInfo(id=number, spec=CollectionSpec(name=name, dimensions=64, **more), vectors=vectors)


async def test_nothing_else_is_left_out() -> None:
    plain, code = (
        NamedVector("title", 8, VectorSpec(dimensions=4)),
        NamedVector("code", 9, VectorSpec(dimensions=64, dtype=DType.BIT, metric=Metric.HAMMING)),
    )
    rows = (info(1, "a"), info(2, "b", bits=True), info(3, "c", vectors=(plain, code)))
    aliases = (AliasInfo("to-a", "a"), AliasInfo("to-b", "b"))
    whole: Topology = msgspec.structs.replace(topology(shards=1, nodes=3), collections=rows, aliases=aliases)
    assert readable(whole, KNOWN) is whole
    told = readable(whole, BITS - 1)
    assert told.collections == (rows[0], msgspec.structs.replace(rows[2], vectors=(plain,)))
    assert told.aliases == aliases[:1]
    assert msgspec.structs.replace(told, collections=rows, aliases=aliases) == whole
    without = msgspec.structs.replace(whole, collections=rows[:1], aliases=aliases[:1])
    assert readable(without, BITS - 1) is without  # so that it can be told by what changed
