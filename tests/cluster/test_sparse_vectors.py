"""Sparse vectors on real processes: exact hits whatever is written, with any number of shards, through restarts, moves
and leaders that die; and in backups."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from cluster.processes import ShardedProcesses, healthy
from needle import backup as backups
from needle.base.errors import CollectionExists, InvalidArgument
from needle.client import Client
from needle.distributed import RaftCluster, RaftConfig
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol.catalog_commands import StartMove
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import Topology
from proof.checkers.sparse import ranked_sparse
from proof.checkers.words import all_fused

NAME, FIELD = "papers", "splade"
Found = list[tuple[str, float]]


def vector(rng: random.Random, most: int = 20) -> dict[str, Any]:
    indices = rng.sample(range(60), rng.randint(2, most))
    return needle.sparse_vector(indices, np.array([rng.gauss(0, 1) for _ in indices], np.float32))


async def changes(client: Client, rng: random.Random, held: dict[str, Any]) -> None:
    """Inserts, replacements, patches, vectors and deletions, mirrored in `held`."""
    ids = [f"d{rng.randrange(400):03}" for _ in range(60)]
    rows = [{"n": rng.randrange(4), "t": "a fox"} | ({FIELD: vector(rng)} if rng.random() < 0.8 else {}) for _ in ids]
    await client.insert_batch(ids=ids, vectors=[[1.0, 2.0]] * len(ids), metadatas=rows, collection=NAME)
    held.update(zip(ids, rows, strict=True))
    gone = rng.sample(sorted(held), 5)
    await client.delete(gone, collection=NAME)
    for name in gone:
        del held[name]
    one, other, third = rng.sample(sorted(held), 3)
    held[one] = {**held[one], FIELD: vector(rng)}
    await client.patch(one, set={FIELD: held[one][FIELD]}, collection=NAME)
    held[other] = {name: value for name, value in held[other].items() if name != FIELD}
    await client.patch(other, unset=[FIELD], collection=NAME)
    await client.update_vector(third, [0.5, 0.5], collection=NAME)


async def found(client: Client, query: Any, **narrow: Any) -> Found:
    return [(hit.id, hit.score) for hit in await client.search(sparse={FIELD: query}, collection=NAME, **narrow)]


def wanted(held: dict[str, Any], query: Any, n: int | None = None) -> Found:
    vectors = {name: row.get(FIELD) for name, row in held.items()}
    return ranked_sparse(vectors, query, lambda name: n is None or held[name]["n"] == n)


async def check(client: Client, rng: random.Random, held: dict[str, Any]) -> None:
    for _ in range(3):
        query = vector(rng)
        true = wanted(held, query)
        assert await found(client, query, k=10) == true[:10]
        assert await found(client, query, k=1000, filter={"n": 2}) == wanted(held, query, 2)
        assert await found(client, query, k=3, offset=4) == true[4:7]
        least = true[len(true) // 2][1]
        assert await found(client, query, k=1000, min_score=least) == [one for one in true if one[1] >= least]
    some = rng.sample(sorted(held), 20)
    assert {one.id: one.metadata for one in await client.get(some, collection=NAME)} == {one: held[one] for one in some}


@pytest.mark.parametrize("shards", [1, 3])
async def test_hits_and_scores_do_not_depend_on_the_number_of_shards(tmp_path: Path, shards: int) -> None:
    rng, held = random.Random(4), dict[str, Any]()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(shards, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, sparse=[FIELD])
            for _ in range(3):
                await changes(client, rng, held)
                await check(client, rng, held)
            for name in list(processes.addresses):
                processes.kill(name)
                processes.restart(name)
                await healthy(client)
            await check(client, rng, held)
            query = vector(rng)
            explained = (await client.search(sparse={FIELD: query}, collection=NAME, explain=True)).explained
            assert sorted(one.shard for one in explained) == list(range(shards))
            assert sum(int(one.notes[0].split()[0]) for one in explained) == len(wanted(held, query))
            assert await found(client, query, k=1000, fields=["n"]) == wanted(held, query)
            await refusals(client)
            await declared_while_it_is_used(client, rng, held)


async def declared_while_it_is_used(client: Client, rng: random.Random, held: dict[str, Any]) -> None:
    query = vector(rng)
    assert not (await client.add_sparse(NAME, "other")).existed and (await client.add_sparse(NAME, "other")).existed
    assert await client.search(sparse={"other": query}, collection=NAME) == []
    await client.drop_sparse(NAME, FIELD)
    await client.insert("odd", [1, 1], {"n": 1, FIELD: "no sparse vector"}, collection=NAME)
    with pytest.raises(InvalidArgument, match="'other'"):
        await found(client, query)
    await client.add_sparse(NAME, FIELD)
    assert await found(client, query, k=1000) == wanted(held, query)
    with pytest.raises(InvalidArgument):
        await client.insert("odd", [1, 1], {"n": 1, FIELD: "no sparse vector"}, collection=NAME)
    await client.patch("odd", set={FIELD: query}, collection=NAME)
    held["odd"] = {"n": 1, FIELD: query}
    assert await found(client, query, k=1000) == wanted(held, query)

    async def ready() -> bool:
        return (await client.describe_collection(NAME)).sparse[FIELD].state == "ready"

    await wait_for(ready, 30, "the index")
    await client.create_collection("like", like=NAME)
    assert set((await client.describe_collection("like")).sparse) == {"other", FIELD}
    await client.create_collection("less", like=NAME, sparse=[])
    assert (await client.describe_collection("less")).sparse == {}
    await client.create_collection(NAME, dimensions=2, sparse=[FIELD], if_absent=True)
    with pytest.raises(CollectionExists, match="sparse"):
        await client.create_collection(NAME, dimensions=2, sparse=["third"], if_absent=True)


async def refusals(client: Client) -> None:
    good = {"indices": [1], "values": [1.0]}
    at: dict[str, Any] = {"collection": NAME}
    for wrong in (
        {"query": [1.0, 2.0]}, {"like": "d001"}, {"exact": True}, {"group_by": "n"}, {"keywords": "a"},
        {"ef_search": 9}, {"max_distance": 1.0}, {"diversify": 0.5}, {"vector_name": "a"}, {"sparse": {}},
        {"sparse": {"nobody": good}},
        {"sparse": {FIELD: {"indices": [], "values": []}}}, {"sparse": {FIELD: {"indices": [1], "values": [1, 2]}}},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument) as refused:
            await client.search(**{"sparse": {FIELD: good}} | wrong, **at)
        assert refused.value.details["field"].split(".")[0] in (*wrong, "sparse")
    bad = {"indices": [4, 4], "values": [1, 2]}
    for write in (
        client.insert("a", [1, 2], {FIELD: bad}, **at),
        client.insert_batch(ids=["a", "b"], vectors=[[1, 2]] * 2, metadatas=[{FIELD: good}, {FIELD: bad}], **at),
        client.patch("d001", set={FIELD: bad}, **at),
        client.patch("d001", set={f"{FIELD}.values": [1]}, **at),
        client.patch("d001", unset=[f"{FIELD}.values"], **at),
        client.patch("d001", append={FIELD: [1]}, **at),
        client.patch_where({"n": 1}, set={FIELD: bad}, **at),
        client.replace_metadata("d001", {FIELD: bad}, **at),
    ):
        with pytest.raises(InvalidArgument, match=FIELD):
            await write
    for name in ("a.b", "", "x" * 65, "a b"):
        with pytest.raises(InvalidArgument):
            await client.add_sparse(NAME, name)
    with pytest.raises(InvalidArgument, match="'nobody'"):
        await client.drop_sparse(NAME, "nobody")


async def test_moves_dead_leaders_and_all_replicas(tmp_path: Path) -> None:
    rng, held = random.Random(7), dict[str, Any]()
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, metric="l2", sparse=[FIELD], text="t")
            for _ in range(4):
                await changes(client, rng, held)
            shard_map = (await client.refresh_topology(timeout=1)).map
            assert shard_map is not None
            before, ranges = await client.counts(collection=NAME), shard_map.ranges(0)
            await client.change_catalog(StartMove(1, shard_map.epoch, ranges[: len(ranges) // 2], 0, 1), timeout=10)

            async def moved() -> bool:
                now = await client.refresh_topology(timeout=0.2)
                return now.map is not None and now.map.epoch > shard_map.epoch and not now.moves

            await wait_for(moved, 60, "the move")
            assert (await client.counts(collection=NAME))[1] > before[1]
            await check(client, rng, held)
            leader = await client.leader(0)
            assert leader is not None
            processes.kill(leader)
            await check(client, rng, held)
            await changes(client, rng, held)
            processes.restart(leader)
            await healthy(client)
            await check(client, rng, held)
            await by_three(client, rng)
            query = vector(rng)

            async def everywhere() -> bool:
                reads = [await found(client, query, k=1000, mode="eventual") for _ in range(12)]
                return all(one == wanted(held, query) for one in reads)

            await wait_for(everywhere, 30, "replicas that have all")


async def by_three(client: Client, rng: random.Random) -> None:
    query, at = vector(rng), {"collection": NAME}
    how: dict[str, Any] = {"pool": 40, "exact": True, **at}
    near = [hit.id for hit in await client.search([0.5, 0.5], 40, exact=True, **at)]
    words = [hit.id for hit in await client.search(keywords="fox", k=40, **at)]
    few = [hit.id for hit in await client.search(sparse={FIELD: query}, k=40, **at)]
    hits = await client.hybrid_search(
        [0.5, 0.5], "fox", 20, sparse={FIELD: query}, fusion=needle.RRF(weights=(1, 0.5, 2)), **how
    )
    assert [(hit.id, hit.score, hit.ranks) for hit in hits] == all_fused([near, words, few], 60, (1, 0.5, 2))[:20]
    hits = await client.hybrid_search(None, "fox", 20, sparse={FIELD: query}, pool=40, **at)
    assert [(hit.id, hit.score, hit.ranks) for hit in hits] == all_fused([words, few], 60, (1, 1))[:20]
    hits = await client.hybrid_search([0.5, 0.5], k=20, sparse={FIELD: query}, **how)
    assert [(hit.id, hit.score, hit.ranks) for hit in hits] == all_fused([near, few], 60, (1, 1))[:20]
    one = few[0]
    like = await client.hybrid_search(k=20, like=one, sparse={FIELD: query}, **how)
    assert one not in {hit.id for hit in like}
    with pytest.raises(InvalidArgument, match="at least two"):
        await client.hybrid_search(sparse={FIELD: query}, **at)
    with pytest.raises(InvalidArgument, match="exact"):
        await client.hybrid_search(None, "fox", sparse={FIELD: query}, exact=True, **at)


async def test_a_restored_collection_has_them_and_what_was_there_before_they_were_declared(tmp_path: Path) -> None:
    store = backups.open_store(str(tmp_path / "target"))
    rng, held = random.Random(5), dict[str, Any]()
    async with needle.open(":memory:") as client:
        await client.create_collection(NAME, dimensions=2)
        await client.insert("odd", [1, 1], {"n": 1, FIELD: [3]}, collection=NAME)
        await client.add_sparse(NAME, FIELD)
        await changes(client, rng, held)
        made = (await backups.create(client, store)).manifest
    async with needle.open(":memory:") as client:
        await backups.restore(client, store, made.id)
        await check(client, rng, held)
        assert set((await client.describe_collection(NAME)).sparse) == {FIELD}
        with pytest.raises(InvalidArgument):
            await client.insert("odd", [1, 1], {"n": 1, FIELD: [3]}, collection=NAME)


async def test_a_batch_with_a_sparse_vector_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    """Whatever shard it is of, and however many parts each shard gets: the others would have done theirs."""
    good, names = {"indices": [1], "values": [1.0]}, [f"p{at}" for at in range(40)]
    async with ShardedProcesses(tmp_path, 1) as processes:
        await processes.create(2, 1, CONSISTENT_HASH)
        async with processes.connect() as client:
            await client.create_collection(NAME, dimensions=1, sparse=[FIELD])
            for bad in range(0, 40, 7):
                rows = [{FIELD: good if at != bad else {"indices": [1], "values": []}} for at in range(40)]
                with pytest.raises(InvalidArgument, match="0 of the 40 documents"):
                    await client.insert_batch(ids=names, vectors=[[1.0]] * 40, metadatas=rows, collection=NAME)
                assert await client.count(collection=NAME) == 0
            rows = [{FIELD: good}] * 40
            done = await client.insert_batch(ids=names, vectors=[[1.0]] * 40, metadatas=rows, collection=NAME)
            assert sum(one.count for one in done) == 40


async def test_who_has_not_heard_that_they_were_dropped_is_told(tmp_path: Path) -> None:
    """With every call that searches by them; and who has not heard that they are there, finds."""
    query, at = {"indices": [1], "values": [2.0]}, {"collection": NAME}
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, text="t")
            rows = [{"t": "a fox", FIELD: {"indices": [1], "values": [n]}} for n in range(1, 9)]
            ids = [f"d{n}" for n in range(1, 9)]
            await client.insert_batch(ids=ids, vectors=[[1.0, 2.0]] * 8, metadatas=rows, **at)
            before = await other.refresh_topology(confirmed=True, timeout=10)
            await client.add_sparse(NAME, FIELD)
            there = await other.refresh_topology(confirmed=True, timeout=10)
            knows(other, before)
            assert (await found(other, query))[:2] == [("d8", 16.0), ("d7", 14.0)]
            await client.drop_sparse(NAME, FIELD)
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: found(other, query),
                lambda: found(other, query, mode="leased", filter={"t": "a fox"}),
                lambda: other.search_partial(sparse={FIELD: query}, **at),
                lambda: other.hybrid_search([1.0, 2.0], sparse={FIELD: query}, **at),
            ]
            for call in calls:
                knows(other, there)
                with pytest.raises(InvalidArgument, match="it has no sparse vectors") as refused:
                    await call()
                assert refused.value.details["field"] == "sparse" and not refused.value.retryable
                assert other.topology().version > there.version
            gone = other.topology()
            await client.add_sparse(NAME, FIELD)
            for known in (there, gone):
                knows(other, known)
                assert len(await found(other, query)) == 8


async def test_dropped_ones_are_found_by_nobody_whoever_was_away_or_leads(tmp_path: Path) -> None:
    """One node is dead while they are dropped; then it is back, and each of the others dies in turn."""
    query, at = {"indices": [1], "values": [2.0]}, {"collection": NAME}
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client, processes.connect() as other:
            await healthy(client)
            await client.create_collection(NAME, dimensions=2, sparse=[FIELD])
            rows = [{FIELD: {"indices": [1], "values": [n]}} for n in range(1, 9)]
            ids = [f"d{n}" for n in range(1, 9)]
            await client.insert_batch(ids=ids, vectors=[[1.0, 2.0]] * 8, metadatas=rows, **at)
            there = await other.refresh_topology(confirmed=True, timeout=10)
            away = await client.leader(0)
            assert away is not None
            processes.kill(away)
            await client.drop_sparse(NAME, FIELD, timeout=60)

            async def refused(mode: str) -> bool:
                knows(other, there)
                with pytest.raises(InvalidArgument, match="it has no sparse vectors"):
                    await found(other, query, mode=mode, timeout=60)
                return True

            for name in [*(name for name in processes.addresses if name != away), away]:
                assert await refused("strong") and await refused("leased")
                processes.restart(away)
                await healthy(client)
                away = name
                processes.kill(away)
            assert await refused("strong") and await refused("leased")
            processes.restart(away)
            await healthy(client)

            async def by_all() -> bool:
                """Whichever replica answers."""
                for _ in range(12):
                    knows(other, there)
                    try:
                        await found(other, query, mode="eventual")
                    except InvalidArgument:
                        continue
                    return False
                return True

            await wait_for(by_all, 30, "all nodes to hear that they were dropped")
            documents = {one.id: one.metadata for one in await client.get(ids, collection=NAME)}
            assert documents == dict(zip(ids, rows, strict=True))
            await client.add_sparse(NAME, FIELD)
            knows(other, there)
            assert len(await found(other, query)) == 8


async def test_dropped_ones_are_found_by_nobody_in_one_process(tmp_path: Path) -> None:
    """The node is in this process, and so is what is planted."""
    query, address = {"indices": [1], "values": [2.0]}, f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(node_id="n", cluster_nodes=[f"n={address}"], data_dir=str(tmp_path), dimensions=2)
    async with RaftCluster(config) as node, needle.connect(address) as client:
        await node.wait_ready()
        await client.create_collection(NAME, dimensions=2, sparse=[FIELD])
        await client.insert("a", [1.0, 2.0], {FIELD: query}, collection=NAME)
        there = await client.refresh_topology(confirmed=True, timeout=10)
        await client.drop_sparse(NAME, FIELD)
        for mode in ("strong", "leased"):
            knows(client, there)
            with pytest.raises(InvalidArgument, match="it has no sparse vectors"):
                await found(client, query, mode=mode)
        await client.add_sparse(NAME, FIELD)
        assert await found(client, query) == [("a", 4.0)]


def knows(client: Client, topology: Topology) -> None:
    """And has heard nothing since."""
    known: Any = client._shards._known
    known._now = topology
