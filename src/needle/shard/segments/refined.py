"""What codes find is put in order by the full vectors, where these lie, within one call of faiss (its `IndexRefine`).

Of the nodes that a search finds by codes only the nearest by full vectors come back, few more than are wanted; the
interpreter sees no others. faiss' distances are for that choice alone. It knows no files, ordinals, bands or masks.
"""

from __future__ import annotations

from typing import Any, Final

import faiss
import numpy as np

from needle.base.model import GRAPHS, IndexKind, Metric
from needle.shard.segments.graph import faiss_metric
from needle.shard.segments.scoring import Floats, Ints
from needle.shard.segments.walk import of_unit_length, rotation

KEPT: Final = 64
"""Of so many searches that ask for other numbers the parameters for faiss are kept."""


class Refined:
    """index: of codes of a kind, all of whose nodes are searched together. rows: (nodes, d) their full vectors; neither
    is copied. Any number of threads may ask."""

    def __init__(self, kind: IndexKind, metric: Metric, index: Any, rows: Floats) -> None:
        self._kind, self._metric = kind, metric
        full: Any = faiss.IndexFlat(rows.shape[1], faiss_metric(metric))
        views: Any = faiss.MaybeOwnedVectorUInt8
        # The owner is that of an index without vectors: nobody. Who has the rows keeps them.
        full.codes = views.create_view(faiss.swig_ptr(rows.view(np.uint8)), rows.nbytes, full.codes.owner)
        full.ntotal = len(rows)
        codes = index
        if kind is IndexKind.HNSW_RABITQ:
            codes = faiss.IndexPreTransform(rotation(rows.shape[1]), index)
            codes.metric_type = full.metric_type  # bits know distances alone; what they say is put in order by `full`
        self._index: Any = faiss.IndexRefine(codes, full)
        self._parts = index, codes, full, rows  # faiss has but pointers to them
        self._parameters: dict[tuple[int, int, int], tuple[Any, Any]] = {}

    def nearest(self, queries: Floats, width: int, among: int, effort: int) -> Ints:
        """(nq, width) the nearest nodes, -1 for none, of so many that codes find. effort: the width of a beam, or how
        many lists to look through."""
        if self._kind is IndexKind.HNSW_RABITQ and self._metric == Metric.DOT:
            queries = of_unit_length(queries)
        # The OpenMP thread count belongs to the calling thread: searches run side by side, one thread each.
        faiss.omp_set_num_threads(1)
        near, distances = np.empty((len(queries), width), np.int64), np.empty((len(queries), width), np.float32)
        arrays = [faiss.swig_ptr(array) for array in (distances, near)]
        said, _ = self._said(width, among, effort)
        self._index.search_c(len(queries), faiss.swig_ptr(queries), width, *arrays, said)
        return near

    def _said(self, width: int, among: int, effort: int) -> tuple[Any, Any]:
        """Parameters for faiss, and what they point to. It only reads them, so that threads may share them."""
        found = self._parameters.get((width, among, effort))
        if found is None:
            base: Any
            if self._kind in GRAPHS:
                base = faiss.SearchParametersHNSW(efSearch=effort)  # type: ignore[attr-defined]
            else:
                base = faiss.SearchParametersIVF(nprobe=effort)  # type: ignore[call-arg]
            said: Any = faiss.IndexRefineSearchParameters(  # type: ignore[call-arg]
                k_factor=(among + 0.5) / width, base_index_params=base
            )
            found = said, base
            if len(self._parameters) < KEPT:
                self._parameters[width, among, effort] = found
        return found
