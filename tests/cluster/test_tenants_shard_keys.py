"""A router that works for an API key bound to a filter, where the tenant is the shard key and collections have aliases:
one id may then be there once for each tenant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from needle import Client, Forbidden, NeedleError
from needle.distributed import ClusterConfig, DistributedCluster, ShardStrategy
from needle.local.free_ports import free_ports

V = [1.0, 0.0, 0.0, 0.0]


async def test_the_same_id_of_several_tenants_is_each_ones_own(tmp_path: Path) -> None:
    cluster = DistributedCluster(
        ClusterConfig(shard_count=4, replication_factor=1, strategy=ShardStrategy.custom("tenant"))
    )
    tenants = [f"t{n}" for n in range(8)]
    try:
        for n, port in enumerate(free_ports(2)):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(tmp_path / f"node-{n}"))
        await cluster.start()
        admin = await cluster.client()
        await admin.create_collection("docs", dimensions=4)
        await admin.set_alias("now", "docs")
        documents = admin.documents
        bound = {
            name: Client(admin._caller, admin._shards, documents.bound_to(b'{"tenant":"%s"}' % name.encode()))  # type: ignore[attr-defined]
            for name in tenants
        }
        wrote = []
        for name, client in bound.items():
            try:
                await client.insert("same", V, {"tenant": name, "n": 1}, collection="now")
                wrote.append(name)
            except Forbidden:  # another tenant of its shard has the id
                assert wrote
            await client.insert_batch(
                ids=[f"{name}-{n}" for n in range(50)],
                vectors=np.tile(np.array(V, "f4"), (50, 1)),
                metadatas=[{"tenant": name, "n": n} for n in range(50)],
                collection="now",
            )
            with pytest.raises(NeedleError):
                await client.insert("else", V, {"tenant": "another"}, collection="now")
        assert 2 <= len(wrote) <= 4
        for name, client in bound.items():
            own = 50 + (name in wrote)
            assert await client.count(collection="now") == own
            found = await client.get(["same", f"{name}-3", "t0-1", "t7-1"], collection="now")
            assert {one.metadata["tenant"] for one in found} == {name}
            assert len(await client.search(V, 400, collection="now")) == own
            assert len([one async for one in client.scan(collection="now")]) == own
            patched = await client.patch("same", set={"n": 2}, collection="now")
            assert patched.count == (name in wrote)
            changed = await client.patch_where(
                {"n": {"$gte": 40}}, set={"old": True}, return_ids=True, collection="now"
            )
            assert sorted(changed.ids) == sorted(f"{name}-{n}" for n in range(40, 50))
        for name in wrote:
            assert (await bound[name].delete("same", collection="now")).count == 1
        assert await admin.count(collection="docs") == 8 * 50
        await bound["t0"].delete_where({}, collection="docs")
        assert await admin.count(collection="docs") == 7 * 50
    finally:
        await cluster.stop()
