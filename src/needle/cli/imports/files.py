"""Files as a source: those of `needle insert`, and a faiss index with the ids of its vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from needle.base.errors import InvalidArgument
from needle.base.model import Metric
from needle.cli.imports.source import EXPIRES, Asked, Shape, in_words, library, refuse_pickle
from needle.cli.inputs import Embed, Record, count_records, read_records, refuse


class RecordFile:
    """A file that `needle insert` reads, too."""

    exact = True

    def __init__(self, asked: Asked) -> None:
        self._path, self._rows = Path(asked.place), asked.rows
        first = next(self.batches(), [])
        if not first:
            raise refuse(asked.place, "holds no documents")
        plain = "metadata" if self._path.suffix.lower() != ".npy" else "none"
        ids = "id" if plain == "metadata" else "row numbers"
        mapped: tuple[tuple[str, str], ...] = (("id", ids), ("vector", "vector"), ("metadata", plain))
        named = {name: len(vector) for record in first for name, vector in record.named.items()}
        mapped += tuple((f"vector {name!r}", f"vector {name!r}") for name in named)
        self.shape = Shape(count_records(self._path), len(first[0].vector), None, mapped, named)

    def batches(self) -> Iterator[list[Record]]:
        for records in read_records(self._path, self._no_texts, "", self._rows):
            expiring = next((one for one in records if one.expires_at is not None), None)
            if expiring is not None:
                raise refuse(expiring.where, EXPIRES)
            yield records

    def _no_texts(self) -> Embed:
        raise refuse(str(self._path), "has texts without vectors: `needle insert` embeds them")

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        return None

    def close(self) -> None:
        """Its files are open only while they are read."""


class FaissIndex:
    """A faiss index whose vectors are whole in it, and a file of their ids, if there is one."""

    METRICS: Final = {0: Metric.DOT, 1: Metric.L2}  # faiss.METRIC_INNER_PRODUCT, METRIC_L2

    def __init__(self, asked: Asked) -> None:
        place, path = asked.place, Path(asked.place)
        if path.is_dir():
            raise refuse_pickle(place) if (path / "index.pkl").exists() else refuse(place, "name the file of the index")
        faiss = library("faiss", "server")
        with in_words(place, RuntimeError):
            opened = faiss.read_index(place)
            index, own = opened, None
            if isinstance(opened, faiss.IndexIDMap):
                own, index = faiss.vector_to_array(opened.id_map), faiss.downcast_index(opened.index)
        whole = (faiss.IndexFlat, faiss.IndexHNSWFlat, faiss.IndexIVFFlat)
        if not isinstance(index, whole):
            raise refuse(place, f"is an {type(index).__name__}, which does not hold the vectors as they were added")
        self._keys: NDArray[np.int64] | None = None
        if isinstance(index, faiss.IndexIVFFlat):
            with in_words(place, RuntimeError):
                self._keys = _keys_of(faiss, index)
            if not np.array_equal(self._keys, np.arange(index.ntotal)):
                if own is not None or asked.ids is not None or len(self._keys) != index.ntotal:
                    raise refuse(place, "its lists have ids of their own, which say nothing of the order of others")
                own = self._keys
        self.exact = isinstance(index, faiss.IndexFlat)
        metric = self.METRICS.get(index.metric_type)
        if metric is None:
            raise refuse(place, f"its metric {index.metric_type} has no counterpart; there are inner product and L2")
        self._place, self._index, self._rows = place, index, asked.rows
        self._opened = opened  # `index` may be a part of it, which ends with it
        self._ids = _ids_of(asked, own, index.ntotal)
        ids = asked.ids or ("ids of the index" if own is not None else "row numbers")
        mapped = (("id", ids), ("vector", f"of {type(index).__name__}"), ("metadata", "none"))
        self.shape = Shape(index.ntotal, index.d, metric, mapped)

    def batches(self) -> Iterator[list[Record]]:
        for start in range(0, self._index.ntotal, self._rows):
            count = min(self._rows, self._index.ntotal - start)
            with in_words(self._place, RuntimeError):
                if self._keys is None:
                    vectors = self._index.reconstruct_n(start, count)
                else:  # reconstruct_n would look at all lists, and leaves out in silence what it does not find
                    vectors = self._index.reconstruct_batch(self._keys[start : start + count])
            yield [
                Record(self._ids[start + at], vector, None, f"{self._place} row {start + at}")
                for at, vector in enumerate(vectors)
            ]

    def nearest(self, query: NDArray[np.float32], k: int) -> list[str] | None:
        _, rows = self._index.search(query[None], k)
        found = rows[0][rows[0] >= 0]
        return [self._ids[row] for row in (found if self._keys is None else np.searchsorted(self._keys, found))]

    def close(self) -> None:
        """It is in memory."""


def _keys_of(faiss: Any, index: Any) -> NDArray[np.int64]:
    """By which an index of lists knows its vectors, in order; afterwards it finds each."""
    lists = index.invlists
    sizes = [lists.list_size(at) for at in range(index.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(at), size) for at, size in enumerate(sizes) if size]
    index.set_direct_map_type(faiss.DirectMap.Hashtable)
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _ids_of(asked: Asked, own: Any, count: int) -> list[str]:
    """Of each row: from the file, the index itself, or its number."""
    if asked.ids is None:
        return [str(one) for one in (range(count) if own is None else own.tolist())]
    path = Path(asked.ids)
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise refuse_pickle(asked.ids)
    with in_words(asked.ids, OSError, ValueError, EOFError):
        if path.suffix.lower() == ".npy":
            found = [str(one) for one in np.load(path, allow_pickle=False).ravel().tolist()]
        else:
            found = path.read_text().splitlines()
    if len(found) != count:
        raise InvalidArgument(f"{asked.ids}: has {len(found)} ids; the index has {count} vectors", field="ids")
    return found
