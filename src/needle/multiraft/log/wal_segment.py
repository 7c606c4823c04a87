"""A segment of the write-ahead log: its file, and what the index knows of it.

It must not know disks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from needle.multiraft.log.key_index import KeyIndex
from needle.multiraft.log.wal_records import DELETE, OPERATION_HEAD_BYTES, PUT, SEGMENT_HEADER

SUFFIX = ".wal"
SPARE = "spare-"
_SEGMENT = re.compile(rf"([0-9]{{16,}}){re.escape(SUFFIX)}")
_SPARE = re.compile(rf"{SPARE}[0-9]{{16,}}")


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


def spare_name(number: int) -> str:
    """The name of a file that was segment `number`, and is kept for a later one."""
    return f"{SPARE}{number:016d}"


def own_names(names: Iterable[str]) -> tuple[list[int], list[str]]:
    """The numbers of the segments, and the spare files, among the names of a directory. Other names are not the log's:
    what people put there, a copy of a segment perhaps, is neither read nor written over."""
    known = list(names)
    numbers = [int(found[1]) for name in known if (found := _SEGMENT.fullmatch(name))]
    return numbers, [name for name in known if _SPARE.fullmatch(name)]


def index_operations(
    index: KeyIndex, operations: Sequence[tuple[int, bytes, bytes]], segment: int, offset: int
) -> None:
    """Note in the index what a record holds. offset: where its operations begin in the segment."""
    run: list[tuple[bytes, int, int]] = []
    for kind, key, value in operations:
        offset += OPERATION_HEAD_BYTES + len(key)
        length = len(value)
        if kind == PUT:
            run.append((key, offset, length))
        else:
            index.put(segment, run)
            run = []
            if kind == DELETE:
                index.delete(key)
            else:
                index.delete_range(key, value)
        offset += length
    index.put(segment, run)
