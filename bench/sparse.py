"""Exact searches by sparse vectors on one replica, beside a brute force in numpy over the same weights in one matrix.

One process, no network. Vectors are as SPLADE makes them: some 120 of 30,522 indices a document, of which some are in
very many documents, and 30 of a query. Counted is processor time, for one search at a time; and how long the index
takes to be made of the documents, how large it is, and how much the documents are.
"""

from __future__ import annotations

import tempfile
import time

import numpy as np
import numpy.typing as npt

from bench.report import Report
from needle.base.config import Limits, SegmentConfig
from needle.base.model import CollectionSpec, Metric, SearchRequest
from needle.base.sparse import query_of, sparse_vector
from needle.client.values import metadata_bytes
from needle.multiraft.ports import Applied
from needle.protocol.commands import CreateCollection, Insert, encode
from needle.shard.disk import ReplicaDisk
from needle.shard.state_machine import Replica

VOCABULARY, OF_A_DOCUMENT, OF_A_QUERY = 30_522, 120, 30
FREQUENT = 0.02
"""The share of its vocabulary from which half of the indices of a vector come."""
BATCH, QUERIES, HITS = 500, 50, 10
Drawn = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]


def _drawn(rng: np.random.Generator, count: int) -> Drawn:
    often = rng.integers(0, int(VOCABULARY * FREQUENT), count // 2)
    indices = np.unique(np.concatenate([often, rng.integers(0, VOCABULARY, count - count // 2)])).astype(np.uint32)
    return indices, rng.exponential(0.6, len(indices)).astype(np.float32)


def run(report: Report, *, quick: bool, documents: int | None = None) -> None:
    """Adds rows: of making the index, of searches, and of the brute force."""
    size, rng = documents or (5_000 if quick else 50_000), np.random.default_rng(0)
    vectors = [_drawn(rng, OF_A_DOCUMENT) for _ in range(size)]
    queries = [_drawn(rng, OF_A_QUERY) for _ in range(QUERIES)]
    with tempfile.TemporaryDirectory() as directory:
        replica = Replica(directory, limits=Limits(), segments=SegmentConfig(), disk=ReplicaDisk())
        stored = _filled(replica, vectors)
        start = time.process_time()
        _search(replica, queries[0])
        while replica.field_indexes.waits:
            replica.field_indexes.work()
        report.row(
            f"index of {size:,} documents made",
            f"{time.process_time() - start:.1f} s, {replica.field_indexes.used / 1e6:.0f} MB in memory",
            f"{stored / 1e6:.0f} MB of JSON",
        )
        start = time.process_time()
        found = [_search(replica, query) for query in queries]
        ours = (time.process_time() - start) / QUERIES
        start = time.process_time()
        true = [_brute(vectors, query) for query in queries[:5]]
        plainly = (time.process_time() - start) / 5
        same = sum(len({*one} & {*other}) for one, other in zip(found, true, strict=False)) / (5 * HITS)
        report.row(
            f"a search of {OF_A_QUERY} indices", f"{1e3 * ours:.1f} ms of CPU", f"numpy, all: {1e3 * plainly:.1f} ms"
        )
        report.ratio(plainly / ours, f"all {HITS} hits are the true ones", ok=same == 1)
        replica.close()


def _filled(replica: Replica, vectors: list[Drawn]) -> int:
    """Bytes of metadata."""
    spec, total = CollectionSpec(name="c", dimensions=1, metric=Metric.L2), 0
    replica.apply([Applied(index=1, term=1, data=encode(CreateCollection(spec)), conf=None)])
    for at, first in enumerate(range(0, len(vectors), BATCH)):
        part = vectors[first : first + BATCH]
        metadata = [metadata_bytes({"s": sparse_vector(*one)}) for one in part]
        ids, rows = [f"{first + n:06}" for n in range(len(part))], bytes(4 * len(part))
        replica.apply([Applied(index=at + 2, term=1, data=encode(Insert("c", ids, rows, metadata)), conf=None)])
        total += sum(map(len, metadata))
    return total


def _search(replica: Replica, query: Drawn) -> list[str]:
    asked = query_of({"s": {"indices": query[0], "values": query[1].astype(np.float64)}})
    request = SearchRequest(collection="c", vector=b"", k=HITS, sparse=asked, with_metadata=False)
    return replica.reads().scored(request, None, lambda: None, None, time.perf_counter).ids


def _brute(vectors: list[Drawn], query: Drawn) -> list[str]:
    """Of all documents, one after the other in one array."""
    weights = np.zeros(VOCABULARY)
    weights[query[0]] = query[1]
    lengths = [len(indices) for indices, _ in vectors]
    products = weights[np.concatenate([one for one, _ in vectors])] * np.concatenate([one for _, one in vectors])
    scores = np.add.reduceat(products, np.cumsum([0, *lengths[:-1]]))
    return [f"{at:06}" for at in np.argsort(-scores, kind="stable")[:HITS]]
