"""Rates of API keys on real nodes: refused at both doors with how long to wait, waited for by clients, changed at run
time, counted in metrics."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from harness.calm import CALM
from needle import Client, InvalidArgument, TooManyRequests
from needle.local.process_cluster import ProcessCluster
from needle.local.published import of_one_cluster

V = [1.0] * 8
pytestmark = pytest.mark.asyncio(loop_scope="module")


class World(NamedTuple):
    cluster: ProcessCluster
    admin: Client
    door: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_path: Path) -> AsyncIterator[World]:
    async with ProcessCluster(module_path, **CALM) as cluster, cluster.connect() as admin:
        await admin.insert("x", V, {"n": 1})
        yield World(cluster, admin, cluster.nodes["node-1"].http)


async def ask(world: World, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any, str]:
    headers = {"content-type": "application/json"} | ({"api-key": key} if key else {})
    data = None if body is None else json.dumps(body).encode()

    def sent() -> tuple[int, Any, str]:
        request = urllib.request.Request(f"http://{world.door}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    return await asyncio.to_thread(sent)


async def test_by_http_what_is_more_is_refused_with_when_to_come_again(world: World) -> None:
    key = (await world.admin.create_key("http", "writer", documents=10)).key
    count, document = "/v1/collections/default/count", "/v1/collections/default/documents/y"
    assert (await ask(world, "POST", count, key, {}))[0] == 200
    rows = {"ids": [f"h{n}" for n in range(400)], "vectors": [V] * 400}
    assert (await ask(world, "POST", "/v1/collections/default/insert", key, rows))[0] == 200
    status, headers, answer = await ask(world, "PUT", document, key, {"vector": V})
    told = json.loads(answer)
    assert (status, told["code"], told["retryable"], told["details"]["limit"]) == (
        429, "too_many_requests", True, "documents",
    )  # fmt: skip
    assert 20 <= int(headers["retry-after"]) <= 40
    assert (await ask(world, "GET", document, ""))[0] == 404
    text = of_one_cluster((await ask(world, "GET", "/metrics", ""))[2])
    assert 'needle_key_refusals_total{key="http",limit="documents"} 1.0' in text
    # Without an end of what is open, and without waiting.
    assert (await ask(world, "PUT", "/v1/keys/http/limits", "", {"bytes": 1e9}))[0] == 200
    assert (await ask(world, "PUT", document, key, {"vector": V}))[0] == 200
    found = {one.name: one for one in await world.admin.keys()}["http"]
    assert (found.documents, found.bytes) == (0.0, 1e9)


async def test_a_client_waits_as_it_is_told_and_nothing_is_lost(world: World) -> None:
    key = (await world.admin.create_key("waits", "writer", requests=20)).key
    start = time.monotonic()
    async with world.cluster.connect(api_key=key) as client:
        await asyncio.gather(*(client.insert(f"w{n}", V) for n in range(50)))
        assert time.monotonic() - start >= 1.0
        late = await asyncio.gather(
            *(client.insert("z", V, timeout=1.0) for _ in range(100)), return_exceptions=True
        )  # some forty in a second, and no time to wait for the others
        assert any(isinstance(one, TooManyRequests) for one in late)
        await world.admin.limit_key("waits", requests=1000)
        found = await asyncio.gather(*(client.get(f"w{n}", mode="eventual", session=True) for n in range(50)))
    assert None not in found


async def test_eventual_reads_wait_when_no_replica_has_room(world: World) -> None:
    key = (await world.admin.create_key("reads", "reader", requests=5)).key
    async with world.cluster.connect(api_key=key) as client:
        start = time.monotonic()
        found = await asyncio.gather(*(client.search(V, 1, mode="eventual") for _ in range(30)))
        assert all(len(hits) == 1 for hits in found)
        assert time.monotonic() - start >= 0.5  # three nodes, each of which takes five at once


async def test_a_large_batch_passes_and_is_paid_for(world: World) -> None:
    key = (await world.admin.create_key("batches", "writer", documents=100)).key
    async with world.cluster.connect(api_key=key) as client:
        rows = np.ones((4000, 8), "f4")
        await client.insert_batch(ids=[f"b{n}" for n in range(4000)], vectors=rows, timeout=120)
        with pytest.raises(TooManyRequests) as error:
            await client.insert("b", V, timeout=3.0)
        assert float(str(error.value.details["wait"])) > 3.0


async def test_who_has_no_limit_is_not_limited_and_admins_cannot_be(world: World) -> None:
    await world.admin.create_key("boss", "admin")
    with pytest.raises(InvalidArgument, match="admin"):
        await world.admin.limit_key("boss", requests=1)
    with pytest.raises(InvalidArgument, match="keys list"):
        await world.admin.limit_key("nobody", requests=1)
    await asyncio.gather(*(world.admin.count() for _ in range(100)))
