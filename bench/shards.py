"""What sharding costs a search: the same data in 1 and in several shards, and what each hop adds.

The clusters run side by side and are measured in turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.load import Rate, closed_loop
from bench.report import Report
from bench.sharded_cluster import NODES, ShardedNodes
from bench.vectors import Dataset, dataset
from needle.client import Client

DIMENSIONS = 64
WANTED_RECALL = 0.95
TUNING_QUERIES = 200
EF_SEARCH = (10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 192, 256)
CLIENTS = (1, 16)
GROWTH = (1, 2, 4, 8, 16)
K = 10

Search = Callable[[int], Awaitable[object]]


@dataclass
class Loaded:
    """A cluster with the data, and the smallest beam that reaches the wanted recall there."""

    nodes: ShardedNodes
    data: Dataset
    collection: str
    files: int
    ef: int = 0
    recall: float = 0.0
    rates: dict[int, list[Rate]] = field(default_factory=dict)

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
        return statistics.median([float(getattr(rate, what)) for rate in self.rates[clients]])

    def shown(self, clients: int) -> str:
        rate, p50, p99 = (self.middle(clients, what) for what in ("per_second", "p50_ms", "p99_ms"))
        return f"{rate:,.0f}/s (p50 {p50:.2f}, p99 {p99:.2f} ms)"


async def run(report: Report, *, quick: bool) -> None:
    """Adds the overhead of 4 shards, its growth with the number of shards, and the cost of each hop."""
    small, large = (20_000, 0) if quick else (100_000, 400_000)
    counts = (1, 4) if quick else GROWTH
    rounds, seconds = (2, 0.5) if quick else (5, 2.0)
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
    for _ in range(rounds):
        for each in loaded:
            for clients in CLIENTS:
                rate = await closed_loop(clients, seconds, each.search)
                each.rates.setdefault(clients, []).append(rate)
    one = loaded[0]
    for each in loaded:
        many = "1 shard" if each is one else f"{each.nodes.shards} shards"
        found = f"recall@10 {each.recall:.3f} at ef {each.ef}, {each.files} files"
        for clients in CLIENTS:
            name = f"{rows:,} x {DIMENSIONS}-d, {many} on {NODES} nodes, {clients} client(s); {found}"
            report.row(name, each.shown(clients), f"1 shard: {one.shown(clients)}")
            if each is not one:
                report.ratio(each.middle(clients, "per_second") / one.middle(clients, "per_second"), "QPS", ok=None)
                report.row("  the same: p99", f"{each.middle(clients, 'p99_ms'):.2f} ms", "1 shard")
                report.ratio(each.middle(clients, "p99_ms") / one.middle(clients, "p99_ms"), "p99", ok=None)


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
    medians: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, ask in ways.items():
            medians[way].append((await closed_loop(1, seconds, ask)).p50_ms * 1000)
    took = {way: statistics.median(found) for way, found in medians.items()}
    straight = took["straight"]
    for way, text in (("at the leader", "client -> proxy with the leader"), ("elsewhere", "client -> proxy -> leader")):
        report.row(
            f"hop: {text}, empty shard", f"{took[way]:.0f} us: + {took[way] - straight:.0f} us", f"{straight:.0f} us"
        )
        report.ratio(took[way] / straight, "time", ok=None)
    for nodes in clusters[1:]:
        whole = took[f"{nodes.shards} shards"]
        each = (whole - straight) / (nodes.shards - 1)
        name = f"fan-out over {nodes.shards} empty shards on {NODES} nodes, shard-aware client"
        report.row(name, f"{whole:.0f} us: + {each:.0f} us a further shard", f"1 shard: {straight:.0f} us")
        report.ratio(whole / straight, "time", ok=None)
