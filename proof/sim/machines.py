"""A simulated machine: its disks, clock and directory outlive the processes that run on it.

Durability order: at a crash the directory is copied to a new one in which unsynced bytes may be missing, and the name
the node knows (a symbolic link) is pointed there. The dead incarnation keeps the old inodes: whatever it still does to
them reaches nobody. It must not know what runs on it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

from needle.base.errors import DiskFailed, DiskFull
from needle.catalog import machine as catalog_machine
from needle.multiraft.files import Files
from needle.server.files import GONE
from needle.server.machine.disk_space import Endless, Room
from needle.server.machine.memory_space import MemoryUse
from needle.shard.disk import ReplicaDisk
from needle.shard.documents import sqlite_file
from needle.shard.segments.files import FILE_NAME
from proof.sim.disk import DiskDevice, Image, LogDisk
from proof.sim.event_loop import SimLoop
from proof.sim.machine import SimClock, stream
from proof.sim.process import Process
from proof.sim.sqlite_crash import fold, pages_in_force, survive
from proof.sim.unsynced import Unsynced

MEMORY_BYTES = 1 << 30
"""That a machine has. What its node takes of it, a fault says."""
_DATABASES = (catalog_machine.FILE_NAME, sqlite_file.FILE_NAME)


class SimVolume(Endless):
    """A file system without end, or with so little room that a node is to refuse data."""

    is_low = False

    def room(self) -> Room:
        """As much as the fault says."""
        return Room(1 << 62, 1 << 28) if self.is_low else super().room()


class SimMachine:
    """Machine `name`; its processes come and go."""

    def __init__(self, name: str, address: str, root: str, loop: SimLoop, seed: int, clock_error: float) -> None:
        self.name = name
        self.address = address
        self.rng = stream(seed, "machine", name)
        self.log_disk = LogDisk(stream(seed, "disk", name))
        self.device = DiskDevice(stream(seed, "device", name))
        self.volume = SimVolume()
        self.memory = MemoryUse(0, MEMORY_BYTES)
        self._loop = loop
        self._clock_error = clock_error
        self._root = os.path.join(root, name)
        self._copies = 0
        self.data_dir = os.path.join(self._root, "data")
        os.makedirs(os.path.join(self._root, "0"))
        os.symlink("0", self.data_dir)
        self.unsynced = Unsynced(self.data_dir, stream(seed, "unsynced", name))
        self.clock = self._new_clock()
        self.incarnation = 0
        self._kept: tuple[str, Image] | None = None
        self.process: Process | None = None
        self.counts: Counter[str] = Counter()
        self.given_up: set[str] = set()
        """Shards whose files it has deleted, and that it does not hold since."""

    def _new_clock(self) -> SimClock:
        error = (2 * self.rng.random() - 1) * self._clock_error
        return SimClock(self._loop, error, offset=self.rng.random() * 1000)

    def boot(self) -> Process:
        """A new process. The machine must not run one."""
        if self.process is not None:
            raise RuntimeError(f"{self.name} already runs a process")
        self.incarnation += 1
        self.process = Process(self.name, self.incarnation, is_node=True)
        return self.process

    def crash(self, *, power_cut: bool) -> None:
        """End the process; with `power_cut` unsynced data is lost and the clock starts again."""
        process, self.process = self.process, None
        if process is not None:
            self._loop.kill(process)
        self.device.release()
        if power_cut:
            self.log_disk.power_cut()
            self.clock = self._new_clock()
        else:
            self.log_disk.process_crash()
        source = os.path.join(self._root, str(self._copies))
        self._copies += 1
        target = os.path.join(self._root, str(self._copies))
        self.counts["lost_wal_bytes"] += survive(
            source, target, self.rng, power_cut=power_cut, synced=self.unsynced.wal_bytes
        )
        if power_cut:
            self.unsynced.power_cut(target)
        self._point_to(target)

    def rot_segment(self) -> str | None:
        """Flip one bit of one index file; its path below the data directory, or None if there is none. No process may
        run."""
        here = Path(self.data_dir)
        paths = sorted(path for path in here.resolve().rglob("*") if FILE_NAME.match(path.name))
        if not paths:
            return None
        path = paths[int(self.rng.random() * len(paths))]
        data = bytearray(path.read_bytes())
        if not data:
            return None
        data[int(self.rng.random() * len(data))] ^= 1 << int(self.rng.random() * 8)
        path.write_bytes(data)
        self.counts["rotten segments"] += 1
        return str(path.relative_to(here.resolve()))

    def spoil_fields(self, rng: random.Random) -> str | None:
        """Flip one bit of one file of a field index, cut it short or delete it; what was done, or None if there is
        none. No process may run."""
        here = Path(self.data_dir).resolve()
        paths = sorted(here.rglob("*.field"))
        if not paths:
            return None
        path = paths[rng.randrange(len(paths))]
        data, kind = bytearray(path.read_bytes()), rng.randrange(4)
        if kind == 0:
            path.unlink()
        elif kind == 1 or not data:
            os.truncate(path, rng.randint(0, len(data)))
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        self.counts["spoilt field indexes"] += 1
        return f"{path.relative_to(here)} {('deleted', 'cut short')[kind] if kind < 2 else 'with one bit flipped'}"

    def rot_database(self, rng: random.Random) -> str | None:
        """Flip one bit of one of SQLite's files, in place: a process that runs finds it when it reads there; one that
        begins reads it for certain. What was flipped, or None if there is no such file. Not of the write-ahead log of a
        process that runs: what flips there is served until the next checkpoint finds it (shard/documents/wal_check.py).
        """
        here = Path(self.data_dir).resolve()
        files = sorted(path for path in here.rglob("*.db") if path.name in _DATABASES and path.stat().st_size)
        if not files:
            return None
        chosen = files[rng.randrange(len(files))]
        vectors = fold(chosen) if self.process is None else []
        pages = [page for page in pages_in_force(chosen) if self.process is None or page[0] == chosen]
        if not pages:
            return None
        path, start, size = rng.choice(pages)
        if vectors and rng.random() < 0.5:  # most of what is stored is not in force any more: a document that is
            vector = vectors[rng.randrange(len(vectors))]
            path, start, size = chosen, chosen.read_bytes().find(vector), len(vector)
        with path.open("r+b") as file:
            file.seek(start)
            page = file.read(size)
            used = [at for at, byte in enumerate(page) if byte] if rng.random() < 0.8 else range(size)
            at, bit = used[rng.randrange(len(used))] if used else 0, rng.randrange(8)
            offset = start + at
            file.seek(offset)
            file.write(bytes([page[at] ^ 1 << bit]))
        self.counts["rotten databases"] += 1
        return f"bit {bit} of byte {offset} of {path.relative_to(here)}"

    def wipe(self) -> None:
        """Empty disks. No process may run."""
        self.log_disk.wipe()
        self._copies += 1
        target = os.path.join(self._root, str(self._copies))
        os.makedirs(target)
        self._point_to(target)

    def is_empty(self) -> bool:
        """Whether the disks hold nothing."""
        return not self.log_disk.durable.values

    def keep(self) -> None:
        """Set a copy of the disks aside: of an instant, if a process runs."""
        self._kept = os.path.join(self._root, f"kept-{self._copies}"), Image(self.log_disk.durable.values)
        shutil.copytree(os.path.realpath(self.data_dir), self._kept[0])

    def kept_lacks(self, key: bytes) -> bool:
        """Whether the copy does not have a record that the log's disk has."""
        return self._kept is not None and key in self.log_disk.durable.values and key not in self._kept[1].values

    def put_back(self) -> None:
        """Replace the disks by the copy, or by empty ones if none was kept. No process may run."""
        if self._kept is None:
            self.wipe()
            return
        self._copies += 1
        target = os.path.join(self._root, str(self._copies))
        shutil.copytree(self._kept[0], target)
        self.log_disk.replace(Image(self._kept[1].values))
        self._point_to(target)

    def _point_to(self, target: str) -> None:
        link = self.data_dir + ".new"
        os.symlink(os.path.basename(target), link)
        os.replace(link, self.data_dir)

    def remove(self) -> None:
        """Delete everything from the real disk."""
        shutil.rmtree(self._root, ignore_errors=True)


class SimReplicaDisk(ReplicaDisk):
    """The replica's file operations of one incarnation: fenced, failing while the log disk fails, and noted as long as
    they are not synced. Nothing is synced in earnest."""

    def __init__(self, machine: SimMachine, process: Process) -> None:
        self._machine = machine
        self._process = process
        self._unsynced = machine.unsynced

    def _effect(self, path: str) -> None:
        self._process.fence()
        if failure := self._machine.log_disk.fail_commits:
            kind = DiskFull if failure == "ENOSPC" else DiskFailed
            raise kind(f"simulated {failure} on {os.path.basename(path)}", path=path)

    def sync(self, path: str) -> None:
        self._unsynced.checkpointed(path)
        try:
            self._effect(path)
        except (DiskFull, DiskFailed) as error:
            self._unsynced.failed(path)
            # A sync that failed is final, whatever the reason.
            raise DiskFailed(error.message, path=path) from error
        self._unsynced.synced(path)

    def make_directory(self, path: str) -> None:
        self._effect(path)
        super().make_directory(path)
        for shard in self._machine.given_up & set(path.split(os.sep)):
            self._machine.given_up.discard(shard)
            self._machine.counts["replicas taken again"] += 1

    def remove_tree(self, path: str) -> None:
        self._process.fence()
        self._unsynced.removed(path)
        super().remove_tree(path)

    def remove(self, path: str) -> None:
        self._process.fence()
        self._unsynced.removed(path)
        super().remove(path)

    def rename(self, source: str, target: str) -> None:
        self._effect(target)
        self._unsynced.before_rename(target)
        super().rename(source, target)
        self._unsynced.renamed(source, target)
        if target.endswith(GONE):
            self._machine.given_up.add(os.path.basename(source))
            self._machine.counts["replicas given up"] += 1

    def write(self, path: str, *parts: bytes | memoryview) -> None:
        self._effect(path)
        self._unsynced.before_name(path)
        super().write(path, *parts)

    def copy(self, source: str, target: str) -> None:
        self._effect(target)
        self._unsynced.before_name(target)
        super().copy(source, target)
        self._unsynced.wrote(target)

    def link(self, source: str, target: str) -> None:
        self._effect(target)
        self._unsynced.before_name(target)
        super().link(source, target)
        self._unsynced.linked(source, target)


class SimFiles(Files):
    """The snapshot files of one incarnation: fenced, and noted as long as they are not synced."""

    def __init__(self, machine: SimMachine, process: Process) -> None:
        self._unsynced = machine.unsynced
        self._process = process

    def make_directory(self, path: str) -> None:
        self._process.fence()
        super().make_directory(path)

    def remove_tree(self, path: str) -> None:
        self._process.fence()
        self._unsynced.removed(path)
        super().remove_tree(path)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        self._process.fence()
        self._unsynced.before_name(path)
        super().write_at(path, offset, data)
        self._unsynced.wrote(path)

    def link(self, source: str, target: str) -> None:
        self._process.fence()
        self._unsynced.before_name(target)
        super().link(source, target)
        self._unsynced.linked(source, target)

    def sync_tree(self, path: str) -> None:
        self._process.fence()
        self._unsynced.synced_tree(path)
        self._unsynced.synced(os.path.dirname(path))


def majority(rng: random.Random, names: list[str]) -> list[str]:
    """A random majority of `names`, sorted."""
    return sorted(rng.sample(names, len(names) // 2 + 1))
