"""Graphs over vectors of bits while they are built: over the stored bytes, a thirty-second of zeros and ones in
float32.

Invariant: the links are those of a graph over zeros and ones (graph_builder.py), number by number. faiss builds both in
one way, and compares by whole numbers here as there: how many bits differ is the squared distance. In a file the graph
has codes (codes.py), so no file holds one of these.

It does not know files, ordinals or who builds.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from needle.base.dtypes import StoredRows
from needle.base.model import CollectionSpec
from needle.shard.segments.graph import Band
from needle.shard.segments.scoring import Floats, Ints


def empty_graph(spec: CollectionSpec) -> Any:
    """For vectors of bits."""
    index: Any = faiss.IndexBinaryHNSW(spec.dimensions, spec.index.m)
    index.hnsw.efConstruction = spec.index.ef_construction
    return index


def rows_of(index: Any) -> StoredRows:
    """The vectors of such a graph's or a flat index's nodes, without a copy: (nodes, bytes) uint8, until more are
    added."""
    of: Any = faiss.downcast_IndexBinary(index.storage) if hasattr(index, "storage") else index
    if not of.ntotal:
        return np.empty((0, of.code_size), np.uint8)
    rows: StoredRows = faiss.rev_swig_ptr(of.xb.data(), of.ntotal * of.code_size).reshape(-1, of.code_size)
    return rows


class BitWalk:
    """As walk.Walk, of such a graph, which has no bands."""

    def __init__(self, index: Any) -> None:
        self._index = index

    def nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        """(nq, width) the nearest nodes, -1 for none. queries: (nq, d), zeros and ones."""
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersHNSW(efSearch=beam)  # type: ignore[attr-defined]
        _, near = self._index.search(np.packbits(queries != 0, axis=1), width, params=parameters)
        found: Ints = near
        return found
