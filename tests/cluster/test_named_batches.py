"""Batches with named vectors, to several shards: none or all where that can be known, and under names of now. What
clients are told that have not heard of a drop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.processes import ShardedProcesses
from needle.base.dtypes import DType
from needle.base.errors import InvalidArgument
from needle.base.model import Metric, VectorSpec
from needle.routing.strategy import CONSISTENT_HASH


async def test_a_batch_with_a_vector_that_is_refused_writes_nothing(tmp_path: Path) -> None:
    names, rows = [f"p{at}" for at in range(40)], np.ones((40, 1), np.float32)
    specs = {
        "turn": VectorSpec(dimensions=2),
        "whole": VectorSpec(dimensions=2, metric=Metric.L2, dtype=DType.INT8),
    }
    refused: list[dict[str, Any]] = [
        {"turn": [None] * 39 + [[1, 2, 3]]},
        {"turn": [[1, 1]] * 39 + [[0, 0]]},
        {"whole": [[1, 1]] * 39 + [[1000, 0]]},
    ]
    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(2, 1, CONSISTENT_HASH)
        async with cluster.connect() as client:
            await client.create_collection("c", dimensions=1, metric="l2", vectors=specs)
            for named in refused:
                with pytest.raises(InvalidArgument, match="0 of the 40 documents"):
                    await client.insert_batch(ids=names, vectors=rows, named_vectors=named, collection="c")
                assert await client.count(collection="c") == 0
            await client.insert_batch(ids=names, vectors=rows, collection="c")
            before = [one.version for one in await client.get(names, collection="c")]
            with pytest.raises(InvalidArgument, match="1000"):
                await client.update_vectors(names, [[1, 1]] * 39 + [[1000, 0]], name="whole", collection="c")
            assert [one.version for one in await client.get(names, collection="c")] == before


async def test_a_batch_goes_to_the_vector_of_now_if_another_client_made_that_again(tmp_path: Path) -> None:
    names, rows = [f"p{at}" for at in range(40)], np.ones((40, 1), np.float32)
    spec = VectorSpec(dimensions=2, metric=Metric.L2)
    async with ShardedProcesses(tmp_path, 1) as cluster:
        await cluster.create(2, 1, CONSISTENT_HASH)
        async with cluster.connect() as client, cluster.connect() as other:
            await client.create_collection("c", dimensions=1, metric="l2", vectors={"v": spec})
            await other.insert("first", [1], vectors={"v": [1, 2]}, collection="c")
            await client.drop_vector("c", "v")
            await client.add_vector("c", "v", spec)
            named = {"v": [[3, 4], *[None] * 39]}  # so one shard is not told of any
            done = await other.insert_batch(ids=names, vectors=rows, named_vectors=named, collection="c")
            assert sum(one.count for one in done) == 40
            assert [hit.id for hit in await client.search([0, 0], vector_name="v", collection="c")] == ["p0"]
            await client.drop_vector("c", "v")
            with pytest.raises(InvalidArgument, match="vector_name"):
                await other.insert_batch(ids=names, vectors=rows, named_vectors=named, collection="c")


async def test_who_has_not_heard_that_a_vector_was_dropped_is_told(tmp_path: Path) -> None:
    """With every call that names it, whatever its client knows; and of one that was made again finds what that has."""
    spec, at = VectorSpec(dimensions=2, metric=Metric.L2), {"collection": "c"}
    async with ShardedProcesses(tmp_path, 3) as cluster:
        await cluster.create(2, 3, CONSISTENT_HASH)
        async with cluster.connect() as client, cluster.connect() as other:
            await client.create_collection("c", dimensions=1, metric="l2", vectors={"v": spec})
            await client.insert("p", [1], vectors={"v": [1, 2]}, collection="c")
            known: Any = other._shards._known
            stale = await other.refresh_topology(confirmed=True, timeout=10)
            await client.drop_vector("c", "v")
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: other.search([1, 2], vector_name="v", **at),
                lambda: other.search(like="p", vector_name="v", **at),
                lambda: other.get("p", vectors=["v"], **at),
                lambda: other.scan_page(vectors=["v"], **at),
                lambda: other.insert("q", [1], vectors={"v": [1, 2]}, **at),
                lambda: other.update_vector("p", [3, 4], name="v", **at),
                lambda: other.delete_vector("p", "v", **at),
            ]
            for call in calls:
                known._now = stale  # and has heard nothing since
                with pytest.raises(InvalidArgument, match="the collection has no named vectors") as refused:
                    await call()
                assert refused.value.details["field"] == "vector_name" and not refused.value.retryable
            await client.add_vector("c", "v", spec)
            known._now = stale
            assert await other.search([1, 2], vector_name="v", collection="c") == []
            known._now = stale
            await other.update_vector("p", [3, 4], name="v", collection="c")
            assert [hit.id for hit in await client.search([3, 4], vector_name="v", collection="c")] == ["p"]
            assert await client.get("q", collection="c") is None
