"""Opens the write-ahead log: reads its segments from the oldest on, and tells what was cut short from what is damaged.

What is read at opening that fails its checksum is either a torn tail (a commit that never returned: dropped) or
damage. The mark tells them apart for the last record: it holds the number of the last commit that did return. Damage
inside values is handed on for the checksums above to name; damage to the log's own framing raises CorruptLog.
Invariant: nothing is dropped but a last commit that never returned. It must not know how commits are written.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from needle.base.errors import CorruptLog
from needle.multiraft.log import wal_correct
from needle.multiraft.log.key_index import KeyIndex
from needle.multiraft.log.wal_files import MARK_BYTES, LogFiles, read_mark
from needle.multiraft.log.wal_records import (
    ALIGNMENT,
    RECORD_HEADER,
    RECORD_MAGIC,
    RecordHead,
    body_is_intact,
    decode_head,
    decode_operations,
    decode_segment_header,
    ends_are_checked,
    record_size,
)
from needle.multiraft.log.wal_segment import Segment, index_operations, own_names, segment_name

log = logging.getLogger(__name__)


class Spoilt(NamedTuple):
    """A commit that fails its checksum in its values only: its operations lie in [start, end) of the segment."""

    sequence: int
    segment: int
    start: int
    end: int


class Replay:
    """See the module. Fills `index`, `segments` and `spares` (names and sizes). torn_records: 1 if a commit that never
    returned was dropped. corrected_bits: so many were flipped and are put right. spoilt: commits to be
    looked after, in order."""

    def __init__(
        self,
        directory: str,
        files: LogFiles,
        index: KeyIndex,
        segments: list[Segment],
        spares: list[tuple[str, int]],
    ) -> None:
        self.torn_records = 0
        self.corrected_bits = 0
        self.spoilt: list[Spoilt] = []
        self._directory = directory
        self._files = files
        self._index = index
        self._segments = segments
        self._spares = spares
        self._sequence = 0

    def run(self, mark: int) -> int:
        """Read all segments; the number of the last commit. mark: the handle of the mark's file. Raises CorruptLog,
        OSError; what is open then is the caller's to close."""
        files = self._files
        numbers, spares = own_names(files.names())
        for name in spares:
            handle = files.open(name)
            self._spares.append((name, files.size(handle)))
            files.close(handle)
        marked = read_mark(files.read(mark, MARK_BYTES, 0))
        for number in numbers:
            handle = files.open(segment_name(number))
            size = files.size(handle)
            data = bytearray(files.read(handle, size, 0))
            salt = self._salt_of(handle, data, number)
            if salt is None:
                files.close(handle)
                self._check_unborn(number, numbers, marked)
                files.remove(segment_name(number))
                break
            if self._segments and number != self._segments[-1].number + 1:
                files.close(handle)
                raise self._corrupt(f"segment {self._segments[-1].number + 1} is missing")
            segment = Segment(number, handle, size, salt)
            self._segments.append(segment)
            self._replay_segment(segment, data, marked, last=number == numbers[-1])
        if self._sequence < marked:
            raise self._corrupt(f"it ends at commit {self._sequence}, but commit {marked} had returned")
        # What a process that died had written and not yet flushed was read here, and counts from now on.
        for segment in self._segments:
            files.flush(segment.handle)
        files.sync_names()
        return self._sequence

    def _salt_of(self, handle: int, data: bytearray, number: int) -> int | None:
        salt = decode_segment_header(data, number)
        if salt is None and self._corrected(handle, data, wal_correct.segment_header(data, number)):
            salt = decode_segment_header(data, number)
        return salt

    def _corrected(self, handle: int, data: bytearray, bit: int) -> bool:
        """Put one bit of a file right, if one is given. data: what the file holds."""
        if bit < 0:
            return False
        data[bit // 8] ^= 1 << bit % 8
        self._files.write(handle, bytes(data[bit // 8 : bit // 8 + 1]), bit // 8)
        self.corrected_bits += 1
        log.error("%s: a bit was flipped on the disk (byte %d of a file) and is put right", self._directory, bit // 8)
        return True

    def _check_unborn(self, number: int, numbers: list[int], marked: int) -> None:
        """A segment without its header is one that a crash kept from being begun; anything else is damage."""
        if number != numbers[-1] or marked > self._sequence:
            raise self._corrupt(f"the header of segment {number} fails its checksum")

    def _replay_segment(self, segment: Segment, data: bytearray, marked: int, *, last: bool) -> None:
        while (head := self._head(segment, data)) is not None:
            if self._sequence and head.sequence != self._sequence + 1:
                raise self._corrupt(f"commit {head.sequence} follows commit {self._sequence}")
            start = segment.end + RECORD_HEADER.size
            end = start + head.length
            intact = body_is_intact(head, memoryview(data)[start:end], segment.salt)
            if not intact and head.sequence > marked and last and not _goes_on(data, segment, head):
                self._drop_tail(segment)
                return
            if not intact and self._corrected(segment.handle, data, wal_correct.body(data, start, head, segment.salt)):
                intact = True
            operations = decode_operations(memoryview(data)[start:end])
            if operations is None or (not intact and not ends_are_checked(memoryview(data)[start:end])):
                raise self._corrupt(f"commit {head.sequence} in segment {segment.number} fails its checksum")
            if not intact:
                self.spoilt.append(Spoilt(head.sequence, segment.number, start, end))
            index_operations(self._index, operations, segment.number, start)
            self._sequence = head.sequence
            segment.end += record_size(head.length)
        if later := _later_record(data, segment):
            raise self._corrupt(f"commit {self._sequence + 1} in segment {segment.number} is damaged; {later} follows")

    def _head(self, segment: Segment, data: bytearray) -> RecordHead | None:
        """The header behind the segment's end so far, put right if one bit of it was flipped."""
        head = decode_head(data, segment.end, segment.salt)
        if head is None:
            bit = wal_correct.record_header(data, segment.end, segment.salt, self._sequence + 1)
            if self._corrected(segment.handle, data, bit):
                head = decode_head(data, segment.end, segment.salt)
        return head

    def _drop_tail(self, segment: Segment) -> None:
        """A commit that never returned was cut short: its header goes, so that its number can be used again."""
        log.warning("%s: dropped commit %d, which was never finished", self._directory, self._sequence + 1)
        self.torn_records += 1
        self._files.write(segment.handle, b"\0" * RECORD_HEADER.size, segment.end)

    def _corrupt(self, what: str) -> CorruptLog:
        return CorruptLog(
            f"the Raft log in {self._directory} is damaged: {what}. Remove this node from the cluster, delete its "
            "data directory and add it again under a new name",
            directory=self._directory,
        )


def _goes_on(data: bytearray, segment: Segment, head: RecordHead) -> bool:
    """Whether another record follows the one at the segment's end so far."""
    following = decode_head(data, segment.end + record_size(head.length), segment.salt)
    return following is not None and following.sequence == head.sequence + 1


def _later_record(data: bytearray, segment: Segment) -> int:
    """The number of a record behind the segment's end so far; 0 if there is none: then the log does end there."""
    rest = bytes(data[segment.end :])
    at = rest.find(RECORD_MAGIC)
    while at >= 0:
        head = decode_head(rest, at, segment.salt) if at % ALIGNMENT == 0 else None
        if head is not None:
            return head.sequence
        at = rest.find(RECORD_MAGIC, at + 1)
    return 0
