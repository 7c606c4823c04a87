"""The guide's sharded calls, on nodes inside this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from needle.base.config import SETTINGS
from needle.base.errors import ConfigError, InvalidArgument, Unavailable
from needle.base.model import WriteResult
from needle.distributed import (
    ClusterConfig,
    DistributedCluster,
    Filter,
    ShardConfig,
    ShardManager,
    ShardRouter,
    ShardStrategy,
)
from needle.local.free_ports import free_ports


def test_configurations_check_themselves() -> None:
    assert ShardConfig(shard_count=8).settings_with(3).virtual_nodes_per_shard == 100
    for wrong in (
        {"shard_count": 0},
        {"replication_factor": 8},
        {"strategy": "hash"},
        {"metric": "euclid"},
        {"dimensions": 0},
        {"virtual_nodes_per_shard": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ShardConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="raft_enabled"):
        ClusterConfig(raft_enabled=False, replication_factor=3)
    assert ClusterConfig(raft_enabled=False).replication_factor == 1
    with pytest.raises(InvalidArgument, match="boundaries"):
        ShardConfig(shard_count=3, strategy=ShardStrategy.RANGE, boundaries=["m"])


def test_what_a_configuration_may_say_stands_with_the_settings_of_nodes() -> None:
    for name, path, wrong in (
        ("shard_count", "sharding.shards", 4097),
        ("shard_count", "sharding.shards", None),
        ("replication_factor", "sharding.replicas", 8),
        ("virtual_nodes_per_shard", "sharding.virtual_nodes", 10_001),
        ("dimensions", "dimensions", 1 << 21),
        ("metric", "metric", "euclid"),
        ("cluster_id", "cluster_id", 5),
    ):
        with pytest.raises(ConfigError) as refused:
            ShardConfig(**{name: wrong})  # type: ignore[arg-type]
        assert refused.value.message == f"{name} = {wrong!r} is not allowed: {SETTINGS[path].allowed}"
    usual = ShardConfig()
    assert SETTINGS["sharding.shards"].shown == str(usual.shard_count)
    assert SETTINGS["sharding.virtual_nodes"].shown == str(usual.virtual_nodes_per_shard)
    assert SETTINGS["metric"].default == usual.metric


class Letters:
    """How often "a", "b" and "c" are in a text."""

    name = "letters"
    dimensions = 3

    def embed(self, texts: list[str]) -> list[list[float]]:
        return [[float(text.count(letter)) for letter in "abc"] for text in texts]


async def test_placement_of_ids_is_known_before_there_is_a_cluster() -> None:
    manager = ShardManager(ShardConfig(shard_count=8))
    assert manager.shard_for("doc-123") == 7  # as in routing_vectors.json
    with pytest.raises(Unavailable, match="add_node"):
        await manager.start()
    with pytest.raises(Unavailable):
        await manager.add_node("node-1", "127.0.0.1:1")
    await manager.stop()


async def test_the_guides_calls_on_nodes_in_this_process(tmp_path: Path) -> None:
    ports = free_ports(4)
    config = ClusterConfig(shard_count=4, replication_factor=3, strategy=ShardStrategy.CONSISTENT_HASH, dimensions=4)
    cluster = DistributedCluster(config)
    try:
        for n in (1, 2, 3):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{ports[n]}", str(tmp_path / f"node-{n}"))
        with pytest.raises(InvalidArgument, match="node-1"):
            await cluster.add_node("other", f"127.0.0.1:{ports[1]}")
        await cluster.start()
        vectors = np.eye(4, dtype="f4")
        for n in range(4):
            await cluster.insert(f"doc-{n}", vectors[n], {"n": n})
        assert (await cluster.search(vectors[2], 1))[0].id == "doc-2"
        outcome = await cluster.insert_batch([("a", vectors[0], {"n": 9}), ("b", vectors[1], {"n": 9})])
        assert set(outcome) == {"a", "b"}
        assert all(isinstance(each, WriteResult) for each in outcome.values())
        for search in (cluster.search_strong, cluster.search_leased):
            assert [hit.id for hit in await search(vectors[0], 2)] == ["a", "doc-0"]
        assert {hit.id for hit in await cluster.search_filtered(vectors[0], 9, Filter.eq("n", 9))} == {"a", "b"}
        found = await cluster.get("doc-1")
        assert found is not None
        assert found.metadata == {"n": 1}
        await cluster.delete("a")
        assert await cluster.count() == 5
        health = await cluster.health_check()
        assert sorted(health.shards) == [0, 1, 2, 3]
        assert all(shard.leader and shard.total_followers == 2 for shard in health.shards.values())
        assert sum(shard.documents for shard in health.shards.values()) == 5

        # the same settings find the cluster, others are refused
        manager = ShardManager(config)
        await manager.add_node("node-2", f"127.0.0.1:{ports[2]}")
        async with manager:
            assert sorted(manager.nodes()) == ["node-1", "node-2", "node-3"]
            assert (await ShardRouter(manager).search(vectors[3], 1))[0].id == "doc-3"
            with pytest.raises(InvalidArgument, match="holds"):
                await manager.remove_node("node-3")

        # vectors of texts by a model of one's own
        texts = ShardManager(config, embedder=Letters())
        await texts.add_node("node-1", f"127.0.0.1:{ports[1]}")
        async with texts:
            await (await texts.client()).create_collection("texts", model="letters", metric="l2")
            router = ShardRouter(texts)
            await router.insert("aab", text="aab", collection="texts")
            await router.insert("c", text="c", collection="texts")
            assert [hit.id for hit in await router.search(text="ccc", k=1, collection="texts")] == ["c"]
        other = ShardManager(ShardConfig(shard_count=5))
        await other.add_node("node-1", f"127.0.0.1:{ports[1]}")
        with pytest.raises(ConfigError, match="other settings"):
            await other.start()
        await other.stop()
    finally:
        await cluster.stop()


async def test_a_node_is_added_while_the_first_node_of_the_catalog_is_down(tmp_path: Path) -> None:
    ports = free_ports(5)
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=3, dimensions=4))
    try:
        for n in (1, 2, 3):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{ports[n]}", str(tmp_path / f"node-{n}"))
        await cluster.start()
        first = (await cluster.client()).topology().catalog[0]
        await next(node for node in cluster.local_nodes() if node.config.node_id == first).stop()
        await cluster.add_local_node("node-4", f"127.0.0.1:{ports[4]}", str(tmp_path / "node-4"))
        assert "node-4" in cluster.nodes()
    finally:
        await cluster.stop()
