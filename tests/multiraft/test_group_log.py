"""One group's log as the core sees it: how much is read of the disk at once, and what is known without reading."""

from __future__ import annotations

import random

import pytest

from multiraft.test_log_store import MemoryStore, entries, opened, write
from needle.multiraft.log import group_log
from needle.multiraft.log.group_log import GroupLog, LogWrite
from needle.multiraft.log.log_records import StartRecord
from needle.raft.log import RaftLog
from needle.raft.messages import Entry, EntryKind, HardState


def test_what_is_read_of_the_disk_at_once_is_bounded_by_entries_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is done on the event loop: a page of 8 MiB of small entries held it for 100 ms."""
    monkeypatch.setattr(group_log, "READ_ENTRIES_MAX", 7)
    monkeypatch.setattr(group_log, "READ_BYTES_MAX", 400)
    store = MemoryStore()
    logs = opened(store, cache=2000)
    log = logs.group(1)
    write(logs, LogWrite(log=log, entries=entries(1, 100, size=10), hard_state=HardState(1)))
    first = log.in_memory_from()
    assert 1 < first < 100
    assert log.entries(1, 101, 1 << 30) == list(entries(1, 7, size=10))
    assert log.entries(first - 3, 101, 1 << 30) == list(entries(first - 3, first - 1, size=10))
    assert log.entries(first, 101, 1 << 30) == list(entries(first, 100, size=10))
    write(logs, LogWrite(log=log, entries=entries(101, 200, size=300)))
    assert len(log.entries(101, 201, 1 << 30)) == 2


def _has(log: GroupLog, low: int, high: int) -> bool:
    """By reading all of it."""
    low = max(low, log.first_index())
    while low < min(high, log.last_index() + 1):
        page = log.entries(low, min(high, log.last_index() + 1), 1 << 30)
        if any(entry.kind == EntryKind.CONF_CHANGE for entry in page):
            return True
        low = page[-1].index + 1
    return False


@pytest.mark.parametrize("seed", range(20))
def test_configuration_changes_are_known_without_reading(seed: int) -> None:
    """Through appends, replaced suffixes, truncation, compaction, snapshots and restarts."""
    rng = random.Random(seed)
    store = MemoryStore()
    logs = opened(store, cache=600)
    log = logs.group(1)
    write(logs, LogWrite(log=log, entries=entries(1, 3), hard_state=HardState(1)))
    for term in range(2, 40):
        what = rng.randrange(6)
        first, last = log.first_index(), log.last_index()
        if what < 3:
            at = rng.randint(first, last + 1) if what == 0 else last + 1
            kinds = [int(rng.random() < 0.3) for _ in range(rng.randint(1, 8))]
            written = tuple(Entry(at + i, term, kind, b"x" * 20) for i, kind in enumerate(kinds))
            write(logs, LogWrite(log=log, entries=written))
        elif what == 3 and last > first:
            write(logs, LogWrite(log=log, truncate_from=rng.randint(first + 1, last)))
        elif what == 4 and last > first:
            at = rng.randint(first, last - 1)
            write(logs, LogWrite(log=log, compact=StartRecord(at, log.term(at))))
        elif rng.random() < 0.2:
            write(logs, LogWrite(log=log, reset=StartRecord(last + 5, term)))
        else:
            logs = opened(store, cache=600)
            log = logs.group(1)
        for _ in range(10):
            low = rng.randint(1, log.last_index() + 2)
            high = rng.randint(low, log.last_index() + 3)
            assert log.has_conf_change(low, high) == _has(log, low, high)


def test_looking_for_a_configuration_change_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    logs = opened(store)
    write(logs, LogWrite(log=logs.group(1), entries=entries(1, 50), hard_state=HardState(1)))
    log = opened(store).group(1)  # nothing of it is in memory
    monkeypatch.setattr(store, "scan", lambda *_: pytest.fail("read the disk"))
    assert not log.has_conf_change(1, 51)


def test_a_configuration_change_that_waits_for_the_disk_is_known_too() -> None:
    store = MemoryStore()
    logs = opened(store)
    write(logs, LogWrite(log=logs.group(1), entries=entries(1, 5), hard_state=HardState(1)))
    log = RaftLog(logs.group(1))
    log.extend(5, (*entries(6, 7), Entry(8, 1, int(EntryKind.CONF_CHANGE), b"")), commit=0)
    assert not log.has_conf_change(1, 8)
    assert log.has_conf_change(1, 9)
    assert log.has_conf_change(8, 9)
    assert not log.has_conf_change(9, 20)
