"""Single-document acknowledged writes: 3 Needle nodes against 3 etcd nodes, equal value size, same run; and four shards
against one, in turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median

import numpy as np

from bench.cluster import NODES, TIMING, NeedleCluster, ShardedNodes
from bench.etcd import EtcdCluster, leader_client
from bench.load import Rate, closed_loop
from bench.report import Report
from needle.client import Client

CLIENTS = (1, 64, 256)
DIMENSIONS = 112
VALUE_BYTES = 512  # a 112-d float32 vector and about 64 bytes of metadata; etcd gets as many bytes


def _inserting(client: Client, dimensions: int) -> Callable[[int], Awaitable[object]]:
    vectors = np.random.default_rng(1).standard_normal((1024, dimensions), dtype=np.float32)
    metadata = {"text": "x" * (VALUE_BYTES - 4 * dimensions - len('{"text":""}'))}
    return lambda n: client.insert(f"key-{n % 5000}", vectors[n % 1024], metadata)


async def _needle(seconds: float) -> dict[int, Rate]:
    rates: dict[int, Rate] = {}
    with NeedleCluster(dimensions=DIMENSIONS) as nodes:
        async with await nodes.client() as client:
            for clients in CLIENTS:
                rates[clients] = await closed_loop(clients, seconds, _inserting(client, DIMENSIONS))
    return rates


async def _etcd(seconds: float) -> dict[int, Rate]:
    value = b"x" * VALUE_BYTES
    cluster = EtcdCluster(heartbeat_ms=50, election_ms=500)
    cluster.start()
    try:
        _, client = await leader_client(cluster)
        return {n: await closed_loop(n, seconds, lambda k: client.put(b"key-%d" % (k % 5000), value)) for n in CLIENTS}
    finally:
        cluster.stop()


async def run(report: Report, *, quick: bool, with_etcd: bool) -> None:
    """Adds one row a number of clients."""
    seconds = 3.0 if quick else 8.0
    ours = await _needle(seconds)
    theirs = await _etcd(seconds) if with_etcd else {}
    for clients, goal in zip(CLIENTS, (1.0, 1.5, 1.3), strict=True):
        other = theirs.get(clients)
        ratio = ours[clients].per_second / other.per_second if other else None
        report.row(f"acknowledged writes, {clients} client(s)", str(ours[clients]), f"etcd {other or 'not installed'}")
        report.ratio(ratio, f">= {goal} x etcd", ok=None if ratio is None else ratio >= goal)
    await _with_more_shards(report, seconds, rounds=1 if quick else 3)


async def _with_more_shards(report: Report, seconds: float, rounds: int) -> None:
    """Adds rows for 4 shards of three replicas beside one, on as many nodes, in turns."""
    async with AsyncExitStack() as stack:
        loads = {}
        for shards in (1, 4):
            nodes = await stack.enter_async_context(ShardedNodes(shards, NODES, **TIMING))
            await nodes.client.create_collection("default", dimensions=DIMENSIONS, timeout=60)
            loads[shards] = _inserting(nodes.client, DIMENSIONS)
        for clients in CLIENTS:
            rates: dict[int, list[Rate]] = {shards: [] for shards in loads}
            for _ in range(rounds):
                for shards, insert in loads.items():
                    rates[shards].append(await closed_loop(clients, seconds, insert))
            ratio = median(four.per_second / one.per_second for four, one in zip(rates[4], rates[1], strict=True))
            report.row(f"the same, {clients} client(s), 4 shards", str(rates[4][-1]), f"1 shard {rates[1][-1]}")
            report.ratio(ratio, ">= 1.0 x one shard", ok=ratio >= 1.0)
