"""Single-document acknowledged writes: 3 Needle nodes against 3 etcd nodes, equal value size, same run."""

from __future__ import annotations

import numpy as np

from bench.cluster import NeedleCluster
from bench.etcd import EtcdCluster, leader_client
from bench.load import Rate, closed_loop
from bench.report import Report

CLIENTS = (1, 64, 256)
VALUE_BYTES = 512  # a 112-d float32 vector and about 64 bytes of metadata; etcd gets as many bytes


async def _needle(seconds: float) -> dict[int, Rate]:
    dimensions = 112
    vectors = np.random.default_rng(1).standard_normal((1024, dimensions), dtype=np.float32)
    metadata = {"text": "x" * (VALUE_BYTES - 4 * dimensions - len('{"text":""}'))}
    rates: dict[int, Rate] = {}
    with NeedleCluster(dimensions=dimensions) as nodes:
        async with await nodes.client() as client:
            for clients in CLIENTS:
                rates[clients] = await closed_loop(
                    clients, seconds, lambda n: client.insert(f"key-{n % 5000}", vectors[n % 1024], metadata)
                )
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
