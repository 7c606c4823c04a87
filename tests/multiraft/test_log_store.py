"""The durable log: round trips, damage of every kind, and a model."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from multiraft.wal_util import open_wal
from needle.base.errors import CorruptLog, DiskFailed, StorageError, UnsupportedFormat
from needle.multiraft.log.group_log import LogWrite
from needle.multiraft.log.log_records import (
    BOOTSTRAP,
    GIVEN_UP,
    HARD,
    META_KEY,
    PENDING,
    REPAIR,
    START,
    PendingInstall,
    RepairRecord,
    StartRecord,
    decode_record,
    encode_record,
    entry_key,
    record_key,
)
from needle.multiraft.log.log_store import GARBAGE_PER_WRITE, LogStore
from needle.multiraft.log.wal_store import WalStore
from needle.raft.messages import ConfState, Entry, HardState, SnapshotMeta


class MemoryStore:
    """An ordered key-value store in memory."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.commits = 0

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(self, start: bytes, end: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
        found, size = [], 0
        for key in sorted(key for key in self.data if start <= key < end):
            found.append((key, self.data[key]))
            size += len(key) + len(self.data[key])
            if size >= bytes_max:
                break
        return found

    def commit(self, fill, sync: bool) -> None:  # type: ignore[no-untyped-def]
        kept = dict(self.data)
        try:
            fill(self)
        except BaseException:
            self.data = kept
            raise
        self.commits += 1

    def put(self, key: bytes, value: bytes) -> None:
        self.data[key] = value

    def delete(self, key: bytes) -> None:
        self.data.pop(key, None)

    def delete_range(self, start: bytes, end: bytes) -> None:
        for key in [key for key in self.data if start <= key < end]:
            del self.data[key]

    def close(self) -> None:
        pass


def opened(
    store: MemoryStore | WalStore, *, node_id: str = "n1", cluster_id: str = "c", cache: int = 1 << 20
) -> LogStore:
    return LogStore(
        store, node_id=node_id, cluster_id=cluster_id, draw=iter(range(1, 99)).__next__, cache_bytes_max=cache
    )


def write(logs: LogStore, *writes: LogWrite) -> None:
    logs.write(writes)
    logs.note(writes)


def entries(first: int, last: int, term: int = 1, size: int = 10) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, 0, bytes([index % 251]) * size) for index in range(first, last + 1))


def filled(last: int = 9, groups: int = 1) -> MemoryStore:
    store = MemoryStore()
    logs = opened(store)
    for group in range(groups):
        write(logs, LogWrite(log=logs.group(group), entries=entries(1, last), hard_state=HardState(1, "n2", 3)))
    return store


@pytest.fixture(params=["memory", "wal"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[object]:
    made: list[WalStore] = []
    memory = MemoryStore()

    def make() -> MemoryStore | WalStore:
        if request.param == "memory":
            return memory
        for store in made:
            store.close()
        made.append(open_wal(str(tmp_path / "log")))
        return made[-1]

    yield make
    for store in made:
        store.close()


def test_round_trip_over_a_restart(make_store) -> None:  # type: ignore[no-untyped-def]
    logs = opened(make_store())
    conf = ConfState(voters=("n1", "n2"))
    meta = SnapshotMeta(5, 1, conf, b"d")
    for group in (0, 7, 2**31):
        log = logs.group(group)
        write(
            logs,
            LogWrite(log=log, entries=entries(1, 20), hard_state=HardState(3, "n2", 4), bootstrap=conf),
            LogWrite(log=log, pending=PendingInstall(meta, "/x"), repair=RepairRecord(2, 20, "why")),
        )
        write(logs, LogWrite(log=log, entries=entries(15, 18, term=3)))
    again = opened(make_store())
    assert again.groups() == [0, 7, 2**31]
    for group in again.groups():
        log = again.group(group)
        assert (log.first_index(), log.last_index(), log.damage) == (1, 18, None)
        assert log.entries(1, 19, 1 << 20) == [*entries(1, 14), *entries(15, 18, term=3)]
        assert [log.term(index) for index in (0, 1, 14, 15)] == [0, 1, 1, 3]
        assert (log.hard_state, log.bootstrap) == (HardState(3, "n2", 4), conf)
        assert (log.pending, log.repair) == (PendingInstall(meta, "/x"), RepairRecord(2, 20, "why"))
        write(again, LogWrite(log=log, pending=False, repair=False))
        assert (log.pending, log.repair) == (None, None)
    third = opened(make_store())
    assert third.group(7).pending is None
    assert third.group(7).repair is None


def test_a_note_of_what_was_given_up_is_read_or_passed_over(make_store) -> None:  # type: ignore[no-untyped-def]
    """These read the record as a configuration, and what a founder writes is what they wrote."""
    logs, key = opened(make_store()), record_key(3, BOOTSTRAP)
    log, conf = logs.group(3), ConfState(voters=("n1",))
    write(logs, LogWrite(log=log, hard_state=HardState(3), bootstrap=conf, repair=RepairRecord(2, 20, "why", True)))
    assert not log.given_up
    assert make_store().get(key) == encode_record(key, conf)
    logs = opened(make_store())
    assert logs.group(3).repair == RepairRecord(2, 20, "why", returned=True)
    write(logs, LogWrite(log=logs.group(3), bootstrap=GIVEN_UP))
    store = make_store()
    stored = store.get(key)
    assert stored is not None and decode_record(key, stored, ConfState) == ConfState()
    logs = opened(store)
    log = logs.group(3)
    assert log.given_up and log.bootstrap == ConfState()
    write(logs, LogWrite(log=log, bootstrap=ConfState()))
    assert not log.given_up and not opened(make_store()).group(3).given_up


def test_reads_are_bounded_and_refuse_what_is_not_there(make_store) -> None:  # type: ignore[no-untyped-def]
    logs = opened(make_store(), cache=400)
    log = logs.group(1)
    write(logs, LogWrite(log=log, entries=entries(1, 50, size=20), hard_state=HardState(1)))
    for low in (1, 30, 49):
        assert log.entries(low, 51, 1)[0] == entries(low, low, size=20)[0]
        found = log.entries(low, 51, 65)
        assert found == list(entries(low, low + len(found) - 1, size=20))
        assert 1 <= len(found) <= 3
    assert log.entries(5, 5, 10) == []
    for low, high in ((0, 3), (50, 52), (60, 61)):
        with pytest.raises(KeyError):
            log.entries(low, high, 100)
    for index in (51, -1):
        with pytest.raises(KeyError):
            log.term(index)


def test_compaction_deletes_in_pieces_and_survives_a_restart(make_store) -> None:  # type: ignore[no-untyped-def]
    store = make_store()
    logs = opened(store)
    log = logs.group(1)
    write(logs, LogWrite(log=log, entries=entries(1, 1300), hard_state=HardState(1)))
    write(logs, LogWrite(log=log, compact=StartRecord(1250, 1)))
    assert (log.first_index(), log.last_index(), log.term(1250)) == (1251, 1300, 1)
    with pytest.raises(KeyError):
        log.entries(1250, 1252, 100)
    write(logs, LogWrite(log=log, hard_state=HardState(2)))
    left = len(store.scan(entry_key(1, 0), log.range_end(), 1 << 30))
    assert left == 1300 - GARBAGE_PER_WRITE + 1
    logs = opened(make_store())
    log = logs.group(1)
    assert (log.first_index(), log.last_index(), log.damage) == (1251, 1300, None)
    for _ in range(4):
        write(logs, LogWrite(log=log, hard_state=HardState(2)))
    assert len(logs._store.scan(entry_key(1, 0), log.range_end(), 1 << 30)) == 50
    write(logs, LogWrite(log=log, reset=StartRecord(9000, 4), entries=entries(9001, 9002, term=4)))
    assert opened(make_store()).group(1).entries(9001, 9003, 100) == list(entries(9001, 9002, term=4))


@pytest.mark.parametrize("byte", [0, 5, 12, -1])
def test_a_flipped_bit_in_the_middle_is_told_from_a_torn_tail(byte: int) -> None:
    for index, in_tail in ((4, False), (9, True)):
        store = filled()
        key = entry_key(0, index)
        value = bytearray(store.data[key])
        value[byte] ^= 4
        store.data[key] = bytes(value)
        log = opened(store).group(0)
        assert log.damage is not None
        assert (log.damage.first_bad, log.damage.last_bad, log.damage.last_seen) == (index, index, 9)
        assert log.damage.in_tail is in_tail
        assert f"the catalog: entry {index}" in log.damage.reason
        assert log.last_index() == index - 1


def test_torn_and_missing_entries_are_found() -> None:
    store = filled()
    store.data[entry_key(0, 8)] = store.data[entry_key(0, 8)][:9]
    del store.data[entry_key(0, 9)]
    damage = opened(store).group(0).damage
    assert damage is not None
    assert (damage.first_bad, damage.in_tail) == (8, True)
    store = filled()
    del store.data[entry_key(0, 4)]
    damage = opened(store).group(0).damage
    assert damage is not None
    assert (damage.first_bad, damage.last_bad, damage.in_tail) == (4, 4, False)
    assert "entry 4 is missing" in damage.reason
    store = filled()
    for index in range(2, 10):  # committed up to 3, but only 1 is there
        del store.data[entry_key(0, index)]
    damage = opened(store).group(0).damage
    assert damage is not None
    assert (damage.first_bad, damage.last_bad) == (2, 3)


def test_an_entry_under_another_key_is_corrupt() -> None:
    store = filled(groups=2)
    store.data[entry_key(0, 5)] = store.data[entry_key(1, 5)]
    logs = opened(store)
    assert logs.group(0).damage is not None
    assert logs.group(1).damage is None


def test_a_corrupt_entry_read_later_is_reported_by_name() -> None:
    store = filled()
    log = opened(store).group(0)
    store.data[entry_key(0, 4)] = b"x" * 30
    with pytest.raises(CorruptLog, match="the catalog: entry 4 fails its checksum") as raised:
        log.entries(4, 6, 100)
    assert raised.value.details == {"group": 0, "record": "entry", "index": 4}


@pytest.mark.parametrize(("kind", "name"), [(BOOTSTRAP, "bootstrap"), (PENDING, "pending"), (REPAIR, "repair")])
def test_a_flipped_bit_in_a_record_is_refused_by_name(kind: bytes, name: str) -> None:
    store = filled()
    logs = opened(store)
    meta = SnapshotMeta(5, 1, ConfState(), b"d")
    whole = LogWrite(
        log=logs.group(0),
        bootstrap=ConfState(("n1",)),
        pending=PendingInstall(meta, "/x"),
        repair=RepairRecord(1, 2, ""),
    )
    write(logs, whole)
    key = record_key(0, kind)
    store.data[key] = bytes([store.data[key][0] ^ 1]) + store.data[key][1:]
    with pytest.raises(CorruptLog, match=f"the catalog: {name}.*new node id"):
        opened(store)


def test_a_lost_hard_state_is_refused_with_a_remedy() -> None:
    store = filled()
    key = record_key(0, HARD)
    value = store.data[key]
    store.data[key] = value[:-1] + bytes([value[-1] ^ 1])
    with pytest.raises(CorruptLog, match=r"HardState fails its checksum.*new node id"):
        opened(store)
    del store.data[key]
    with pytest.raises(CorruptLog, match="HardState is missing"):
        opened(store)


def test_a_corrupt_log_start_is_damage() -> None:
    store = filled()
    logs = opened(store)
    write(logs, LogWrite(log=logs.group(0), compact=StartRecord(3, 1)))
    key = record_key(0, START)
    store.data[key] = store.data[key][:-1] + b"\x07"
    log = opened(store).group(0)
    assert log.damage is not None
    assert log.damage.last_bad == 9
    assert "log start" in log.damage.reason


def test_another_nodes_directory_is_refused_by_name() -> None:
    store = filled()
    with pytest.raises(UnsupportedFormat, match="node_id 'n1'; this node has 'n2'"):
        opened(store, node_id="n2")
    with pytest.raises(UnsupportedFormat, match="cluster_id 'c'; this node has 'other'"):
        opened(store, cluster_id="other")
    body = store.data[META_KEY][4:].replace(b"\x01", b"\x02", 1)
    store.data[META_KEY] = zlib.crc32(body, zlib.crc32(META_KEY)).to_bytes(4, "little") + body
    with pytest.raises(UnsupportedFormat, match="format_version 2"):
        opened(store)
    store.data[META_KEY] = b"\0" * 8
    with pytest.raises(CorruptLog):
        opened(store)
    del store.data[META_KEY]
    with pytest.raises(CorruptLog, match="missing"):
        opened(store)


def test_many_groups_are_one_commit() -> None:
    store = MemoryStore()
    logs = opened(store)
    before = store.commits
    write(logs, *(LogWrite(log=logs.group(g), entries=entries(1, 3), hard_state=HardState(1)) for g in range(50)))
    assert store.commits == before + 1


def test_the_directory_is_locked_and_errors_are_translated(tmp_path: Path) -> None:
    store = open_wal(str(tmp_path / "log"))
    with pytest.raises(StorageError, match="another process"):
        open_wal(str(tmp_path / "log"))
    store.close()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFailed):
        open_wal(str(tmp_path / "file"))


_STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 40)),
    st.tuples(st.just("rewrite"), st.integers(1, 12), st.integers(1, 4)),
    st.tuples(st.just("truncate"), st.integers(1, 12), st.just(0)),
    st.tuples(st.just("compact"), st.integers(0, 12), st.just(0)),
    st.tuples(st.just("reset"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("reopen"), st.just(0), st.just(0)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(steps=[("reset", 0, 0), ("reopen", 0, 0)], cache=1)
@given(steps=st.lists(_STEP, max_size=25), cache=st.sampled_from([1, 200, 1 << 20]))
def test_the_log_equals_a_dict(steps: list[tuple[str, int, int]], cache: int) -> None:
    store = MemoryStore()
    logs = opened(store, cache=cache)
    write(logs, LogWrite(log=logs.group(1), hard_state=HardState(1)))
    model: dict[int, Entry] = {}
    start = StartRecord(0, 0)
    term = 1
    for what, a, b in steps:
        term += 1
        log = logs.group(1)
        last = max(model, default=start.index)
        if what == "append":
            new = entries(last + 1, last + a, term, size=b)
            write(logs, LogWrite(log=log, entries=new))
            model.update({entry.index: entry for entry in new})
        elif what in ("rewrite", "truncate") and a <= last - start.index:
            first = last - a + 1
            model = {index: entry for index, entry in model.items() if index < first}
            new = entries(first, first + b - 1, term) if what == "rewrite" else ()
            write(logs, LogWrite(log=log, entries=new, truncate_from=0 if new else first))
            model.update({entry.index: entry for entry in new})
        elif what == "compact" and start.index < last - a:
            start = StartRecord(last - a, model[last - a].term)
            write(logs, LogWrite(log=log, compact=start))
            model = {index: entry for index, entry in model.items() if index > start.index}
        elif what == "reset":
            start = StartRecord(last + a, term)
            write(logs, LogWrite(log=log, reset=start))
            model = {}
        elif what == "reopen":
            logs = opened(store, cache=cache)
        log = logs.group(1)
        last = max(model, default=start.index)
        assert (log.damage, log.first_index(), log.last_index()) == (None, start.index + 1, last)
        assert log.term(start.index) == start.term
        read: list[Entry] = []
        while len(read) < len(model):
            read.extend(log.entries(start.index + 1 + len(read), last + 1, 50))
        assert read == [model[index] for index in sorted(model)]
        assert all(log.term(index) == entry.term for index, entry in model.items())
