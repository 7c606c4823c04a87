"""What moves of key ranges cost those who write and search meanwhile: the same load before moves and while ranges go to
and fro between two shards of three replicas; how long a write to the keys that move waits at a switch; how fast they
are copied; what a rebalance copies over the least possible; and the same load while a replica goes to a fourth node
and back at the pace that is set by default.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from bench.cluster import ShardedNodes
from bench.report import Report
from bench.vectors import Floats
from needle.base.errors import NeedleError
from needle.client import Client
from needle.protocol.catalog_commands import StartMove
from needle.routing.jobs import Progress, RebalanceConfig
from needle.routing.plans import Wish
from needle.routing.ranges import KeySet
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import routing_key
from needle.routing.topology import MoveState, Topology

DIMENSIONS = 64
COLLECTION = "data"
LOOK_SECONDS = 0.1
CALLERS = {"writes": 4, "searches": 2}
STAYING = "writes of keys that do not move"
PROBES = 2
SECONDS_MAX = 300.0
METADATA = {"title": "What moves of key ranges cost", "text": "x" * 200}
"""Of each document."""
SETTINGS = {"election_timeout": 2.0}
"""Client and all nodes share the cores: no election while a machine is busy."""

Latencies = list[tuple[float, float]]
"""(began, took), in seconds."""


class Load:
    """Callers that each send the next operation when the last one answered, until they are told to end. An operation
    that returns a name counts under that, too."""

    def __init__(self) -> None:
        self.took: dict[str, Latencies] = {}
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, callers: int, operation: Callable[[int], Awaitable[object]]) -> None:
        found, numbers = self.took.setdefault(name, []), iter(range(1 << 62))

        async def caller() -> None:
            while not self._ending:
                began = time.perf_counter()
                also = await operation(next(numbers))
                found.append((began, time.perf_counter() - began))
                if isinstance(also, str):
                    self.took.setdefault(also, []).append(found[-1])

        self._tasks += [asyncio.create_task(caller()) for _ in range(callers)]

    async def end(self) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    def p(self, name: str, percent: float, since: float, until: float) -> float:
        """Milliseconds, of the operations that began in that time."""
        return float(np.percentile([1e3 * took for began, took in self.took[name] if since <= began < until], percent))

    def longest(self, name: str, since: float, until: float) -> float:
        """Milliseconds, of the operations that were under way in that time."""
        return 1e3 * max(took for began, took in self.took[name] if began < until and began + took > since)


async def _now(client: Client) -> Topology:
    """As the catalog says now."""
    while True:
        try:
            return await client.refresh_topology(confirmed=True, timeout=5.0)
        except NeedleError:
            await asyncio.sleep(LOOK_SECONDS)


async def _move(client: Client, ranges: Sequence[KeyRange], source: int, target: int, nonce: int) -> float:
    """Seconds that it copied."""
    now = await _now(client)
    assert now.map is not None
    began = time.perf_counter()
    move = (await client.change_catalog(StartMove(nonce, now.map.epoch, list(ranges), source, target))).version
    copied = 0.0
    while time.perf_counter() - began < SECONDS_MAX:
        info = (await client.refresh_topology(timeout=LOOK_SECONDS)).move(move)
        if not copied and (info is None or info.state is not MoveState.COPYING):
            copied = time.perf_counter() - began
        if info is None:
            return copied
    raise TimeoutError(f"move {move} did not end within {SECONDS_MAX:g} s")


async def run(report: Report, *, quick: bool) -> None:
    """Adds latencies before and during moves, holds at switches, the rate of copying, and bytes over the least."""
    rows, rounds, seconds = (4_000, 4, 4.0) if quick else (20_000, 10, 10.0)
    vectors = np.random.default_rng(5).standard_normal((rows, DIMENSIONS)).astype(np.float32)
    async with ShardedNodes(2, 3, http=True, **SETTINGS) as nodes:
        await nodes.load(COLLECTION, vectors, METADATA)
        await _under_load(report, nodes.client, vectors, rounds, seconds)
        await _switch_times(report, nodes)
        await _rebalanced(report, nodes.client)
        await _replicas_under_load(report, nodes, vectors, max(2, rounds // 2), seconds)


async def _under_load(report: Report, client: Client, vectors: Floats, rounds: int, seconds: float) -> None:
    """Key ranges move."""
    shard_map = (await _now(client)).map
    assert shard_map is not None
    ranges = shard_map.ranges(0)[::2]
    keys = KeySet(ranges)
    names = [f"v{n}" for n in range(len(vectors))]
    moving = [n for n in names if routing_key(shard_map.strategy, shard_map.shard_count, n) in keys]
    moves = set(moving)

    async def write(n: int) -> object:
        name = names[n % len(names)]
        await _write(client, name, vectors[n % len(vectors)])
        return None if name in moves else STAYING

    async def probe(n: int) -> object:
        await _write(client, moving[n % len(moving)], vectors[n % len(vectors)])

    load = Load()
    load.start("writes", CALLERS["writes"], write)
    load.start("searches", CALLERS["searches"], lambda n: _search(client, vectors[n % len(vectors)]))
    load.start("probes", PROBES, probe)
    await asyncio.sleep(seconds / 5)
    quiet = time.perf_counter()
    await asyncio.sleep(seconds)
    begun, held, copying = time.perf_counter(), [], []
    for number in range(rounds):
        since = time.perf_counter()
        copying.append(await _move(client, ranges, number % 2, 1 - number % 2, number + 1))
        held.append(load.longest("probes", since, time.perf_counter()))
    ended = time.perf_counter()
    await load.end()
    about = f"{len(moving):,} of {len(vectors):,} x {DIMENSIONS}-d, {rounds} moves"
    _tell(report, load, {**CALLERS, STAYING: CALLERS["writes"]}, about, (quiet, begun, ended))
    usual = load.p("probes", 99, quiet, begun)
    report.row(
        "the longest write to moving keys, of each move",
        f"median {np.median(held):.0f} ms, worst {max(held):.0f} ms",
        f"without a move: p99 {usual:.0f} ms",
    )
    report.ratio(None, "median < 100, worst < 300 ms", ok=bool(np.median(held) < 100 and max(held) < 300))
    rate = len(moving) / float(np.median(copying))
    size = vectors.shape[1] * vectors.itemsize
    whole = size + len(names[-1]) + len(json.dumps(METADATA))
    shown = f"{rate * whole / 1e6:.1f} MB/s of whole documents ({rate * size / 1e6:.1f} of vectors)"
    report.row("copied under that load", f"{rate:,.0f} documents/s, {shown}")


async def _write(client: Client, name: str, vector: Floats) -> None:
    await client.insert(name, vector, METADATA, collection=COLLECTION, timeout=60)


async def _search(client: Client, query: Floats) -> None:
    await client.search(query, 10, collection=COLLECTION, timeout=60)


def _tell(
    report: Report, load: Load, names: Mapping[str, int], about: str, instants: tuple[float, float, float]
) -> None:
    """What callers noticed. names: of operations, with how many callers each has. instants: since when nothing moved,
    since when something does, and its end."""
    quiet, begun, ended = instants
    for name, callers in names.items():
        before, during = (load.p(name, 99, *span) for span in ((quiet, begun), (begun, ended)))
        middle, then = (load.p(name, 50, *span) for span in ((quiet, begun), (begun, ended)))
        report.row(f"{name}, {callers} callers, p99 during {about}", f"{during:.1f} ms", f"before: {before:.1f} ms")
        report.ratio(during / before, "2.0", ok=during <= 2 * before)
        report.row("  the same: p50", f"{then:.1f} ms", f"before: {middle:.1f} ms")
        report.ratio(then / middle, "p50", ok=None)


async def _switch_times(report: Report, nodes: ShardedNodes) -> None:
    """As the nodes measure them (`needle_move_hold_seconds`, `needle_move_arrival_seconds`)."""
    told = [await nodes.metrics(node) for node in nodes.names()]
    for name, what in (("hold", "writes held by a switch"), ("arrival", "from a decision until the target owns it")):
        sums, bounds = Counter[str](), Counter[float]()
        for key, value in (sample for one in told for sample in one.items()):
            found = re.fullmatch(rf"needle_move_{name}_seconds_(bucket|sum|count)(?:{{(.*)}})?", key)
            if found is None or (name == "hold" and 'event="decided"' not in found[2]):
                continue
            sums[found[1]] += value
            if found[1] == "bucket":
                bounds[float(re.findall(r'le="([^"]+)"', found[2])[0])] += value
        count = sums["count"]
        most = min((bound for bound, at_most in bounds.items() if at_most >= count), default=0.0)
        mean = 1e3 * sums["sum"] / count if count else 0.0
        report.row(
            f"  {what}, as nodes measure it",
            f"mean {mean:.0f} ms, median {1e3 * _middle(bounds, count):.0f} ms, none over {1e3 * most:g} ms",
            f"{count:.0f} moves",
        )


def _middle(bounds: Mapping[float, float], count: float) -> float:
    """The median by the bounds of a histogram, as Prometheus' `histogram_quantile` has it."""
    below = under = 0.0
    for bound, at_most in sorted(bounds.items()):
        if at_most >= count / 2 > 0:
            return below + (bound - below) * (count / 2 - under) / (at_most - under)
        below, under = bound, at_most
    return below


async def _replicas_under_load(
    report: Report, nodes: ShardedNodes, vectors: Floats, rounds: int, seconds: float
) -> None:
    """A replica of shard 0 goes to another node and back."""
    client, fresh = nodes.client, await nodes.join()
    follower = next(node for node in client.topology().shards[0].replicas if node != nodes.leader(0))
    load = Load()
    load.start("writes", CALLERS["writes"], lambda n: _write(client, f"v{n % len(vectors)}", vectors[n % len(vectors)]))
    load.start("searches", CALLERS["searches"], lambda n: _search(client, vectors[n % len(vectors)]))
    await asyncio.sleep(seconds / 5)
    quiet = time.perf_counter()
    await asyncio.sleep(seconds)
    begun, took = time.perf_counter(), []
    for number in range(rounds):
        since = time.perf_counter()
        await client.move_replica(0, *((follower, fresh), (fresh, follower))[number % 2], timeout=60)
        await _over(client)
        took.append(time.perf_counter() - since)
    ended = time.perf_counter()
    await load.end()
    _tell(report, load, CALLERS, f"{rounds} moves of a replica", (quiet, begun, ended))
    report.row("a replica moved under that load, default pace", f"median {np.median(took):.1f} s")


async def _over(client: Client) -> Progress:
    """The last rebalance, once it is over."""
    until = time.perf_counter() + SECONDS_MAX
    while time.perf_counter() < until:
        found = await client.rebalance_progress(timeout=60)
        if found is not None and found.is_complete:
            return found
        await asyncio.sleep(LOOK_SECONDS)
    raise TimeoutError(f"the rebalance did not end within {SECONDS_MAX:g} s")


async def _rebalanced(report: Report, client: Client) -> None:
    """A shard more, without load."""
    plan = await client.plan_rebalance(Wish(shards=3), timeout=60)
    config = RebalanceConfig(throttle_rate=0.0)
    began = time.perf_counter()
    await client.start_rebalance(config, wish=Wish(shards=3), timeout=60)
    found = await _over(client)
    took = time.perf_counter() - began
    text = f"{found.state}: {found.moved_documents:,} documents, {found.moved_bytes / 1e6:.1f} MB, {took:.1f} s"
    report.row("a third shard, no load", text, f"least possible: {plan.least / 1e6:.1f} MB")
    ratio = found.moved_bytes / plan.least if plan.least else 1.0
    report.ratio(ratio, "1.1", ok=str(found.state) == "done" and ratio <= 1.1)
