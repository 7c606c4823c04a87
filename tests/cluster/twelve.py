"""4 shards of 3 replicas on 12 processes against one exact faiss index in this process: what test_twelve.py proves.

Two data sets at once, each a collection: vectors that, like embeddings, vary along few directions, and the demo's
corpus (the standard library's docstrings, embedded).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from cluster.processes import ShardedProcesses
from needle.base.model import Hit
from needle.cli.demo.corpus import read_corpus, stdlib_directory
from needle.client.client import Client
from needle.client.embedding import WORDLLAMA
from needle.local.process_cluster import wait_for

LATENT = 32
K = 10
TIE = 2e-6
"""float32 sums of 256 products in another order differ by about this much: such neighbours are ties."""
CHUNK = 1000


@dataclass(frozen=True)
class Collection:
    """ids: by row of vectors (n, d), unit length. queries: (m, d), drawn alike."""

    name: str
    ids: list[str]
    vectors: np.ndarray
    queries: np.ndarray

    def nearest(self, k: int, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(rows, distances) of the k nearest of each query by one exact index, of all rows or of `rows` only."""
        kept = np.arange(len(self.vectors)) if rows is None else rows
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors[kept])
        scores, found = index.search(self.queries, k)
        return kept[found], 1 - scores


def drawn(name: str, count: int, dimensions: int, queries: int, seed: int = 7) -> Collection:
    """As bench/vectors.py draws them."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((LATENT, dimensions), dtype=np.float32)

    def draw(n: int) -> np.ndarray:
        points = rng.standard_normal((n, LATENT), dtype=np.float32) @ directions
        points += np.float32(0.5) * rng.standard_normal((n, dimensions), dtype=np.float32)
        return np.ascontiguousarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)

    return Collection(name, [f"v{n}" for n in range(count)], draw(count), draw(queries))


def corpus(name: str, limit: int, queries: Sequence[str]) -> Collection:
    """Passages of the standard library's documentation; `queries` in words, and the beginnings of 46 passages."""
    passages = read_corpus(stdlib_directory(), limit or None)
    beginnings = [" ".join(passage.text.split()[:6]) for passage in passages[:: max(1, len(passages) // 46)]]
    asked = [*queries, *beginnings]
    vectors = WORDLLAMA.embed([passage.sentence for passage in passages])
    return Collection(name, [passage.id for passage in passages], vectors, WORDLLAMA.embed(asked))


class Twelve:
    """The running cluster and what it must answer."""

    def __init__(self, processes: ShardedProcesses, client: Client, collections: Sequence[Collection]) -> None:
        self.processes = processes
        self.client = client
        self.collections = collections
        self.figures: list[str] = []

    def say(self, text: str) -> None:
        """One figure, for people."""
        self.figures.append(text)
        print(text, flush=True)  # noqa: T201 - measurements of a run

    async def load(self) -> None:
        """Every collection, in chunks."""
        for data in self.collections:
            dimensions = data.vectors.shape[1]
            await self.client.create_collection(data.name, dimensions=dimensions, timeout=60)
            start = time.monotonic()
            for first in range(0, len(data.ids), CHUNK):
                part = slice(first, first + CHUNK)
                await self.client.insert_batch(
                    ids=data.ids[part], vectors=data.vectors[part], collection=data.name, timeout=120
                )
            rate = len(data.ids) / (time.monotonic() - start)
            self.say(f"{data.name}: {len(data.ids)} x {dimensions}-d, {rate:.0f} vectors/s acknowledged")
            counts = await self.client.counts(collection=data.name, timeout=60)
            assert sum(counts.values()) == len(data.ids)
            self.say(f"{data.name}: by shard {counts}")

    async def indexed(self, seconds: float) -> None:
        """Wait until most vectors are in index files, so that approximate searches are approximate."""
        start, wanted = time.monotonic(), sum(len(data.ids) for data in self.collections)

        async def covered() -> bool:
            led = {info.shard: info.replicas[0] for info in self.client.topology().shards}
            rows = [
                int(last) - int(first) + 1
                for shard, node in led.items()
                for path in self.processes.nodes[node].data_dir.glob(f"shards/{shard}/state-*/segments/*.seg")
                for _, first, last, _ in [path.name.rsplit("-", 3)]
            ]
            return sum(rows) >= 0.9 * wanted

        await wait_for(covered, seconds, "index files of 90 % of the vectors")
        self.say(f"90 % of all vectors indexed {time.monotonic() - start:.1f} s after the last acknowledgement")

    async def exact_is_one_index(self) -> None:
        """Every exact search gives the ids of one exact index in its order, up to ties."""
        for data in self.collections:
            rows, distances = data.nearest(K)
            for at, query in enumerate(data.queries):
                hits = await self.client.search(query, K, exact=True, collection=data.name, timeout=60)
                check_same(data, hits, rows[at], distances[at])
            self.say(f"{data.name}: exact: {len(data.queries)} of {len(data.queries)} answers are those of one index")

    async def recall(self, wanted: float) -> None:
        """recall@10 of the default mode."""
        for data in self.collections:
            rows, _ = data.nearest(K)
            found, start = 0, time.monotonic()
            for at, query in enumerate(data.queries):
                hits = await self.client.search(query, K, collection=data.name, timeout=60)
                found += len({hit.id for hit in hits} & {data.ids[row] for row in rows[at]})
            spent = 1000 * (time.monotonic() - start) / len(data.queries)
            recall = found / (K * len(data.queries))
            self.say(f"{data.name}: recall@10 {recall:.4f} in the default mode, {spent:.1f} ms a search")
            assert recall >= wanted, data.name

    async def partial_is_the_rest(self, lost: int) -> None:
        """search_partial without one shard is an exact search over the documents of the others."""
        router = self.client.documents  # type: ignore[attr-defined]
        for data in self.collections:
            kept = np.array([at for at, name in enumerate(data.ids) if router.shard_of(name) != lost])
            rows, distances = data.nearest(K, kept)
            parts = await asyncio.gather(  # at once: each waits for the lost shard until its timeout
                *(
                    self.client.search_partial(query, K, exact=True, collection=data.name, timeout=4)
                    for query in data.queries[:3]
                )
            )
            for at, part in enumerate(parts):
                assert list(part.missing) == [lost]
                assert part.gaps
                assert not part.complete
                check_same(data, part.hits, rows[at], distances[at])


def check_same(data: Collection, hits: Sequence[Hit], rows: np.ndarray, distances: np.ndarray) -> None:
    """The same ids in the same order; where ids differ, the distances are tied."""
    assert len(hits) == len(rows)
    assert len({hit.id for hit in hits}) == len(hits)
    for rank, hit in enumerate(hits):
        assert hit.id == data.ids[rows[rank]] or abs(hit.distance - distances[rank]) <= TIE, (data.name, rank, hit)
