"""`needle.connect`: a client with the real network, clock and chance."""

from __future__ import annotations

import os
import random
from collections.abc import Coroutine, Generator, Iterable
from typing import Any

from needle.base.config import parse_address, refuse
from needle.client import Client, SyncClient
from needle.client.client import BATCH_BYTES_MAX
from needle.client.shards import find_topology
from needle.client.sync import sync_client
from needle.rpc.transport import RpcClient
from needle.server.cluster_main import sharded_client
from needle.server.runtime import SystemClock

DEFAULT_CLUSTER_ID = "needle"


class Connecting:
    """What `connect` returns: `await` it for a Client, or use it with `async with`."""

    def __init__(self, work: Coroutine[Any, Any, Client]) -> None:
        self._work = work
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        return self._work.__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._work
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.close()


def check_addresses(addresses: Iterable[str] | str) -> list[str]:
    """A list of "host:port", or a ConfigError that names the one that is not."""
    listed = [addresses] if isinstance(addresses, str) else list(addresses)
    if not listed:
        raise refuse("addresses", listed, "at least one 'host:port'")
    for address in listed:
        parse_address("addresses", address)
    return listed


def connect(
    addresses: Iterable[str] | str,
    *,
    cluster_id: str = DEFAULT_CLUSTER_ID,
    batch_bytes_max: int = BATCH_BYTES_MAX,
) -> Connecting:
    """A client of the cluster with nodes at `addresses` ("host:port", some or all of them).

    `client = await needle.connect([...])` or `async with needle.connect([...]) as client`. Raises ConfigError for a bad
    address, WrongCluster if all nodes belong to another cluster. Nodes that are down do not matter: calls say so.
    """
    return Connecting(_connect(check_addresses(addresses), cluster_id, batch_bytes_max))


async def _connect(addresses: list[str], cluster_id: str, batch_bytes_max: int) -> Client:
    rng = random.Random(int.from_bytes(os.urandom(16), "little"))
    caller = RpcClient(cluster_id=cluster_id, rng=rng, clock=SystemClock())
    topology = await find_topology(caller, addresses)
    if topology is not None:
        return sharded_client(caller, addresses, topology, batch_bytes_max)
    client = Client(caller, addresses, rng=rng, batch_bytes_max=batch_bytes_max)
    try:
        await client.probe()
    except BaseException:
        await client.close()
        raise
    return client


def connect_sync(
    addresses: Iterable[str] | str,
    *,
    cluster_id: str = DEFAULT_CLUSTER_ID,
    batch_bytes_max: int = BATCH_BYTES_MAX,
) -> SyncClient:
    """`connect` for code without asyncio: the same methods, blocking; use with `with`. Of a sharded cluster it is a
    SyncShardedClient, which can do what a ShardedClient can."""
    listed = check_addresses(addresses)
    return sync_client(lambda: _connect(listed, cluster_id, batch_bytes_max))
