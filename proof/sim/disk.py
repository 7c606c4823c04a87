"""A simulated disk: the real write-ahead log on simulated files, a model of what it must hold, the device's latency.

Durability order, beside the data it governs: a commit with sync=True is durable, with everything committed before it,
when `commit` returns. A commit without sync survives a power cut only as part of a prefix of such commits. A process
crash alone loses nothing that was committed. A commit is atomic (multiraft/ports.py).
It must not know what the keys mean.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Sequence

from needle.base.errors import CorruptLog, DiskFailed, DiskFull
from needle.multiraft.log.wal_store import WalStore
from needle.multiraft.ports import KeyValueTxn
from proof.checkers.violation import Violation
from proof.sim.log_files import FileSystem, SimLogFiles
from proof.sim.process import Process

SEGMENT_BYTES = 4096
FSYNC_SECONDS = 0.0005
"""That one takes, on average."""

Change = tuple[bytes, bytes | None]


class DiskDevice:
    """Latency and failure of one machine's disk. `slow` multiplies latency; `stalled` holds every call."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._waiting: list[Callable[[], None]] = []
        self.slow = 1.0
        self.stalled = False

    def latency(self) -> tuple[float, float]:
        """Seconds before and after the instant at which a call takes effect: exponential, with a rare long tail."""
        total = self._rng.expovariate(1.0) * FSYNC_SECONDS * self.slow
        if self._rng.random() < 0.01:
            total *= 20
        share = self._rng.random()
        return total * share, total * (1 - share)

    def hold(self, resume: Callable[[], None]) -> bool:
        """True while stalled; then `resume` is kept for `release`."""
        if self.stalled:
            self._waiting.append(resume)
        return self.stalled

    def release(self) -> None:
        """End a stall."""
        self.stalled = False
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume()


class Image:
    """Sorted bytes-to-bytes content."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.order = sorted(self.values)

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.order, key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            del self.order[bisect_left(self.order, key)]

    def keys(self, start: bytes, end: bytes) -> list[bytes]:
        return self.order[bisect_left(self.order, start) : bisect_left(self.order, end)]

    def apply(self, changes: list[Change]) -> None:
        for key, value in changes:
            if value is None:
                self.delete(key)
            else:
                self.put(key, value)


class _Txn:
    """One write transaction: reads see its own writes; aborting forgets them."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._written: dict[bytes, bytes | None] = {}
        self.changes: list[Change] = []
        self.operations: list[tuple[bytes, ...]] = []
        """The same as they came: (key, value), (key,), or (start, end, b"") of a range that is deleted."""

    def get(self, key: bytes) -> bytes | None:
        return self._written[key] if key in self._written else self._image.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.operations.append((bytes(key), bytes(value)))
        self._note(bytes(key), bytes(value))

    def delete(self, key: bytes) -> None:
        self.operations.append((bytes(key),))
        self._note(bytes(key), None)

    def delete_range(self, start: bytes, end: bytes) -> None:
        self.operations.append((bytes(start), bytes(end), b""))
        keys = set(self._image.keys(start, end)) | {key for key in self._written if start <= key < end}
        for key in sorted(keys):
            self._note(key, None)

    def _note(self, key: bytes, value: bytes | None) -> None:
        self._written[key] = value
        self.changes.append((key, value))


def _again(txn: KeyValueTxn, operations: Sequence[tuple[bytes, ...]]) -> None:
    for operation in operations:
        if len(operation) == 2:
            txn.put(*operation)
        elif len(operation) == 1:
            txn.delete(*operation)
        else:
            txn.delete_range(*operation[:2])


class LogDisk:
    """What one machine's log disk holds, across the incarnations of its node: what was committed, beside the files of
    the real write-ahead log, which must hold the same whenever it is opened."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.files = FileSystem(random.Random(rng.getrandbits(64)))
        self.salts = random.Random(rng.getrandbits(64))
        self.rotten = False
        self._begun: list[Change] = []
        self._live = Image()
        self._durable = Image()
        self._unsynced: list[list[Change]] = []
        self.fail_commits = ""
        self.counts: Counter[str] = Counter()

    @property
    def durable(self) -> Image:
        """What a power cut now would certainly leave."""
        return self._durable

    @property
    def live(self) -> Image:
        """What the running process sees."""
        return self._live

    def begin(self, changes: list[Change]) -> None:
        """A commit begins, whose fate a crash leaves open. While `fail_commits` names an error nothing is committed:
        raises DiskFull for ENOSPC, DiskFailed for others."""
        if self.fail_commits:
            self.counts[self.fail_commits] += 1
            if self.fail_commits == "ENOSPC":
                raise DiskFull("simulated ENOSPC on commit")
            raise DiskFailed(f"simulated {self.fail_commits} on commit")
        self._begun = changes

    def write(self, changes: list[Change], sync: bool) -> None:
        """One atomic commit has returned."""
        self._begun = []
        self._live.apply(changes)
        self._unsynced.append(changes)
        self.counts["commits"] += 1
        if sync:
            self.counts["fsyncs"] += 1
            self._keep(len(self._unsynced))

    def _keep(self, commits: int) -> None:
        for changes in self._unsynced[:commits]:
            self._durable.apply(changes)
        self._unsynced.clear()

    def process_crash(self) -> None:
        """The process dies, the operating system lives: everything written survives."""
        self._keep(len(self._unsynced))

    def power_cut(self) -> None:
        """Lose a random suffix of the commits that were not synced."""
        kept = self._rng.randint(0, len(self._unsynced))
        self.counts["lost_commits"] += len(self._unsynced) - kept
        if kept < len(self._unsynced):
            self.files = FileSystem(self.files.rng)  # only a planted bug commits without sync: start on what is left
        self._keep(kept)
        self.files.power_cut()
        self._live = Image(self._durable.values)

    def wipe(self) -> None:
        """Replace the disk by an empty one."""
        self.replace(Image())

    def replace(self, image: Image) -> None:
        """Replace the disk by one that holds this."""
        self._live, self._durable = Image(image.values), image
        self._unsynced.clear()
        self._begun = []
        self.files = FileSystem(random.Random(self._rng.getrandbits(64)))

    def rot(self) -> str:
        """Flip one bit of the log's files; says which, "" if there is nothing to damage: no log, or one that was put
        in the place of another and that no node has opened yet."""
        self.process_crash()
        flipped = self.files.rot()
        self.rotten |= bool(flipped)
        self.counts["rot"] += bool(flipped)
        return flipped

    def opened(self, content: dict[bytes, bytes]) -> None:
        """The write-ahead log holds this now. Raises Violation if that is not what was committed: the commit that a
        crash cut short may be there as a whole or not at all."""
        if content != self._live.values and not self.rotten:
            whole = Image(self._live.values)
            whole.apply(self._begun)
            if content != whole.values:
                wrong = sorted(key for key in {*content, *whole.values} if content.get(key) != whole.values.get(key))
                raise Violation("the log holds what was committed", f"{len(wrong)} keys differ: {wrong[:3]}")
        self._begun = []
        if content != self._live.values:
            self._live, self._durable = Image(content), Image(content)


class SimStore:
    """The KeyValueStore port of one incarnation, over its machine's LogDisk: the real write-ahead log on simulated
    files. Reads are answered from what was committed."""

    def __init__(self, disk: LogDisk, process: Process, reached: Callable[[str], None] = lambda place: None) -> None:
        """reached: called before each step on the log's files. Raises CorruptLog if bits of the disk have rotted."""
        self._disk = disk
        self._process = process
        files = SimLogFiles(disk.files, process, reached)
        try:
            self._wal = WalStore(
                "log", salt=lambda: disk.salts.getrandbits(64), segment_bytes=SEGMENT_BYTES, files=files
            )
        except CorruptLog as error:
            if not disk.rotten:
                raise Violation("an undamaged log opens", str(error)) from error
            raise
        content = dict(self._wal.scan(b"", b"\xff" * 16, 1 << 60))
        if disk.live.values and not content and not disk.rotten:
            self._wal.commit(lambda txn: _again(txn, list(disk.live.values.items())), True)
            content = dict(disk.live.values)
        disk.opened(content)

    def get(self, key: bytes) -> bytes | None:
        self._process.fence()
        return self._disk.live.values.get(bytes(key))

    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        self._process.fence()
        pairs: list[tuple[bytes, bytes]] = []
        total = 0
        for key in self._disk.live.keys(start, end):
            value = self._disk.live.values[key]
            pairs.append((key, value))
            total += len(key) + len(value)
            if total >= bytes_max:
                break
        return pairs

    def commit(self, fill: Callable[[_Txn], None], sync: bool) -> None:
        self._process.fence()
        txn = _Txn(self._disk.live)
        fill(txn)
        self._process.fence()
        self._disk.begin(txn.changes)
        self._wal.commit(lambda below: _again(below, txn.operations), True)
        self._process.fence()
        self._disk.write(txn.changes, sync)

    def bytes_used(self) -> int:
        return self._wal.bytes_used()

    def close(self) -> None:
        """Nothing is held open."""
