"""Another index of a collection: in the catalog, and on real processes that are killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import numpy as np
import pytest

from catalog.catalog_util import spec, topology
from needle import Client
from needle.base.collection_sizes import IndexProgress
from needle.base.errors import ClusterTooOld, CollectionExists, InvalidArgument, NeedleError
from needle.base.model import IndexKind, IndexParams, WriteResult
from needle.catalog.state import execute
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import AlterCollection, CatalogCommand, CreateCollection
from needle.protocol.versioned import check_known
from needle.routing.topology import CollectionInfo, Topology

pytestmark = pytest.mark.campaign

SQ8 = IndexParams(kind=IndexKind.HNSW_SQ8, ef_search=99)
VECTORS = np.random.default_rng(1).standard_normal((4000, 16)).astype(np.float32)


def after(*commands: CatalogCommand) -> Topology:
    now = topology()
    for index, command in enumerate([CreateCollection(spec("a"), False, 1), *commands], start=2):
        now, result = execute(now, index, command)
        assert not isinstance(result, NeedleError), result
    return now


def found(now: Topology) -> CollectionInfo:
    info = now.named("a")
    assert info is not None
    return info


def test_the_catalog_names_the_last_index_and_knows_the_first() -> None:
    first = spec("a").index
    info = found(after(AlterCollection("a", 2, 0, index=SQ8)))
    assert info.spec.index == SQ8 and info.made_index == first
    now = after(AlterCollection("a", 2, 0, index=SQ8), AlterCollection("a", 2, 0, index=IndexParams(m=5)))
    assert found(now).spec.index == IndexParams(m=5) and found(now).made_index == first
    back = after(AlterCollection("a", 2, 0, index=SQ8), AlterCollection("a", 2, 0, index=first))
    assert found(back).spec.index == first == found(back).made_index
    # Effort of searches alone is no other index: no shard has anything to build.
    assert found(after(AlterCollection("a", 2, 7))).made_index is None
    assert AlterCollection("a", 2, 7).needs() == 1 and AlterCollection("a", 2, 0, index=SQ8).needs() == 4
    with pytest.raises(ClusterTooOld):
        check_known(AlterCollection("a", 2, 0, index=SQ8), topology())


def test_who_makes_sure_of_a_collection_may_name_the_index_of_before_or_of_now() -> None:
    now = after(AlterCollection("a", 2, 0, index=SQ8))

    def sure(index: IndexParams) -> object:
        made = CreateCollection(msgspec.structs.replace(spec("a"), index=index), True, 9)
        return execute(now, 9, made)[1]

    for index in (spec("a").index, SQ8, IndexParams(kind=IndexKind.HNSW_SQ8)):
        result = sure(index)
        assert isinstance(result, WriteResult) and result.existed
    assert isinstance(sure(IndexParams(m=5)), CollectionExists)


def test_progress_of_shards_adds_up() -> None:
    one = IndexProgress(now=["a"], vectors=10, done=4, recall_before=1.0, recall_after=0.5, queries=10)
    two = IndexProgress(now=["b"], wanted=["c"], vectors=5, recall_before=0.7, recall_after=0.8, queries=20)
    both = one + two + IndexProgress(now=["a"], vectors=1)
    assert (both.now, both.wanted, both.vectors, both.done) == (["a", "b"], ["c"], 16, 4)
    assert both.queries == 30
    assert both.recall_before == pytest.approx(0.8) and both.recall_after == pytest.approx(0.7)
    assert (IndexProgress() + IndexProgress()).recall_after is None


async def beams_are_those_of_now(cluster: ProcessCluster, client: Client) -> None:
    """Also for a client that was connected before `ef_search` was changed; a graph that needs more than that gets it.
    Clients filled in what they knew of the catalog: one of before stayed with it, and the graphs' own beams, for
    searches that say none, were never used."""
    async with cluster.connect() as other:

        async def beams() -> list[int]:
            (told,) = (await other.search(VECTORS[7], 1, explain=True)).explained
            (many,) = (await other.search_many(VECTORS[7:8], 1, explain=True))[0].explained
            assert [one.ef for one in many.segments] == [one.ef for one in told.segments]
            return [one.ef for one in told.segments if one.way == "graph"]

        async def are(low: int, high: int) -> bool:
            return all(low <= beam <= high for beam in await beams())

        assert await beams()
        for ef_search, low, high in ((150, 150, 512), (1, 10, 149)):
            await client.alter_collection(ef_search=ef_search)
            await wait_for(lambda low=low, high=high: are(low, high), 30, f"beams from {low} to {high}")
        await client.alter_collection(ef_search=64)


async def test_an_index_is_changed_and_back_while_leaders_are_killed(tmp_path: Path) -> None:
    async with (
        ProcessCluster(tmp_path, dimensions=16, segments={"seal_rows": 1000}) as cluster,
        cluster.connect() as client,
    ):
        for at in range(0, 4000, 1000):
            await client.insert_batch(ids=[f"d{n}" for n in range(at, at + 1000)], vectors=VECTORS[at : at + 1000])

        async def progress() -> IndexProgress:
            size = (await client.describe_collection()).size
            assert size is not None
            return size.index

        async def indexed() -> bool:
            return (await progress()).vectors == 4000

        async def switched(words: str) -> bool:
            now = await progress()
            assert len(now.now) == 1
            hits = await client.search(VECTORS[7], 1)
            assert [hit.id for hit in hits] == ["d7"]
            return now.now == [words] and not now.wanted

        await wait_for(indexed, 60, "index files")
        await beams_are_those_of_now(cluster, client)
        with pytest.raises(InvalidArgument, match="index"):
            await client.alter_collection(index="hnsw_sq9")
        await client.alter_collection(index="hnsw_sq8:high_recall")
        leader = await cluster.leader()
        cluster.kill(leader)
        cluster.restart(leader)
        await wait_for(lambda: switched("hnsw_sq8 m=32 ef_construction=400"), 90, "the switch")
        after = await progress()
        assert after.recall_after is not None and after.recall_after > 0.9 and after.queries == 32
        assert (await client.describe_collection()).index.ef_search == 200
        for name in cluster.nodes:
            _, text = await cluster.http(name, "/metrics")
            assert "needle_index_change_left{" not in text

        body = json.dumps({"index": "balanced"}).encode()
        url = f"http://{cluster.nodes[leader].http}/v1/collections/default"
        request = urllib.request.Request(url, body, {"content-type": "application/json"}, method="PATCH")
        with await asyncio.to_thread(urllib.request.urlopen, request) as answer:
            assert json.loads(answer.read())["index"]["ef_construction"] == 200
        await wait_for(lambda: switched("hnsw m=16 ef_construction=200"), 90, "the way back")
        await cluster.equal_digests()
        command = [sys.executable, "-m", "needle", "collections", "describe", "default", "--cluster", cluster.cluster]
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        assert "by 32 queries" in ran.stdout and "index now" not in ran.stdout
