"""What a node knows of the durable writes of its log: slow ones of two minutes, and one that does not end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from needle.base.errors import DiskFailed
from needle.protocol.peer_calls import FlushLevels
from needle.server.machine.flushes import FlushWatch


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Disk:
    """A store whose commits do what they are told."""

    def __init__(self) -> None:
        self.during: Callable[[], None] = lambda: None

    def get(self, key: bytes) -> bytes | None:
        return key

    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        return []

    def commit(self, fill: Callable[[Any], None], sync: bool) -> None:
        self.during()

    def bytes_used(self) -> int:
        return 7

    def close(self) -> None: ...


def watched() -> tuple[Clock, Disk, FlushWatch, Callable[..., None]]:
    clock, disk = Clock(), Disk()
    watch = FlushWatch(clock)
    store = watch.watched(disk)

    def write(seconds: float = 0.001, *, sync: bool = True) -> None:
        def during() -> None:
            clock.now += seconds

        disk.during = during
        store.commit(lambda _: None, sync)

    return clock, disk, watch, write


def test_slow_writes_count_for_two_minutes() -> None:
    clock, _, watch, write = watched()
    took: list[float] = []
    watch.observe = took.append
    for seconds in (0.001, 0.0999, 0.11, 3.0):
        write(seconds)
    assert watch.levels() == FlushLevels(4, 2, 0.0)
    assert took == pytest.approx([0.001, 0.0999, 0.11, 3.0])
    clock.now += 100
    write()
    assert watch.levels() == FlushLevels(5, 2, 0.0)
    clock.now += 30
    assert watch.levels() == FlushLevels(1, 0, 0.0)
    clock.now += 3600
    assert watch.levels() == FlushLevels(0, 0, 0.0)


def test_a_write_is_told_while_it_hangs() -> None:
    clock, disk, watch, write = watched()
    assert watch.under_way() == 0.0
    told: list[FlushLevels] = []

    def hangs() -> None:
        clock.now += 60
        told.append(watch.levels())

    disk.during = hangs
    watch.watched(disk).commit(lambda _: None, True)
    assert told == [FlushLevels(0, 0, 60.0)] and watch.levels() == FlushLevels(1, 1, 0.0)
    write(9.0, sync=False)
    assert watch.levels() == FlushLevels(1, 1, 0.0), "what is not durable waits for no disk"


def test_a_write_that_fails_is_over() -> None:
    _, disk, watch, _ = watched()

    def fails() -> None:
        raise DiskFailed("gone")

    disk.during = fails
    with pytest.raises(DiskFailed):
        watch.watched(disk).commit(lambda _: None, True)
    assert watch.under_way() == 0.0
