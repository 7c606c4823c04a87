"""When a node refuses data, when it gives up its reserve, and when it takes both back."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from needle.base.errors import DiskFull
from needle.base.model import CollectionSpec
from needle.protocol.commands import CreateCollection, Delete, DropCollection, Insert
from needle.server.machine.disk_space import COUNT_LOOKS, FILE_NAME, Directory, DiskSpace, Room, low_bytes

LIMIT = 1000


class Disk:
    """Counts bytes."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.held = 0

    def room(self) -> Room:
        return Room(1 << 40, self.free)

    def reserved(self) -> int:
        return self.held

    def reserve(self, size: int) -> bool:
        if size - self.held > self.free:
            return False
        self.held, self.free = size, self.free - (size - self.held)
        return True

    def used(self) -> tuple[int, int]:
        return 0, 0

    def shrink(self, size: int) -> None:
        self.free, self.held = self.free + self.held - size, size


def test_data_is_refused_and_deletes_are_not_while_there_is_little_room() -> None:
    disk = Disk(10 * LIMIT)
    space = DiskSpace(disk, "d", LIMIT, node="node-2")
    insert = Insert("c", ["a"], b"", [b""])
    create = CreateCollection(CollectionSpec(name="c", dimensions=1))
    space.look()
    space.check(insert)
    assert disk.held == LIMIT // 2
    disk.free = LIMIT - 1
    space.look()
    for command in (insert, create):
        with pytest.raises(DiskFull, match="node-2 has 999 bytes left, and data is refused until it has 1250:"):
            space.check(command)
    space.check(Delete("c", ["a"]))
    space.check(DropCollection("c"))


def test_it_takes_more_room_to_begin_again_than_to_stop() -> None:
    disk = Disk(10 * LIMIT)
    space = DiskSpace(disk, "d", LIMIT)
    space.look()
    low = []
    for free in (1001, 999, 1001, 1249, 1250, 1001, 999):
        disk.free = free
        space.look()
        low.append(space.low)
    assert low == [False, True, True, True, False, False, True]


def test_the_reserve_is_given_up_in_steps_near_the_end_and_taken_back_first() -> None:
    disk = Disk(10 * LIMIT)
    space = DiskSpace(disk, "d", LIMIT)
    space.look()
    held = []
    for _ in range(10):
        disk.free = LIMIT // 4 - 1
        space.look()
        held.append(disk.held)
    assert held[:2] == [438, 376] and held[7] > 0 and held[9] == 0
    disk.free = LIMIT + LIMIT // 4 + LIMIT // 2 - 1
    space.look()
    assert space.low and disk.held == 0
    disk.free += 1
    space.look()
    assert not space.low and disk.held == LIMIT // 2 and disk.free == LIMIT + LIMIT // 4


def test_a_disk_that_is_full_from_the_start_is_never_reserved_on() -> None:
    disk = Disk(LIMIT + LIMIT // 2 - 1)
    space = DiskSpace(disk, "d", LIMIT)
    space.look()
    assert space.low and disk.held == 0


def test_the_default_follows_the_size_of_the_disk() -> None:
    assert [low_bytes(total) >> 20 for total in (1 << 30, 4 << 30, 1 << 40)] == [64, 204, 1024]
    off = DiskSpace(Disk(0), "d", 0)
    off.look()
    assert not off.low


def test_a_reserve_that_the_next_file_of_the_log_does_not_fit_into_is_none() -> None:
    """With 10 MB free and a reserve of 8 MiB a node said that it has room again, and its log waited for 16 MiB."""
    disk = Disk(12_000)
    space = DiskSpace(disk, "d", LIMIT, log_file=10_000)
    space.look()
    assert space.low and space.room().kept_free == 15_000
    disk.free = 40_000
    space.look()
    assert not space.low


def test_a_file_system_that_takes_no_more_files_is_low_whatever_bytes_it_has() -> None:
    """The log could not begin its next file: no shard had a leader, and nothing was read."""

    class Inodes(Disk):
        files = files_free = 10_000

        def room(self) -> Room:
            return Room(1 << 40, self.free, self.files, self.files_free)

    disk = Inodes(10 * LIMIT)
    space = DiskSpace(disk, "d", LIMIT, node="node-2")
    low = []
    for disk.files_free in (256, 255, 319, 320, 255):
        space.look()
        low.append(space.low)
    assert low == [False, True, True, False, True]
    with pytest.raises(DiskFull, match="node-2 has room for 255 more files, and for 320 there has to be: delete"):
        space.check(Insert("c", ["a"], b"", [b""]))
    space.check(Delete("c", ["a"]))
    assert space.room().files_wanted and disk.held == LIMIT // 2
    disk.files = disk.files_free = 100
    space.look()
    assert not space.low and not space.room().files_wanted
    disk.files_free = 4
    space.look()
    assert space.low
    disk.files = disk.files_free = 0  # a file system that does not count them
    space.look()
    assert not space.low


def test_the_reserve_has_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Directory(str(tmp_path))
    assert volume.reserved() == 0
    assert volume.reserve(1 << 20)
    assert volume.reserved() == 1 << 20
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 1 << 20

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    assert not volume.reserve(2 << 20)
    assert volume.reserved() == 1 << 20
    volume.shrink(1 << 16)
    assert volume.reserved() == 1 << 16


def test_the_nodes_files_are_counted_without_its_reserve_and_seldom(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(bytes(100_000))
    counted = []

    class Counted(Directory):
        def used(self) -> tuple[int, int]:
            counted.append(super().used())
            return counted[-1]

    space = DiskSpace(Counted(str(tmp_path)), str(tmp_path), 1)
    space.look()
    (tmp_path / FILE_NAME).write_bytes(bytes(1 << 20))
    for _ in range(COUNT_LOOKS):
        space.look()
    assert [files for files, _ in counted] == [1, 1]
    assert 100_000 <= space.used < 200_000
    room = space.room()
    assert room.total > room.free > 0
    assert room.kept_free == 1


def test_what_may_not_be_read_and_what_goes_meanwhile_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root of a file system has a directory `lost+found` that only its owner may read."""
    (tmp_path / "lost+found").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(bytes(100_000))
    scandir = os.scandir

    @contextmanager
    def scanned(path: str) -> Iterator[list[os.DirEntry[str]]]:
        if path.endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        with scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        (tmp_path / "a").unlink()
        yield found

    monkeypatch.setattr(os, "scandir", scanned)
    files, size = Directory(str(tmp_path)).used()
    assert files == 3
    assert 200_000 <= size < 300_000
