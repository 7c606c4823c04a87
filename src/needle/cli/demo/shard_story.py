"""The demo of several shards: shards and replicas on real processes, one node of every shard killed, nothing lost.

Every claim it prints is checked first; a step that does not hold raises Internal. Knows the cluster only through the
client and the supervisor.
"""

from __future__ import annotations

import asyncio
import random
import time

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from needle.base.errors import Internal, OutcomeUnknown
from needle.cli.common import brief
from needle.cli.demo.corpus import Passage
from needle.cli.document_commands import insert_all
from needle.cli.embedding import DIMENSIONS, Embedder
from needle.cli.inputs import Record
from needle.cli.status import look, status_table
from needle.client.client import Client
from needle.local.process_cluster import ProcessCluster
from needle.routing.topology import Topology

QUESTIONS = ("compress a file", "how do I parse a date", "split a string into shell words")
HITS = 3
BATCH = 250
WRITERS = 4
WRITES = 200
READY_SECONDS = 60.0
WRITE_SECONDS = 20.0


class ShardOutcome(msgspec.Struct, kw_only=True):
    """What a run measured; seconds unless the name says otherwise. killed: one node of every shard. acknowledged:
    writes answered while nodes were killed, all of which were found afterwards."""

    nodes: int
    shards: int
    replicas: int
    passages: int = 0
    load_seconds: float = 0.0
    killed: list[str] = []
    acknowledged: int = 0
    unknown: int = 0
    search_ms: float = 0.0
    recovery_seconds: float = 0.0
    total_seconds: float = 0.0


def one_of_each(topology: Topology) -> list[str]:
    """Nodes whose loss takes at least one replica of every shard, and of none a majority."""
    chosen: list[str] = []
    for info in topology.shards:
        lost = set(chosen)
        if lost & set(info.replicas):
            continue
        for node in info.replicas:
            tried = lost | {node}
            if all(2 * len(tried & set(s.replicas)) < len(s.replicas) for s in topology.shards):
                chosen.append(node)
                break
    return chosen


class ShardStory:
    """One run. `outcome` fills while the steps go on."""

    def __init__(self, local: ProcessCluster, shards: int, replicas: int, embedder: Embedder, console: Console) -> None:
        self._local = local
        self._embedder = embedder
        self._console = console
        self.outcome = ShardOutcome(nodes=len(local.addresses), shards=shards, replicas=replicas)

    async def tell(self, passages: list[Passage], vectors: NDArray[np.float32]) -> ShardOutcome:
        """All steps."""
        found = self.outcome
        await self._local.create(found.shards, found.replicas, rng=random.SystemRandom(), timeout=READY_SECONDS)
        async with self._local.connect() as client:
            await self._begin(client)
            await self._load(client, passages, vectors)
            await self._ask(client, [passage.id for passage in passages], vectors)
            await self._lose_and_recover(client, vectors)
        return found

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    async def _begin(self, client: Client) -> None:
        found = self.outcome
        await client.create_collection("default", dimensions=DIMENSIONS, timeout=READY_SECONDS)
        await self._healthy(client)
        self._say(f"[bold]{found.shards} shards[/], {found.replicas} replicas each, on {found.nodes} processes")
        await self._show(client)

    async def _show(self, client: Client) -> None:
        self._console.print(status_table(await look(client, [])))

    async def _healthy(self, client: Client) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not (health := await client.health_check()).healthy:
            self._local.check_alive()
            if time.monotonic() > deadline:
                problems = [problem for shard in health.shards.values() for problem in shard.problems]
                raise Internal(f"the cluster is not healthy after {READY_SECONDS:g} s: {'; '.join(problems)}")
            await asyncio.sleep(0.1)

    async def _load(self, client: Client, passages: list[Passage], vectors: NDArray[np.float32]) -> None:
        records = [Record(p.id, vector, p.metadata) for p, vector in zip(passages, vectors, strict=True)]
        batches = iter([records[start : start + BATCH] for start in range(0, len(records), BATCH)])
        started = time.perf_counter()
        inserted = await insert_all(client, batches, "default", WRITE_SECONDS, lambda _: None)
        self.outcome.load_seconds = time.perf_counter() - started
        self.outcome.passages = inserted
        counts = await client.counts()
        if sum(counts.values()) != len(records):
            raise Internal(f"{sum(counts.values())} documents are there, {len(records)} were acknowledged")
        spread = ", ".join(f"{shard}: {count}" for shard, count in sorted(counts.items()))
        self._say(f"[bold]{inserted} passages[/] in {self.outcome.load_seconds:.1f} s; by shard: {spread}")

    async def _ask(self, client: Client, ids: list[str], vectors: NDArray[np.float32]) -> None:
        """Questions in words; in exact mode the merged hits must be those of one index over everything."""
        norms = np.linalg.norm(vectors, axis=1)
        times: list[float] = []
        for question in QUESTIONS:
            vector = self._embedder.embed([question])[0]
            exact = await client.search(vector, HITS, exact=True)
            distances = 1 - vectors @ vector / (norms * np.linalg.norm(vector))
            for rank, hit in enumerate(exact):
                if abs(hit.distance - float(np.sort(distances)[rank])) > 1e-4:
                    raise Internal(
                        f"hit {rank} of {question!r} is not the one an exact search over all {len(ids)} finds"
                    )
            started = time.perf_counter()
            hits = await client.search(vector, HITS)
            times.append(time.perf_counter() - started)
            self._say(f"  [bold]{question}[/]")
            for hit in hits:
                line = f"    {hit.id}: {brief(hit.metadata['text'], 90)}"
                self._console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
        self.outcome.search_ms = 1000 * sorted(times)[len(times) // 2]
        self._say(
            f"every search asked all {self.outcome.shards} shards ({self.outcome.search_ms:.1f} ms); exact hits are "
            "those of one index over everything"
        )

    async def _lose_and_recover(self, client: Client, vectors: NDArray[np.float32]) -> None:
        """Kill one node of every shard in the middle of writes; all that was acknowledged must be there."""
        doomed = self.outcome.killed = one_of_each(client.topology())
        acknowledged: list[str] = []
        numbers = iter(range(WRITES))
        under_way = asyncio.Event()

        async def write() -> None:
            for n in numbers:
                name = f"written-{n}"
                try:
                    await client.insert(name, vectors[n % len(vectors)], {"text": name}, timeout=WRITE_SECONDS)
                except OutcomeUnknown:
                    self.outcome.unknown += 1
                else:
                    acknowledged.append(name)
                if n >= WRITES // 4:
                    under_way.set()

        writers = [asyncio.ensure_future(write()) for _ in range(WRITERS)]
        await asyncio.wait((asyncio.ensure_future(under_way.wait()), *writers), return_when=asyncio.FIRST_COMPLETED)
        self._local.kill(*doomed)
        self._say(f"kill -9 {' '.join(doomed)}: one replica of every shard, in the middle of writes")
        await asyncio.gather(*writers)
        await self._all_there(client, acknowledged)
        self.outcome.acknowledged = len(acknowledged)
        self._say(f"[bold]{len(acknowledged)}[/] writes acknowledged before, during and after; all of them are there")
        started = time.perf_counter()
        for node in doomed:
            self._local.restart(node)
        await self._healthy(client)
        self.outcome.recovery_seconds = time.perf_counter() - started
        await self._all_there(client, acknowledged)
        await self._show(client)
        self._say(f"the nodes are back and have caught up after {self.outcome.recovery_seconds:.1f} s")

    async def _all_there(self, client: Client, names: list[str]) -> None:
        found = await client.get_many(names, with_vectors=False, timeout=WRITE_SECONDS)
        if len(found) != len(names):
            raise Internal(f"{len(names) - len(found)} acknowledged writes are missing")
