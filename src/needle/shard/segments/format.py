"""The bytes of a segment file behind the faiss index: ordinals, nodes, bands, beam, footer, checksum.

docs/segments.md has them all. NDLSEG01: row i of the segment is node i of the one graph. NDLSEG02: rows share nodes or
the graph has bands. NDLSEG03: there is no graph, or one over codes, so that full vectors stand apart. A file says which
it is, and the simplest one is written that suffices.
"""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import xxhash

from needle.base.dtypes import DType, StoredRows, VectorForm
from needle.base.errors import CorruptSegment
from needle.base.file_errors import shortage
from needle.base.model import CODES, CollectionSpec, IndexKind, Metric
from needle.shard.plan import PublishedSegment
from needle.shard.segments.graph import UNMEASURED, Band, Beam
from needle.shard.segments.probe import Lists
from needle.shard.segments.scoring import Floats, Ints

PLAIN: Final = b"NDLSEG01"
WITH_NODES: Final = b"NDLSEG02"
WITH_VECTORS: Final = b"NDLSEG03"
# magic, faiss bytes, collection id, first, last, rows, dimensions, metric, longest vector, bands
_FOOTER = struct.Struct("<8sQQQQQIIfI")
# Of NDLSEG03, before the footer: kind, tables, nodes, where their vectors begin, stretch, lists, efforts, dtype
_APART = struct.Struct("<IIQQfIII")
# Before that, where a graph was measured: magic, beam, nodes of that graph. Earlier releases pass over it.
_BEAM = struct.Struct("<8sII")
_BEAM_MAGIC: Final = b"NDLBEAM1"
_HAS_ORDINALS, _HAS_NODES, _HAS_NORMS = 1, 2, 4
BEAM_MAX: Final = 1 << 16
PAGE_BYTES: Final = 4096
_BAND = np.dtype([("first", "<u4"), ("nodes", "<u4"), ("longest", "<f4"), ("even", "<u4")])
_CHECKSUM_BYTES = 16
TAIL_BYTES = _FOOTER.size + _CHECKSUM_BYTES
_METRICS = (Metric.COSINE, Metric.L2, Metric.DOT, Metric.HAMMING)
# Never in another order: it is what files say.
_KINDS = (
    IndexKind.HNSW,
    IndexKind.FLAT,
    IndexKind.HNSW_SQ8,
    IndexKind.HNSW_RABITQ,
    IndexKind.IVF_FLAT,
    IndexKind.IVF_PQ,
)
_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.INT8, DType.BIT)
_READ_BYTES = 1 << 20
_WRITE_ROWS = 4096


class Footer(NamedTuple):
    """What a file says of itself. segment: the manifest entry that would publish it."""

    segment: PublishedSegment
    magic: bytes
    faiss_bytes: int
    dimensions: int
    metric: Metric
    longest: float
    bands: int


class Apart(NamedTuple):
    """Full vectors beside the index. kind: hnsw where there are none beside it. nodes: how many. at: the byte of the
    file where they begin, that of a page. stretch: as codes.Coded."""

    kind: IndexKind
    nodes: int
    at: int
    stretch: float


TOGETHER: Final = Apart(IndexKind.HNSW, 0, 0, 1.0)


class Layout(NamedTuple):
    """Where rows are. offsets: (rows,) ordinals less `first`, None when the range has no gap. node_of: (rows,) node of
    each row, None when row i is node i. bands: empty for one graph over all nodes. beam: that its graph needs."""

    offsets: Ints | None
    node_of: Ints | None
    bands: tuple[Band, ...]
    apart: Apart = TOGETHER
    lists: Lists | None = None
    beam: Beam = UNMEASURED


class Contents(NamedTuple):
    """What a file is to hold. index: a faiss index, or None. node_of, bands: as in Layout. longest: no vector is
    longer. vectors: of the nodes, the full ones as they are stored, None where the index has them; order: which of them
    each node is, None for as they stand. keeps: what owns the memory of these. head: a file whose first so many bytes
    are the faiss index as it is written, instead of `index`. beam: that its graph needs."""

    kind: IndexKind
    index: Any
    node_of: Ints | None
    bands: tuple[Band, ...]
    longest: float
    vectors: StoredRows | None = None
    stretch: float = 1.0
    order: Ints | None = None
    lists: Lists | None = None
    keeps: object = None
    head: tuple[str, int] | None = None
    beam: Beam = UNMEASURED


def write_tail(
    file: BinaryIO, segment: PublishedSegment, offsets: Ints, spec: CollectionSpec, held: Contents, faiss_bytes: int
) -> None:
    """Append everything behind the faiss bytes but the checksum."""
    vectors_at = 0 if held.vectors is None else _write_vectors(file, held.vectors, held.order)
    gaps = len(offsets) != segment.last - segment.first + 1
    magic = PLAIN if held.node_of is None else WITH_NODES
    if held.vectors is not None:
        magic = WITH_VECTORS
    if gaps or magic == WITH_NODES:
        file.write(offsets.astype("<u4").tobytes())
    if held.node_of is not None:
        file.write(held.node_of.astype("<u4").tobytes())
        file.write(np.array(list(held.bands), _BAND).tobytes())
    if held.vectors is not None:
        tables = (_HAS_ORDINALS if gaps else 0) | (_HAS_NODES if held.node_of is not None else 0)
        counts = 0, 0
        if held.lists is not None:
            tables |= 0 if held.lists.norms is None else _HAS_NORMS
            counts = len(held.lists.starts), len(held.lists.efforts)
            _write_lists(file, held.lists)
        _write_beam(file, held.beam)
        nodes = len(held.vectors)
        dtype = _DTYPES.index(spec.dtype)
        file.write(_APART.pack(_KINDS.index(held.kind), tables, nodes, vectors_at, held.stretch, *counts, dtype))
    else:
        _write_beam(file, held.beam)
    footer = _FOOTER.pack(
        magic,
        faiss_bytes,
        segment.collection_id,
        segment.first,
        segment.last,
        segment.rows,
        spec.dimensions,
        _METRICS.index(spec.metric),
        held.longest,
        len(held.bands),
    )
    file.write(footer)


def _write_beam(file: BinaryIO, beam: Beam) -> None:
    if beam.width:
        file.write(_BEAM.pack(_BEAM_MAGIC, *beam))


def _read_beam(path: str, file: BinaryIO, end: int) -> Beam:
    """What stands behind the tables, if anything does, up to byte `end`. Raises CorruptSegment."""
    if end - file.tell() != _BEAM.size:
        return UNMEASURED
    magic, width, nodes = _BEAM.unpack(file.read(_BEAM.size))
    if magic != _BEAM_MAGIC:
        return UNMEASURED
    if width > BEAM_MAX:
        raise CorruptSegment(f"segment file {os.path.basename(path)} asks for a beam of {width}", path=path)
    return Beam(width, nodes)


def _write_vectors(file: BinaryIO, vectors: StoredRows, order: Ints | None) -> int:
    """Where they begin."""
    at = -(-file.tell() // PAGE_BYTES) * PAGE_BYTES
    file.write(bytes(at - file.tell()))
    for first in range(0, len(vectors), _WRITE_ROWS):
        part: slice | Ints = slice(first, first + _WRITE_ROWS)
        rows = vectors[part if order is None else order[part]]
        file.write(rows.tobytes())
    return at


def _write_lists(file: BinaryIO, lists: Lists) -> None:
    for numbers in (lists.starts, lists.ends, lists.of_bands):
        file.write(numbers.astype("<u4").tobytes())
    for table in (lists.efforts, lists.shares, lists.norms):
        if table is not None:
            file.write(table.astype("<f4").tobytes())


def _read_lists(file: BinaryIO, lists: int, bands: int, efforts: int, norms: int) -> Lists:
    def numbers(count: int) -> Ints:
        return np.frombuffer(file.read(4 * count), "<u4").astype(np.int64)

    def table(count: int) -> Floats:
        return np.frombuffer(file.read(4 * count), "<f4").astype(np.float32)

    starts, ends, of_bands = numbers(lists), numbers(lists), numbers(bands + 1)
    return Lists(starts, ends, of_bands, table(efforts), table(efforts), table(norms) if norms else None)


def copy_head(path: str, size: int, out: BinaryIO) -> None:
    """The first `size` bytes of a file."""
    with open(path, "rb") as file:
        while size and (block := file.read(min(_READ_BYTES, size))):
            out.write(block)
            size -= len(block)


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


def verify_file(path: str) -> Footer:
    """Read the whole file and check it against its own checksum. Raises CorruptSegment (missing, torn or changed)."""
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
        # A file that cannot be opened now, for want of handles, must not pass for damaged: that one is deleted.
        damaged = CorruptSegment(f"segment file {name} cannot be read: {error.strerror}", path=path)
        raise shortage(error, path) or damaged from error
    stored = tail[_FOOTER.size :].hex()
    magic, faiss_bytes, collection_id, first, last, rows, dimensions, metric, longest, bands = _FOOTER.unpack(
        tail[: _FOOTER.size]
    )
    if magic not in (PLAIN, WITH_NODES, WITH_VECTORS) or stored != computed or metric >= len(_METRICS):
        raise CorruptSegment(f"segment file {name}: checksum is {computed}, should be {stored}", path=path)
    segment = PublishedSegment(collection_id, first, last, rows, size, computed)
    return Footer(segment, magic, faiss_bytes, dimensions, _METRICS[metric], longest, bands)


def searched_bytes(path: str) -> int:
    """From its beginning on, so much of a file do searches read all over, if it is what it says: not the full vectors
    beside codes, which would be mapped in huge pages for the sake of one. A hint, for a file that is not verified."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES - _APART.size))
            tail = file.read(_APART.size + len(WITH_VECTORS))
    except OSError:
        return 0
    if not tail.endswith(WITH_VECTORS) or len(tail) < _APART.size + len(WITH_VECTORS):
        return size
    kind, _, _, vectors_at, *_ = _APART.unpack(tail[: _APART.size])
    return vectors_at if kind < len(_KINDS) and _KINDS[kind] in CODES else size


def read_layout(path: str, footer: Footer, dtype: DType) -> Layout:
    """The tables of a verified file of vectors of a type. Raises CorruptSegment for what this release does not know,
    and for another type."""
    rows = footer.segment.rows
    with open(path, "rb") as file:
        apart, tables, at = TOGETHER, _HAS_ORDINALS | _HAS_NODES, footer.faiss_bytes
        lists = efforts = nodes = 0
        if footer.magic == PLAIN:
            tables = _HAS_ORDINALS if rows != footer.segment.last - footer.segment.first + 1 else 0
        elif footer.magic == WITH_VECTORS:
            file.seek(footer.segment.size - TAIL_BYTES - _APART.size)
            kind, tables, nodes, vectors_at, stretch, lists, efforts, of = _APART.unpack(file.read(_APART.size))
            if kind >= len(_KINDS):
                raise CorruptSegment(f"segment file {os.path.basename(path)} is of an unknown kind, {kind}", path=path)
            if of != _DTYPES.index(dtype):
                raise CorruptSegment(f"segment file {os.path.basename(path)} is not of {dtype}: {of}", path=path)
            apart = Apart(_KINDS[kind], nodes, vectors_at, stretch)
            at = vectors_at + nodes * VectorForm(footer.dimensions, dtype).row_bytes
        if max(at, rows, footer.bands, lists) > footer.segment.size:
            raise CorruptSegment(f"segment file {os.path.basename(path)} is shorter than it says", path=path)
        file.seek(at)
        offsets = np.frombuffer(file.read(4 * rows), "<u4").astype(np.int64) if tables & _HAS_ORDINALS else None
        end = footer.segment.size - TAIL_BYTES - (_APART.size if footer.magic == WITH_VECTORS else 0)
        if not tables & _HAS_NODES:
            return Layout(offsets, None, (), apart, beam=_read_beam(path, file, end))
        node_of = np.frombuffer(file.read(4 * rows), "<u4").astype(np.int64)
        bands = np.frombuffer(file.read(_BAND.itemsize * footer.bands), _BAND)
        of_lists = None
        if lists:
            of_lists = _read_lists(file, lists, max(1, footer.bands), efforts, nodes if tables & _HAS_NORMS else 0)
        beam = _read_beam(path, file, end)
    told = tuple(Band(int(f), int(n), float(m), bool(e)) for f, n, m, e in bands)
    return Layout(offsets, node_of, told, apart, of_lists, beam)
