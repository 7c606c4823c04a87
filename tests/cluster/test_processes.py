"""A sharded and replicated cluster on real processes: 6 nodes, 4 shards of 3 replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle import CollectionNotFound, Filter, InvalidArgument, NoQuorum
from needle.base.errors import DeadlineExceeded, Unavailable
from needle.client.client import Client
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.routing.strategy import ShardStrategy
from needle.routing.topology import Topology

DIMENSIONS = 16
COUNT = 1500


def vectors(count: int = COUNT, seed: int = 1) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIMENSIONS)).astype("f4")
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def nearest(stored: np.ndarray, query: np.ndarray, k: int, rows: Iterable[int] | None = None) -> list[str]:
    """One exact index in this process."""
    keep = np.arange(len(stored)) if rows is None else np.array(list(rows))
    distances = 1 - stored[keep] @ query
    order = np.lexsort((np.array([f"doc-{n}" for n in keep]), distances))[:k]
    return [f"doc-{keep[n]}" for n in order]


def one_of_each(topology: Topology) -> list[str]:
    """Nodes such that every shard loses exactly one replica... with 6 nodes in two groups of three: one of each."""
    groups = {frozenset(info.replicas) for info in topology.shards}
    return [sorted(group)[0] for group in sorted(groups, key=sorted)]


async def test_the_sharded_cluster_end_to_end(tmp_path: Path) -> None:
    stored = vectors()
    queries = vectors(20, seed=2)
    async with ShardedProcesses(tmp_path, nodes=6) as processes:
        topology = await processes.create(4, 3)
        assert sorted(len(topology.hosted_by(node)) for node in processes.nodes) == [2] * 6
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=DIMENSIONS)
            metadata = [{"n": n, "even": n % 2 == 0} for n in range(COUNT)]
            ids = [f"doc-{n}" for n in range(COUNT)]
            outcomes = await client.insert_each(ids=ids, vectors=stored, metadatas=metadata)
            assert all(outcome.version > 0 for outcome in outcomes.values())  # type: ignore[union-attr]
            counts = await client.counts()
            assert sum(counts.values()) == COUNT
            assert all(count > 0 for count in counts.values())

            async def same_hits(mode: str) -> None:
                for query in queries:
                    hits = await client.search(query, 10, exact=True, mode=mode)
                    assert [hit.id for hit in hits] == nearest(stored, query, 10)
                hits = await client.search(queries[0], 10, Filter.eq("even", True), exact=True, mode=mode)
                assert [hit.id for hit in hits] == nearest(stored, queries[0], 10, range(0, COUNT, 2))

            for mode in ("strong", "leased"):
                await same_hits(mode)
            found = await client.get(["doc-5", "nothing", "doc-3"], with_vectors=False)
            assert [document.metadata["n"] for document in found] == [5, 3]

            # one node of each shard dies: everything goes on
            for name in one_of_each(topology):
                processes.kill(name)
            await same_hits("strong")
            await client.insert("late", queries[0], timeout=20)
            assert (await client.search(queries[0], 1, exact=True))[0].id == "late"
            assert (await client.search(queries[0], 1, mode="eventual", exact=True))[0].id in (
                "late",
                nearest(stored, queries[0], 1)[0],
            )
            await wait_for(lambda: _states(client, dict.fromkeys(range(4), "degraded")), 60, "all shards degraded")

            # a second node of the first two shards' group dies: those answer clearly, the others go on
            group = topology.shards[0].replicas
            lost = [info.shard for info in topology.shards if set(info.replicas) == set(group)]
            second = next(name for name in sorted(group) if processes.nodes[name].running())
            processes.kill(second)
            with pytest.raises((NoQuorum, DeadlineExceeded)):
                await client.search(queries[0], 10, timeout=2.0)
            part = await client.search_partial(queries[0], 10, timeout=5.0)
            assert sorted(part.missing) == lost
            assert part.gaps
            assert not part.complete
            assert part.hits
            router = client.documents  # type: ignore[attr-defined]
            assert not {router.shard_of(hit.id) for hit in part.hits} & set(lost)
            served = next(f"new-{n}" for n in range(100) if router.shard_of(f"new-{n}") not in lost)
            await client.insert(served, queries[1])
            dead = next(f"new-{n}" for n in range(100) if router.shard_of(f"new-{n}") in lost)
            with pytest.raises(Unavailable):
                await client.insert(dead, queries[1], timeout=1.0)
            states = {shard: "unavailable" if shard in lost else "degraded" for shard in range(4)}
            await wait_for(lambda: _states(client, states), 60, "only the lost shards being unavailable")

            # one comes back: without manual steps all shards serve again; with the rest it is healthy
            processes.restart(second)
            await wait_for(lambda: client.insert(dead, queries[1], timeout=1.0), 60, "writes to the lost shards")
            for name, node in processes.nodes.items():
                if not node.running():
                    processes.restart(name)
            await healthy(client)
            await wait_for(lambda: _led_as_placed(client), 60, "every shard led by its preferred node")
            digests = await wait_for(lambda: _equal_digests(client), 60, "equal replicas")
            assert len(digests) == 4
            await client.delete(["late", served, dead])
            await same_hits("strong")


async def _states(client: Client, wanted: dict[int, str]) -> bool:
    health = await client.health_check(timeout=2.0)
    assert not health.healthy
    return {shard: info.state for shard, info in health.shards.items()} == wanted


async def _led_as_placed(client: Client) -> bool:
    health = await client.health_check(timeout=1.0)
    return all(health.shards[info.shard].leader == info.replicas[0] for info in client.topology().shards)


async def _equal_digests(client: Client) -> dict[str, str] | None:
    """One digest a shard, once its replicas are at one index."""
    by_shard: dict[str, set[tuple[int, str]]] = {}
    for info in client.topology().shards:
        found = await client.digests(info.shard)
        assert sorted(found) == sorted(info.replicas)
        by_shard[str(info.shard)] = {(answer.applied_index, answer.digest) for answer in found.values()}
    if any(len({index for index, _ in seen}) > 1 for seen in by_shard.values()):
        return None
    assert all(len(seen) == 1 for seen in by_shard.values()), by_shard
    return {shard: next(iter(seen))[1] for shard, seen in by_shard.items()}


async def test_eight_shards_without_replication_on_three_nodes_and_a_node_that_joins(tmp_path: Path) -> None:
    stored = vectors(400)
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        topology = await processes.create(8, 1, ShardStrategy.custom("tenant"))
        again = await processes.create(8, 1, ShardStrategy.custom("tenant"))  # may be repeated
        assert (again.version, again.shards) == (topology.version, topology.shards)
        async with processes.connect("node-2") as client:
            health = await healthy(client)
            assert "not redundant: shards 0, 1, 2, 3, 4, 5, 6, 7" in health.warnings[0]
            await client.create_collection("a", dimensions=DIMENSIONS)
            metadata = [{"tenant": n % 20} for n in range(400)]
            ids = [f"doc-{n}" for n in range(400)]
            await client.insert_batch(ids=ids, vectors=stored, metadatas=metadata, collection="a")
            router = client.documents  # type: ignore[attr-defined]
            asked = router.stats.fanout
            hits = await client.search(stored[7], 5, {"tenant": 7.0}, collection="a", exact=True)
            assert router.stats.fanout - asked == 1
            assert [hit.id for hit in hits] == nearest(stored, stored[7], 5, range(7, 400, 20))
            assert [hit.id for hit in await client.search(stored[7], 5, collection="a", exact=True)] == nearest(
                stored, stored[7], 5
            )
            assert (await client.delete(["doc-1", "doc-2"], collection="a")).count == 2
            assert await client.get("doc-1", collection="a") is None
            with pytest.raises(InvalidArgument, match="shard key"):
                await client.insert("x", stored[0], {"other": 1}, collection="a")

            # a collection of the same name is another one
            await client.drop_collection("a")
            with pytest.raises(CollectionNotFound):
                await client.count(collection="a")
            await client.create_collection("a", dimensions=DIMENSIONS)
            assert await client.count(collection="a") == 0

            # a new node joins by an address; the old one comes back with another one
            name = processes.add(sharding={"join": [processes.nodes["node-3"].address]})
            processes.nodes[name].start()
            await wait_for(lambda: _knows(client, name, processes.nodes[name].address), 60, "the new node")
            await wait_for(lambda: "stores nothing until" in processes.nodes[name].output(), 60, "the node saying so")
            processes.kill("node-3")
            address = f"127.0.0.1:{free_ports(1)[0]}"
            processes.nodes["node-3"].settings["listen"] = address
            processes.restart("node-3")
            await wait_for(lambda: _knows(client, "node-3", address), 60, "the new address")
            await healthy(client)
            await client.insert("y", stored[0], {"tenant": 3}, collection="a")


async def _knows(client: Client, node: str, address: str) -> bool:
    await client.refresh_topology(timeout=0.2)
    return client.nodes().get(node) == address


async def test_a_node_that_lost_its_disk_is_refused_under_its_name(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(1, 3)
        processes.kill("node-3")
        processes.nodes["node-3"].settings.update(
            {"data_dir": str(tmp_path / "fresh"), "sharding": {"join": [processes.nodes["node-1"].address]}}
        )
        processes.restart("node-3")
        code = await asyncio.to_thread(processes.nodes["node-3"].wait, 60)
        assert code == 2
        assert "another data directory" in processes.nodes["node-3"].output()
