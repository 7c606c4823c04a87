"""The ordered key-value store under the Raft logs: a write-ahead log of preallocated, recycled segments.

Durability order of a commit: record written, fdatasync, index updated, mark written (not synced). One
fdatasync on blocks that are already allocated is all a commit costs; LMDB flushes twice (docs/adr/0007).
Invariants: the log is replayed from its oldest segment; only the oldest may be freed, once nothing in it is live or
what is has been written again, so that a delete never goes before the value it hides. After the first error of a
commit nothing is written any more: a failed fsync may have dropped the dirty pages, so a second one that succeeds
proves nothing (Rebello et al. 2020, "Can applications recover from fsync failures?").

What is read at opening that fails its checksum is either a torn tail (a commit that never returned: dropped) or
damage. The mark tells them apart for the last record: it holds the number of the last commit that did return. Damage
inside values is handed on for the checksums above to name; damage to the log's own framing raises CorruptLog.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from needle.base.errors import CorruptLog, DiskFailed, NeedleError, StorageError
from needle.base.file_errors import SHORTAGES, shortage
from needle.multiraft import wal_correct
from needle.multiraft.key_index import KeyIndex, Place
from needle.multiraft.ports import KeyValueTxn
from needle.multiraft.wal_files import MARK_BYTES, LogFiles, mark, read_mark
from needle.multiraft.wal_records import (
    ALIGNMENT,
    DELETE,
    DELETE_RANGE,
    OPERATION_HEAD_BYTES,
    PUT,
    RECORD_HEADER,
    RECORD_MAGIC,
    SEGMENT_HEADER,
    RecordHead,
    body_is_intact,
    decode_head,
    decode_operations,
    decode_segment_header,
    encode_operation,
    encode_record,
    record_size,
    segment_header,
)

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 << 20
COPY_BYTES_MAX = 256 << 10
DEAD_SHARE = 16
SPARES_MAX = 2
_SUFFIX = ".wal"
_SPARE = "spare-"


def segment_bytes(log_bytes_max: int) -> int:
    """The size of segments for a log that may take so many bytes: bounds are kept to one of them."""
    return min(SEGMENT_BYTES, log_bytes_max // 16)


class _Txn:
    """Collects the operations of one commit; reads see them."""

    def __init__(self, store: WalStore) -> None:
        self._store = store
        self._written: dict[bytes, bytes | None] = {}
        self._ranges: list[tuple[bytes, bytes]] = []
        self.operations: list[tuple[int, bytes, bytes]] = []

    def get(self, key: bytes) -> bytes | None:
        if key in self._written:
            return self._written[key]
        if any(start <= key < end for start, end in self._ranges):
            return None
        return self._store.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._written[key] = value
        self.operations.append((PUT, key, value))

    def delete(self, key: bytes) -> None:
        self._written[key] = None
        self.operations.append((DELETE, key, b""))

    def delete_range(self, start: bytes, end: bytes) -> None:
        self._ranges.append((start, end))
        for key in [key for key in self._written if start <= key < end]:
            self._written[key] = None
        self.operations.append((DELETE_RANGE, start, end))


@dataclass
class _Segment:
    number: int
    handle: int
    size: int
    salt: int
    end: int = SEGMENT_HEADER.size


class WalStore:
    """A KeyValueStore in `directory`, created if need be and locked against other processes.

    It has no bound of its own, because what frees space is written, too: see retention.py. salt: draws 64 random bits.
    `commit` is for one thread at a time; reads may come from others. Raises DiskFailed, StorageError (in use) and
    CorruptLog (framing damaged).
    """

    def __init__(
        self,
        directory: str,
        *,
        salt: Callable[[], int],
        segment_bytes: int = SEGMENT_BYTES,
        files: LogFiles | None = None,
    ) -> None:
        self._directory = directory
        self._files = files or LogFiles(directory)
        self._bytes = 0
        self._salt = salt
        self._segment_bytes = segment_bytes
        self._failed: DiskFailed | None = None
        self._guard = threading.Lock()
        self._index = KeyIndex()
        self._segments: list[_Segment] = []
        self._spares: list[tuple[str, int]] = []  # names and sizes
        self._sequence = 0
        self._spoilt: list[tuple[int, int, int, int]] = []  # sequence, segment, first byte, end
        self._mark = -1
        self._open = False
        self.torn_records = 0
        """1 if opening dropped a commit that never returned."""
        self.corrected_bits = 0
        """Bits that were flipped and are put right; see wal_correct.py."""
        try:
            self._claim()
            self._mark = self._files.open("mark")
            self._replay()
            if not self._segments:
                self._roll(0)
            self._renew()
        except OSError as error:
            self.close()
            raise shortage(error, directory) or self._error("open", error) from error
        except (CorruptLog, *SHORTAGES):
            self.close()
            raise

    def _claim(self) -> None:
        try:
            self._files.claim()
        except BlockingIOError:
            where = self._directory
            raise StorageError(f"another process uses {where}; stop it first", directory=where) from None
        self._open = True

    # --- reading --------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        with self._guard:
            place = self._index.get(key)
            return None if place is None else self._read(place)

    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        """Pairs in [start, end) in key order; stops after the pair that reaches bytes_max."""
        found: list[tuple[bytes, bytes]] = []
        size = 0
        with self._guard:
            for key, place in self._index.scan(start, end):
                found.append((key, self._read(place)))
                size += len(key) + place.length
                if size >= bytes_max:
                    break
        return found

    def _read(self, place: Place) -> bytes:
        try:
            return self._files.read(self._handle(place.segment), place.length, place.offset)
        except OSError as error:
            raise shortage(error, self._directory) or self._error("read", error) from error

    def _handle(self, number: int) -> int:
        return self._segments[number - self._segments[0].number].handle

    def bytes_used(self) -> int:
        """Bytes of all segments; spare ones do not count."""
        return self._bytes

    # --- writing --------------------------------------------------------------------------------------------------
    def commit(self, fill: Callable[[KeyValueTxn], None], sync: bool) -> None:
        """Run `fill` in one transaction, durable on return whatever `sync` asks for. What `fill` raises leaves
        nothing behind. Raises DiskFailed, also for every later call."""
        if self._failed is not None:
            raise self._failed
        txn = _Txn(self)
        fill(txn)
        if not txn.operations:
            return
        try:
            self._append(txn.operations)
        except SHORTAGES:
            raise  # before anything was synced: it may be tried again
        except DiskFailed as error:
            self._failed = error
            raise
        except OSError as error:
            self._failed = self._error("write", error)
            raise self._failed from error

    def _append(self, operations: list[tuple[int, bytes, bytes]]) -> None:
        body = b"".join([encode_operation(*operation) for operation in operations])
        freed: list[_Segment] = []
        if record_size(len(body)) > self._left():
            # An idle group's old entries must not keep every later segment.
            wasteful = 2 * self._index.live.total() < self._bytes
            rescued, freed = self._rescue(self._segment_bytes if wasteful else COPY_BYTES_MAX)
            operations = rescued + operations
            body = b"".join([encode_operation(*operation) for operation in operations])
            self._roll(record_size(len(body)))
        self._write(operations, body)
        self._free(freed)
        while self._oldest_is_dead():
            rescued, freed = self._rescue(min(COPY_BYTES_MAX, self._left() // 4))
            if rescued:
                self._write(rescued, b"".join([encode_operation(*operation) for operation in rescued]))
            if not freed:
                break
            self._free(freed)

    def _write(self, operations: list[tuple[int, bytes, bytes]], body: bytes) -> None:
        """One record, which fits into the segment."""
        segment = self._segments[-1]
        record = encode_record(self._sequence + 1, body, segment.salt)
        with self._may_wait():
            self._files.write(segment.handle, record, segment.end)  # a part of it is written over by the next attempt
        self._files.flush(segment.handle)
        self._sequence += 1
        with self._guard:
            self._apply(operations, segment.number, segment.end + RECORD_HEADER.size)
            segment.end += len(record)
        self._files.write(self._mark, mark(self._sequence), 0)

    def _apply(self, operations: Sequence[tuple[int, bytes, bytes]], segment: int, offset: int) -> None:
        index = self._index
        for kind, key, value in operations:
            offset += OPERATION_HEAD_BYTES + len(key)
            if kind == PUT:
                index.put(key, Place(segment, offset, len(value)))
            elif kind == DELETE:
                index.delete(key)
            else:
                index.delete_range(key, value)
            offset += len(value)

    def _left(self) -> int:
        """Bytes behind the last record of the segment."""
        return self._segments[-1].size - self._segments[-1].end

    def _oldest_is_dead(self) -> bool:
        """Whether so little of the oldest segment is live that it is given back at once, not when the next begins."""
        oldest = self._segments[0]
        return len(self._segments) > 1 and DEAD_SHARE * self._index.live[oldest.number] <= oldest.size

    def _rescue(self, room: int) -> tuple[list[tuple[int, bytes, bytes]], list[_Segment]]:
        """The oldest segments that hold together at most `room` bytes that are live, and those, to be written again."""
        rescued: list[tuple[int, bytes, bytes]] = []
        freed: list[_Segment] = []
        for segment in self._segments[:-1]:
            room -= self._index.live[segment.number]
            if room < 0:
                break
            for key in self._index.in_segment(segment.number):
                place = self._index.get(key)
                if place is not None:
                    rescued.append((PUT, key, self._read(place)))
            freed.append(segment)
        return rescued, freed

    def _roll(self, needed: int) -> None:
        """Begin the next segment, of a recycled file if one is large enough. Its name is durable before its header is
        written: under the file's old name the new header would be damage to a segment in force."""
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._segment_bytes, SEGMENT_HEADER.size + needed)
        spare = next(((name, held) for name, held in self._spares if held >= size), None)
        if spare is None:
            handle = self._new_file(_name(number), size, zeros=number == 1)
        else:
            handle, size = self._open_file(spare[0]), spare[1]
            self._spares.remove(spare)
            self._files.rename(spare[0], _name(number))
        self._files.sync_names()
        salt = self._salt()
        try:
            with self._may_wait():
                self._files.write(handle, segment_header(number, salt), 0)
        except SHORTAGES:
            self._files.close(handle)
            raise
        self._files.flush(handle)
        with self._guard:
            self._segments.append(_Segment(number, handle, size, salt))
            self._bytes += size

    @contextmanager
    def _may_wait(self) -> Iterator[None]:
        """What finds no room, or no file handle, is no failure of the disk: raises DiskFull or TooManyFiles."""
        try:
            yield
        except OSError as error:
            failure = shortage(error, self._directory)
            if failure is None:
                raise
            raise failure from error

    def _open_file(self, name: str) -> int:
        with self._may_wait():
            return self._files.open(name)

    def _new_file(self, name: str, size: int, *, zeros: bool) -> int:
        """With its blocks. Leaves nothing behind when it fails."""
        handle = self._open_file(name)
        try:
            with self._may_wait():
                self._files.allocate(handle, size, zeros=zeros)
        except (OSError, NeedleError):
            self._files.close(handle)
            self._files.remove(name)
            raise
        return handle

    def _free(self, segments: list[_Segment]) -> None:
        """Keep the files of the oldest segments for later, or delete them. Nothing in them is live. Each is gone
        durably before the next one goes: one that came back behind a gap would be taken for damage."""
        for segment in segments:
            with self._guard:
                assert self._segments[0] is segment
                del self._segments[0]
                self._bytes -= segment.size
                self._index.forget(segment.number)
            self._files.close(segment.handle)
            if len(self._spares) < self._spares_wanted() and segment.size == self._segment_bytes:
                spare = f"{_SPARE}{segment.number:016d}"
                self._files.rename(_name(segment.number), spare)
                self._spares.append((spare, segment.size))
            else:
                self._files.remove(_name(segment.number))
            self._files.sync_names()
        while len(self._spares) > self._spares_wanted():
            self._files.remove(self._spares.pop()[0])

    def _spares_wanted(self) -> int:
        """One is enough for a log of one segment."""
        return min(SPARES_MAX, len(self._segments))

    # --- opening --------------------------------------------------------------------------------------------------
    def _replay(self) -> None:
        files, names = self._files, self._files.names()
        for name in names:
            if name.startswith(_SPARE):
                handle = files.open(name)
                self._spares.append((name, files.size(handle)))
                files.close(handle)
        numbers = [int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)]
        marked = read_mark(files.read(self._mark, MARK_BYTES, 0))
        for number in numbers:
            handle = files.open(_name(number))
            size = files.size(handle)
            data = bytearray(files.read(handle, size, 0))
            salt = self._salt_of(handle, data, number)
            if salt is None:
                files.close(handle)
                self._check_unborn(number, numbers, marked)
                files.remove(_name(number))
                break
            if self._segments and number != self._segments[-1].number + 1:
                files.close(handle)
                raise self._corrupt(f"segment {self._segments[-1].number + 1} is missing")
            segment = _Segment(number, handle, size, salt)
            self._segments.append(segment)
            self._bytes += size
            self._replay_segment(segment, data, marked, last=number == numbers[-1])
        if self._sequence < marked:
            raise self._corrupt(f"it ends at commit {self._sequence}, but commit {marked} had returned")
        # What a process that died had written and not yet flushed was read here, and counts from now on.
        for segment in self._segments:
            files.flush(segment.handle)
        files.sync_names()

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

    def _replay_segment(self, segment: _Segment, data: bytearray, marked: int, *, last: bool) -> None:
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
            if operations is None or (not intact and any(op.kind != PUT for op in operations)):
                raise self._corrupt(f"commit {head.sequence} in segment {segment.number} fails its checksum")
            if not intact:
                self._spoilt.append((head.sequence, segment.number, start, end))
            self._apply(operations, segment.number, start)
            self._sequence = head.sequence
            segment.end += record_size(head.length)
        if later := _later_record(data, segment):
            raise self._corrupt(f"commit {self._sequence + 1} in segment {segment.number} is damaged; {later} follows")

    def _head(self, segment: _Segment, data: bytearray) -> RecordHead | None:
        """The header behind the segment's end so far, put right if one bit of it was flipped."""
        head = decode_head(data, segment.end, segment.salt)
        if head is None:
            bit = wal_correct.record_header(data, segment.end, segment.salt, self._sequence + 1)
            if self._corrected(segment.handle, data, bit):
                head = decode_head(data, segment.end, segment.salt)
        return head

    def _renew(self) -> None:
        """Write anew what is in force of commits whose values fail the commit's checksum, so that it is said once: each
        value has a checksum of its own, by which whoever reads it sees which one is spoilt."""
        for sequence, number, start, end in self._spoilt:
            places = {key: self._index.get(key) for key in self._index.in_segment(number)}
            live = [(key, at) for key, at in places.items() if at is not None and start <= at.offset < end]
            if not live:
                continue
            log.error("%s: commit %d fails its checksum; its values are checked", self._directory, sequence)
            try:
                self._append([(PUT, key, self._read(at)) for key, at in live])
            except SHORTAGES as error:
                log.error("%s: what it holds is not written anew now: %s", self._directory, error)
        self._spoilt.clear()

    def _drop_tail(self, segment: _Segment) -> None:
        """A commit that never returned was cut short: its header goes, so that its number can be used again."""
        log.warning("%s: dropped commit %d, which was never finished", self._directory, self._sequence + 1)
        self.torn_records += 1
        self._files.write(segment.handle, b"\0" * RECORD_HEADER.size, segment.end)

    # --- end ------------------------------------------------------------------------------------------------------
    def _error(self, what: str, error: Exception) -> DiskFailed:
        return DiskFailed(f"cannot {what} the Raft log in {self._directory}: {error}", directory=self._directory)

    def _corrupt(self, what: str) -> CorruptLog:
        return CorruptLog(
            f"the Raft log in {self._directory} is damaged: {what}. Remove this node from the cluster, delete its "
            "data directory and add it again under a new name",
            directory=self._directory,
        )

    def close(self) -> None:
        """Close the files and let other processes use the directory. Idempotent."""
        if self._open:
            self._open = False
            for segment in self._segments:
                self._files.close(segment.handle)
            if self._mark >= 0:
                self._files.close(self._mark)
            self._files.release()


def _name(number: int) -> str:
    return f"{number:016d}{_SUFFIX}"


def _goes_on(data: bytearray, segment: _Segment, head: RecordHead) -> bool:
    """Whether another record follows the one at the segment's end so far."""
    following = decode_head(data, segment.end + record_size(head.length), segment.salt)
    return following is not None and following.sequence == head.sequence + 1


def _later_record(data: bytearray, segment: _Segment) -> int:
    """The number of a record behind the segment's end so far; 0 if there is none: then the log does end there."""
    rest = bytes(data[segment.end :])
    at = rest.find(RECORD_MAGIC)
    while at >= 0:
        head = decode_head(rest, at, segment.salt) if at % ALIGNMENT == 0 else None
        if head is not None:
            return head.sequence
        at = rest.find(RECORD_MAGIC, at + 1)
    return 0
