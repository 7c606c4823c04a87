"""What sharding costs a search: the same data in 1 and in several shards, and what each hop adds.

The clusters run side by side and are measured in turns, so that whatever else the machine does meets all of them.
Rates on a machine with few cores say as much about the cores as about sharding, so the processor time of a search,
client and nodes together, is measured too: it does not depend on what else runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.cluster import NODES, ShardedNodes
from bench.load import Rate, closed_loop
from bench.report import Report
from bench.vectors import Dataset, dataset
from needle.client import Client

DIMENSIONS = 64
WANTED_RECALL = 0.95
TUNING_QUERIES = 100
EF_SEARCH = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256)
CLIENTS = (1, 16)
GROWTH = (1, 2, 4, 8, 16)
K = 10
IDLE_SECONDS = 1.5
IDLE_LOOKS = 4

Search = Callable[[int], Awaitable[object]]


@dataclass(frozen=True)
class Measured:
    """rate: of one round. cpu_us: processor time of one operation, what the nodes use when idle taken off."""

    rate: Rate
    cpu_us: float


async def measure(nodes: ShardedNodes, idle: float, clients: int, seconds: float, one: Search) -> Measured:
    """One round. idle: processor seconds that the nodes use in a second without work."""
    before, start = nodes.cpu_seconds(), time.perf_counter()
    rate = await closed_loop(clients, seconds, one)
    used = nodes.cpu_seconds() - before - idle * (time.perf_counter() - start)
    return Measured(rate, 1e6 * used / rate.operations)


async def idle_shares(clusters: Sequence[ShardedNodes]) -> dict[int, float]:
    """What each cluster uses in a second without work, by its number of shards: the least of several looks, because
    what a load left to do (merges of index files, checkpoints) is no idling."""
    least: dict[int, float] = {}
    for _ in range(IDLE_LOOKS):
        before = {nodes.shards: nodes.cpu_seconds() for nodes in clusters}
        await asyncio.sleep(IDLE_SECONDS)
        for nodes in clusters:
            used = (nodes.cpu_seconds() - before[nodes.shards]) / IDLE_SECONDS
            least[nodes.shards] = min(used, least.get(nodes.shards, used))
    return least


@dataclass
class Loaded:
    """A cluster with the data, and the smallest beam that reaches the wanted recall there."""

    nodes: ShardedNodes
    data: Dataset
    collection: str
    files: int
    ef: int = 0
    recall: float = 0.0
    rounds: dict[int, list[Measured]] = field(default_factory=dict)

    async def search(self, n: int) -> list[int]:
        """One query of the data set, the numbers of its hits."""
        query = self.data.queries[n % len(self.data.queries)]
        hits = await self.nodes.client.search(
            query, K, collection=self.collection, with_metadata=False, ef_search=self.ef, timeout=60
        )
        return [int(hit.id[1:]) for hit in hits]

    async def tune(self) -> None:
        """Choose `ef`, so that clusters are compared at equal recall."""
        for ef in EF_SEARCH:
            self.ef = ef
            self.recall = self.data.recall([await self.search(n) for n in range(TUNING_QUERIES)])
            if self.recall >= WANTED_RECALL:
                return

    def middle(self, clients: int, what: str) -> float:
        """The median over the rounds."""
        return statistics.median([float(getattr(found.rate, what)) for found in self.rounds[clients]])

    def cpu_us(self, clients: int) -> float:
        """The median over the rounds."""
        return statistics.median([found.cpu_us for found in self.rounds[clients]])

    def shown(self, clients: int) -> str:
        rate, p50, p99 = (self.middle(clients, what) for what in ("per_second", "p50_ms", "p99_ms"))
        return f"{rate:,.0f}/s (p50 {p50:.2f}, p99 {p99:.2f} ms)"


async def run(report: Report, *, quick: bool) -> None:
    """Adds the overhead of 4 shards, its growth with the number of shards, and the cost of each hop."""
    small, large = (20_000, 0) if quick else (100_000, 400_000)
    counts = (1, 4) if quick else GROWTH
    rounds, seconds = (2, 0.5) if quick else (4, 1.5)
    async with contextlib.AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(ShardedNodes(shards)) for shards in counts]
        await _growth(report, clusters, small, rounds, seconds)
        await _hops(report, clusters, rounds, seconds / 2)
        if large:
            await _growth(report, [nodes for nodes in clusters if nodes.shards in (1, 4)], large, rounds, seconds)


async def _growth(report: Report, clusters: Sequence[ShardedNodes], rows: int, rounds: int, seconds: float) -> None:
    """The first cluster has one shard; the others are compared with it."""
    data, collection = dataset(rows, DIMENSIONS), f"data{rows}"
    loaded = [Loaded(nodes, data, collection, await nodes.load(collection, data.vectors)) for nodes in clusters]
    for each in loaded:
        await each.tune()
    idle = await idle_shares(clusters)
    for _ in range(rounds):
        for each in loaded:
            for clients in CLIENTS:
                found = await measure(each.nodes, idle[each.nodes.shards], clients, seconds, each.search)
                each.rounds.setdefault(clients, []).append(found)
    one = loaded[0]
    for each in loaded:
        many = "1 shard" if each is one else f"{each.nodes.shards} shards"
        about = f"recall@10 {each.recall:.3f} at ef {each.ef}, {each.files} files"
        for clients in CLIENTS:
            name = f"{rows:,} x {DIMENSIONS}-d, {many} on {NODES} nodes, {clients} client(s); {about}"
            report.row(name, each.shown(clients), f"1 shard: {one.shown(clients)}")
            if each is not one:
                report.ratio(each.middle(clients, "per_second") / one.middle(clients, "per_second"), "QPS", ok=None)
                report.row("  the same: p99", f"{each.middle(clients, 'p99_ms'):.2f} ms", "1 shard")
                report.ratio(each.middle(clients, "p99_ms") / one.middle(clients, "p99_ms"), "p99", ok=None)
                cpu, base = each.cpu_us(clients), one.cpu_us(clients)
                report.row("  the same: processor time", f"{cpu:,.0f} us a search", f"1 shard: {base:,.0f} us")
                report.ratio(cpu / base, "time", ok=None)


async def _hops(report: Report, clusters: Sequence[ShardedNodes], rounds: int, seconds: float) -> None:
    """Searches that find nothing: what is left is the way there and back."""
    for nodes in clusters:
        await nodes.client.create_collection("empty", dimensions=DIMENSIONS, timeout=60)
    query = [1.0] * DIMENSIONS

    def asking(client: Client) -> Search:
        async def one(_: int) -> object:
            return await client.search(query, K, collection="empty", with_metadata=False)

        return one

    single = clusters[0]
    leader = single.leader(0)
    other = next(node for node in single.client.nodes() if node != leader)
    ways = {"straight": asking(single.client)}
    ways["at the leader"] = asking(single.plain(leader))
    ways["elsewhere"] = asking(single.plain(other))
    for nodes in clusters[1:]:
        ways[f"{nodes.shards} shards"] = asking(nodes.client)
    of = dict.fromkeys(ways, single) | {f"{nodes.shards} shards": nodes for nodes in clusters[1:]}
    idle = await idle_shares(clusters)
    medians: dict[str, list[Measured]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, ask in ways.items():
            medians[way].append(await measure(of[way], idle[of[way].shards], 1, seconds, ask))
    took = {way: 1000 * statistics.median([each.rate.p50_ms for each in found]) for way, found in medians.items()}
    used = {way: statistics.median([each.cpu_us for each in found]) for way, found in medians.items()}
    straight = took["straight"]
    texts = {"at the leader": "client -> proxy that leads", "elsewhere": "client -> proxy -> leader"}
    for way, text in texts.items():
        shown = f"{took[way]:.0f} us: + {took[way] - straight:.0f} us"
        report.row(f"hop: {text}, empty shard, p50", shown, f"straight to the leader: {straight:.0f} us")
        report.ratio(took[way] / straight, "time", ok=None)
        _cpu(report, used, way, used[way] - used["straight"], "")
    for nodes in clusters[1:]:
        way, further = f"{nodes.shards} shards", nodes.shards - 1
        shown = f"{took[way]:.0f} us: + {(took[way] - straight) / further:.0f} us a further shard"
        report.row(f"fan-out over {way}, empty, shard-aware client, p50", shown, f"1 shard: {straight:.0f} us")
        report.ratio(took[way] / straight, "time", ok=None)
        _cpu(report, used, way, (used[way] - used["straight"]) / further, " a further shard")


def _cpu(report: Report, used: dict[str, float], way: str, more: float, each: str) -> None:
    base = used["straight"]
    report.row("  the same: processor time", f"{used[way]:.0f} us: + {more:.0f} us{each}", f"straight: {base:.0f} us")
    report.ratio(used[way] / base, "time", ok=None)
