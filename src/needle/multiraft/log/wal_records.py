"""The bytes of the write-ahead log under the Raft logs: segments, records, operations. Pure: bytes in, values out.

A segment file is a header and records behind one another, each at a multiple of 8 bytes:

    segment header   8s magic, u64 segment number, u64 salt, u64 xxh3 of those                         (32 bytes)
    record header    4s magic, u32 body length, u64 sequence number, u64 xxh3 of the body, u64 xxh3 of those (32 bytes)
    record body      operations: u8 kind, u16 key length, u32 value length, u32 xxh3 of those and the key (of a deleted
                     range also of its end, the value), key, value

All integers are little-endian; xxh3 is XXH3-64, in records with the segment's salt as its seed. A record is one
transaction. Sequence numbers grow by one from record to record, also from segment to segment. The salt is drawn again
each time a file begins a segment: neither what a recycled file still holds of its former life, nor bytes that a
client chose, can pass for a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

SEGMENT_HEADER = struct.Struct("<8sQQQ")
RECORD_HEADER = struct.Struct("<4sIQQQ")
_CHECKED = struct.Struct("<4sIQQ")
_OPERATION = struct.Struct("<BHII")
_OPERATION_CHECKED = struct.Struct("<BHI")
_SEGMENT_MAGIC = b"NDLWAL01"
RECORD_MAGIC = b"NREC"
ALIGNMENT = 8

PUT, DELETE, DELETE_RANGE = 1, 2, 3


class Operation(NamedTuple):
    """kind PUT: key and its value. DELETE: key. DELETE_RANGE: the keys in [key, value)."""

    kind: int
    key: bytes
    value: bytes


class RecordHead(NamedTuple):
    """A record header whose own checksum holds."""

    length: int
    sequence: int
    body_hash: int


def segment_header(number: int, salt: int) -> bytes:
    """The first bytes of segment `number`."""
    head = _SEGMENT_MAGIC + number.to_bytes(8, "little") + salt.to_bytes(8, "little")
    return head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")


def decode_segment_header(data: bytes | bytearray | memoryview, number: int) -> int | None:
    """The salt of segment `number`, or None if these are not its first bytes."""
    if len(data) < SEGMENT_HEADER.size:
        return None
    salt: int = SEGMENT_HEADER.unpack_from(data)[2]
    return salt if bytes(data[: SEGMENT_HEADER.size]) == segment_header(number, salt) else None


def encode_operations(operations: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """A record's body, of (kind, key, value) each."""
    parts: list[bytes] = []
    for kind, key, value in operations:
        size, length = len(key), len(value)
        hash_ = _operation_hash(kind, key, length, value if kind == DELETE_RANGE else b"")
        parts += (_OPERATION.pack(kind, size, length, hash_), key, value)
    return b"".join(parts)


def _operation_hash(kind: int, key: bytes, value_length: int, end: bytes) -> int:
    """Tells damage to an operation, which could put an old value back, from damage to a value, which only spoils it."""
    return xxhash.xxh3_64_intdigest(_OPERATION_CHECKED.pack(kind, len(key), value_length) + key + end) & 0xFFFFFFFF


OPERATION_HEAD_BYTES = _OPERATION.size


def encode_record(sequence: int, body: bytes, salt: int) -> bytes:
    """A record, padded to the alignment."""
    checked = _CHECKED.pack(RECORD_MAGIC, len(body), sequence, xxhash.xxh3_64_intdigest(body, seed=salt))
    head = checked + xxhash.xxh3_64_intdigest(checked, seed=salt).to_bytes(8, "little")
    return head + body + b"\0" * (-len(body) % ALIGNMENT)


def decode_head(data: bytes | bytearray | memoryview, offset: int, salt: int) -> RecordHead | None:
    """The record header at `offset`, or None if there is none or its checksum fails."""
    if len(data) - offset < RECORD_HEADER.size:
        return None
    magic, length, sequence, body_hash, head_hash = RECORD_HEADER.unpack_from(data, offset)
    if magic != RECORD_MAGIC:
        return None
    if head_hash != xxhash.xxh3_64_intdigest(data[offset : offset + _CHECKED.size], seed=salt):
        return None
    return RecordHead(length, sequence, body_hash)


def record_size(length: int) -> int:
    """Bytes that a record with a body of `length` takes in a segment."""
    return RECORD_HEADER.size + length + (-length % ALIGNMENT)


def body_is_intact(head: RecordHead, body: bytes | bytearray | memoryview, salt: int) -> bool:
    """Whether the whole body is there and its checksum holds."""
    return len(body) == head.length and xxhash.xxh3_64_intdigest(body, seed=salt) == head.body_hash


def decode_operations(body: bytes | bytearray | memoryview) -> list[Operation] | None:
    """The operations of a body, or None if one is damaged in anything but its value. See `ends_are_checked`."""
    found = []
    for operation in _walk(body):
        if operation is None:
            return None
        found.append(operation)
    return found


def ends_are_checked(body: bytes | bytearray | memoryview) -> bool:
    """Whether no range is deleted whose end may be damaged: earlier releases wrote ends that only the checksum of the
    whole body covers. Of operations that `decode_operations` gives."""
    at = 0
    while at < len(body) and (found := operation_at(body, at, len(body))) is not None:
        kind, key_length, _, checksum = _OPERATION.unpack_from(body, at)
        value_at, at = found
        key, end = bytes(body[value_at - key_length : value_at]), bytes(body[value_at:at])
        if kind == DELETE_RANGE and checksum != _operation_hash(kind, key, len(end), end):
            return False
    return True


def _walk(body: bytes | bytearray | memoryview) -> Iterator[Operation | None]:
    at = 0
    while at < len(body):
        found = operation_at(body, at, len(body))
        if found is None:
            yield None
            return
        value_at, end = found
        kind, key_length, _, _ = _OPERATION.unpack_from(body, at)
        yield Operation(kind, bytes(body[value_at - key_length : value_at]), bytes(body[value_at:end]))
        at = end


def operation_at(data: bytes | bytearray | memoryview, at: int, end: int) -> tuple[int, int] | None:
    """(where its value begins, where it ends) of the operation at `at` of a body that ends at `end`, or None if its
    head, its key, or the end of a range is damaged (the latter is not seen in what earlier releases wrote)."""
    if end - at < _OPERATION.size:
        return None
    kind, key_length, value_length, checksum = _OPERATION.unpack_from(data, at)
    key_at = at + _OPERATION.size
    value_at = key_at + key_length
    if value_at + value_length > end:
        return None
    key, value_end = bytes(data[key_at:value_at]), value_at + value_length
    if checksum == _operation_hash(kind, key, value_length, b""):
        return value_at, value_end
    if kind == DELETE_RANGE and checksum == _operation_hash(kind, key, value_length, bytes(data[value_at:value_end])):
        return value_at, value_end
    return None
