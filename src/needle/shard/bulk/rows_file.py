"""The file of documents that a bulk load hands to a shard (docs/adr/0119): written once, by whoever prepares the load.

| what | bytes |
|---|---|
| `NDLROWS1` | 8 |
| blocks, each its length (uint32, little-endian) and a MessagePack array of ids, metadata (JSON each) and vectors | |
| a length of 0, and the number of rows (uint64, little-endian) | 12 |
| xxh3-128 of all bytes before it | 16 |

Row i of the file gets ordinal i. Vectors are as the collection stores them. Invariant: a reader believes nothing but
the checksum, and a file that does not end as it should is CorruptSegment. It does not know the log or the network.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from needle.base.decoding import DECODE_ERRORS
from needle.base.errors import CorruptSegment
from needle.shard.disk import disk_errors

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
MAGIC: Final = b"NDLROWS1"
SUM_BYTES: Final = 16
BLOCK_BYTES_MAX: Final = 32 << 20
_READ: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")
_COUNT: Final = struct.Struct("<Q")


class Rows(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Documents one behind the other. metadata: JSON, b"" for none. vectors: of all of them."""

    ids: list[str]
    metadata: list[bytes]
    vectors: bytes


class RowsWritten(NamedTuple):
    """What a log entry says of such a file. checksum: 32 hex digits."""

    rows: int
    size: int
    checksum: str


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Rows)


class RowsWriter:
    """Writes one. Not durable before the caller syncs it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sum = file, xxhash.xxh3_128()
        self._rows = self._size = 0
        self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sum.update(data)
        self._size += len(data)

    def add(self, rows: Rows) -> None:
        """The next block."""
        data = _encoder.encode(rows)
        self._write(_LENGTH.pack(len(data)))
        self._write(data)
        self._rows += len(rows.ids)

    def end(self) -> RowsWritten:
        """Nothing comes behind this."""
        self._write(_LENGTH.pack(0) + _COUNT.pack(self._rows))
        self._file.write(self._sum.digest())
        self._file.flush()
        return RowsWritten(self._rows, self._size + SUM_BYTES, self._sum.hexdigest())


def read_rows(path: str) -> Iterator[Rows]:
    """Its blocks in order. Raises CorruptSegment, or what the disk does. Whoever must be sure asks `checksum_of`."""
    with disk_errors(path), open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise _corrupt(path, "does not begin as a file of rows")
        seen = 0
        while True:
            length = _number(path, file, _LENGTH)
            if not length:
                break
            if length > BLOCK_BYTES_MAX:
                raise _corrupt(path, f"has a block of {length} bytes")
            rows = _decoded(path, file.read(length))
            if len(rows.metadata) != len(rows.ids):
                raise _corrupt(path, "has a block of ids and metadata that do not fit")
            seen += len(rows.ids)
            yield rows
        if seen != _number(path, file, _COUNT):
            raise _corrupt(path, f"ends with another number than its {seen} rows")


def vectors_between(path: str, first: int, last: int, dimensions: int) -> Iterator[tuple[Ints, Floats]]:
    """The ordinals [first, last] and their vectors, of a file of float32, ascending. Raises as `read_rows`."""
    at = 0
    for rows in read_rows(path):
        count = len(rows.ids)
        low, high = max(first, at), min(last + 1, at + count)
        if low < high:
            vectors = np.frombuffer(rows.vectors, "<f4").reshape(count, dimensions)
            yield np.arange(low, high, dtype=np.int64), vectors[low - at : high - at]
        at += count


def doubled(hashes: list[npt.NDArray[np.uint64]]) -> bool:
    """Whether an id stands there twice, of the `id_hashes` of all blocks. Two ids of one hash are taken for one: of a
    thousand million ids some two in a hundred loads have such a pair."""
    found = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    return len(np.unique(found)) < len(found)


def id_hashes(rows: Rows) -> npt.NDArray[np.uint64]:
    """By which an id that stands there twice is found."""
    return np.fromiter((xxhash.xxh3_64_intdigest(one.encode()) for one in rows.ids), np.uint64, len(rows.ids))


def _number(path: str, file: BinaryIO, form: struct.Struct) -> int:
    data = file.read(form.size)
    if len(data) != form.size:
        raise _corrupt(path, "is cut off")
    return int(form.unpack(data)[0])


def _decoded(path: str, data: bytes) -> Rows:
    try:
        return _decoder.decode(data)
    except DECODE_ERRORS as error:
        raise _corrupt(path, f"has a block that cannot be read ({error})") from None


def _corrupt(path: str, what: str) -> CorruptSegment:
    return CorruptSegment(f"file {os.path.basename(path)} {what}", path=path)


def checksum_of(path: str) -> str:
    """Of all bytes but the last 16, as files of rows and index files hold it there; "" if these are others."""
    found = xxhash.xxh3_128()
    with disk_errors(path), open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - SUM_BYTES
        while left > 0:
            data = file.read(min(_READ, left))
            if not data:
                return ""
            found.update(data)
            left -= len(data)
        return found.hexdigest() if file.read(SUM_BYTES + 1) == found.digest() else ""
