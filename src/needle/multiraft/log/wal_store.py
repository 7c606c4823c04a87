"""The ordered key-value store under the Raft logs: a write-ahead log of preallocated, recycled segments.

Durability order of a commit: record written, fdatasync, index updated, mark written (not synced). One
fdatasync on blocks that are already allocated is all a commit costs; LMDB flushes twice (docs/adr/0007).
Invariants: the log is replayed from its oldest segment; only the oldest may be freed, once nothing in it is live or
what is has been written again, so that a delete never goes before the value it hides. After the first error of a
commit nothing is written any more: a failed fsync may have dropped the dirty pages, so a second one that succeeds
proves nothing (Rebello et al. 2020, "Can applications recover from fsync failures?").
Opening reads the log again, and tells what was cut short from what is damaged: wal_replay.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from needle.base.errors import DiskFailed, NeedleError, StorageError
from needle.base.file_errors import SHORTAGES, shortage
from needle.multiraft.log.key_index import KeyIndex, Place
from needle.multiraft.log.wal_files import LogFiles, mark
from needle.multiraft.log.wal_records import (
    DELETE,
    DELETE_RANGE,
    PUT,
    RECORD_HEADER,
    SEGMENT_HEADER,
    encode_operations,
    encode_record,
    record_size,
    segment_header,
)
from needle.multiraft.log.wal_replay import Replay, Spoilt
from needle.multiraft.log.wal_segment import Segment, index_operations, segment_name, spare_name
from needle.multiraft.ports import KeyValueTxn

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 << 20
COPY_BYTES_MAX = 256 << 10
DEAD_SHARE = 16
SPARES_MAX = 2


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


class WalStore:
    """A KeyValueStore in `directory`, created if need be and locked against other processes.

    It has no bound of its own, because what frees space is written, too: see retention.py. salt: draws 64 random bits.
    Any thread may read and commit; commits happen one after another (a group that is opened while the node runs commits
    on the event loop, others' writes on the log's thread). Raises DiskFailed, StorageError (in use) and CorruptLog
    (framing damaged).
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
        self._writing = threading.Lock()
        self._index = KeyIndex()
        self._segments: list[Segment] = []
        self._spares: list[tuple[str, int]] = []  # names and sizes
        self._sequence = 0
        self._mark = -1
        self._open = False
        self.torn_records = 0
        """1 if opening dropped a commit that never returned."""
        self.corrected_bits = 0
        """Bits that were flipped and are put right; see wal_correct.py."""
        try:
            self._claim()
            self._mark = self._files.open("mark")
            replay = Replay(directory, self._files, self._index, self._segments, self._spares)
            self._sequence = replay.run(self._mark)
            self._bytes = sum(segment.size for segment in self._segments)
            self.torn_records, self.corrected_bits = replay.torn_records, replay.corrected_bits
            if not self._segments:
                self._roll(0)
            self._renew(replay.spoilt)
        except OSError as error:
            self.close()
            raise shortage(error, directory) or self._error("open", error) from error
        except NeedleError:
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
        # Two at once would take the same place and the same number: the later one overwrites what was acknowledged.
        with self._writing:
            self._commit(fill)

    def _commit(self, fill: Callable[[KeyValueTxn], None]) -> None:
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
        body = encode_operations(operations)
        freed: list[Segment] = []
        if record_size(len(body)) > self._left():
            # An idle group's old entries must not keep every later segment.
            wasteful = 2 * self._index.live.total() < self._bytes
            rescued, freed = self._rescue(self._segment_bytes if wasteful else COPY_BYTES_MAX)
            operations = rescued + operations
            body = encode_operations(operations)
            self._roll(record_size(len(body)))
        self._write(operations, body)
        self._free(freed)
        while self._oldest_is_dead():
            rescued, freed = self._rescue(min(COPY_BYTES_MAX, self._left() // 4))
            if rescued:
                self._write(rescued, encode_operations(rescued))
            if not freed or not self._free(freed):
                break

    def _write(self, operations: list[tuple[int, bytes, bytes]], body: bytes) -> None:
        """One record, which fits into the segment."""
        segment = self._segments[-1]
        record = encode_record(self._sequence + 1, body, segment.salt)
        with self._may_wait():
            self._files.write(segment.handle, record, segment.end)  # a part of it is written over by the next attempt
        self._files.flush(segment.handle)
        self._sequence += 1
        with self._guard:
            index_operations(self._index, operations, segment.number, segment.end + RECORD_HEADER.size)
            segment.end += len(record)
        self._files.write(self._mark, mark(self._sequence), 0)

    def _left(self) -> int:
        """Bytes behind the last record of the segment."""
        return self._segments[-1].size - self._segments[-1].end

    def _oldest_is_dead(self) -> bool:
        """Whether so little of the oldest segment is live that it is given back at once, not when the next begins."""
        oldest = self._segments[0]
        return len(self._segments) > 1 and DEAD_SHARE * self._index.live[oldest.number] <= oldest.size

    def _rescue(self, room: int) -> tuple[list[tuple[int, bytes, bytes]], list[Segment]]:
        """The oldest segments that hold together at most `room` bytes that are live, and those, to be written again."""
        rescued: list[tuple[int, bytes, bytes]] = []
        freed: list[Segment] = []
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
            handle = self._new_file(segment_name(number), size, zeros=number == 1)
        else:
            handle, size = self._open_file(spare[0]), spare[1]
            try:
                with self._may_wait():
                    self._files.rename(spare[0], segment_name(number))
            except SHORTAGES:
                self._files.close(handle)
                raise
            self._spares.remove(spare)
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
            self._segments.append(Segment(number, handle, size, salt))
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
            with suppress(*SHORTAGES), self._may_wait():  # the next attempt takes the file that is there
                self._files.remove(name)
            raise
        return handle

    def _free(self, segments: list[Segment]) -> bool:
        """Keep the files of the oldest segments for later, or delete them. Nothing in them is live. Each is gone
        durably before the next one goes: one that came back behind a gap would be taken for damage. False if there is
        no room to do so now: then they stay, dead, and go with a later commit."""
        try:
            for segment in segments:
                assert self._segments[0] is segment
                with self._may_wait():
                    self._give_away(segment)
                with self._guard:
                    del self._segments[0]
                    self._bytes -= segment.size
                    self._index.forget(segment.number)
                self._files.close(segment.handle)
                self._files.sync_names()
            while len(self._spares) > self._spares_wanted():
                with self._may_wait():
                    self._files.remove(self._spares[-1][0])
                self._spares.pop()
        except SHORTAGES as error:
            log.info("%s: old segments stay for now: %s", self._directory, error)
            return False
        return True

    def _give_away(self, segment: Segment) -> None:
        """Rename or delete the file of the oldest segment."""
        wanted = min(SPARES_MAX, len(self._segments) - 1)
        if len(self._spares) < wanted and segment.size == self._segment_bytes:
            spare = spare_name(segment.number)
            self._files.rename(segment_name(segment.number), spare)
            self._spares.append((spare, segment.size))
        else:
            self._files.remove(segment_name(segment.number))

    def _spares_wanted(self) -> int:
        """One is enough for a log of one segment."""
        return min(SPARES_MAX, len(self._segments))

    def _renew(self, spoilt: Sequence[Spoilt]) -> None:
        """Write again what is in force of commits whose values fail the commit's checksum, so that it is said once:
        each value has a checksum of its own, by which whoever reads it sees which one is spoilt."""
        for commit in spoilt:
            places = {key: self._index.get(key) for key in self._index.in_segment(commit.segment)}
            live = [
                (key, at) for key, at in places.items() if at is not None and commit.start <= at.offset < commit.end
            ]
            if not live:
                continue
            log.error("%s: commit %d fails its checksum; its values are checked", self._directory, commit.sequence)
            try:
                self._append([(PUT, key, self._read(at)) for key, at in live])
            except SHORTAGES as error:
                log.error("%s: what it holds is not written again now: %s", self._directory, error)

    # --- end ------------------------------------------------------------------------------------------------------
    def _error(self, what: str, error: Exception) -> DiskFailed:
        return DiskFailed(f"cannot {what} the Raft log in {self._directory}: {error}", directory=self._directory)

    def close(self) -> None:
        """Close the files and let other processes use the directory. Idempotent."""
        if self._open:
            self._open = False
            for segment in self._segments:
                self._files.close(segment.handle)
            if self._mark >= 0:
                self._files.close(self._mark)
            self._files.release()
