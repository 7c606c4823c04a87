"""A segment of the write-ahead log: its file, and what the index knows of it.

It must not know disks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle.multiraft.log.key_index import KeyIndex, Place
from needle.multiraft.log.wal_records import DELETE, OPERATION_HEAD_BYTES, PUT, SEGMENT_HEADER

SUFFIX = ".wal"
SPARE = "spare-"


@dataclass
class Segment:
    """handle: of its open file. size: of the file. end: where its last record ends."""

    number: int
    handle: int
    size: int
    salt: int
    end: int = SEGMENT_HEADER.size


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"{number:016d}{SUFFIX}"


def index_operations(
    index: KeyIndex, operations: Sequence[tuple[int, bytes, bytes]], segment: int, offset: int
) -> None:
    """Note in the index what a record holds. offset: where its operations begin in the segment."""
    for kind, key, value in operations:
        offset += OPERATION_HEAD_BYTES + len(key)
        if kind == PUT:
            index.put(key, Place(segment, offset, len(value)))
        elif kind == DELETE:
            index.delete(key)
        else:
            index.delete_range(key, value)
        offset += len(value)
