"""The write-ahead log: a dict that survives crashes, and damage that never passes for data."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from needle.base.errors import CorruptLog, DiskFailed, DiskFull, StorageError, TooManyFiles
from needle.multiraft.log import wal_records
from needle.multiraft.log.wal_files import LogFiles
from needle.multiraft.log.wal_records import RECORD_HEADER, SEGMENT_HEADER
from needle.multiraft.log.wal_store import WalStore

SEGMENT = 1024
Content = dict[bytes, bytes]


def opened(directory: Path, *, salt: Callable[[], int] | None = None) -> WalStore:
    rng = random.Random(5)
    draw = salt or (lambda: rng.getrandbits(64))
    return WalStore(str(directory), salt=draw, segment_bytes=SEGMENT)


def _path(store: WalStore, number: int) -> str:
    return f"{store._directory}/{number:016d}.wal"


def content(store: WalStore) -> Content:
    return dict(store.scan(b"", b"\xff" * 8, 1 << 30))


def put(store: WalStore, **pairs: bytes) -> None:
    def fill(txn) -> None:
        for key, value in pairs.items():
            txn.put(key.encode(), value)

    store.commit(fill, True)


_keys = st.sampled_from([f"group-{g}-{n}".encode() for g in range(2) for n in range(8)] + [b"m", b"group-"])
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _keys, st.binary(max_size=120)),
        st.tuples(st.just("delete"), _keys, st.just(b"")),
        st.tuples(st.just("range"), _keys, _keys),
    ),
    min_size=1,
    max_size=4,
)


def apply_to(model: Content, operations: list[tuple[str, bytes, bytes]]) -> None:
    for kind, key, value in operations:
        if kind == "put":
            model[key] = value
        elif kind == "delete":
            model.pop(key, None)
        else:
            for gone in [k for k in model if key <= k < value]:
                del model[gone]


def commit(store: WalStore, operations: list[tuple[str, bytes, bytes]]) -> None:
    def fill(txn) -> None:
        for kind, key, value in operations:
            if kind == "put":
                txn.put(key, value)
            elif kind == "delete":
                txn.delete(key)
            else:
                txn.delete_range(key, value)
            assert txn.get(key) == (
                value if kind == "put" else None if kind == "delete" or key < value else txn.get(key)
            )

    store.commit(fill, True)


_steps = st.lists(st.one_of(_operations, st.just("reopen"), st.integers(0, 400)), max_size=40)


@given(_steps)
@settings(max_examples=120, deadline=None, suppress_health_check=[*HealthCheck])
def test_it_is_a_dict_that_survives_restarts_and_torn_commits(tmp_path: Path, steps: list) -> None:
    directory = tmp_path / "log"
    shutil.rmtree(directory, ignore_errors=True)
    store, model = opened(directory), {}
    for step in steps:
        if isinstance(step, list):
            commit(store, step)
            apply_to(model, step)
        else:
            if isinstance(step, int):
                _tear_a_commit(store, step)
            store.close()
            store = opened(directory)
        assert content(store) == model
        assert all(store.get(key) == value for key, value in model.items())
    store.close()


def _tear_a_commit(store: WalStore, kept: int) -> None:
    """Leave what a power cut leaves of a commit that never returned: its first `kept` bytes, and no mark."""
    segment = store._segments[-1]
    before = (store._sequence, segment.end)
    image = Path(_path(store, segment.number)).read_bytes()
    mark = Path(store._directory, "mark").read_bytes()
    store._oldest_is_dead = lambda: False  # type: ignore[method-assign]  # what follows a commit that did return
    put(store, torn=b"x" * 200)
    if store._segments[-1] is not segment:
        newer = store._segments[-1]
        whole = Path(_path(store, newer.number)).read_bytes()
        start, at = SEGMENT_HEADER.size, _path(store, newer.number)
    else:
        whole, start, at, newer = (
            Path(_path(store, segment.number)).read_bytes(),
            before[1],
            _path(store, segment.number),
            segment,
        )
        assert whole[:start] == image[:start]
    end = newer.end
    cut = min(start + kept, end - 8)
    Path(at).write_bytes(whole[:cut] + bytes(len(whole) - cut))
    Path(store._directory, "mark").write_bytes(mark)


def test_every_flipped_bit_is_put_right(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    store = opened(origin)
    for n in range(4):
        put(store, **{f"key-{n}": bytes([n]) * 20, "again": b"%d" % n * 9})
    store.commit(lambda txn: txn.delete_range(b"key-0", b"key-1"), True)
    expected, end = content(store), store._segments[-1].end
    store.close()
    for position in range(end):
        bit = position % 8
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(origin, copy)
        file = copy / f"{1:016d}.wal"
        data = bytearray(file.read_bytes())
        data[position] ^= 1 << bit
        file.write_bytes(data)
        store = opened(copy)
        assert content(store) == expected
        store.close()
        padding = store.corrected_bits == 0
        assert padding == (file.read_bytes() == bytes(data))
        assert padding or file.read_bytes() == (origin / file.name).read_bytes()


def test_two_flipped_bits_are_refused_or_seen_in_exactly_the_values_they_hit(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    store = opened(origin)
    for n in range(4):
        put(store, **{f"key-{n}": bytes([n]) * 20, "again": b"%d" % n * 9})
    expected, end = content(store), store._segments[-1].end
    store.close()
    refused = damaged = 0
    for position in range(0, end - 3, 2):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(origin, copy)
        file = copy / f"{1:016d}.wal"
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        data[position + 3] ^= 16
        file.write_bytes(data)
        try:
            store = opened(copy)
        except CorruptLog as error:
            assert "damaged" in error.message
            refused += 1
            continue
        found = content(store)
        store.close()
        changed = [key for key in expected if found.get(key) != expected[key]]
        assert len(changed) <= 2
        assert found.keys() == expected.keys()
        damaged += bool(changed)
    assert refused > 20
    assert damaged > 20


def test_a_commit_with_a_spoilt_value_is_told_of_once_and_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    put(store, before=b"1" * 20)
    put(store, spoilt=b"2" * 20, whole=b"3" * 20, replaced=b"4" * 20)
    put(store, replaced=b"5" * 20)
    at, path = store._index.get(b"spoilt"), Path(_path(store, 1))
    expected = content(store)
    store.close()
    data = bytearray(path.read_bytes())
    data[at.offset] ^= 1
    data[at.offset + 3] ^= 16
    path.write_bytes(data)
    expected[b"spoilt"] = bytes(data[at.offset : at.offset + at.length])
    for told in (1, 0, 0):
        caplog.clear()
        store = opened(tmp_path)
        assert content(store) == expected
        store.close()
        assert caplog.text.count("commit 2 fails its checksum") == told
        assert len(caplog.records) == told


def deleting(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """A log whose last commit writes, and deletes others; its file, and where in it things of that commit stand."""
    store = opened(tmp_path)
    put(store, **{f"old-{n}": b"1" * 20 for n in range(4)}, one=b"1")

    def fill(txn) -> None:
        txn.put(b"spoilt", b"S" * 20)
        txn.delete_range(b"old-0", b"old-2")
        txn.delete(b"one")

    store.commit(fill, True)
    put(store, after=b"3")
    path = Path(_path(store, 1))
    store.close()
    data = path.read_bytes()
    return path, {"value": data.index(b"S" * 20), "end": data.index(b"old-0old-2") + 5, "key": data.rindex(b"one")}


def flip_two(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    data[at + 2] ^= 16
    path.write_bytes(data)


def test_a_spoilt_value_beside_what_its_commit_deletes_is_told_by_its_own_checksum(tmp_path: Path) -> None:
    path, places = deleting(tmp_path)
    flip_two(path, places["value"])
    store = opened(tmp_path)
    found = content(store)
    assert found.pop(b"spoilt") != b"S" * 20
    assert found == {b"old-2": b"1" * 20, b"old-3": b"1" * 20, b"after": b"3"}
    store.close()


@pytest.mark.parametrize("place", ["end", "key"])
def test_what_a_commit_deletes_is_never_guessed(tmp_path: Path, place: str) -> None:
    path, places = deleting(tmp_path)
    flip_two(path, places[place])
    with pytest.raises(CorruptLog, match="commit 2 in segment 1 fails its checksum"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["none", "value", "end"])
def test_a_range_as_earlier_releases_wrote_it_is_believed_with_its_whole_commit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    right = wal_records._operation_hash
    monkeypatch.setattr(wal_records, "_operation_hash", lambda kind, key, length, end: right(kind, key, length, b""))
    path, places = deleting(tmp_path)
    monkeypatch.undo()
    if place == "none":
        assert content(opened(tmp_path)).keys() == {b"old-2", b"old-3", b"spoilt", b"after"}
        return
    flip_two(path, places[place])
    with pytest.raises(CorruptLog, match="commit 2 in segment 1 fails its checksum"):
        opened(tmp_path)


def test_a_spoilt_commit_that_finds_no_room_is_written_anew_at_a_later_start(tmp_path: Path, monkeypatch) -> None:
    store = opened(tmp_path)
    put(store, spoilt=b"2" * 20)
    at, path = store._index.get(b"spoilt"), Path(_path(store, 1))
    store.close()
    data = bytearray(path.read_bytes())
    data[at.offset] ^= 1
    data[at.offset + 3] ^= 16
    path.write_bytes(data)
    write = LogFiles.write

    def full(files: LogFiles, handle: int, record: bytes, offset: int) -> None:
        if offset >= SEGMENT_HEADER.size:
            raise OSError(errno.ENOSPC, "no room")
        write(files, handle, record, offset)

    monkeypatch.setattr(LogFiles, "write", full)
    opened(tmp_path).close()
    monkeypatch.undo()
    for commits in (2, 2):
        store = opened(tmp_path)
        assert store._sequence == commits
        put_back = store._index.get(b"spoilt")
        assert put_back is not None and put_back.offset > at.offset
        store.close()


def test_a_log_that_cannot_be_read_at_its_start_leaves_the_directory(tmp_path: Path, monkeypatch) -> None:
    store = opened(tmp_path)
    put(store, spoilt=b"2" * 20)
    at, path = store._index.get(b"spoilt"), Path(_path(store, 1))
    store.close()
    data = bytearray(path.read_bytes())
    data[at.offset] ^= 1
    data[at.offset + 3] ^= 16
    path.write_bytes(data)
    read = LogFiles.read

    def broken(files: LogFiles, handle: int, size: int, offset: int) -> bytes:
        if size == at.length:
            raise OSError(errno.EIO, "broken")
        return read(files, handle, size, offset)

    monkeypatch.setattr(LogFiles, "read", broken)
    with pytest.raises(DiskFailed):
        opened(tmp_path)
    monkeypatch.undo()
    opened(tmp_path).close()


def test_one_flipped_bit_of_a_large_commit_is_put_right_in_its_framing_and_its_small_values(tmp_path: Path) -> None:
    store = opened(tmp_path / "log")
    put(store, a=b"1" * 300_000, state=b"term and vote", z=b"2" * 300_000)
    put(store, last=b"3")
    expected = content(store)
    store.close()
    file = next(path for path in (tmp_path / "log").glob("*.wal") if path.stat().st_size > 600_000)
    whole = file.read_bytes()
    at = whole.index(b"state")
    for position in (*range(at - 11, at + 18), *range(SEGMENT_HEADER.size + RECORD_HEADER.size)):
        data = bytearray(whole)
        data[position] ^= 4
        file.write_bytes(data)
        store = opened(tmp_path / "log")
        assert content(store) == expected
        assert store.corrected_bits == 1
        store.close()
    data = bytearray(whole)
    data[at - 100] ^= 4
    file.write_bytes(data)
    store = opened(tmp_path / "log")
    assert [key for key, value in content(store).items() if value != expected[key]] == [b"a"]
    store.close()


def test_a_lost_last_commit_that_had_returned_is_damage_not_a_torn_tail(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, a=b"1")
    start = store._segments[-1].end
    put(store, b=b"2")
    store.close()
    file = tmp_path / f"{1:016d}.wal"
    data = bytearray(file.read_bytes())
    data[start : start + RECORD_HEADER.size] = bytes(RECORD_HEADER.size)
    file.write_bytes(data)
    with pytest.raises(CorruptLog, match="commit 2 had returned"):
        opened(tmp_path)


def test_segments_are_recycled_and_the_files_stay_few(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, meta=b"stays" * 4)
    for n in range(400):
        put(store, **{f"entry-{n:06d}": bytes([n % 256]) * 100})
        store.commit(lambda txn, n=n: txn.delete_range(b"entry-", b"entry-%06d" % (n - 3)), True)
    assert len(list(tmp_path.iterdir())) <= 8
    expected = content(store)
    assert expected[b"meta"] == b"stays" * 4
    assert len(expected) == 5
    store.close()
    assert content(opened(tmp_path)) == expected


def test_files_that_people_put_beside_the_segments_are_left_alone(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, a=b"1")
    before = Path(_path(store, 1)).read_bytes()
    store.close()
    foreign = [f"{1:016d} (copy).wal", "1.wal", "copy.wal", "spare-", "spare-parts", "syslog"]
    for name in foreign:
        (tmp_path / name).write_bytes(before)
    store = opened(tmp_path)
    for n in range(40):  # of a second segment, and of a recycled one
        put(store, a=bytes([n]) * 100)
    store.close()
    store = opened(tmp_path)
    assert content(store) == {b"a": bytes([39]) * 100}
    assert not {name for name, _ in store._spares} & set(foreign)
    assert {(tmp_path / name).read_bytes() for name in foreign} == {before}


def test_an_idle_group_does_not_keep_every_later_segment(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for n in range(6):
        put(store, **{f"idle--{n}": b"i" * 120})
    for _ in range(400):
        put(store, **{"busy--": b"b" * 200})
    assert len(content(store)) == 7
    assert len(store._segments) < 20


def test_a_commit_larger_than_a_segment_gets_one_of_its_own(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, small=b"s")
    put(store, large=b"l" * (5 * SEGMENT))
    put(store, after=b"a")
    store.close()
    assert content(opened(tmp_path)) == {b"small": b"s", b"large": b"l" * (5 * SEGMENT), b"after": b"a"}


def test_scan_stops_after_the_pair_that_reaches_the_bound(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, a=b"1" * 10, b=b"2" * 10, c=b"3" * 10)
    assert [key for key, _ in store.scan(b"a", b"z", 12)] == [b"a", b"b"]
    assert [key for key, _ in store.scan(b"b", b"c", 1 << 20)] == [b"b"]


def test_what_is_deleted_is_given_back_without_waiting_for_the_next_segment(tmp_path: Path) -> None:
    store = opened(tmp_path)
    put(store, meta=b"stays")
    for n in range(40):
        put(store, **{f"entry-{n:06d}": bytes([n % 256]) * 400})
    assert store.bytes_used() > 15 * SEGMENT
    for _ in range(20):
        store.commit(lambda txn: txn.delete_range(b"entry-", b"entry-9"), True)
    assert store.bytes_used() <= 3 * SEGMENT
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("spare-")]) <= len(store._segments)
    store.close()
    store = opened(tmp_path)
    assert content(store) == {b"meta": b"stays"}
    assert store.bytes_used() <= 3 * SEGMENT


def test_a_failed_fsync_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    put(store, a=b"1")

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("needle.multiraft.log.wal_files._sync", broken)
        with pytest.raises(DiskFailed, match="Input/output error"):
            put(store, b=b"2")
    with pytest.raises(DiskFailed):
        put(store, c=b"3")
    assert content(store) == {b"a": b"1"}


def test_what_fill_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    store = opened(tmp_path)

    def fill(txn) -> None:
        txn.put(b"a", b"1")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.commit(fill, True)
    assert content(store) == {}
    put(store, b=b"2")
    assert content(store) == {b"b": b"2"}


def test_commits_of_several_threads_come_one_after_another(tmp_path: Path) -> None:
    """A shard that is opened writes its first records on the event loop, while the log's thread writes for others."""
    threads, commits = 4, 25
    store, start = opened(tmp_path), threading.Barrier(threads)

    def work(name: int) -> None:
        start.wait()
        for n in range(commits):
            put(store, **{f"{name}-{n}": bytes(50 * name + n)})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    store.close()
    store = opened(tmp_path)
    assert content(store) == {
        f"{name}-{n}".encode(): bytes(50 * name + n) for name in range(threads) for n in range(commits)
    }
    store.close()


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StorageError, match="another process"):
        opened(tmp_path)
    store.close()
    opened(tmp_path).close()


def test_bytes_that_a_client_chose_cannot_pass_for_a_record(tmp_path: Path) -> None:
    first = opened(tmp_path / "a", salt=lambda: 1)
    put(first, victim=b"old")
    put(first, victim=b"forged")
    forged = Path(_path(first, 1)).read_bytes()[SEGMENT_HEADER.size : first._segments[-1].end]
    first.close()
    store = opened(tmp_path / "b", salt=lambda: 2)
    put(store, value=forged)
    expected = content(store)
    _tear_a_commit(store, 0)
    store.close()
    assert content(opened(tmp_path / "b")) == expected


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EMFILE, TooManyFiles)]
)
def test_a_segment_that_finds_no_room_is_begun_later(tmp_path, monkeypatch, number, error):
    store = opened(tmp_path)
    put(store, a=b"x" * 100)
    files = sorted(path.name for path in tmp_path.iterdir())

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(LogFiles, "open" if number == errno.EMFILE else "allocate", fails)
    for _ in range(2):
        with pytest.raises(error):
            put(store, b=b"y" * SEGMENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    put(store, c=b"small ones still fit")
    monkeypatch.undo()
    put(store, b=b"y" * SEGMENT)
    expected = {b"a": b"x" * 100, b"b": b"y" * SEGMENT, b"c": b"small ones still fit"}
    assert content(store) == expected
    store.close()
    again = opened(tmp_path)
    assert content(again) == expected
    again.close()


@pytest.mark.parametrize("call", ["rename", "remove"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_names_that_find_no_room_are_changed_later(tmp_path, monkeypatch, call, number):
    """Some file systems need room to rename or delete: then old segments stay, and what was written counts."""
    store = opened(tmp_path)
    inner, refused = getattr(LogFiles, call), 0

    def fails(files: LogFiles, *names: str) -> None:
        nonlocal refused
        if full:
            refused += 1
            raise OSError(number, os.strerror(number))
        inner(files, *names)

    monkeypatch.setattr(LogFiles, call, fails)
    expected: Content = {}
    for step in range(60):
        full, key = step % 20 >= 10, str(step % 3)
        while True:
            try:
                put(store, **{key: b"%d" % step * 400})
                break
            except DiskFull:
                full = False
        expected[key.encode()] = b"%d" % step * 400
    assert refused
    assert content(store) == expected
    store.close()
    full = False
    again = opened(tmp_path)
    assert content(again) == expected
    for _ in range(5):
        put(again, a=b"y" * 900)
    assert len(list(tmp_path.iterdir())) < 12, "what had to stay is gone"
    assert content(again) == {**expected, b"a": b"y" * 900}
    again.close()


def test_a_record_that_finds_no_room_is_written_later(tmp_path, monkeypatch):
    """Where blocks are not reserved by allocating them: file systems that copy on write."""
    store = opened(tmp_path)
    put(store, a=b"x" * 100)
    inner = LogFiles.write

    def half(files: LogFiles, handle: int, data: bytes, offset: int) -> None:
        inner(files, handle, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LogFiles, "write", half)
    for value in (b"y" * 100, b"z" * SEGMENT):
        with pytest.raises(DiskFull):
            put(store, b=value)
    monkeypatch.undo()
    put(store, b=b"y" * 100)
    put(store, c=b"z" * SEGMENT)
    expected = {b"a": b"x" * 100, b"b": b"y" * 100, b"c": b"z" * SEGMENT}
    assert content(store) == expected
    store.close()
    again = opened(tmp_path)
    assert content(again) == expected
    again.close()


def test_a_segment_that_is_begun_with_the_last_file_handle_is_no_broken_disk(tmp_path):
    """The last handle goes to the new segment; syncing the directory then needs none."""
    store = opened(tmp_path)
    put(store, a=b"x" * 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)  # the lowest free number: the segment gets it
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, hard))
    try:
        put(store, b=b"y" * SEGMENT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    put(store, c=b"z")
    assert content(store) == {b"a": b"x" * 100, b"b": b"y" * SEGMENT, b"c": b"z"}
    store.close()


COMMIT = """
import os, sys
told, real = [], os.fdatasync
os.fdatasync = lambda handle: (told.append(os.fstat(handle).st_ino), real(handle))[1]
from needle.multiraft.log.wal_store import WalStore
store = WalStore(sys.argv[1], salt=lambda: 7, segment_bytes=1 << 16)
told.clear()
store.commit(lambda txn: txn.put(b"k", b"v"), True)
(log,) = [name for name in os.listdir(sys.argv[1]) if name.endswith(".wal")]
assert os.stat(os.path.join(sys.argv[1], log)).st_ino in told, "a commit has returned and its file was not synced"
"""


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="the system has another name for it")
def test_a_commit_has_reached_the_disk_when_it_returns(tmp_path: Path) -> None:
    """In a process of its own: the system's call is taken when the module is loaded."""
    found = subprocess.run([sys.executable, "-c", COMMIT, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
