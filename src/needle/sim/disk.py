"""A simulated disk: an ordered key-value store that models what fsync promises, and the latency of its device.

Durability order, beside the data it governs: a commit with sync=True is durable, with everything committed before it,
when `commit` returns. A commit without sync survives a power cut only as part of a prefix of such commits. A process
crash alone loses nothing that was committed. A commit is atomic (multiraft/ports.py).
It must not know what the keys mean.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable

from needle.base.errors import DiskFailed
from needle.sim.process import Process

Change = tuple[bytes, bytes | None]


class DiskDevice:
    """Latency and failure of one machine's disk. `slow` multiplies latency; `stalled` holds every call."""

    def __init__(self, rng: random.Random, fsync_seconds: float = 0.0005) -> None:
        self._rng = rng
        self._fsync_seconds = fsync_seconds
        self._waiting: list[Callable[[], None]] = []
        self.slow = 1.0
        self.stalled = False

    def latency(self) -> tuple[float, float]:
        """Seconds before and after the instant at which a call takes effect: exponential, with a rare long tail."""
        total = self._rng.expovariate(1.0) * self._fsync_seconds * self.slow
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
    """Sorted bytes-to-bytes content. size: bytes of all keys and values."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.order = sorted(self.values)
        self.size = sum(len(key) + len(value) for key, value in self.values.items())

    def put(self, key: bytes, value: bytes) -> None:
        old = self.values.get(key)
        if old is None:
            insort(self.order, key)
            self.size += len(key)
        self.size += len(value) - len(old or b"")
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        old = self.values.pop(key, None)
        if old is not None:
            self.size -= len(key) + len(old)
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

    def get(self, key: bytes) -> bytes | None:
        return self._written[key] if key in self._written else self._image.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._note(bytes(key), bytes(value))

    def delete(self, key: bytes) -> None:
        self._note(bytes(key), None)

    def delete_range(self, start: bytes, end: bytes) -> None:
        keys = set(self._image.keys(start, end)) | {key for key in self._written if start <= key < end}
        for key in sorted(keys):
            self._note(key, None)

    def _note(self, key: bytes, value: bytes | None) -> None:
        self._written[key] = value
        self.changes.append((key, value))


class LogDisk:
    """What one machine's log disk holds, across the incarnations of its node."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
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

    def write(self, changes: list[Change], sync: bool) -> None:
        """One atomic commit. Raises DiskFailed while `fail_commits` names an error; then nothing is committed."""
        if self.fail_commits:
            self.counts[self.fail_commits] += 1
            raise DiskFailed(f"simulated {self.fail_commits} on commit")
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
        self._keep(kept)
        self._live = Image(self._durable.values)

    def wipe(self) -> None:
        """Replace the disk by an empty one."""
        self._live, self._durable = Image(), Image()
        self._unsynced.clear()

    def rot(self, prefix: bytes = b"") -> bytes | None:
        """Flip one bit of one durable value under `prefix`; the key, or None if there is nothing to damage."""
        self.process_crash()
        keys = [key for key in self._durable.order if key.startswith(prefix) and self._durable.values[key]]
        if not keys:
            return None
        key = keys[int(self._rng.random() * len(keys))]
        value = bytearray(self._durable.values[key])
        value[int(self._rng.random() * len(value))] ^= 1 << int(self._rng.random() * 8)
        for image in (self._durable, self._live):
            image.put(key, bytes(value))
        self.counts["rot"] += 1
        return key


class SimStore:
    """The KeyValueStore port of one incarnation, over its machine's LogDisk."""

    def __init__(self, disk: LogDisk, process: Process) -> None:
        self._disk = disk
        self._process = process

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
        self._disk.write(txn.changes, sync)

    def bytes_used(self) -> int:
        return self._disk.live.size

    def close(self) -> None:
        """Nothing is held open."""
