"""Whether an index file that was not built in this cluster may be searched. Its checksum is its own, and what is in it
was written by anybody.

faiss checks a graph's ids when it opens it, not whether an upper link leads to a node that is there: a search follows
it behind the end of that node's links, and the process ends. So only the kinds that can be checked to the end are
taken: full vectors, and graphs over them. Raises CorruptSegment.
"""

from __future__ import annotations

import os
from typing import Any, Final

import faiss
import numpy as np

from needle.base.errors import CorruptSegment
from needle.base.model import CollectionSpec, IndexKind
from needle.shard.segments.format import Layout
from needle.shard.segments.graph import Band, faiss_metric
from needle.shard.segments.scoring import Ints

CHECKED: Final = (IndexKind.FLAT, IndexKind.HNSW)


def check_graph(path: str, spec: CollectionSpec, faiss_bytes: int, layout: Layout) -> None:
    """Of a file of one of the CHECKED kinds, whose tables are in order."""
    if layout.apart.kind is IndexKind.FLAT:
        if faiss_bytes:
            raise _refused(path, "holds a graph beside vectors that have none")
        return
    try:
        opened = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)  # which owns what follows
        index: Any = faiss.downcast_index(opened)
        storage: Any = faiss.downcast_index(index.storage)
    except (RuntimeError, AttributeError) as error:
        raise _refused(path, f"cannot be read: {error}") from error
    metric = faiss_metric(spec.metric)
    for part, kind in ((index, faiss.IndexHNSWFlat), (storage, faiss.IndexFlat)):
        if not isinstance(part, kind) or (part.d, part.metric_type) != (spec.dimensions, metric):
            raise _refused(path, f"is no graph over {spec.dimensions} float32 under {spec.metric}")
    if storage.ntotal != index.ntotal:
        raise _refused(path, "has another number of vectors than its graph")
    if index.ntotal:
        _check_links(path, index.hnsw, index.ntotal, layout.bands)


def check_bands(path: str, bands: tuple[Band, ...], nodes: int) -> None:
    """Whether every node is in one of them: what is in none would never be found."""
    ends = [0, *(band.first + band.nodes for band in bands)]
    if bands and ([band.first for band in bands] != ends[:-1] or ends[-1] != nodes):
        raise _refused(path, "has bands that leave nodes out, or share some")


def _check_links(path: str, hnsw: Any, nodes: int, bands: tuple[Band, ...]) -> None:
    levels, offsets, links, room = (
        faiss.rev_swig_ptr(held.data(), held.size()).astype(np.int64)
        for held in (hnsw.levels, hnsw.offsets, hnsw.neighbors, hnsw.cum_nneighbor_per_level)
    )
    whole = len(levels) == nodes and len(offsets) == nodes + 1 and len(room) > 1 and room[0] == 0
    whole = whole and bool((np.diff(room) >= 0).all() and (levels >= 1).all() and (levels < len(room)).all())
    whole = whole and offsets[0] == 0 and offsets[-1] == len(links)
    whole = whole and bool((np.diff(offsets) == room[levels]).all())
    whole = whole and 0 <= hnsw.entry_point < nodes and 0 <= hnsw.max_level < levels[hnsw.entry_point]
    whole = whole and bool(((links >= -1) & (links < nodes)).all())
    if not whole or not _lead_somewhere(levels, offsets, links, room) or not _stay_in(bands, offsets, links):
        raise _refused(path, "has links that lead nowhere")


def _lead_somewhere(levels: Ints, offsets: Ints, links: Ints, room: Ints) -> bool:
    """Whether each link of a level leads to a node that has links of that level."""
    for level in range(1, int(levels.max())):
        here = np.flatnonzero(levels > level)
        found = links[(offsets[here, None] + np.arange(room[level], room[level + 1])).ravel()]
        if (levels[found[found >= 0]] <= level).any():
            return False
    return True


def _stay_in(bands: tuple[Band, ...], offsets: Ints, links: Ints) -> bool:
    """Whether no link leaves the band of its node."""
    if not bands:
        return True
    firsts = np.array([band.first for band in bands])
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[links >= 0]
    return np.array_equal(np.searchsorted(firsts, owner, "right"), np.searchsorted(firsts, links[links >= 0], "right"))


def _refused(path: str, why: str) -> CorruptSegment:
    return CorruptSegment(f"segment file {os.path.basename(path)} {why}", path=path)
