"""One immutable segment: a faiss HNSW file with its ordinals and a checksum, memory-mapped.

Invariant: a `SealedSegment` exists only for a file that was read through once and whose checksum was right; that read
also warms the page cache. The file format is documented byte for byte in docs/segments.md. Tombstones are not in the
file: the caller hands a mask.

How a mask is searched, and why recall does not collapse under a restrictive filter: the beam of HNSW is widened by the
inverse share of rows that count, and a query's answer is taken only if enough rows that count were among the nearest
rows of *all* (then the nearest that count are among them). Otherwise, or where it costs less, exactly the rows that
count are scored. This is the only module besides segment_builder that imports faiss; its errors become CorruptSegment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt
import xxhash

from needle.base.errors import CorruptSegment
from needle.base.model import CollectionSpec, Metric
from needle.shard import page_cache
from needle.shard.scoring import Bools, Candidates, Floats, Ints, Scan, pair_distances
from needle.shard.segment_plan import PublishedSegment

MAGIC = b"NDLSEG01"
# magic, faiss bytes, collection id, first, last, rows, dimensions, metric, longest vector
_FOOTER = struct.Struct("<8sQQQQQIIf4x")
_CHECKSUM_BYTES = 16
TAIL_BYTES = _FOOTER.size + _CHECKSUM_BYTES
_METRICS = (Metric.COSINE, Metric.L2, Metric.DOT)
_READ_BYTES = 1 << 20
# Rows copied out of the mapping at a time: a block that stays in the cache.
SCAN_ROWS = 2048

# Measured at 50k x 384 (docs/adr/0003): one unit of beam costs as much as scoring this many rows exactly.
BEAM_ROWS = 30
# Candidates beyond k that are scored again, so that rounding in faiss cannot change which are the k nearest.
RESCORE_MARGIN = 8


def segment_file(segment: PublishedSegment, *, own: bool = False) -> str:
    """File name of a published segment; own: built here because nobody offered the published file."""
    kind = "own" if own else "seg"
    return f"{segment.collection_id}-{segment.first}-{segment.last}-{segment.checksum}.{kind}"


def faiss_metric(metric: Metric) -> int:
    """The faiss metric of a collection; cosine vectors are normalised, so their inner product is the cosine."""
    return int(faiss.METRIC_L2 if metric == Metric.L2 else faiss.METRIC_INNER_PRODUCT)


def write_tail(
    file: BinaryIO, segment: PublishedSegment, offsets: Ints, spec: CollectionSpec, norm_max: float, faiss_bytes: int
) -> None:
    """Append ordinals and footer (without the checksum) behind the faiss bytes."""
    if len(offsets) != segment.last - segment.first + 1:
        file.write(offsets.astype("<u4").tobytes())
    footer = _FOOTER.pack(
        MAGIC,
        faiss_bytes,
        segment.collection_id,
        segment.first,
        segment.last,
        segment.rows,
        spec.dimensions,
        _METRICS.index(spec.metric),
        norm_max,
    )
    file.write(footer)


def checksum_of(file: BinaryIO, size: int) -> str:
    """xxh3-128 of the first `size` bytes, 32 hex digits."""
    file.seek(0)
    digest = xxhash.xxh3_128()
    left = size
    while left:
        block = file.read(min(_READ_BYTES, left))
        if not block:
            break
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def verify_file(path: str) -> tuple[PublishedSegment, tuple[Any, ...]]:
    """Read the whole file and check it against its own checksum.

    Returns what it holds and the raw footer. Raises CorruptSegment (missing, torn or changed file).
    """
    name = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < TAIL_BYTES:
                raise CorruptSegment(f"segment file {name} has {size} bytes: torn", path=path)
            computed = checksum_of(file, size - _CHECKSUM_BYTES)
            file.seek(size - TAIL_BYTES)
            tail = file.read(TAIL_BYTES)
    except OSError as error:
        raise CorruptSegment(f"segment file {name} cannot be read: {error.strerror}", path=path) from error
    stored = tail[_FOOTER.size :].hex()
    footer = _FOOTER.unpack(tail[: _FOOTER.size])
    if footer[0] != MAGIC or stored != computed:
        raise CorruptSegment(f"segment file {name}: checksum is {computed}, should be {stored}", path=path)
    _, _, collection_id, first, last, rows, *_ = footer
    return PublishedSegment(collection_id, first, last, rows, size, computed), footer


class SealedSegment:
    """An open segment. `segment` is the manifest entry it serves (an own build differs in size and checksum)."""

    def __init__(self, path: str, segment: PublishedSegment, spec: CollectionSpec, *, own: bool = False) -> None:
        """Verify and map the file. Raises CorruptSegment, also when it is not what `segment` and `spec` say."""
        page_cache.fill(path)
        held, footer = verify_file(path)
        self.path = path
        self.segment = segment
        self.own = own
        self.size = held.size
        self.metric = spec.metric
        expected = segment if not own else PublishedSegment(*_identity(segment), held.rows, held.size, held.checksum)
        if held != expected or footer[6] != spec.dimensions or footer[7] != _METRICS.index(spec.metric):
            raise CorruptSegment(f"segment file {os.path.basename(path)} holds {held}, expected {expected}", path=path)
        self.rows = held.rows
        self.norm_max = float(footer[8])
        self._offsets = _read_offsets(path, held, faiss_bytes=int(footer[1]))
        self._dimensions = spec.dimensions
        self._index, self._raw = _map_index(path, held.rows, spec.dimensions)

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
        rows = self._raw[local].copy() if isinstance(local, slice) else self._raw[local]
        return rows.view(np.float32).reshape(-1, self._dimensions)

    def blocks(self, mask: Bools | None) -> Iterator[tuple[Ints, Floats]]:
        """(ordinals, vectors) of the rows that count, a block at a time."""
        for at in range(0, self.rows, SCAN_ROWS):
            local = np.arange(at, min(at + SCAN_ROWS, self.rows))
            if mask is not None:
                local = local[mask[at : at + SCAN_ROWS]]
            yield self.ordinals(local), self.vectors(local)

    def scan(self, scan: Scan, mask: Bools | None) -> None:
        """Score every row that counts exactly."""
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

    def search(self, queries: Floats, k: int, ef_search: int, mask: Bools | None) -> list[Candidates]:
        """Candidates for the k nearest rows that count (mask True, or all). Thread-safe.

        queries: (nq, d) float32. Every query gets at least min(k, rows that count) candidates.
        """
        count = self.rows if mask is None else int(np.count_nonzero(mask))
        if count == 0:
            return []
        beam = _beam(k, ef_search, self.rows, count)
        if beam * BEAM_ROWS >= count or k + RESCORE_MARGIN >= count:
            return self._exact(queries, k, mask)
        wanted = k + RESCORE_MARGIN
        width = wanted if mask is None else beam
        near = self._nearest(queries, width, beam)
        if mask is None and near.min() >= 0:
            return [self._scored(queries, np.repeat(np.arange(len(queries)), width), near.ravel())]
        counts = near >= 0
        if mask is not None:
            counts &= mask[near]
        # Half of what the widened beam should hold proves that the k nearest that count lie within it.
        enough = counts.sum(axis=1) >= (k if mask is None else min(count, max(k, _base_beam(k, ef_search) // 2)))
        counts &= (np.cumsum(counts, axis=1) <= wanted) & enough[:, None]
        query, column = np.nonzero(counts)
        found = [self._scored(queries, query, near[query, column])]
        if not enough.all():
            rest = np.flatnonzero(~enough)
            found += [Candidates(rest[c.query], c.ordinal, c.distance) for c in self._exact(queries[rest], k, mask)]
        return found

    def _scored(self, queries: Floats, query: Ints, local: Ints) -> Candidates:
        distance = pair_distances(self.metric, queries[query], self.vectors(local))
        return Candidates(query, self.ordinals(local), distance)

    def _exact(self, queries: Floats, k: int, mask: Bools | None) -> list[Candidates]:
        scan = Scan(self.metric, queries, k, self.norm_max)
        self.scan(scan, mask)
        return scan.found

    def _nearest(self, queries: Floats, width: int, beam: int) -> Ints:
        # The OpenMP thread count belongs to the calling thread: searches run side by side, one thread each.
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersHNSW(efSearch=beam)  # type: ignore[attr-defined]
        near: Ints = self._index.search(queries, width, params=parameters)[1]
        return near


def _identity(segment: PublishedSegment) -> tuple[int, int, int]:
    return segment.collection_id, segment.first, segment.last


def _base_beam(k: int, ef_search: int) -> int:
    return max(ef_search, 2 * k)


def _beam(k: int, ef_search: int, rows: int, count: int) -> int:
    """Beam width so that about max(ef_search, 2k) of the rows that count are expected within it."""
    return -(-_base_beam(k, ef_search) * rows // count)


def _read_offsets(path: str, held: PublishedSegment, faiss_bytes: int) -> Ints | None:
    """Ordinals relative to `first`, or None when every ordinal of the range is in the file."""
    if held.rows == held.last - held.first + 1:
        return None
    with open(path, "rb") as file:
        file.seek(faiss_bytes)
        return np.frombuffer(file.read(4 * held.rows), "<u4").astype(np.int64)


def _map_index(path: str, rows: int, dimensions: int) -> tuple[Any, npt.NDArray[np.void]]:
    """The memory-mapped index and its vectors without a copy: (rows,) of 4 x dimensions raw bytes.

    Raw, because faiss puts them at any byte: NumPy copies float32 that are not aligned ten times slower than bytes.
    """
    row = np.dtype((np.void, 4 * dimensions))
    try:
        index: Any = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
        storage: Any = faiss.downcast_index(index.storage)
        if index.ntotal != rows or index.d != dimensions:
            raise CorruptSegment(f"{path}: index of {index.ntotal} x {index.d}, expected {rows} x {dimensions}")
        if rows == 0:
            return index, np.empty(0, row)
        raw = faiss.rev_swig_ptr(storage.get_xb(), rows * dimensions).view(row)
        raw.flags.writeable = False
    except (RuntimeError, AttributeError) as error:
        raise CorruptSegment(f"faiss cannot read {path}: {error}", path=path) from error
    return index, raw
