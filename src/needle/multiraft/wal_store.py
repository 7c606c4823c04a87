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

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from needle.base.errors import CorruptLog, DiskFailed, StorageError
from needle.multiraft import wal_files
from needle.multiraft.key_index import KeyIndex, Place
from needle.multiraft.ports import KeyValueTxn
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

    def __init__(self, directory: str, *, salt: Callable[[], int], segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._bytes = 0
        self._salt = salt
        self._segment_bytes = segment_bytes
        self._failed: DiskFailed | None = None
        self._guard = threading.Lock()
        self._index = KeyIndex()
        self._segments: list[_Segment] = []
        self._spares: list[str] = []
        self._sequence = 0
        self.torn_records = 0
        """1 if opening dropped a commit that never returned."""
        self._lock = self._lock_directory()
        self._mark = -1
        try:
            self._mark = os.open(os.path.join(directory, "mark"), os.O_RDWR | os.O_CREAT, 0o644)
            self._replay()
            if not self._segments:
                self._roll(0)
        except OSError as error:
            self.close()
            raise self._error("open", error) from error
        except CorruptLog:
            self.close()
            raise

    def _lock_directory(self) -> int:
        handle = -1
        try:
            os.makedirs(self._directory, exist_ok=True)
            handle = os.open(os.path.join(self._directory, "in-use"), os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            where = self._directory
            raise StorageError(f"another process uses {where}; stop it first", directory=where) from None
        except OSError as error:
            raise self._error("open", error) from error
        return handle

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
            return os.pread(self._handle(place.segment), place.length, place.offset)
        except OSError as error:
            raise self._error("read", error) from error

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
        wal_files.write_all(segment.handle, record, segment.end)
        wal_files.flush(segment.handle)
        self._sequence += 1
        with self._guard:
            self._apply(operations, segment.number, segment.end + RECORD_HEADER.size)
            segment.end += len(record)
        wal_files.write_all(self._mark, wal_files.mark(self._sequence), 0)

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
        """Begin the next segment, of a recycled file if one is large enough."""
        number = self._segments[-1].number + 1 if self._segments else 1
        size = max(self._segment_bytes, SEGMENT_HEADER.size + needed)
        path = self._path(number)
        spare = next((name for name in self._spares if os.path.getsize(name) >= size), None)
        if spare is not None:
            self._spares.remove(spare)
            os.rename(spare, path)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if spare is None:
            wal_files.allocate(handle, size, zeros=number == 1)
        else:
            size = os.fstat(handle).st_size
        salt = self._salt()
        wal_files.write_all(handle, segment_header(number, salt), 0)
        wal_files.flush(handle)
        self._sync_directory()
        with self._guard:
            self._segments.append(_Segment(number, handle, size, salt))
            self._bytes += size

    def _free(self, segments: list[_Segment]) -> None:
        """Keep the files of the oldest segments for later, or delete them. Nothing in them is live."""
        for segment in segments:
            self._free_oldest(segment)

    def _free_oldest(self, segment: _Segment) -> None:
        with self._guard:
            assert self._segments[0] is segment
            del self._segments[0]
            self._bytes -= segment.size
            self._index.forget(segment.number)
        os.close(segment.handle)
        path = self._path(segment.number)
        if len(self._spares) < SPARES_MAX and segment.size == self._segment_bytes:
            spare = os.path.join(self._directory, f"spare-{segment.number:016d}")
            os.rename(path, spare)
            self._spares.append(spare)
        else:
            os.unlink(path)

    # --- opening --------------------------------------------------------------------------------------------------
    def _replay(self) -> None:
        names = sorted(os.listdir(self._directory))
        self._spares = [os.path.join(self._directory, name) for name in names if name.startswith("spare-")]
        numbers = [int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)]
        marked = wal_files.read_mark(self._mark)
        for number in numbers:
            handle = os.open(self._path(number), os.O_RDWR)
            size = os.fstat(handle).st_size
            data = memoryview(os.pread(handle, size, 0))
            salt = decode_segment_header(data, number)
            if salt is None:
                self._check_unborn(number, numbers, marked)
                os.close(handle)
                os.unlink(self._path(number))
                return
            if self._segments and number != self._segments[-1].number + 1:
                os.close(handle)
                raise self._corrupt(f"segment {self._segments[-1].number + 1} is missing")
            segment = _Segment(number, handle, size, salt)
            self._segments.append(segment)
            self._bytes += size
            self._replay_segment(segment, data, marked, last=number == numbers[-1])
        if self._sequence < marked:
            raise self._corrupt(f"it ends at commit {self._sequence}, but commit {marked} had returned")

    def _check_unborn(self, number: int, numbers: list[int], marked: int) -> None:
        """A segment without its header is one that a crash kept from being begun; anything else is damage."""
        if number != numbers[-1] or marked > self._sequence:
            raise self._corrupt(f"the header of segment {number} fails its checksum")

    def _replay_segment(self, segment: _Segment, data: memoryview, marked: int, *, last: bool) -> None:
        while (head := decode_head(data, segment.end, segment.salt)) is not None:
            if self._sequence and head.sequence != self._sequence + 1:
                raise self._corrupt(f"commit {head.sequence} follows commit {self._sequence}")
            start = segment.end + RECORD_HEADER.size
            body = data[start : start + head.length]
            intact = body_is_intact(head, body, segment.salt)
            if not intact and head.sequence > marked and last and not _goes_on(data, segment, head):
                self._drop_tail(segment)
                return
            operations = decode_operations(body)
            if operations is None or (not intact and any(op.kind != PUT for op in operations)):
                raise self._corrupt(f"commit {head.sequence} in segment {segment.number} fails its checksum")
            if not intact:
                log.error("%s: commit %d fails its checksum; its values are checked", self._directory, head.sequence)
            self._apply(operations, segment.number, start)
            self._sequence = head.sequence
            segment.end += record_size(head.length)
        if later := _later_record(data, segment):
            raise self._corrupt(f"commit {self._sequence + 1} in segment {segment.number} is damaged; {later} follows")

    def _drop_tail(self, segment: _Segment) -> None:
        """A commit that never returned was cut short: its header goes, so that its number can be used again."""
        log.warning("%s: dropped commit %d, which was never finished", self._directory, self._sequence + 1)
        self.torn_records += 1
        wal_files.write_all(segment.handle, b"\0" * RECORD_HEADER.size, segment.end)
        wal_files.flush(segment.handle)

    # --- end ------------------------------------------------------------------------------------------------------
    def _path(self, number: int) -> str:
        return os.path.join(self._directory, f"{number:016d}{_SUFFIX}")

    def _sync_directory(self) -> None:
        for path in (self._directory, os.path.dirname(os.path.abspath(self._directory))):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

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
        if self._lock >= 0:
            for segment in self._segments:
                os.close(segment.handle)
            if self._mark >= 0:
                os.close(self._mark)
            os.close(self._lock)
            self._lock = -1


def _goes_on(data: memoryview, segment: _Segment, head: RecordHead) -> bool:
    """Whether another record follows the one at the segment's end so far."""
    following = decode_head(data, segment.end + record_size(head.length), segment.salt)
    return following is not None and following.sequence == head.sequence + 1


def _later_record(data: memoryview, segment: _Segment) -> int:
    """The number of a record behind the segment's end so far; 0 if there is none: then the log does end there."""
    rest = bytes(data[segment.end :])
    at = rest.find(RECORD_MAGIC)
    while at >= 0:
        head = decode_head(rest, at, segment.salt) if at % ALIGNMENT == 0 else None
        if head is not None:
            return head.sequence
        at = rest.find(RECORD_MAGIC, at + 1)
    return 0
