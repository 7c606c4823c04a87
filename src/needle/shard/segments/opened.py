"""What a verified index file holds, mapped: the full vectors of its nodes, and the index over them.

Full vectors beside codes are read where they are asked for, without those around them: a search wants a few from all
over. Whoever reads them one after the other says so before. The system keeps in its page cache what it has room for; a
process lets go of what it has mapped of a file's vectors after every LET_GO_BYTES, so that it does not come to hold all
of them. Measured: some 20 us more for each search that scores 50 of 100,000 x 384.

Only modules of this package import faiss; its errors become CorruptSegment.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from needle.base.dtypes import DType, StoredRows, VectorForm
from needle.base.errors import CorruptSegment, NeedleError
from needle.base.file_errors import shortage
from needle.base.model import CODES, GRAPHS, IndexKind, Metric
from needle.shard.segments.format import Layout
from needle.shard.segments.graph import Band, nodes_of
from needle.shard.segments.probe import Lists, Probe, keys_in_place, share
from needle.shard.segments.refined import Refined
from needle.shard.segments.scoring import Floats, Ints, square_norms
from needle.shard.segments.walk import Walk

RESCORE_MARGIN: Final = 8
"""Candidates beyond k that are scored again, so that rounding in faiss cannot change which are the k nearest."""

BEAM_ROWS: Final = 30
"""Measured at 50k x 384 (docs/adr/0003): one unit of a beam in a graph costs as much as scoring this many rows."""
CODE_ROWS: Final = 8
"""So many product codes are compared in the time of a full vector."""

KEYS_QUERIES: Final = 2
KEYS_NODES: Final = 256
"""So few queries, and so many nodes, are scored in place."""
DENSE: Final = 4
DENSE_NODES: Final = 1024
"""Where one of so many nodes is wanted, and so many of them, those between are read, too."""

LENGTHS_BYTES: Final = 16 << 20
"""Of a file, for lengths that exact searches measured: 4 bytes a vector."""
LET_GO_BYTES: Final = 16 << 20
FAULT_BYTES: Final = 64 << 10
"""What Linux maps around a byte that is asked for."""
AHEAD_BYTES: Final = 512 << 10
"""Of more, Linux reads but a part when it is told that they will be needed."""

Raw = npt.NDArray[np.void]


class OpenIndex:
    """The index of one open file. kind: as the file says, which need not be the collection's. nodes: how many vectors
    it has. stretch: so many times wider a beam is than for full vectors. Any number of threads may ask. Raises
    CorruptSegment for what does not fit together."""

    def __init__(self, path: str, form: VectorForm, metric: Metric, faiss_bytes: int, layout: Layout) -> None:
        apart = layout.apart
        self.kind = apart.kind
        self.stretch = apart.stretch
        self._form, self._dimensions, self._metric = form, form.dimensions, metric
        self._finder: Walk | Probe | None = None
        self._mapping: mmap.mmap | None = None
        self._mapped = 0
        if apart.kind is IndexKind.HNSW:
            index, self._raw = map_index(path, form.dimensions)
        else:
            index = _map(path) if faiss_bytes else None
            self._raw, mapping = _map_vectors(path, form.row_bytes, apart.at, apart.nodes)
            if self.kind in CODES and mapping is not None:
                self._mapping = mapping
                _advise(mapping, "MADV_RANDOM")
            if self.kind in GRAPHS and (index is None or index.ntotal != apart.nodes):
                raise CorruptSegment(f"{path}: no index of {apart.nodes} nodes", path=path)
        self.nodes = len(self._raw)
        self._at = faiss.cast_integer_to_float_ptr(self._raw.ctypes.data)
        self._lists = layout.lists
        self._lengths: Floats | None = None
        self._refined: Refined | None = None
        if layout.lists is not None:
            self._finder = self._probe(path, metric, index, layout, layout.lists)
        elif index is not None:
            self._refined = self._refines(path, index, layout)
            self._finder = Walk(index, metric, layout.bands, _vectors_of(self), self.kind)

    def _probe(self, path: str, metric: Metric, index: Any, layout: Layout, lists: Lists) -> Probe:
        codes = self.kind is IndexKind.IVF_PQ
        try:
            centres = nodes_of(faiss.downcast_index(index.quantizer) if codes else index)[:, : self._dimensions].copy()
        except AttributeError as error:
            raise _refused(path, error) from error
        bands = layout.bands or (Band(0, self.nodes, 0.0, even=True),)
        rows = self._raw.view(np.float32).reshape(-1, self._dimensions)
        if codes:
            self._refined = self._refines(path, index, layout)
        return Probe(metric, bands, lists, centres, rows, index if codes else None, self.stretch)

    def _refines(self, path: str, index: Any, layout: Layout) -> Refined | None:
        """If faiss can order what these codes find: it would compare the query itself, with codes of all vectors."""
        whole = not layout.bands and (layout.lists is None or index.d == self._dimensions)
        if self.kind not in CODES or self._form.dtype is not DType.FLOAT32 or not whole or not self.nodes:
            return None
        if not hasattr(faiss, "MaybeOwnedVectorUInt8"):  # an old faiss: candidates are scored one by one
            return None
        rows = self._raw.view(np.float32).reshape(-1, self._dimensions)
        try:
            return Refined(self.kind, self._metric, index, rows)
        except RuntimeError as error:  # they do not fit together
            raise _refused(path, error) from error

    @property
    def searches(self) -> bool:
        """Whether there is more than the vectors."""
        return self._finder is not None

    def nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        """(nq, width) about the nearest nodes of a band, -1 for none. Asked only if it `searches`."""
        assert self._finder is not None
        return self._finder.nearest(band, queries, width, beam)

    @property
    def copies(self) -> bool:
        """Whether neighbours, too, are copied to be read: where they stand in the index, at any byte."""
        return self.kind is IndexKind.HNSW

    def best(self, band: Band, queries: Floats, k: int, beam: int) -> Ints:
        """(nq, some) nodes of a band among which are the k nearest of those that a beam finds, about, -1 for none."""
        among = self.rescored(k, beam)
        if self._refined is None:
            return self.nearest(band, queries, among, beam)
        self._let_go(among * len(queries) * FAULT_BYTES)
        effort = beam
        if isinstance(self._finder, Probe):
            effort = self._finder.looked_through(band, beam)
        return self._refined.nearest(queries, min(among, k + RESCORE_MARGIN), among, effort)

    def cost(self, band: Band, effort: int) -> int:
        """Of a search with so wide a beam, in rows that could be scored instead."""
        if self._lists is None:
            return effort * BEAM_ROWS
        rows = round(share(self._lists, effort) * band.nodes)
        return rows if self.kind is IndexKind.IVF_FLAT else rows // CODE_ROWS + effort

    def rescored(self, k: int, beam: int) -> int:
        """How many of the nodes that a beam finds are scored from the full vectors, for the k nearest."""
        return max(k + RESCORE_MARGIN, beam if self.kind in CODES else 0)

    def vectors(self, nodes: Ints | slice) -> Floats:
        """(n, d) float32: an aligned copy of these nodes' vectors; of a slice, where they stand apart, no copy."""
        rows = self._raw_rows(nodes)
        if self.kind is IndexKind.HNSW:
            return rows.view(np.float32).reshape(-1, self._dimensions)
        return self._form.scored(rows.view(self._form.array).reshape(-1, self._form.numbers))

    def stored(self, nodes: Ints | slice) -> StoredRows:
        """(n, numbers): these nodes' vectors as they are stored. A graph over full vectors holds them as they are
        scored: only files have one where the one follows from the other."""
        if self.kind is IndexKind.HNSW:
            return self._form.stored(self.vectors(nodes))
        return self._raw_rows(nodes).view(self._form.array).reshape(-1, self._form.numbers)

    def lengths(self, nodes: Ints | slice, rows: StoredRows) -> Floats | None:
        """(n,) of the numbers of these nodes, which are stored as these rows: kept once they were asked for. None if
        there would be too many to keep."""
        if 4 * self.nodes > LENGTHS_BYTES:
            return None
        if self._lengths is None:
            self._lengths = np.full(self.nodes, np.nan, np.float32)
        found: Floats = self._lengths[nodes]
        if np.isnan(found).any():
            found = np.sqrt(square_norms(self._form.widened(rows)))
            self._lengths[nodes] = found  # threads write the same
        return found

    def _raw_rows(self, nodes: Ints | slice) -> Raw:
        # Indexing by few numbers keeps the interpreter's lock, also while the disk is waited for; `take` never does.
        rows = self._raw[nodes] if isinstance(nodes, slice) else self._raw.take(nodes)
        if self._mapping is not None:
            self._let_go(rows.nbytes if isinstance(nodes, slice) else len(rows) * FAULT_BYTES)
            if isinstance(nodes, slice):
                before = len(self._mapping) - self._raw.nbytes
                _read_ahead(self._mapping, before + nodes.indices(self.nodes)[0] * self._raw.itemsize, rows.nbytes)
        if isinstance(nodes, slice) and self.copies:
            rows = rows.copy()
        return rows

    def keys(self, queries: Floats, nodes: Ints) -> Floats | None:
        """(nq, n): what orders these nodes by their distance to each query, but for rounding, without a copy of their
        vectors. None where a matrix product of a copy costs no more, or vectors are not stored as float32.
        Measured, 2,000 nodes of 384 dimensions, one query: 149 us instead of 373; with 16 queries the copy pays."""
        if len(nodes) < KEYS_NODES or not self.in_place(len(queries)):
            return None
        if self._mapping is not None:
            self._look_at(nodes)
        faiss.omp_set_num_threads(1)
        out = np.empty((len(queries), len(nodes)), np.float32)
        wanted = np.ascontiguousarray(nodes, np.int64)
        for query, row in zip(queries, out, strict=True):
            keys_in_place(self._metric, query, self._at, wanted, row)
        return out

    def _look_at(self, nodes: Ints) -> None:
        """Of the mapping: it is about to be read there."""
        if len(nodes) < DENSE_NODES:
            self._let_go(len(nodes) * FAULT_BYTES)
            return
        first = int(nodes.min())
        span = (int(nodes.max()) + 1 - first) * self._raw.itemsize
        self._let_go(min(len(nodes) * FAULT_BYTES, span))
        if self._mapping is not None and span <= DENSE * len(nodes) * self._raw.itemsize:
            _read_ahead(self._mapping, len(self._mapping) - self._raw.nbytes + first * self._raw.itemsize, span)

    def in_place(self, queries: int) -> bool:
        """Whether vectors are scored for so many queries where they lie, if there are enough of them."""
        return queries <= KEYS_QUERIES and (self.kind is IndexKind.HNSW or self._form.dtype is DType.FLOAT32)

    def _let_go(self, mapped: int) -> None:
        """Of all vectors, once so much of them was mapped. Who reads them just now has them mapped again."""
        if self._raw.nbytes <= LET_GO_BYTES:
            return
        self._mapped += mapped  # threads may lose some of each other's: it is about so much
        if self._mapped >= LET_GO_BYTES and self._mapping is not None:
            self._mapped = 0
            _advise(self._mapping, "MADV_DONTNEED")


def _vectors_of(opened: OpenIndex) -> Callable[[Ints], Floats]:
    """Its vectors, for a part of it: what held itself would lie, with its file, until Python's collector came."""
    itself = weakref.ref(opened)

    def vectors(nodes: Ints) -> Floats:
        whole = itself()
        assert whole is not None
        return whole.vectors(nodes)

    return vectors


def _map(path: str) -> Any:
    try:
        return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise _refused(path, error) from error


def _refused(path: str, error: Exception) -> NeedleError:
    return wanting(path) or CorruptSegment(f"faiss cannot read {path}: {error}", path=path)


def map_index(path: str, dimensions: int) -> tuple[Any, Raw]:
    """The memory-mapped index and its vectors without a copy: (nodes,) of 4 x dimensions raw bytes.

    Raw, because faiss puts them at any byte: NumPy copies float32 that are not aligned ten times slower than bytes.
    """
    row = np.dtype((np.void, 4 * dimensions))
    index = _map(path)
    try:
        storage: Any = faiss.downcast_index(index.storage)
        if index.d != dimensions:
            raise CorruptSegment(f"{path}: index of {index.d} dimensions, expected {dimensions}", path=path)
        if index.ntotal == 0:
            return index, np.empty(0, row)
        raw = faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * dimensions).view(row)
        raw.flags.writeable = False
    except (RuntimeError, AttributeError) as error:
        raise _refused(path, error) from error
    return index, raw


def _map_vectors(path: str, size: int, at: int, nodes: int) -> tuple[Raw, mmap.mmap | None]:
    """Those that stand apart, from byte `at` on, each of so many bytes, and the mapping that they are the end of."""
    row = np.dtype((np.void, size))
    if not nodes:
        return np.empty(0, row), None
    # A file is read on machines with larger pages than those that it was laid out for, too.
    before = at % mmap.ALLOCATIONGRANULARITY
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), before + nodes * size, access=mmap.ACCESS_READ, offset=at - before)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error
    return np.frombuffer(mapping, row, offset=before), mapping


def _advise(mapping: mmap.mmap, advice: str, *part: int) -> None:
    """A hint, where the system knows it. part: first byte and number of bytes, for not all of it."""
    with suppress(OSError):
        if hasattr(mmap, advice):
            mapping.madvise(getattr(mmap, advice), *part)


def _read_ahead(mapping: mmap.mmap, first: int, size: int) -> None:
    """Have the system begin to read what it does not hold in memory yet. Measured: a scan of 61 MB that it did not hold
    took 40 ms instead of 1,200."""
    at, end = first - first % mmap.PAGESIZE, first + size
    for start in range(at, end, AHEAD_BYTES):
        _advise(mapping, "MADV_WILLNEED", start, min(AHEAD_BYTES, end - start))


def wanting(path: str) -> NeedleError | None:
    """Why a file cannot be mapped though nothing is wrong with it; faiss has one error for everything."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            return None
    except OSError as error:
        return shortage(error, path)
    except ValueError:  # an empty file
        return None
