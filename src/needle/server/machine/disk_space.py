"""Watches the room on a node's disk, so that the node stops taking data before there is none.

Below `low` bytes the leaders here refuse what makes the data grow, and no index is built; reads, deletes and drops go
on, into a reserve: a file that holds `low / 2` bytes for them. It is given up in steps while less than `low / 4` is
left; not at once, because it may be others who take the room. When there is room again (a quarter more than `low`, and
the reserve has its bytes back) everything is as before, by itself. A file system that takes hardly any more files, as
its inodes are used up, is low in the same way, whatever bytes it has: the next file of the log has to be made there.
Invariant: the reserve is only ever taken from what is above `low`. It must not know what the bytes are for.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from typing import Protocol

from needle.base.errors import DiskFull
from needle.base.events import DISK_FILES_LOW, DISK_LOW, DISK_OK, tell
from needle.protocol.commands import PinScan
from needle.protocol.peer_calls import DiskRoom
from needle.server.machine.growth import Refusing

log = logging.getLogger("needle.server")

FILE_NAME = "reserve"
SHARE = 20
STEPS = 8
COUNT_LOOKS = 20
FILES_A_LOOK = 25
"""The node's files are counted every 20 looks, or less often: 100 files a second at most."""
LOW_BYTES = (64 << 20, 1 << 30)
LOW_FILES = 256
"""Files that have to fit on the file system; a SHARE of all where that is less."""
_BLOCK = bytes(1 << 20)


@dataclass(frozen=True)
class Room:
    """Bytes of a file system: of all, and those that this process may still take. files, files_free: the same of its
    inodes; 0 files: it counts none."""

    total: int
    free: int
    files: int = 0
    files_free: int = 0


class Volume(Protocol):
    """The file system of a data directory."""

    def room(self) -> Room: ...
    def reserved(self) -> int:
        """Bytes of the reserve; 0 if there is none."""
        ...

    def reserve(self, size: int) -> bool:
        """Make the reserve as large as that; False, and it stays as it is, if there is no room."""
        ...

    def shrink(self, size: int) -> None:
        """Give back what the reserve has above `size` bytes."""
        ...

    def used(self) -> tuple[int, int]:
        """How many files there are below the directory, and their bytes, the reserve left out."""
        ...


class Directory:
    """The real file system below a data directory. Blocking."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, FILE_NAME)

    def room(self) -> Room:
        """Of the file system, for whoever is not root."""
        found = os.statvfs(self._directory)
        return Room(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)

    def reserved(self) -> int:
        """Bytes of the reserve; 0 if there is none."""
        return os.path.getsize(self._path) if os.path.exists(self._path) else 0

    def reserve(self, size: int) -> bool:
        """Make the reserve as large as that: it gets blocks, not only a length."""
        before = self.reserved()
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, size)
            else:
                for at in range(before, size, len(_BLOCK)):
                    os.pwrite(handle, _BLOCK[: size - at], at)
        except OSError as error:
            os.ftruncate(handle, before)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                log.warning("no room could be reserved in %s: %s", self._directory, error)
            return False
        finally:
            os.close(handle)
        return True

    def shrink(self, size: int) -> None:
        """Give back what the reserve has above `size` bytes."""
        if self.reserved() > size:
            os.truncate(self._path, size)

    def used(self) -> tuple[int, int]:
        """Files and bytes; files that go meanwhile have none. Directories that are closed to this process, as
        `lost+found` is where a file system is mounted, are left out."""
        files, size, waiting = 0, 0, [self._directory]
        while waiting:
            try:
                with os.scandir(waiting.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        elif entry.path != self._path:
                            files, size = files + 1, size + _bytes_of(entry)
            except (FileNotFoundError, PermissionError):
                continue
        return files, size


def _bytes_of(entry: os.DirEntry[str]) -> int:
    """On the disk; 0 of a file that is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


class Endless:
    """A volume that is never full."""

    def room(self) -> Room:
        return Room(1 << 62, 1 << 62)

    def reserved(self) -> int:
        return 1 << 62

    def reserve(self, size: int) -> bool:
        return True

    def shrink(self, size: int) -> None:
        """There is nothing to give back."""

    def used(self) -> tuple[int, int]:
        return 0, 0


def low_bytes(total: int) -> int:
    """Where a node stops taking data: a twentieth of the disk, from 64 MiB to 1 GiB."""
    return min(max(total // SHARE, LOW_BYTES[0]), LOW_BYTES[1])


class DiskSpace(Refusing):
    """The room on one node's disk. `look` now and then; `low` and `check` in between."""

    more = (PinScan,)
    """What it sees is kept on the disk."""

    def __init__(
        self, volume: Volume, directory: str, reserve: int | None = None, log_file: int = 0, *, node: str = "?"
    ) -> None:
        """reserve: bytes below which data is refused; None: `low_bytes`, 0: never. log_file: what the next file of the
        log takes at once: where that does not fit, nothing goes on, so more than it is always kept. node: whose disk it
        is, in errors."""
        self._node = node
        self._volume = volume
        self._directory = directory
        self._configured = max(reserve, log_file + log_file // 2) if reserve else reserve
        self._limit = 0
        self.free = self.total = self.used = 0
        self._files_wanted = ""
        """Why it is low though there are bytes; "" if it is not."""
        self._uncounted = 0
        """Looks until the files are counted again."""

    def look(self) -> None:
        """Blocking. What is refused follows from what is found."""
        try:
            room = self._volume.room()
            self.free, self.total = room.free, room.total
            self._limit = low_bytes(room.total) if self._configured is None else self._configured
            if self._limit:
                self._judge_files(room)
                self._judge(room.free)
            if self._uncounted <= 0:
                files, self.used = self._volume.used()
                self._uncounted = max(COUNT_LOOKS, files // FILES_A_LOOK)
            self._uncounted -= 1
        except OSError as error:
            log.warning("the room in %s could not be looked at: %s", self._directory, error)

    def room(self) -> DiskRoom:
        """What other nodes and clients are told."""
        return DiskRoom(self.free, self.total, self.used, self._limit, self.low, self._files_wanted)

    def _judge_files(self, room: Room) -> None:
        limit = min(LOW_FILES, room.files // SHARE)
        if room.files_free < (limit + limit // 4 if self._files_wanted else limit):
            least = limit + limit // 4
            self._files_wanted = f"room for {room.files_free} more files, and for {least} there has to be"
        else:
            self._files_wanted = ""

    def _judge(self, free: int) -> None:
        limit, volume, size = self._limit, self._volume, self._limit // 2
        held = volume.reserved()
        missing = max(0, size - held)
        if not self.low:
            if self._files_wanted or free - missing < limit or (missing and not volume.reserve(size)):
                self._change(True)
        elif not self._files_wanted and free - missing >= limit + limit // 4 and (not missing or volume.reserve(size)):
            self._change(False)
        if self.low and held and free < limit // 4:
            left = max(0, held - max(1, size // STEPS))
            volume.shrink(left)
            log.warning("%s has %d bytes left: %d of the reserve are given up", self._directory, free, held - left)

    def _change(self, low: bool) -> None:
        self.low = low
        if low and self._files_wanted:
            tell(DISK_FILES_LOW, directory=self._directory, wanted=self._files_wanted)
        elif low:
            wanted = self._limit + self._limit // 4
            tell(DISK_LOW, directory=self._directory, free=self.free, wanted=wanted)
        else:
            tell(DISK_OK, directory=self._directory, free=self.free)

    def refusal(self) -> DiskFull:
        """See Refusing."""
        lacks = f"{self.free} bytes left, and data is refused until it has {self._limit + self._limit // 4}"
        return DiskFull(
            f"the disk of node {self._node} has {self._files_wanted or lacks}: "
            f"delete documents, drop collections or give it more room; reads, deletes and drops go on",
            free=self.free, limit=self._limit, node=self._node,
        )  # fmt: skip
