"""How much a cluster needs for so many vectors: shards, nodes, memory, disk, CPU, network. Pure.

Invariant: every figure that was measured stands in the table below, with what it was measured by; docs/operations.md
(Size) says how to measure again; what kinds of index differ in stands in docs/index-selection.md.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Final

import msgspec

from needle.base.config import Limits, SegmentConfig, check_range, refuse
from needle.base.model import IndexKind, IndexParams
from needle.base.sharding_config import SHARDS_MAX

# --- measured with `python -m bench.sizes` -------------------------------------------------------------------------
VECTOR_BYTES: Final = 4
"""A float32, in index files and documents alike."""
LINK_BYTES: Final = 8
"""Of index files, for each link `m`: twice m neighbours of four bytes. The upper layers add less than a hundredth."""
NODE_BYTES: Final = 16
"""Of index files, for each vector: its level, its offset."""
PAGE_BYTES, PAGE_HEAD, CELL_HEAD, PAYLOAD_MAX = 4096, 12, 6, 4061
"""SQLite's pages, which hold whole rows; a longer row continues on pages of its own."""
ROW_BYTES: Final = 12
"""A row of a table beside what it holds."""
ID_BYTES: Final = 20
"""Of an id, if nothing is said of it."""
LOOKUP_BYTES: Final = 50
"""Of `documents.db`, to find a document by its id, beside the id."""
LOG_BYTES: Final = 144 * 1024**2
"""The Raft log of a node, and SQLite's, while writes go on and all replicas keep up."""
NODE_MEMORY: Final = 90_000_000
"""A node that holds nothing."""
REPLICA_MEMORY: Final = 24_000_000
"""A replica's caches of SQLite, and vectors that no index file has yet."""
BUILD_RATIO, BUILD_BYTES = 1.25, 450
"""Memory that a build leaves a node with, beside the finished file: so much of that file, and for each vector."""
SEARCH_SECONDS, SEARCH_DIMENSION_SECONDS, SEARCH_VECTORS = 0.35e-3, 0.6e-6, 20_000
"""CPU of a search of one shard (k 10, ef_search 64) of so many vectors: as such, and for each dimension."""

SCAN_SECONDS: Final = 0.35e-9
"""CPU of scoring a vector, for each dimension."""
SCANNED: Final = {IndexKind.FLAT: 1.0, IndexKind.IVF_FLAT: 0.45, IndexKind.IVF_PQ: 0.2}
"""Which part of a scan of all vectors a search costs, of kinds that have no graph."""
ROW_BYTES_OF_LISTS: Final = 32
"""Of memory, for each vector of a file with lists: which node it is, and back."""

# --- what the guide recommends, and what is kept free ----------------------------------------------------------------
GUIDE: Final = ((10_000_000, 1), (50_000_000, 2), (100_000_000, 4), (500_000_000, 8), (1_000_000_000, 16))
"""Below so many vectors, so many shards; from there on one for each 62.5 million."""
VECTORS_A_SHARD: Final = 62_500_000
USED_MAX: Final = 0.8
"""Of a node's memory and disk."""
VECTORS_MAX = 10**13


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster needs. Bytes; of one node, which holds one replica of one shard, unless said otherwise.

    guide_shards: of the guide's table; `shards` are more where one would not fit into `memory_per_node`.
    vectors_per_shard: of the fullest, if documents lie evenly. index, documents, log: on disk. building: more, for a
    while, on disk, as an index file is written; building_memory: in memory. memory, disk: that the node should have, a
    fifth of it free. cores: of the whole cluster, for searches. replica: that travels when a node is replaced,
    rebuild_seconds: by a network of `network_bits` a second."""

    vectors: int
    dimensions: int
    m: int
    kind: IndexKind
    replicas: int
    guide_shards: int
    shards: int
    nodes: int
    vectors_per_shard: int
    index: int
    documents: int
    log: int
    building: int
    used_memory: int
    building_memory: int
    memory: int
    disk: int
    memory_per_node: int | None
    qps: float
    cores: float
    replica: int
    network_bits: float
    rebuild_seconds: float

    @property
    def used_disk(self) -> int:
        """What lies on a node's disk."""
        return self.index + self.documents + self.log


def plan_size(
    *,
    vectors: int,
    dimensions: int,
    replicas: int = 3,
    m: int = IndexParams().m,
    kind: IndexKind = IndexKind.HNSW,
    metadata_bytes: int = 0,
    memory_per_node: int | None = None,
    qps: float = 0.0,
    network_bits: float = 1e9,
    shards: int | None = None,
) -> Sizing:
    """Size a cluster, as `needle plan` does. kind: of index. metadata_bytes: of a document, as JSON, in the mean.
    memory_per_node: bytes, to have as many shards as nodes of that size need. qps: searches a second. network_bits: a
    second, between nodes. shards: so many, whatever is recommended. Raises ConfigError for a value that cannot be, and
    for nodes that are too small for any number of shards."""
    check_range("vectors", vectors, 1, VECTORS_MAX)
    check_range("dimensions", dimensions, 1, Limits().dimensions_max)
    check_range("replicas", replicas, 1, 7)
    check_range("m", m, 2, 256)
    check_range("metadata_bytes", metadata_bytes, 0, Limits().metadata_bytes_max)
    check_range("qps", qps, 0, 1e9)
    check_range("network_bits", network_bits, 1e6, 1e13)
    guide = guide_shards(vectors)
    if shards is not None:
        check_range("shards", shards, 1, SHARDS_MAX)
    count = shards or max(guide, _fitting(vectors, dimensions, m, kind, memory_per_node))
    each = ceil(vectors / count)
    index, documents = each * index_bytes(dimensions, m, kind), each * document_bytes(dimensions, metadata_bytes)
    built = min(each, SegmentConfig().rows_max)
    building = built * index_bytes(dimensions, m, kind)
    used = NODE_MEMORY + REPLICA_MEMORY + each * held_bytes(dimensions, m, kind)
    more = build_memory(built, dimensions, m, kind)
    return Sizing(
        vectors=vectors,
        dimensions=dimensions,
        m=m,
        kind=kind,
        replicas=replicas,
        guide_shards=guide,
        shards=count,
        nodes=count * replicas,
        vectors_per_shard=each,
        index=index,
        documents=documents,
        log=LOG_BYTES,
        building=building,
        used_memory=used,
        building_memory=more,
        memory=ceil((used + more) / USED_MAX),
        disk=ceil((index + documents + building + LOG_BYTES) / USED_MAX),
        memory_per_node=memory_per_node,
        qps=qps,
        cores=qps * count * search_seconds(each, dimensions, kind),
        replica=index + documents,
        network_bits=network_bits,
        rebuild_seconds=(index + documents) * 8 / network_bits,
    )


def guide_shards(vectors: int) -> int:
    """The guide's number of shards."""
    return next((shards for most, shards in GUIDE if vectors < most), ceil(vectors / VECTORS_A_SHARD))


def index_bytes(dimensions: int, m: int, kind: IndexKind = IndexKind.HNSW) -> int:
    """Of an index file, for each vector."""
    return VECTOR_BYTES * dimensions + _beside_vectors(dimensions, m, kind)


def held_bytes(dimensions: int, m: int, kind: IndexKind = IndexKind.HNSW) -> int:
    """Of memory, for each vector: what searches read of its file again and again. Of codes' full vectors, which are
    mapped too, they read a few."""
    beside = _beside_vectors(dimensions, m, kind)
    if kind in (IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
        beside += ROW_BYTES_OF_LISTS
    whole = kind in (IndexKind.FLAT, IndexKind.HNSW, IndexKind.IVF_FLAT)
    return beside + (VECTOR_BYTES * dimensions if whole else 0)


def _beside_vectors(dimensions: int, m: int, kind: IndexKind) -> int:
    """Bytes of links, codes and tables."""
    links = LINK_BYTES * m + NODE_BYTES
    rotated = 1 << (dimensions - 1).bit_length()  # a power of two
    return {
        IndexKind.FLAT: 0,
        IndexKind.HNSW: links,
        IndexKind.HNSW_SQ8: links + dimensions,
        IndexKind.HNSW_RABITQ: links + rotated // 8 + 8,
        IndexKind.IVF_FLAT: 12,
        IndexKind.IVF_PQ: ceil(dimensions / 8) + 20,
    }[kind]


def document_bytes(dimensions: int, metadata_bytes: int, id_bytes: int = ID_BYTES) -> int:
    """Of `documents.db`, for each document: two rows, and what finds them."""
    vector = _row(VECTOR_BYTES * dimensions + ROW_BYTES)
    return ceil(vector + _row(metadata_bytes + id_bytes + ROW_BYTES) + id_bytes + LOOKUP_BYTES)


def _row(payload: int) -> float:
    """Bytes of the pages that a row takes."""
    if payload <= PAYLOAD_MAX:
        return PAGE_BYTES / max(1, (PAGE_BYTES - PAGE_HEAD) // (payload + CELL_HEAD))
    least = (PAGE_BYTES - 12) * 32 // 255 - 23  # SQLite's file format, "Cell Payload Overflow Pages"
    local = least + (payload - least) % (PAGE_BYTES - 4)
    local = least if local > PAYLOAD_MAX else local
    return _row(local) + ceil((payload - local) / (PAGE_BYTES - 4)) * PAGE_BYTES


def build_memory(rows: int, dimensions: int, m: int, kind: IndexKind = IndexKind.HNSW) -> int:
    """Of an index file of so many vectors that is built."""
    return int(rows * (BUILD_RATIO * index_bytes(dimensions, m, kind) + BUILD_BYTES))


def search_seconds(vectors: int, dimensions: int, kind: IndexKind = IndexKind.HNSW) -> float:
    """CPU of a search of one shard. A graph of twice the size takes one step more."""
    if kind in SCANNED:
        return SEARCH_SECONDS + SCANNED[kind] * SCAN_SECONDS * dimensions * vectors
    steps = max(1.0, log2(max(2, vectors)) / log2(SEARCH_VECTORS))
    return (SEARCH_SECONDS + SEARCH_DIMENSION_SECONDS * dimensions) * steps


def _fitting(vectors: int, dimensions: int, m: int, kind: IndexKind, memory: int | None) -> int:
    """The least number of shards of which one fits into a node."""
    if memory is None:
        return 1
    room = USED_MAX * memory - NODE_MEMORY - REPLICA_MEMORY
    each, build = held_bytes(dimensions, m, kind), BUILD_RATIO * index_bytes(dimensions, m, kind) + BUILD_BYTES
    rows_max = SegmentConfig().rows_max
    rows = int((room - rows_max * build) / each)  # of a shard with more vectors than one file has
    if rows < rows_max:
        rows = int(room / (each + build))
    if rows < 1 or ceil(vectors / rows) > SHARDS_MAX:
        least = f"enough for a shard: of these vectors about {_least(vectors, each, build):,} bytes or more"
        raise refuse("memory_per_node", memory, least)
    return ceil(vectors / rows)


def _least(vectors: int, each: int, build: float) -> int:
    """Memory with which the largest number of shards would do."""
    rows = ceil(vectors / SHARDS_MAX)
    built = min(rows, SegmentConfig().rows_max)
    return ceil((NODE_MEMORY + REPLICA_MEMORY + rows * each + built * build) / USED_MAX)
