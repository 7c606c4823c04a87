"""What type checkers know of the public calls: `make pyright` and mypy (`make lint`) read this; nobody runs it."""

from __future__ import annotations

from typing import assert_type

import numpy as np

import needle
from needle.base.model import Document, Hit, WriteResult
from needle.client.client import Client
from needle.client.document_calls import Hits
from needle.client.feed import Changes
from needle.distributed import DistributedCluster, RaftCluster, RaftConfig


async def of_clients(vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    """Through connections."""
    async with needle.connect(["127.0.0.1:5000"]) as client:
        assert_type(client, Client)
        assert_type(await client.insert("a", vector, {"year": 1977}), WriteResult)
        found = await client.search([1.0, 2.0], k=3, filter={"year": {"$gte": 1970}}, mode="leased")
        assert_type(found, Hits)
        for hit in found:
            assert_type(hit, Hit)
        assert_type(await client.get("a"), Document | None)
        assert_type(await client.get(["a", "b"]), list[Document])
        assert_type(client.changes("default"), Changes)
        assert_type(await client.start_rebalance(), int)


async def of_clusters(cluster: DistributedCluster) -> None:
    """Of nodes in this process."""
    assert_type(await cluster.search([1.0], 3), Hits)
    async with RaftCluster(RaftConfig(node_id="a", data_dir="data", cluster_nodes=["a=127.0.0.1:5000"])) as one:
        assert_type(await one.search([1.0], 3), Hits)
        assert_type(await one.delete(["a"]), WriteResult)


def of_sync_clients() -> None:
    """Without asyncio."""
    with needle.connect_sync("127.0.0.1:5000") as client:
        assert_type(client.insert("a", [1.0]), WriteResult)
        assert_type(client.search([1.0], 3), Hits)
        assert_type(client.get("a"), Document | None)
