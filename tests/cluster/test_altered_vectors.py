"""Another index of a named vector: in the catalog, and on real processes that are killed meanwhile."""

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
from needle.base.collection_sizes import IndexProgress
from needle.base.dtypes import DType
from needle.base.errors import ClusterTooOld, CollectionExists, InvalidArgument, NeedleError
from needle.base.model import IndexKind, IndexParams, Metric, VectorChange, VectorSpec, WriteResult
from needle.base.versions import NAMED
from needle.catalog.state import execute
from needle.local.process_cluster import ProcessCluster, wait_for
from needle.protocol.catalog_commands import AlterCollection, CatalogCommand, CreateCollection
from needle.protocol.vector_commands import AddVector
from needle.protocol.versioned import check_known
from needle.routing.topology import CollectionInfo, Topology

SQ8 = IndexParams(kind=IndexKind.HNSW_SQ8, ef_search=99)
TITLE = VectorSpec(dimensions=2)
INT8 = VectorSpec(dimensions=2, dtype=DType.INT8)


def after(*commands: CatalogCommand) -> Topology:
    now = topology()
    made = CreateCollection(spec("a"), False, 1, vectors=[("image", TITLE), ("title", TITLE)])
    for index, command in enumerate([made, *commands], start=2):
        now, result = execute(now, index, command)
        assert not isinstance(result, NeedleError), result
    return now


def altered(*changes: VectorChange, **more: IndexParams) -> AlterCollection:
    return AlterCollection("a", 2, 0, vectors=list(changes), **more)


def found(now: Topology) -> CollectionInfo:
    info = now.named("a")
    assert info is not None
    return info


def test_the_catalog_names_the_last_index_of_a_vector_and_knows_the_first() -> None:
    both = altered(VectorChange(name="title", index=SQ8), VectorChange(name="image", ef_search=7), index=SQ8)
    info = found(after(both))
    title, image = info.vector("title"), info.vector("image")
    assert (title.spec.index, title.made_index) == (SQ8, TITLE.index)
    assert (image.spec.index.ef_search, image.made_index) == (7, None)
    assert info.altered == [info.stored_name, info.stored_vector(title)]
    assert info.index_of(info.stored_vector(title)) == SQ8 == info.index_of(info.stored_name)
    assert info.index_of("a@2\x1fother@1") is None and info.usual_ef(info.stored_vector(image)) == 7
    back = found(after(both, altered(VectorChange(name="title", index=TITLE.index)))).vector("title")
    assert (back.spec, back.made_index) == (TITLE, TITLE.index)
    assert both.needs() == NAMED and altered().needs() == 1
    with pytest.raises(ClusterTooOld):
        check_known(both, topology())


def test_a_change_that_one_vector_refuses_changes_nothing() -> None:
    now = after(AddVector("a", 2, "small", INT8))
    for name, says in (("titel", "'image', 'small', 'title'"), ("small", "index.kind")):
        bad = VectorChange(name=name, index=IndexParams(kind=IndexKind.IVF_FLAT))
        same, refused = execute(now, 6, altered(VectorChange(name="image", index=SQ8), bad, index=SQ8))
        assert isinstance(refused, InvalidArgument) and says in refused.message and same is now
    same, result = execute(now, 7, altered(VectorChange(name="image", ef_search=TITLE.index.ef_search)))
    assert same is now and isinstance(result, WriteResult) and result.existed


def test_who_makes_sure_of_a_vector_may_name_the_index_of_before_or_of_now() -> None:
    now = after(altered(VectorChange(name="title", index=SQ8)))
    for index, there in ((TITLE.index, True), (SQ8, True), (IndexParams(m=5), False)):
        wanted = msgspec.structs.replace(TITLE, index=index)
        for command in (
            AddVector("a", 2, "title", wanted, True),
            CreateCollection(spec("a"), True, 9, vectors=[("title", wanted)]),
        ):
            _, result = execute(now, 9, command)
            assert isinstance(result, WriteResult if there else CollectionExists), (index, result)


VECTORS = np.random.default_rng(1).standard_normal((3000, 16)).astype(np.float32)
HAVE = [n for n in range(3000) if n % 3]


@pytest.mark.campaign
async def test_the_index_of_a_name_is_changed_while_leaders_are_killed(tmp_path: Path) -> None:
    async with (
        ProcessCluster(tmp_path, dimensions=4, segments={"seal_rows": 500}) as cluster,
        cluster.connect() as client,
    ):
        title = VectorSpec(dimensions=16, metric=Metric.L2)
        await client.create_collection("c", dimensions=4, vectors={"title": title})
        for at in range(0, 3000, 1000):
            some = range(at, at + 1000)
            named = {"title": [VECTORS[n] if n % 3 else None for n in some]}
            rows, ids = np.ones((1000, 4)), [f"d{n}" for n in some]
            await client.insert_batch(ids=ids, vectors=rows, named_vectors=named, collection="c")

        async def progress() -> IndexProgress:
            size = (await client.describe_collection("c")).size
            assert size is not None
            return size.vectors["title"]

        async def switched(words: str) -> bool:
            now = await progress()
            hits = await client.search(VECTORS[7], 1, vector_name="title", collection="c")
            assert [hit.id for hit in hits] == ["d7"]
            return now.now == [words] and not now.wanted and now.vectors > 0

        async def indexed() -> bool:
            return (await progress()).vectors == len(HAVE)

        await wait_for(indexed, 60, "index files of the name")
        _, text = await cluster.http(await cluster.leader(), "/metrics")
        told = {line.partition("{")[0] + line[line.index("}") + 1 :] for line in text.splitlines() if "}" in line}
        assert {"needle_collections 2.0", "needle_named_vectors 1.0"} <= told  # the demo's default is there, too
        of_the_name = [line for line in text.splitlines() if 'collection="c/title"' in line]
        assert any(line.startswith("needle_segments{") for line in of_the_name)
        assert not any(line.startswith("needle_documents{") for line in of_the_name)
        for wrong, says in (
            ({"title": {"index": "hnsw_sq9"}}, "index"),
            ({"titel": {"index": "flat"}}, "'titel'"),
            ({"title": {"m": 5}}, "title"),
            ({"title": {}}, "title"),
        ):
            with pytest.raises(InvalidArgument, match=says):
                await client.alter_collection("c", vectors=wrong)
        await client.alter_collection("c", vectors={"title": {"index": "hnsw_sq8:high_recall", "ef_search": 33}})
        leader = await cluster.leader()
        cluster.kill(leader)
        cluster.restart(leader)
        await wait_for(lambda: switched("hnsw_sq8 m=32 ef_construction=400"), 90, "the switch")
        now = await progress()
        assert now.recall_after is not None and now.recall_after > 0.9 and now.queries == 32
        described = await client.describe_collection("c")
        assert described.vectors["title"].index.ef_search == 33 and described.index == IndexParams()
        await cluster.equal_digests()

        command = ["collections", "alter", "c", "--vector-name", "title", "--index", "ivf_flat"]
        ran = [sys.executable, "-m", "needle", *command, "--cluster", cluster.cluster]
        await asyncio.to_thread(subprocess.run, ran, check=True, timeout=60)
        await wait_for(lambda: switched("ivf_flat"), 90, "the switch by the command line")
        node = next(iter(cluster.nodes.values()))
        asked = json.dumps({"vectors": {"title": {"index": "balanced"}}}).encode()
        url, head = f"http://{node.http}/v1/collections/c", {"content-type": "application/json"}
        request = urllib.request.Request(url, asked, head, method="PATCH")
        await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=30).read())
        await wait_for(lambda: switched("hnsw m=16 ef_construction=200"), 90, "the switch by HTTP")
        await cluster.equal_digests()
