"""`needle node replace`: how long it takes until another node holds all that one held, and whether its index came as
files. A graph that is built again at the target costs minutes of a core for what is copied in seconds.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from bench.cluster import ShardedNodes, rows_of
from bench.report import Report
from needle.routing.jobs import RebalanceConfig

DIMENSIONS = 384
COLLECTION = "data"
SECONDS_MAX = 3600.0
LOOK_SECONDS = 0.2
BUILDS = ("built", "rebuilt")
"""Events of an index file that was made here, by inserting its vectors into a graph."""
SETTINGS = {"election_timeout": 2.0}
"""Client and all nodes share the cores: no election while a machine is busy."""


async def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Adds the time, the rate, and the vectors that the target inserted into graphs."""
    count = documents or (20_000 if quick else 200_000)
    vectors = np.random.default_rng(6).standard_normal((count, DIMENSIONS)).astype(np.float32)
    async with ShardedNodes(1, 3, **SETTINGS) as nodes:
        began = time.perf_counter()
        await nodes.load(COLLECTION, vectors)
        loaded = time.perf_counter() - began
        follower = next(node for node in nodes.client.topology().shards[0].replicas if node != nodes.leader(0))
        fresh = await nodes.join()
        files = {path.name: path.stat().st_size for path in nodes.index_files(follower)}
        sender = nodes.leader(0)
        most = dict.fromkeys((sender, fresh), 0.0)
        before = {node: nodes.memory_mb(node) for node in most}
        looking = asyncio.create_task(_look(nodes, most))
        began = time.perf_counter()
        config = RebalanceConfig(throttle_rate=0.0)  # as fast as it can
        await nodes.client.replace_node(follower, fresh, config=config, timeout=SECONDS_MAX)
        took = time.perf_counter() - began
        looking.cancel()
        arrived = {path.name for path in nodes.index_files(fresh)}
        told = await nodes.metrics(fresh)
    text = f"one of 3 replicas of {count:,} x {DIMENSIONS}-d"
    rate = f"{count / took:,.0f} documents/s, {count * 4 * DIMENSIONS / took / 1e6:.0f} MB/s of vectors"
    report.row(f"node replace, {text}", f"{took:.1f} s: {rate}", f"loaded and indexed before in {loaded:.0f} s")
    same = sum(rows_of(name) for name in files.keys() & arrived)
    whole = f"{same:,} vectors in {len(files.keys() & arrived)} index files, {sum(files.values()) / 1e6:.0f} MB"
    report.row("  the same files at the target", whole, f"at the node that goes: {len(files)} files")
    report.ratio(same / max(1, sum(map(rows_of, files))), "1.0", ok=arrived >= files.keys())
    built = sum(told[f'needle_segment_events_total{{event="{event}",shard="0"}}'] for event in BUILDS)
    seconds = told['needle_segment_build_seconds_total{shard="0"}']
    report.row(
        "  vectors inserted into a graph there", "0" if not built else f"those of {built:.0f} files, {seconds:.1f} s"
    )
    report.ratio(None, "0", ok=not built)
    _tell_memory(report, {"sender": (before[sender], most[sender]), "new node": (before[fresh], most[fresh])})


async def _look(nodes: ShardedNodes, most: dict[str, float]) -> None:
    """Note the most that each of them has, until it is cancelled."""
    while True:
        for node in most:
            most[node] = max(most[node], nodes.memory_mb(node))
        await asyncio.sleep(LOOK_SECONDS)


def _tell_memory(report: Report, found: dict[str, tuple[float, float]]) -> None:
    for name, (before, most) in found.items():
        report.row(f"  memory of the {name}, at most", f"{most:.0f} MB", f"before: {before:.0f} MB")
