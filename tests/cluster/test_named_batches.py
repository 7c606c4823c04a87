"""Batches with named vectors, to several shards: none or all where that can be known, and under names of now."""

from __future__ import annotations

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
