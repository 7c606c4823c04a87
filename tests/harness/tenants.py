"""A cluster with the keys of two tenants, `a` and `b`, that are bound to their documents."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest_asyncio

from harness.calm import CALM
from needle import Client
from needle.client.router.routes import BATCH_BYTES_MAX
from needle.connecting import Credentials, connected
from needle.local.process_cluster import ProcessCluster

SECRET = "0123456789abcdef" * 4
HUSH = "hush"
"""In everything that is not `a`'s, so that a leak of it shows."""
V = [1.0] * 8
A, B = {"tenant": "a"}, {"tenant": "b"}
MINE = [f"a{n}" for n in range(5)]


class World(NamedTuple):
    """admin sees all; a and b are the clients of two tenants, with these keys; doors: addresses of HTTP."""

    admin: Client
    a: Client
    b: Client
    keys: dict[str, str]
    doors: list[str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(module_path: Path) -> AsyncIterator[ProcessCluster]:
    sharding = {"shards": 3, "replicas": 1}
    closed = {"require_keys": True, "cluster_secret": SECRET}
    async with ProcessCluster(module_path, sharding=sharding, **CALM, **closed) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(cluster: ProcessCluster) -> AsyncIterator[World]:
    addresses = [node.address for node in cluster.nodes.values()]
    async with await connected(addresses, "needle", BATCH_BYTES_MAX, Credentials(secrets=(SECRET,))) as first:
        await first.drop_collection("default")
        await first.create_collection("default", dimensions=len(V), text="of")
        keys = {"admin": (await first.create_key("ops", "admin")).key}
        for name, bound in (("a", A), ("b", B)):
            keys[name] = (await first.create_key(name, "writer", filter=bound)).key
        keys["reader"] = (await first.create_key("reader", filter=A, collections=["default"])).key
        assert {key.name: key.filter for key in await first.keys()}["a"] == {"tenant": {"$eq": "a"}}
    clients = [cluster.connect(api_key=keys[name]) for name in ("admin", "a", "b")]
    async with clients[0] as admin, clients[1] as a, clients[2] as b:
        yield World(admin, a, b, keys, [node.http for node in cluster.nodes.values()])


@pytest_asyncio.fixture(loop_scope="module")
async def filled(world: World) -> dict[str, Any]:
    """Five documents of each tenant, and one of nobody; those that are not of `a`, as an admin sees them."""
    await world.admin.delete_where({})
    for tenant, client in (("a", world.a), ("b", world.b)):
        for n in range(5):
            about = {"tenant": tenant, "n": n, "of": HUSH if tenant == "b" else "mine"}
            await client.insert(f"{tenant}{n}", [1.0, n, *[0.5] * 6], about)
    await world.admin.insert("nobodys", V, {"of": HUSH})
    return await others(world)


async def others(world: World) -> dict[str, Any]:
    """All that `a` may neither see nor change."""
    return {
        one.id: (one.version, one.metadata, one.expires_at, one.vector.tolist())
        async for one in world.admin.scan(with_vectors=True)
        if not isinstance(one.metadata, dict) or one.metadata.get("tenant") != "a"
    }


def ids(answer: Any) -> list[str]:
    return sorted(one.id for one in answer)


async def ask(world: World, door: int, method: str, path: str, body: Any = None, key: str = "a") -> tuple[int, str]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {world.keys[key]}"}
    data = None if body is None else json.dumps(body).encode()

    def sent() -> tuple[int, str]:
        request = urllib.request.Request(f"http://{world.doors[door]}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(sent)
