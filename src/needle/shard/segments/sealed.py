"""One immutable segment: a faiss HNSW file with its ordinals and a checksum, memory-mapped.

Invariant: a `SealedSegment` exists only for a file that was read through once and whose checksum was right; that read
also warms the page cache. The file format is documented byte for byte in docs/segments.md. Tombstones are not in the
file: the caller hands a mask.

How a mask is searched, and why recall does not collapse under a restrictive filter: the beam of HNSW is widened by the
inverse share of rows that count, and a query's answer is taken only if enough rows that count were among the nearest
rows of *all* (then the nearest that count are among them). Otherwise, or where it costs less, exactly the rows that
count are scored. Only this module and segment_builder import faiss; its errors become CorruptSegment.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from needle.base.errors import CorruptSegment, NeedleError
from needle.base.file_errors import shortage
from needle.base.model import CollectionSpec
from needle.shard.plan import PublishedSegment
from needle.shard.segments import page_cache
from needle.shard.segments.format import read_layout, verify_file
from needle.shard.segments.graph import ROUNDING, Band
from needle.shard.segments.scoring import (
    TIES_MAX,
    Bools,
    Candidates,
    Floats,
    Ints,
    Scan,
    pair_distances,
    square_norms,
    top_k,
)
from needle.shard.segments.shared_nodes import SharedNodes
from needle.shard.segments.trace import Ways

# Rows copied out of the mapping at a time: a block that stays in the cache.
SCAN_ROWS = 2048

# Measured at 50k x 384 (docs/adr/0003): one unit of beam costs as much as scoring this many rows exactly.
BEAM_ROWS = 30
# Candidates beyond k that are scored again, so that rounding in faiss cannot change which are the k nearest.
RESCORE_MARGIN = 8
# Nodes of a band among which a search of it starts at the nearest.
ENTRIES = 128


def segment_file(segment: PublishedSegment, *, own: bool = False) -> str:
    """File name of a published segment; own: built here because nobody offered the published file."""
    kind = "own" if own else "seg"
    return f"{segment.collection_id}-{segment.first}-{segment.last}-{segment.checksum}.{kind}"


class SealedSegment:
    """An open segment. `segment` is the manifest entry it serves (an own build differs in size and checksum)."""

    def __init__(self, path: str, segment: PublishedSegment, spec: CollectionSpec, *, own: bool = False) -> None:
        """Verify and map the file. Raises CorruptSegment, also when it is not what `segment` and `spec` say."""
        page_cache.fill(path)
        footer = verify_file(path)
        held = footer.segment
        self.path = path
        self.segment = segment
        self.own = own
        self.size = held.size
        self._file_bytes = os.path.getsize(path)
        self._damage = ""
        self.metric = spec.metric
        expected = segment if not own else PublishedSegment(*_identity(segment), held.rows, held.size, held.checksum)
        if held != expected or footer.dimensions != spec.dimensions or footer.metric != spec.metric:
            raise CorruptSegment(f"segment file {os.path.basename(path)} holds {held}, expected {expected}", path=path)
        self.rows = held.rows
        self.norm_max = footer.longest
        layout = read_layout(path, footer)
        self._offsets = layout.offsets
        self.bands = layout.bands
        self._dimensions = spec.dimensions
        self._index, self._raw = _map_index(path, spec.dimensions)
        nodes = len(self._raw)
        if layout.node_of is None and nodes != held.rows:
            raise CorruptSegment(f"{path}: index of {nodes} nodes for {held.rows} rows", path=path)
        self._shared = None if layout.node_of is None else SharedNodes(layout.node_of, nodes)
        self._whole = Band(0, nodes, self.norm_max, even=True)

    def condemn(self, damage: str) -> None:
        """The file is damaged and about to be deleted: nothing reads it any more, whatever the name stands for then."""
        self._damage = damage

    def check_size(self) -> None:
        """Raises CorruptSegment if the file was condemned, or made shorter in place: reading behind its end would end
        the process. A whole file that has no name any more cannot be."""
        if self._damage:
            raise CorruptSegment(self._damage, path=self.path)
        try:
            size = os.stat(self.path).st_size
        except OSError:
            return
        if size < self._file_bytes:
            name = os.path.basename(self.path)
            self.condemn(
                f"segment file {name} has {size} of {self._file_bytes} bytes: it was made shorter while it was in use"
            )
            raise CorruptSegment(self._damage, path=self.path)

    @property
    def node_of(self) -> Ints | None:
        """(rows,) the node of each row, or None when row i is node i."""
        return None if self._shared is None else self._shared.node_of

    def ordinals(self, local: Ints) -> Ints:
        """Ordinals of local row numbers."""
        return self.segment.first + (local if self._offsets is None else self._offsets[local])

    def all_ordinals(self) -> Ints:
        """(rows,) int64, ascending."""
        return self.ordinals(np.arange(self.rows, dtype=np.int64))

    def locals_of(self, ordinals: Ints) -> Ints:
        """Local row numbers of those sorted `ordinals` that are in this file."""
        offsets = ordinals - self.segment.first
        if self._offsets is None:
            return offsets[(offsets >= 0) & (offsets < self.rows)]
        at = np.searchsorted(self._offsets, offsets)
        inside = at < self.rows
        at = at[inside]
        found: Ints = at[self._offsets[at] == offsets[inside]]
        return found

    def vectors(self, local: Ints | slice) -> Floats:
        """(n, d) float32: an aligned copy of these rows."""
        return self._vectors(local if self._shared is None else self._shared.node_of[local])

    def _vectors(self, nodes: Ints | slice) -> Floats:
        rows = self._raw[nodes].copy() if isinstance(nodes, slice) else self._raw[nodes]
        return rows.view(np.float32).reshape(-1, self._dimensions)

    def blocks(self, mask: Bools | None) -> Iterator[tuple[Ints, Floats]]:
        """(ordinals, vectors) of the rows that count, a block at a time. Raises CorruptSegment."""
        for at in range(0, self.rows, SCAN_ROWS):
            local = np.arange(at, min(at + SCAN_ROWS, self.rows))
            if mask is not None:
                local = local[mask[at : at + SCAN_ROWS]]
            self.check_size()
            yield self.ordinals(local), self.vectors(local)

    def scan(self, scan: Scan, mask: Bools | None) -> None:
        """Score every row that counts exactly."""
        if self._shared is not None:
            before, scan.found = scan.found, []
            self._scan_nodes(scan, self._shared.representatives(mask), self._whole)
            scan.found = [*before, *self._rows_of(scan.found, mask, scan.k)]
            return
        if mask is not None and np.count_nonzero(mask) < self.rows // 4:
            chosen = np.flatnonzero(mask)
            for at in range(0, len(chosen), SCAN_ROWS):
                local = chosen[at : at + SCAN_ROWS]
                scan.add(self.vectors(local), self.ordinals(local))
            return
        for at in range(0, self.rows, SCAN_ROWS):
            local = np.arange(at, min(at + SCAN_ROWS, self.rows))
            block = None if mask is None else mask[at : at + SCAN_ROWS]
            scan.add(self.vectors(slice(at, at + SCAN_ROWS)), self.ordinals(local), block)

    def search(
        self, queries: Floats, k: int, ef_search: int, mask: Bools | None, ways: Ways | None = None
    ) -> list[Candidates]:
        """Candidates for the k nearest rows that count (mask True, or all). Thread-safe.

        queries: (nq, d) float32. Every query gets at least min(k, rows that count) candidates. ways: where to note how.
        """
        if self._shared is None:
            found = self._search_band(self._whole, queries, k, ef_search, mask, ways)
            return [Candidates(c.query, self.ordinals(c.ordinal), c.distance) for c in found]
        first_rows = self._shared.representatives(mask)
        counts = None if mask is None else first_rows >= 0
        if self.bands:
            found = self._search_bands(queries, k, ef_search, counts, ways)
        else:
            found = self._search_band(self._whole, queries, k, ef_search, counts, ways)
        return self._rows_of([Candidates(c.query, first_rows[c.ordinal], c.distance) for c in found], mask, k)

    def _search_bands(
        self, queries: Floats, k: int, ef_search: int, counts: Bools | None, ways: Ways | None
    ) -> list[Candidates]:
        """The bands in turn, longest first; a query is done when no vector of the next can be as near as its k-th."""
        lengths = np.sqrt(square_norms(queries)) * np.float32(ROUNDING)
        best = np.full((len(queries), k), np.inf, np.float32)
        found: list[Candidates] = []
        for band in self.bands:
            rest = np.flatnonzero(-(lengths * np.float32(band.longest)) <= best[:, -1])
            if not len(rest):
                break
            some = None if ways is None else ways.some(rest)
            part = self._search_band(band, queries[rest], k, ef_search, counts, some)
            found += [Candidates(rest[c.query], c.ordinal, c.distance) for c in part]
            _, distances = top_k(part, len(rest), k)
            best[rest] = np.sort(np.concatenate((best[rest], distances), axis=1), axis=1)[:, :k]
        return found

    def _search_band(
        self, band: Band, queries: Floats, k: int, ef_search: int, counts: Bools | None, ways: Ways | None
    ) -> list[Candidates]:
        """Candidates for the k nearest nodes of a band that count; their `ordinal` is a node."""
        end = band.first + band.nodes
        count = band.nodes if counts is None else int(np.count_nonzero(counts[band.first : end]))
        if count == 0:
            return []
        beam = _beam(k, ef_search, band.nodes, count)
        if not band.even or beam * BEAM_ROWS >= count or k + RESCORE_MARGIN >= count:
            return self._exact(band, queries, k, counts, ways)
        wanted = k + RESCORE_MARGIN
        width = wanted if counts is None else beam
        near = self._nearest(band, queries, width, beam)
        if ways is not None:
            ways.by_graph(beam)
        if counts is None and near.min() >= 0:
            return [self._scored(queries, np.repeat(np.arange(len(queries)), width), near.ravel())]
        good = near >= 0
        if counts is not None:
            good &= counts[near]
        # Half of what the widened beam should hold proves that the k nearest that count lie within it.
        enough = good.sum(axis=1) >= (k if counts is None else min(count, max(k, _base_beam(k, ef_search) // 2)))
        good &= (np.cumsum(good, axis=1) <= wanted) & enough[:, None]
        query, column = np.nonzero(good)
        found = [self._scored(queries, query, near[query, column])]
        if not enough.all():
            rest = np.flatnonzero(~enough)
            some = None if ways is None else ways.some(rest)
            exact = self._exact(band, queries[rest], k, counts, some)
            found += [Candidates(rest[c.query], c.ordinal, c.distance) for c in exact]
        return found

    def _scored(self, queries: Floats, query: Ints, nodes: Ints) -> Candidates:
        return Candidates(query, nodes, pair_distances(self.metric, queries[query], self._vectors(nodes)))

    def _exact(self, band: Band, queries: Floats, k: int, counts: Bools | None, ways: Ways | None) -> list[Candidates]:
        if ways is not None:
            ways.exactly()
        scan = Scan(self.metric, queries, k, band.longest)
        nodes = np.arange(len(self._raw))
        self._scan_nodes(scan, nodes if counts is None else np.where(counts, nodes, -1), band)
        return scan.found

    def _scan_nodes(self, scan: Scan, names: Ints, band: Band) -> None:
        """Score the nodes of a band exactly, each under its name; those below zero do not count."""
        end = band.first + band.nodes
        chosen = band.first + np.flatnonzero(names[band.first : end] >= 0)
        for at in range(0, len(chosen), SCAN_ROWS):
            nodes = chosen[at : at + SCAN_ROWS]
            whole = slice(int(nodes[0]), int(nodes[-1]) + 1)
            scan.add(self._vectors(whole if whole.stop - whole.start == len(nodes) else nodes), names[nodes])

    def _rows_of(self, found: list[Candidates], mask: Bools | None, k: int) -> list[Candidates]:
        """Candidates that name a row of each node as candidates of all rows of these nodes that count."""
        assert self._shared is not None
        rows = [(c, *self._shared.rows_of(c.ordinal, mask, k + TIES_MAX)) for c in found]
        return [Candidates(c.query[pair], self.ordinals(row), c.distance[pair]) for c, pair, row in rows]

    def _nearest(self, band: Band, queries: Floats, width: int, beam: int) -> Ints:
        # The OpenMP thread count belongs to the calling thread: searches run side by side, one thread each.
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersHNSW(efSearch=beam)  # type: ignore[attr-defined]
        near: Ints
        if not self.bands:
            near = self._index.search(queries, width, params=parameters)[1]
            return near
        entries = np.linspace(band.first, band.first + band.nodes - 1, min(band.nodes, ENTRIES)).astype(np.int64)
        scores = queries @ self._vectors(entries).T
        start = scores.argmax(axis=1)
        first = entries[start].astype(np.int32)
        score = np.negative(scores[np.arange(len(queries)), start])
        near, distances = np.empty((len(queries), width), np.int64), np.empty((len(queries), width), np.float32)
        arrays = [faiss.swig_ptr(array) for array in (first, score, distances, near)]
        self._index.search_level_0(len(queries), faiss.swig_ptr(queries), width, *arrays, 1, 1, parameters)
        return near


def _identity(segment: PublishedSegment) -> tuple[int, int, int]:
    return segment.collection_id, segment.first, segment.last


def _base_beam(k: int, ef_search: int) -> int:
    return max(ef_search, 2 * k)


def _beam(k: int, ef_search: int, rows: int, count: int) -> int:
    """Beam width so that about max(ef_search, 2k) of the rows that count are expected within it."""
    return -(-_base_beam(k, ef_search) * rows // count)


def _map_index(path: str, dimensions: int) -> tuple[Any, npt.NDArray[np.void]]:
    """The memory-mapped index and its vectors without a copy: (nodes,) of 4 x dimensions raw bytes.

    Raw, because faiss puts them at any byte: NumPy copies float32 that are not aligned ten times slower than bytes.
    """
    row = np.dtype((np.void, 4 * dimensions))
    try:
        index: Any = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        storage: Any = faiss.downcast_index(index.storage)
        if index.d != dimensions:
            raise CorruptSegment(f"{path}: index of {index.d} dimensions, expected {dimensions}", path=path)
        if index.ntotal == 0:
            return index, np.empty(0, row)
        raw = faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * dimensions).view(row)
        raw.flags.writeable = False
    except (RuntimeError, AttributeError) as error:
        if (missing := wanting(path)) is not None:
            raise missing from error
        raise CorruptSegment(f"faiss cannot read {path}: {error}", path=path) from error
    return index, raw


def wanting(path: str) -> NeedleError | None:
    """Why a file cannot be mapped though nothing is wrong with it; faiss has one error for everything."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            return None
    except OSError as error:
        return shortage(error, path)
    except ValueError:  # an empty file
        return None
