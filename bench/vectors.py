"""The vectors every benchmark uses, the same in each run, and faiss to compare with."""

from __future__ import annotations

import time
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
LATENT = 32


@dataclass(frozen=True)
class Dataset:
    """vectors: (n, d) float32, unit length. queries: (m, d). nearest: (m, 10) int64, the exact answers."""

    vectors: Floats
    queries: Floats
    nearest: npt.NDArray[np.int64]

    def recall(self, answers: list[list[int]]) -> float:
        """recall@10 of one answer (ids, nearest first) for each query, in order."""
        hits = [len(set(got[:10]) & set(want.tolist())) for got, want in zip(answers, self.nearest, strict=False)]
        return sum(hits) / (10 * len(hits))


def dataset(rows: int, dimensions: int, queries: int = 1000, seed: int = 7) -> Dataset:
    """As `drawn`, with the answers."""
    vectors, asked = drawn(rows, dimensions, queries, seed)
    flat = faiss.IndexFlatIP(dimensions)
    flat.add(vectors)
    return Dataset(vectors, asked, flat.search(asked, 10)[1])


def drawn(rows: int, dimensions: int, queries: int, seed: int = 7) -> tuple[Floats, Floats]:
    """`rows` unit vectors that, like embeddings, vary along few directions (LATENT) with some noise; queries drawn the
    same way. HNSW needs about the efSearch for recall 0.95 that it needs on text embeddings; uniform or clustered
    noise would make it far too hard or too easy."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((LATENT, dimensions), dtype=np.float32)

    def draw(n: int) -> Floats:
        points = rng.standard_normal((n, LATENT), dtype=np.float32) @ directions
        points += np.float32(0.5) * rng.standard_normal((n, dimensions), dtype=np.float32)
        return np.ascontiguousarray(points / np.linalg.norm(points, axis=1, keepdims=True), dtype=np.float32)

    return draw(rows), draw(queries)


def build_hnsw(vectors: Floats, m: int, ef_construction: int, threads: int) -> tuple[faiss.Index, float]:
    """An in-process HNSW index over all vectors and the seconds its build took."""
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = ef_construction
    start = time.perf_counter()
    index.add(vectors)
    elapsed = time.perf_counter() - start
    faiss.omp_set_num_threads(1)
    return index, elapsed


def search_one_by_one(index: faiss.Index, queries: Floats, ef: int, seconds: float) -> tuple[float, list[list[int]]]:
    """Single-query searches per second on one thread, and the answers of the first pass."""
    faiss.omp_set_num_threads(1)
    index.hnsw.efSearch = ef
    answers = [index.search(query[None], 10)[1][0].tolist() for query in queries]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        index.search(queries[done % len(queries)][None], 10)
        done += 1
    return done / (time.perf_counter() - start), answers


def ef_for_recall(index: faiss.Index, data: Dataset, wanted: float) -> int:
    """The smallest tried efSearch whose recall@10 reaches `wanted`."""
    for ef in (16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 512):
        if data.recall(search_one_by_one(index, data.queries, ef, 0)[1]) >= wanted:
            return ef
    raise ValueError(f"no efSearch up to 512 reaches recall {wanted}")
