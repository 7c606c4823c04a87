"""From kill -9 of the leader to the next acknowledged write, at equal timeouts: Needle and etcd."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np

from bench.cluster import NeedleCluster
from bench.etcd import EtcdClient, EtcdCluster, leader_client
from bench.report import Report


async def fail_over(kills: int, **settings: float) -> list[float]:
    """Seconds from each of so many kills of the leader to the next acknowledged write. settings: of the nodes."""
    vector = np.ones(8, dtype=np.float32)
    times = []
    with NeedleCluster(dimensions=8, **settings) as nodes:
        async with await nodes.client() as client:
            for n in range(kills):
                await client.insert(f"before-{n}", vector)
                leader = await client.leader()
                start = time.perf_counter()
                nodes.kill(leader)
                await client.insert(f"after-{n}", vector)
                times.append(time.perf_counter() - start)
                nodes.restart(leader)
                await nodes.caught_up(client)
    return times


async def _etcd(kills: int, heartbeat: float, election: float) -> list[float]:
    times = []
    for _ in range(kills):
        cluster = EtcdCluster(int(heartbeat * 1000), int(election * 1000))
        cluster.start()
        try:
            leader, client = await leader_client(cluster)
            others = [await EtcdClient.connect(port) for i, port in enumerate(cluster.clients) if i != leader]
            await client.put(b"before", b"x")
            start = time.perf_counter()
            cluster.kill(leader)
            await _first_put(others, start)
            times.append(time.perf_counter() - start)
        finally:
            cluster.stop()
    return times


async def _first_put(survivors: list[EtcdClient], start: float) -> None:
    """Returns when a survivor acknowledges a write; each is asked again until then. Raises TimeoutError after 20 s."""
    while time.perf_counter() - start < 20:
        for client in survivors:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.put(b"after", b"x")
                return
    raise TimeoutError("etcd did not fail over within 20 s")


async def run(report: Report, *, quick: bool, with_etcd: bool) -> None:
    """Adds failover at the guide's timeouts (150/50 ms) and at etcd's smallest sensible ones for both (500/50)."""
    kills = 5 if quick else 20
    guide = np.array(await fail_over(kills, heartbeat_interval=0.050, election_timeout=0.150)) * 1e3
    report.row(f"failover, 150/50 ms, {kills} kills", f"median {np.median(guide):.0f} ms, max {guide.max():.0f} ms")
    report.ratio(None, "median < 1000 ms", ok=bool(np.median(guide) < 1000))
    equal = np.array(await fail_over(kills, heartbeat_interval=0.050, election_timeout=0.500)) * 1e3
    shown = f"median {np.median(equal):.0f} ms, max {equal.max():.0f} ms"
    if with_etcd:
        theirs = np.array(await _etcd(5 if quick else 10, 0.050, 0.500)) * 1e3
        report.row("failover, 500/50 ms", shown, f"etcd median {np.median(theirs):.0f} ms, max {theirs.max():.0f} ms")
        ratio = float(np.median(equal) / np.median(theirs))
        report.ratio(ratio, "<= 1.0 x etcd", ok=ratio <= 1.0)
    else:
        report.row("failover, 500/50 ms", shown, "etcd not installed")
