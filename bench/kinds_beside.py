"""The index of faiss that is of the same kind, built and searched in the same run, and the rates of both.

What codes of faiss find is scored again from full vectors (`IndexRefineFlat`), as Needle does. Its effort is the least
one with which it finds as much as Needle did. faiss builds a graph over codes by these codes, Needle by full vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from threading import Thread
from typing import Any, Final, NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from needle.base.model import CODES, GRAPHS, IndexKind, IndexParams

Floats = npt.NDArray[np.float32]
CALLERS: Final = (1, 16)
K: Final = 10
WORKERS: Final = 2
"""Threads of a node that search a shard."""
TURNS: Final = 5
"""So often two take turns: what else runs on the machine is beside both alike."""
ENOUGH: Final = 0.002
"""So much less recall than Needle's will do: it is measured by some hundred queries."""
_CODE_BYTES_SHARE: Final = 8
_REFINED: Final = (10, 20, 40, 80)
"""Of product codes, so many times k are scored again."""


class Rate(NamedTuple):
    """per_second: by the clock, of all callers together. microseconds: of processor time, a search."""

    per_second: float
    microseconds: float


class Beside(NamedTuple):
    """Of faiss. effort: what was told to it. rates: by number of callers, as CALLERS; ours: Needle's, in turns; and of
    the most callers when their queries are joined, as a node does (shard/search_batcher.py)."""

    recall: float
    effort: str
    rates: list[Rate]
    ours: list[Rate]
    joined: Rate


Search = Callable[[Floats], object]


def rates(search: Search, queries: Floats, seconds: float) -> list[Rate]:
    """Of so many callers at a time, each in a thread of its own, that ask for one query after the other."""
    return [_rate(search, queries, callers, seconds) for callers in CALLERS]


def _in_turns(theirs: Search, ours: Search, queries: Floats, seconds: float) -> tuple[list[Rate], list[Rate], Rate]:
    """As `rates`, of faiss and of Needle, and of Needle by so many WORKERS: of each the median of TURNS."""
    few, many = CALLERS
    ways = [(theirs, few, 1), (ours, few, 1), (theirs, many, 1), (ours, many, 1), (ours, WORKERS, many // WORKERS)]
    turns = [
        [_rate(search, queries, callers, seconds / TURNS, at_once) for search, callers, at_once in ways]
        for _ in range(TURNS)
    ]
    found = [Rate(*map(median, zip(*measured, strict=True))) for measured in zip(*turns, strict=True)]
    return [found[0], found[2]], [found[1], found[3]], found[4]


def _rate(search: Search, queries: Floats, callers: int, seconds: float, at_once: int = 1) -> Rate:
    """at_once: so many queries in one call."""
    done = [0] * callers
    end = time.perf_counter() + seconds

    def call(caller: int) -> None:
        faiss.omp_set_num_threads(1)
        at = caller * len(queries) // callers
        while time.perf_counter() < end or not done[caller]:
            search(queries[np.arange(at, at + at_once) % len(queries)])
            at += at_once
            done[caller] += at_once

    threads = [Thread(target=call, args=(caller,)) for caller in range(callers)]
    start, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent, used = time.perf_counter() - start, time.process_time() - used
    return Rate(sum(done) / spent, 1e6 * used / sum(done))


def build(kind: IndexKind, params: IndexParams, vectors: str, path: str) -> float:
    """Write the index of faiss over the vectors of a file to another one; seconds of processor time."""
    rows = np.load(vectors)
    faiss.omp_set_num_threads(1)
    start = time.process_time()
    index = _built(kind, params, rows)
    took = time.process_time() - start
    faiss.write_index(index, path)
    return took


def beside(
    kind: IndexKind, path: str, ours: Callable[[], Search], queries: Floats, nearest: Any, wanted: float, seconds: float
) -> Beside:
    """faiss, and Needle in turns with it. path: what was built. ours: opens Needle's file. nearest: (nq, K) the exact
    answers. wanted: Needle's recall."""
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(path)
    said, recall = ("", None), 0.0
    for said in _efforts(kind, index.ntotal):
        found = index.search(queries, K, params=said[1])[1]
        recall = float(np.mean([np.isin(want, got).mean() for want, got in zip(nearest, found, strict=True)]))
        if recall >= wanted - ENOUGH:
            break
    effort, asked = said
    return Beside(
        recall, effort, *_in_turns(lambda query: index.search(query, K, params=asked), ours(), queries, seconds)
    )


def _built(kind: IndexKind, params: IndexParams, rows: Floats) -> Any:
    dimensions, lists = rows.shape[1], max(2, round(len(rows) ** 0.5))
    by_product = faiss.METRIC_INNER_PRODUCT
    centres = faiss.IndexFlatIP(dimensions)
    index: Any
    if kind is IndexKind.FLAT:
        index = centres
    elif kind is IndexKind.HNSW:
        index = faiss.IndexHNSWFlat(dimensions, params.m, by_product)
    elif kind is IndexKind.HNSW_SQ8:
        index = faiss.IndexHNSWSQ(dimensions, faiss.ScalarQuantizer.QT_8bit, params.m, by_product)
    elif kind is IndexKind.HNSW_RABITQ:
        index = faiss.IndexHNSWRaBitQ(dimensions, params.m)  # by l2, which orders unit vectors alike
    elif kind is IndexKind.IVF_FLAT:
        index = faiss.IndexIVFFlat(centres, dimensions, lists, by_product)
    else:
        index = faiss.IndexIVFPQ(centres, dimensions, lists, dimensions // _CODE_BYTES_SHARE, 8, by_product)
    if kind in GRAPHS:
        index.hnsw.efConstruction = params.ef_construction
    if kind in CODES:
        index = faiss.IndexRefineFlat(index)
    index.train(rows)
    index.add(rows)
    return index


def _efforts(kind: IndexKind, rows: int) -> Iterator[tuple[str, Any]]:
    """What can be told to it, from the least effort to the most."""
    if kind is IndexKind.FLAT:
        yield "", None
        return
    lists = max(2, round(rows**0.5))
    end = 2000 if kind in GRAPHS else lists
    steps = sorted({min(end, round(K * 1.15**step) if kind in GRAPHS else round(1.15**step)) for step in range(60)})
    for step in steps:
        asked: Any
        if kind in GRAPHS:
            asked = faiss.SearchParametersHNSW(efSearch=step)
        else:
            asked = faiss.SearchParametersIVF(nprobe=step)
        if kind not in CODES:
            yield str(step), asked
        for factor in () if kind not in CODES else [step / K] if kind in GRAPHS else _REFINED:
            refined = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=asked)
            yield f"{step}, {round(factor * K)} scored again", refined
