"""Several searches in one call, in groups, unlike each other, or in an order: each as if it were asked alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from needle.base.errors import DeadlineExceeded, InvalidArgument, Overloaded
from needle.client import Client
from needle.client.router import searching
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports

SHARDS, NODES, DOCUMENTS = 3, 2, 90
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(module_path: Path) -> AsyncIterator[Client]:
    cluster = DistributedCluster(ClusterConfig(shard_count=SHARDS, replication_factor=1, dimensions=4))
    try:
        for n, port in enumerate(free_ports(NODES)):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(module_path / f"node-{n}"))
        await cluster.start()
        found = await cluster.client()
        about = [{"n": n % 7, "m": n % 4} if n % 3 else {"m": n % 4} for n in range(DOCUMENTS)]
        ids = [f"d{n}" for n in range(DOCUMENTS)]
        await found.insert_batch(ids=ids, vectors=vectors(DOCUMENTS), metadatas=about)
        yield found
    finally:
        await cluster.stop()


def vectors(count: int) -> Any:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def shown(hits: Any) -> list[Any]:
    return [
        (
            hit.group,
            hit.id,
            hit.distance,
            hit.version,
            hit.metadata,
            None if hit.vector is None else hit.vector.tolist(),
        )
        for hit in hits
    ]


@pytest.mark.parametrize(
    "how",
    [
        {"group_by": "n"},
        {"group_by": "m", "group_size": 3, "offset": 1, "k": 2, "filter": {"n": {"$gt": 1}}},
        {"group_by": "n", "fields": ["m"], "with_vectors": True, "mode": "leased"},
        {"diversify": 0.7},
        {"diversify": 1.0, "pool": 12, "offset": 2, "with_vectors": True},
        {"order_by": "n"},
        {"order_by": "n", "descending": True, "with_metadata": False, "k": 20},
        {"order_by": "n", "diversify": 0.4, "pool": 30, "max_distance": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, searching.SEARCHES_AT_ONCE * 2 + 3])
async def test_each_is_answered_as_if_it_were_asked_alone(client: Client, how: dict[str, Any], count: int) -> None:
    rows = vectors(count)
    several = await client.search_many(rows, **{"k": 5, **how})
    single = [await client.search(row, **{"k": 5, **how}) for row in rows]
    assert [shown(hits) for hits in several] == [shown(hits) for hits in single]
    assert all(hits for hits in several) and len({str(shown(hits)) for hits in several}) == count


async def test_each_search_by_groups_explains_itself(client: Client) -> None:
    for hits in await client.search_many(vectors(3), 2, group_by="m", explain=True):
        assert {one.shard for one in hits.explained} == set(range(SHARDS))


async def test_searches_by_groups_have_the_bounds_of_others(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match=r"queries = '1001 vectors'.* 1 to 1000"):
        await client.search_many(np.ones((1001, 4)), 1, group_by="m")
    monkeypatch.setattr(searching, "MANY_BYTES_MAX", 2000)
    assert len(await client.search_many(vectors(2), 1, group_by="m")) == 2
    with pytest.raises(InvalidArgument, match=r"queries = '40 vectors'.* fewer: their hits have too many bytes"):
        await client.search_many(vectors(40), 3, group_by="m")


async def test_all_searches_of_a_call_share_its_time(client: Client) -> None:
    """Towards its end a busy node may also say that it cannot begin one in what is left."""
    with pytest.raises((DeadlineExceeded, Overloaded)):
        await client.search_many(vectors(1000), 3, group_by="m", timeout=0.02)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"group_by": "m", "diversify": 0.5}, "diversify"),
        ({"group_by": "m", "order_by": "n"}, "order_by"),
        ({"group_size": 2}, "group_size"),
        ({"pool": 9}, "pool"),
        ({"descending": True}, "order_by"),
    ],
)
async def test_what_no_search_can_mean_is_refused(client: Client, how: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await client.search_many(vectors(2), 3, **how)
