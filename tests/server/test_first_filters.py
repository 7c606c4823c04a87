"""The first filters on fields make their indexes, and leave a search thread for everybody else."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle
from needle.base.config import RaftConfig
from needle.base.errors import DeadlineExceeded
from needle.base.filters.builder import Filter
from needle.distributed import RaftCluster
from needle.local.free_ports import free_ports
from needle.shard.fields import payload_index
from needle.shard.fields.builders import Builders

COUNT = 3000
QUERY = [1.0, 0.0, 0.0, 0.0]
FIELDS = [f"field{n}" for n in range(20)]
"""More than there are search threads."""


@pytest.mark.parametrize("how", ["search", "count"])
async def test_first_filters_on_many_fields_leave_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    began, go = threading.Event(), threading.Event()
    real = payload_index.decode_rows

    def gated(*arguments: Any) -> Any:
        """No index gets made until it may."""
        began.set()
        assert go.wait(60)
        return real(*arguments)

    address = f"127.0.0.1:{free_ports(1)[0]}"
    config = RaftConfig(node_id="n", cluster_nodes=[f"n={address}"], data_dir=str(tmp_path), dimensions=4)
    async with RaftCluster(config) as node, needle.connect(address) as client:
        await node.wait_ready()
        rows = np.random.default_rng(1).normal(size=(COUNT, 4)).astype("f4")
        metadata = [dict.fromkeys(FIELDS, n) for n in range(COUNT)]
        await client.insert_batch(ids=[f"d{n}" for n in range(COUNT)], vectors=rows, metadatas=metadata)
        monkeypatch.setattr(payload_index, "decode_rows", gated)

        async def filtered(field: str, timeout: float) -> list[str] | int:
            condition = Filter.gte(field, COUNT - 5)
            if how == "count":
                return await client.count(condition, timeout=timeout)
            return sorted(hit.id for hit in await client.search(QUERY, 10, condition, timeout=timeout))

        try:
            searches = [asyncio.create_task(filtered(field, 60)) for field in FIELDS]
            assert await asyncio.to_thread(began.wait, 30)
            for _ in range(20):
                assert len(await client.search(QUERY, 10, timeout=10)) == 10
            with pytest.raises(DeadlineExceeded):
                await filtered("another", 0.5)
            assert not any(search.done() for search in searches)
        finally:
            go.set()
        for found in await asyncio.gather(*searches):
            assert found == (5 if how == "count" else [f"d{n}" for n in range(COUNT - 5, COUNT)])


@pytest.mark.parametrize(("threads", "limit"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4)])
def test_a_quarter_of_the_threads_may_make_indexes(threads: int, limit: int) -> None:
    assert Builders(threads).limit == limit
