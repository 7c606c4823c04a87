"""The simulated disk promises what fsync promises, and no more."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest

from needle.base.errors import DiskFailed
from proof.sim.disk import DiskDevice, LogDisk, SimStore
from proof.sim.log_files import PLACES
from proof.sim.process import Killed, Process
from proof.sim.sqlite_crash import survive


def put(**pairs):
    return lambda txn: [txn.put(key.encode(), value) for key, value in pairs.items()]


@pytest.fixture
def disk():
    return LogDisk(random.Random(3))


@pytest.fixture
def store(disk):
    return SimStore(disk, Process("n", 1))


def test_synced_commits_survive_a_power_cut_and_carry_earlier_ones(disk, store):
    store.commit(put(a=b"1"), sync=False)
    store.commit(put(b=b"2"), sync=True)
    disk.power_cut()
    assert store.scan(b"", b"z", 1 << 20) == [(b"a", b"1"), (b"b", b"2")]


def test_unsynced_commits_survive_a_power_cut_as_a_prefix_only():
    survivors = set()
    for seed in range(40):
        disk = LogDisk(random.Random(seed))
        store = SimStore(disk, Process("n", 1))
        for n in range(5):
            store.commit(lambda txn, n=n: [txn.put(b"x%d" % n, b"1"), txn.put(b"y%d" % n, b"1")], sync=False)
        disk.power_cut()
        keys = [key for key, _ in store.scan(b"", b"z", 1 << 20)]
        count = len(keys) // 2
        assert keys == [b"x%d" % n for n in range(count)] + [b"y%d" % n for n in range(count)]
        survivors.add(count)
    assert survivors == {0, 1, 2, 3, 4, 5}


def test_a_process_crash_loses_nothing_written(disk, store):
    store.commit(put(a=b"1"), sync=False)
    disk.process_crash()
    disk.power_cut()
    assert store.get(b"a") == b"1"


def test_a_failing_fill_changes_nothing(store):
    def fill(txn):
        txn.put(b"a", b"1")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        store.commit(fill, sync=True)
    assert store.get(b"a") is None


def test_a_transaction_sees_and_deletes_its_own_writes(store):
    store.commit(put(a=b"1", b=b"2", c=b"3"), sync=True)

    def fill(txn):
        txn.put(b"bb", b"x")
        assert txn.get(b"bb") == b"x"
        txn.delete_range(b"b", b"c")
        assert txn.get(b"bb") is None
        assert txn.get(b"b") is None
        txn.put(b"b", b"new")

    store.commit(fill, sync=True)
    assert store.scan(b"", b"z", 1 << 20) == [(b"a", b"1"), (b"b", b"new"), (b"c", b"3")]


def test_scan_stops_after_the_pair_that_reaches_the_limit(store):
    store.commit(put(a=b"123", b=b"123", c=b"123"), sync=True)
    assert [key for key, _ in store.scan(b"", b"z", 5)] == [b"a", b"b"]
    assert [key for key, _ in store.scan(b"b", b"c", 100)] == [b"b"]


def test_a_failing_disk_raises_and_commits_nothing(disk, store):
    disk.fail_commits = "EIO"
    with pytest.raises(DiskFailed, match="EIO"):
        store.commit(put(a=b"1"), sync=True)
    disk.fail_commits = ""
    assert store.get(b"a") is None


def test_a_dead_process_cannot_write(disk):
    process = Process("n", 1)
    store = SimStore(disk, process)
    process.alive = False
    with pytest.raises(Killed):
        store.commit(put(a=b"1"), sync=True)
    assert disk.live.values == {}


def test_rot_flips_one_bit(disk, store):
    store.commit(put(a=b"\x00" * 8, b=b"\x00" * 8), sync=True)
    before = {name: bytes(file.live) for name, file in disk.files.names.items()}
    assert disk.rot().startswith("bit ")
    after = {name: bytes(file.live) for name, file in disk.files.names.items()}
    differ = [(x ^ y).bit_count() for name in before for x, y in zip(before[name], after[name], strict=True) if x != y]
    assert differ == [1]
    disk.power_cut()
    assert {name: bytes(file.live) for name, file in disk.files.names.items()}.items() >= {
        name: content for name, content in after.items() if name.endswith(".wal")
    }.items()


def _lost_while(seed: int, place: str, commits: int) -> tuple[LogDisk, int]:
    """A disk whose power goes at a step on the log's files, in the commit with number `commits` or later; and how many
    had returned."""
    disk = LogDisk(random.Random(seed))
    process, returned = Process("n", 1), 0

    def reached(at: str) -> None:
        if at == place and returned >= commits:
            raise Killed(at)

    try:
        store = SimStore(disk, process, reached)
        for returned in range(400):
            store.commit(lambda txn: _entry(txn, returned), sync=True)  # noqa: B023 - it is called at once
    except Killed:
        disk.power_cut()
    return disk, returned


def _entry(txn, number):
    """What a Raft log does: entries come, and old ones go."""
    txn.put(b"entry-%06d" % number, bytes([number % 256]) * 300)
    txn.put(b"state", b"%d" % number)
    txn.delete_range(b"entry-", b"entry-%06d" % (number - 20))


@pytest.mark.parametrize("place", PLACES)
def test_power_lost_at_any_step_on_the_logs_files_leaves_a_log_that_opens_and_holds_what_returned(place):
    met = set()
    for seed in range(40):
        disk, returned = _lost_while(seed, place, 5 * seed)
        store = SimStore(disk, Process("n", 2))  # compares with what was committed
        assert store.get(b"state") in (b"%d" % (returned - 1), b"%d" % returned, None if returned == 0 else b"")
        met.add(returned)
        store.commit(lambda txn: txn.put(b"after", b"1"), sync=True)
        disk.power_cut()
        assert SimStore(disk, Process("n", 3)).get(b"after") == b"1"
    assert len(met) > 3


@pytest.mark.parametrize("seed", range(8))
def test_a_commit_that_a_dead_process_left_unflushed_counts_only_once_it_is_flushed(seed):
    disk, armed = LogDisk(random.Random(seed)), False

    def reached(place):
        if armed and place == "log-files.flush":
            raise Killed(place)

    store = SimStore(disk, Process("n", 1), reached)
    store.commit(put(a=b"1"), sync=True)
    armed = True
    with pytest.raises(Killed):
        store.commit(put(b=b"2"), sync=True)
    disk.process_crash()
    assert SimStore(disk, Process("n", 2)).get(b"b") == b"2"
    disk.power_cut()
    assert SimStore(disk, Process("n", 3)).get(b"b") == b"2"


def test_a_stalled_device_holds_calls_until_release():
    device = DiskDevice(random.Random(1))
    seen = []
    assert not device.hold(lambda: seen.append(1))
    device.stalled = True
    assert device.hold(lambda: seen.append(2))
    device.release()
    assert seen == [2]
    assert all(part >= 0 for part in device.latency())


def rows(path):
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


def test_a_power_cut_leaves_a_prefix_of_transactions_behind_the_last_checkpoint(tmp_path):
    source = tmp_path / "live"
    source.mkdir()
    connection = sqlite3.connect(source / "d.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE t (n INTEGER, pad BLOB)")
    for n in range(10):
        connection.execute("INSERT INTO t VALUES (?, ?)", (n, b"x" * 3000))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    synced = {"d.sqlite-wal": (source / "d.sqlite-wal").stat().st_size}
    for n in range(10, 30):
        connection.execute("INSERT INTO t VALUES (?, ?)", (n, b"x" * 3000))
    counts = set()
    for seed in range(30):
        target = tmp_path / "survived"
        survive(str(source), str(target), random.Random(seed), power_cut=True, synced=synced)
        survivors = rows(target / "d.sqlite")
        assert survivors == list(range(len(survivors)))
        counts.add(len(survivors))
        shutil.rmtree(target)
    assert min(counts) >= 10
    assert len(counts) > 3
    survive(str(source), str(tmp_path / "all"), random.Random(0), power_cut=False, synced={})
    assert rows(tmp_path / "all" / "d.sqlite") == list(range(30))
    connection.close()


def test_a_power_cut_right_after_a_passive_checkpoint_loses_nothing_checkpointed(tmp_path):
    source = tmp_path / "live"
    source.mkdir()
    connection = sqlite3.connect(source / "d.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n INTEGER)")
    for n in range(5):
        connection.execute("INSERT INTO t VALUES (?)", (n,))
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    synced = {"d.sqlite-wal": (source / "d.sqlite-wal").stat().st_size}
    assert survive(str(source), str(tmp_path / "after"), random.Random(1), power_cut=True, synced=synced) == 0
    assert rows(tmp_path / "after" / "d.sqlite") == list(range(5))
    connection.close()
