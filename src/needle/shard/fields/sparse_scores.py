"""What the documents of a shard have of a sparse vector that is asked for: the inner product with their own.

Invariants: a document has a score if it is in the set that was asked for and has one of the indices, whether the index
has it or it has to be read; all are scored, none is passed over. A score is a sum of float64, in ascending order of the
indices, of exact products of float32: so equal documents have equal scores on all replicas, however their indexes were
merged, and however documents are spread over shards.

Threads: any; one object is one search's. It must not know vectors, views or the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import numpy as np
from pyroaring import BitMap

from needle.base.sparse import SPARSE_KIND, Sparse
from needle.shard.fields.builders import Builders
from needle.shard.fields.field_index import Run
from needle.shard.fields.payload_index import PayloadIndex
from needle.shard.fields.run_making import run_of_sparse, sparse_in
from needle.shard.fields.weight_columns import Weights
from needle.shard.fields.word_search import DENSE, Counts, Floats, having, matching, places_of

READ_ROWS: Final = 256
"""So many documents that the index does not have are scored at a time."""


class SparseScores:
    """Of one search, in the documents below `end` of one collection."""

    def __init__(
        self,
        index: PayloadIndex,
        name: str,
        asked: Sparse,
        end: int,
        among: BitMap,
        live: int,
        builders: Builders | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """name: of the documents' sparse vectors. asked: by index. The rest as of WordSearch. Raises StorageError,
        BeingIndexed."""
        self._indices, self._weights = asked.indices, asked.values.astype(np.float64).tolist()
        self._go_on, self._among, path = go_on, among, (name,)
        state = index.postings((path, SPARSE_KIND), end, live, builders, go_on)
        self._runs = state.runs
        newer = among & BitMap(range(state.end, max(end, state.end)))
        self._newer = self._read(index, path, newer)

    def _read(self, index: PayloadIndex, path: tuple[str, ...], ordinals: BitMap) -> Iterator[Run]:
        documents = index.documents(ordinals, path, self._go_on)
        newer = ((ordinal, sparse_in(document, path)) for ordinal, document in documents)  # lists take 10 times as much
        while part := list(islice(newer, READ_ROWS)):
            yield run_of_sparse(part[0][0], part[-1][0] + 1, part)

    def scores(self) -> tuple[Counts, Floats]:
        """Of the documents with one of the indices: their ordinals, ascending, and scores. To be asked once."""
        ordinals, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        for runs in (self._runs, self._newer):
            for run in runs:
                self._go_on()
                self._score(run, ordinals, scores)
        return np.concatenate(ordinals), np.concatenate(scores)

    def _score(self, run: Run, ordinals: list[Counts], scores: list[Floats]) -> None:
        column = run.columns.get("sparse")
        if not isinstance(column, Weights):
            return
        at = np.minimum(np.searchsorted(column.keys, self._indices), len(column.keys) - 1)
        there = np.flatnonzero(column.keys[at] == self._indices).tolist()
        slices = [slice(int(column.starts[one]), int(column.starts[one + 1])) for one in at[there].tolist()]
        here = having([column.ordinals[one] for one in slices], run) & self._among
        if not here:
            return
        places, span, total = places_of(here, run), run.end - run.first, sum(one.stop - one.start for one in slices)
        dense = total * DENSE >= span
        found = np.zeros(span if dense else len(places))
        for which, one in zip(there, slices, strict=True):
            products = column.weights[one].astype(np.float64) * self._weights[which]
            if dense:
                found[column.ordinals[one] - np.uint32(run.first)] += products
            else:
                owners, hit = matching(places, column.ordinals[one], run)
                found[owners] += products[hit]
        ordinals.append(places + run.first)
        scores.append(found[places] if dense else found)
