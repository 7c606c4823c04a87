"""Three real processes: every kind of call, from every node, in every mode."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

import needle
from harness.calm import CALM
from needle.base.errors import AlreadyExists, CollectionNotFound, VersionMismatch, WrongCluster
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.local.published import of_one_cluster

MODES = ("strong", "leased", "eventual")


async def test_a_cluster_serves_every_mode_from_every_node(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster:
        vectors = np.random.default_rng(7).standard_normal((200, 8), dtype=np.float32)
        async with cluster.connect() as client:
            results = await client.insert_batch(
                ids=[f"doc-{n}" for n in range(200)],
                vectors=vectors,
                metadatas=[{"n": n, "even": n % 2 == 0} for n in range(200)],
            )
            assert sum(result.count for result in results) == 200
            unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            distances = 1 - unit @ unit[3]
            nearest = [f"doc-{n}" for n in np.argsort(distances)[:5]]
            even = [f"doc-{n}" for n in np.argsort(distances) if n % 2 == 0][:5]
            for mode in MODES[:2]:
                hits = await client.search(vectors[3], 5, mode=mode)
                assert [hit.id for hit in hits] == nearest
                assert hits[0].metadata == {"n": 3, "even": False}
                np.testing.assert_allclose([hit.distance for hit in hits], np.sort(distances)[:5], atol=1e-5)
                np.testing.assert_allclose([hit.score for hit in hits], 1 - np.sort(distances)[:5], atol=1e-5)
                found = await client.search(vectors[3], 5, needle.Filter.eq("even", True), mode=mode)
                assert [hit.id for hit in found] == even
        for name in cluster.nodes:
            async with cluster.connect(name) as client:
                # A session of its own: the write makes every later eventual read at least as new.
                await client.insert(f"from-{name}", vectors[0], {"n": -1})
                for mode in MODES:
                    hits = await client.search(vectors[3], 5, mode=mode, session=mode == "eventual")
                    assert [hit.id for hit in hits] == nearest
                    document = await client.get(f"from-{name}", mode=mode, session=mode == "eventual")
                    assert document is not None
                    assert document.metadata == {"n": -1}
        await cluster.equal_digests()


async def test_conditional_writes_deletes_and_collections(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        one = await client.insert_if_absent("a", [1.0] * 8, {"v": 1})
        with pytest.raises(AlreadyExists) as exists:
            await client.insert_if_absent("a", [1.0] * 8)
        assert exists.value.details["version"] == one.version
        two = await client.compare_and_set("a", one.version, [2.0] * 8, {"v": 2})
        assert two.version > one.version
        assert two.existed
        with pytest.raises(VersionMismatch) as mismatch:
            await client.compare_and_set("a", one.version, [3.0] * 8)
        assert mismatch.value.details["actual"] == two.version
        document = await client.get("a")
        assert document is not None
        assert (document.metadata, document.version) == ({"v": 2}, two.version)
        await client.insert("b", [1.0] * 8)
        assert [d.id for d in await client.get(["b", "missing", "a"])] == ["b", "a"]
        assert await client.count() == 2
        deleted = await client.delete(["a", "missing"])
        assert (deleted.count, deleted.existed) == (1, True)
        assert await client.get("a") is None
        await client.create_collection("other", dimensions=3, metric="l2")
        await client.insert("x", [0, 3, 4], collection="other")
        hit = (await client.search([0, 0, 0], 1, collection="other", with_vectors=True))[0]
        assert (hit.distance, hit.score) == (5.0, -5.0)
        assert hit.vector.tolist() == [0, 3, 4]
        assert [spec.name for spec in await client.collections()] == ["default", "other"]
        await client.drop_collection("other")
        with pytest.raises(CollectionNotFound):
            await client.search([0, 0, 0], 1, collection="other")


async def test_a_client_of_another_cluster_is_refused_by_name(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1, cluster_id="mine") as cluster:
        with pytest.raises(WrongCluster, match=r"'theirs'.*'mine'"):
            await cluster.connect(cluster_id="theirs")
        async with cluster.connect(cluster_id="mine") as client:
            await client.insert("a", [1.0] * 8)


async def test_one_node_is_a_cluster_and_keeps_its_data(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:
        async with cluster.connect() as client:
            await client.insert("a", [1.0] * 8, {"kept": True})
        cluster.kill("node-1")
        cluster.restart("node-1")
        await cluster.ready()
        async with cluster.connect() as client:
            document = await client.get("a")
            assert document is not None
            assert document.metadata == {"kept": True}


async def test_the_synchronous_client_does_the_same(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster:

        def blocking() -> list[str]:
            with needle.connect_sync(cluster.cluster) as client:
                client.insert("a", [1.0] * 8)
                client.insert_batch([("b", [0.0] * 7 + [1.0])])
                assert client.nodes() == {"node-1": cluster.addresses["node-1"]}
                return [hit.id for hit in client.search([1.0] * 8, 2)]

        assert await asyncio.to_thread(blocking) == ["a", "b"]


async def test_health_and_metrics_over_http(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", [1.0] * 8)
        leader = await cluster.leader()
        assert (await cluster.http(leader, "/livez"))[0] == 200
        assert (await cluster.http(leader, "/nothing"))[0] == 404
        status, text = await cluster.http(leader, "/metrics")
        assert status == 200
        text = of_one_cluster(text)
        for follower in sorted(set(cluster.nodes) - {leader}):
            assert f'raft_replication_lag{{follower="{follower}",shard="0"}}' in text
            assert f'raft_replication_lag_seconds{{follower="{follower}",shard="0"}}' in text
        assert 'needle_elections_total{reason="leader_silent",shard="0"}' in text
        for name in ("raft_term", "raft_commit_index", "raft_apply_index", "raft_leader_changes_total"):
            assert f'{name}{{shard="0"}}' in text
        assert f'needle_shard_leader{{node="{leader}",shard="0"}} 1.0' in text
        assert 'needle_shard_vector_count{shard="0"} 1.0' in text
        assert "needle_fsync_seconds_bucket" in text

        async def counted() -> bool:
            return "needle_writes_total 2.0" in of_one_cluster((await cluster.http(leader, "/metrics"))[1])

        assert await wait_for(counted, 60, "the session and the write being counted")
