"""The blocking client goes straight to the shards, with all that the other one can do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

import needle
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports


async def test_what_a_sharded_client_can_do_is_there_without_asyncio(tmp_path: Path) -> None:
    cluster = DistributedCluster(ClusterConfig(shard_count=3, replication_factor=1, dimensions=4))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    try:
        await cluster.add_local_node("node-1", address, str(tmp_path / "node-1"))
        await cluster.start()
        rows = np.random.default_rng(1).normal(size=(60, 4)).astype("f4")

        def blocking() -> None:
            with needle.connect_sync(address) as client:
                outcomes = client.insert_each(ids=[f"doc-{n}" for n in range(60)], vectors=rows)
                assert sum(isinstance(outcome, needle.WriteResult) for outcome in outcomes.values()) == 60
                assert client.topology().settings is not None
                counts = client.counts()
                assert sorted(counts) == [0, 1, 2]
                assert sum(counts.values()) == client.count() == 60
                part = client.search_partial(rows[5], 2)
                assert part.complete
                assert part.hits == client.search(rows[5], 2)
                assert client.health_check().healthy
                assert [replica.shard for replica in client.cluster_status()] == [0, 1, 2]
                with pytest.raises(needle.TransferFailed, match="no other voter"):
                    client.step_down(shard=2, timeout=0.5)
                document = client.get("doc-5")
                assert document is not None
                assert document.id == "doc-5"
                assert client.delete("doc-5").count == 1
                for refused in (
                    lambda: client.insert("wide", [1.0] * 5),
                    lambda: client.insert_batch([("wide", [1.0] * 5), ("wider", [1.0] * 5)]),
                    lambda: client.search([1.0] * 5, 1),
                ):
                    with pytest.raises(needle.InvalidArgument, match="collection 'default' takes 4 float32 values"):
                        refused()

        await asyncio.to_thread(blocking)
    finally:
        await cluster.stop()
