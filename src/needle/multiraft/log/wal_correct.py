"""Finds a single flipped bit in the write-ahead log by its checksums. Pure: bytes in, the bit's number out.

A checksum of 64 bits is right by chance once in 2**64 trials, so the one bit whose flip makes it right is the one that
was flipped. Term, vote and the log's own framing have no second copy that could be trusted more: this is what saves
them from the commonest kind of damage. Bits are numbered from the first byte of the file, least significant first; -1
means that no single bit explains the damage. It must not know files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import xxhash

from needle.multiraft.log.wal_records import (
    OPERATION_HEAD_BYTES,
    RECORD_HEADER,
    SEGMENT_HEADER,
    RecordHead,
    decode_head,
    decode_segment_header,
    operation_at,
)

HASHED_BYTES_MAX = 2 << 30
"""Work for one record: bytes hashed in all trials, well below a second. Small records are tried in full; of large ones
the framing, and values of at most SMALL_BYTES, which are not log entries with a copy on other nodes."""
SMALL_BYTES = 512


def _find(data: bytearray, bits: Iterable[int], holds: Callable[[], bool]) -> int:
    """The first of the bits whose flip makes `holds()` true. Leaves the data as it was."""
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        found = holds()
        data[bit // 8] ^= 1 << bit % 8
        if found:
            return bit
    return -1


def segment_header(data: bytearray, number: int) -> int:
    """The flipped bit in the header of segment `number`."""
    if len(data) < SEGMENT_HEADER.size:
        return -1
    return _find(data, range(SEGMENT_HEADER.size * 8), lambda: decode_segment_header(data, number) is not None)


def record_header(data: bytearray, offset: int, salt: int, sequence: int) -> int:
    """The flipped bit in the header at `offset` of the record with this number (1: the first known, of any number)."""
    end = offset + RECORD_HEADER.size
    if end > len(data) or not any(data[offset:end]):
        return -1

    def holds() -> bool:
        head = decode_head(data, offset, salt)
        return head is not None and (sequence == 1 or head.sequence == sequence)

    return _find(data, range(offset * 8, end * 8), holds)


def body(data: bytearray, start: int, head: RecordHead, salt: int) -> int:
    """The flipped bit in the body that begins at `start`."""
    end = start + head.length
    if not head.length or end > len(data):
        return -1
    view = memoryview(data)[start:end]

    def holds() -> bool:
        return bool(xxhash.xxh3_64_intdigest(view, seed=salt) == head.body_hash)

    try:
        return _find(data, _suspects(data, start, end), holds)
    finally:
        view.release()


def _suspects(data: bytearray, start: int, end: int) -> list[int]:
    """Bits of a body that are worth a trial."""
    trials = HASHED_BYTES_MAX // (end - start)
    if (end - start) * 8 <= trials:
        return list(range(start * 8, end * 8))
    found: list[int] = []
    at = start
    while at < end:
        operation = operation_at(data, at, end)
        if operation is None:
            # From here on nothing can be told apart: what stands here is the head and the key of an operation.
            return list(range(at * 8, min(end, at + OPERATION_HEAD_BYTES + SMALL_BYTES) * 8))[:trials]
        value_at, at = operation
        if at - value_at <= SMALL_BYTES:
            found.extend(range(value_at * 8, at * 8))
    return found[:trials]
