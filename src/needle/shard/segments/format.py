"""The bytes of a segment file behind the faiss index: ordinals, nodes, bands, footer, checksum (docs/segments.md).

Two versions: NDLSEG01, where row i of the segment is node i of the one graph; NDLSEG02, where rows share nodes or the
graph has bands. A file says which it is, and the simpler one is written where it suffices.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import xxhash

from needle.base.errors import CorruptSegment
from needle.base.file_errors import shortage
from needle.base.model import CollectionSpec, Metric
from needle.shard.plan import PublishedSegment
from needle.shard.segments.graph import Band, Graph
from needle.shard.segments.scoring import Ints

PLAIN: Final = b"NDLSEG01"
WITH_NODES: Final = b"NDLSEG02"
# magic, faiss bytes, collection id, first, last, rows, dimensions, metric, longest vector, bands
_FOOTER = struct.Struct("<8sQQQQQIIfI")
_BAND = np.dtype([("first", "<u4"), ("nodes", "<u4"), ("longest", "<f4"), ("even", "<u4")])
_CHECKSUM_BYTES = 16
TAIL_BYTES = _FOOTER.size + _CHECKSUM_BYTES
_METRICS = (Metric.COSINE, Metric.L2, Metric.DOT)
_READ_BYTES = 1 << 20


class Footer(NamedTuple):
    """What a file says of itself. segment: the manifest entry that would publish it."""

    segment: PublishedSegment
    plain: bool
    faiss_bytes: int
    dimensions: int
    metric: Metric
    longest: float
    bands: int


class Layout(NamedTuple):
    """Where rows are. offsets: (rows,) ordinals less `first`, None when the range has no gap. node_of: (rows,) node of
    each row, None when row i is node i. bands: empty for one graph over all nodes."""

    offsets: Ints | None
    node_of: Ints | None
    bands: tuple[Band, ...]


def write_tail(
    file: BinaryIO, segment: PublishedSegment, offsets: Ints, spec: CollectionSpec, graph: Graph, faiss_bytes: int
) -> None:
    """Append everything behind the faiss bytes but the checksum."""
    plain = graph.node_of is None
    if not plain or len(offsets) != segment.last - segment.first + 1:
        file.write(offsets.astype("<u4").tobytes())
    if graph.node_of is not None:
        file.write(graph.node_of.astype("<u4").tobytes())
        file.write(np.array(list(graph.bands), _BAND).tobytes())
    footer = _FOOTER.pack(
        PLAIN if plain else WITH_NODES,
        faiss_bytes,
        segment.collection_id,
        segment.first,
        segment.last,
        segment.rows,
        spec.dimensions,
        _METRICS.index(spec.metric),
        graph.longest,
        len(graph.bands),
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
    if magic not in (PLAIN, WITH_NODES) or stored != computed or metric >= len(_METRICS):
        raise CorruptSegment(f"segment file {name}: checksum is {computed}, should be {stored}", path=path)
    segment = PublishedSegment(collection_id, first, last, rows, size, computed)
    return Footer(segment, magic == PLAIN, faiss_bytes, dimensions, _METRICS[metric], longest, bands)


def read_layout(path: str, footer: Footer) -> Layout:
    """The tables of a verified file."""
    rows = footer.segment.rows
    if footer.plain and rows == footer.segment.last - footer.segment.first + 1:
        return Layout(None, None, ())
    with open(path, "rb") as file:
        file.seek(footer.faiss_bytes)
        offsets = np.frombuffer(file.read(4 * rows), "<u4").astype(np.int64)
        if footer.plain:
            return Layout(offsets, None, ())
        node_of = np.frombuffer(file.read(4 * rows), "<u4").astype(np.int64)
        bands = np.frombuffer(file.read(_BAND.itemsize * footer.bands), _BAND)
    return Layout(offsets, node_of, tuple(Band(int(f), int(n), float(m), bool(e)) for f, n, m, e in bands))
