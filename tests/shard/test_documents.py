"""The SQLite file: durability of checkpoints, damage, full disks, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from needle.base.errors import (
    DiskFailed,
    DiskFull,
    NeedleError,
    ReplicaDamaged,
    StorageError,
    TooManyFiles,
    UnsupportedFormat,
)
from needle.base.model import SearchRequest
from needle.protocol.commands import CreateCollection
from needle.shard.disk import REAL_DISK, ReplicaDisk, disk_errors
from needle.shard.documents.sqlite_file import connect
from needle.shard.state_machine import Replica
from proof.sim.power import cut_power
from shard.replica_util import Log, floats, open_replica, put, spec


def filled(directory: Path, commit: int = 1024) -> tuple[Replica, Log]:
    replica, log = open_replica(directory, commit=commit), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 2, 3], [4, 5, 6]])))
    return replica, log


def database(directory: Path) -> Path:
    return directory / "state-1" / "documents.db"


def test_a_checkpoint_survives_the_loss_of_the_whole_wal(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    assert replica.checkpoint() == 2
    assert Path(f"{database(tmp_path)}-wal").stat().st_size == 0
    digest = replica.digest()
    replica.apply(log.add(put(["c"], [[1, 1, 1]])))
    cut_power(str(tmp_path), replica.close, lambda _: 0)
    replica = open_replica(tmp_path)
    assert replica.applied_index() == 2 and replica.digest() == digest
    replica.verify()


def test_without_a_checkpoint_a_power_loss_takes_whole_batches(tmp_path: Path) -> None:
    replica, log = filled(tmp_path, commit=1)
    replica.checkpoint()
    replica.apply(log.add(put(["c"], [[1, 1, 1]])))
    sizes: list[int] = []
    replica.apply(log.add(put(["d"], [[1, 1, 1]])))

    def nearly_all(size: int) -> int:
        sizes.append(size)
        return size - 1

    cut_power(str(tmp_path), replica.close, nearly_all)
    replica = open_replica(tmp_path)
    assert sizes and sizes[0] > 0 and replica.applied_index() == 3
    assert [d.id for d in replica.get("c", ["c", "d"], False)] == ["c"]


class CountedSyncs(apsw.VFS):
    """SQLite's way to files while it lasts: tells which were synced, by their names."""

    def __init__(self) -> None:
        super().__init__("counted-syncs", "unix", makedefault=True)
        self.synced: list[str] = []

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        synced = self.synced

        class File(apsw.VFSFile):
            def xSync(self, flags: int) -> None:
                synced.append(os.path.basename(path))
                super().xSync(flags)

        return File("unix", name, flags)

    def close(self) -> None:
        """SQLite opens files as before."""
        self.unregister()


def test_sqlite_syncs_at_a_checkpoint_the_log_first(tmp_path: Path) -> None:
    """The simulation's power cuts go by that."""
    with closing(CountedSyncs()) as counted, closing(open_replica(tmp_path, commit=1)) as replica:
        log = Log()
        replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]])))
        counted.synced.clear()
        replica.apply(log.add(put(["b"], [[1, 2, 3]])))
        assert counted.synced == [], "the Raft log brings it back"
        replica.checkpoint()
        database_synced = counted.synced.index("documents.db")
        assert "documents.db-wal" in counted.synced[:database_synced]


def test_a_checkpoint_during_a_long_read_is_durable_and_loses_nothing(tmp_path: Path) -> None:
    synced: list[str] = []

    class Recording(ReplicaDisk):
        def sync(self, path: str) -> None:
            synced.append(Path(path).name)
            super().sync(path)

    replica, log = filled(tmp_path)
    replica.close()
    store_path = database(tmp_path)
    replica = open_replica(tmp_path)
    replica._store.writer._disk = Recording()
    replica._store.writer._connection.execute("PRAGMA busy_timeout=1")
    reader = connect(str(store_path))
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM meta").fetchall()
    replica.apply(log.add(put(["c"], [[1, 1, 1]])))
    assert replica.checkpoint() == 3
    assert "documents.db-wal" in synced
    reader.close()


@pytest.mark.parametrize("damage", ["header", "page"])
def test_a_damaged_file_is_found_when_it_is_opened(tmp_path: Path, damage: str) -> None:
    replica, _ = filled(tmp_path)
    replica.checkpoint()
    replica.close()
    data = bytearray(database(tmp_path).read_bytes())
    start, end = (0, 100) if damage == "header" else (16384, len(data))
    data[start:end] = b"\xa5" * (end - start)
    database(tmp_path).write_bytes(data)
    replica = open_replica(tmp_path)
    assert replica.damage is not None and "documents.db" in replica.damage.message
    with pytest.raises(ReplicaDamaged):
        replica.search(SearchRequest(collection="c", vector=floats([1, 2, 3]), k=1))


def test_what_a_full_disk_did_not_take_comes_from_the_log_after_a_restart(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.save()
    before = replica.digest()
    pages = replica._store.writer._connection.execute("PRAGMA page_count").fetchone()[0]
    replica._store.writer._connection.execute(f"PRAGMA max_page_count={pages}")
    replica.apply(log.add(put([f"x{at}" for at in range(5000)], [[1, 2, 3]] * 5000)))
    with pytest.raises(DiskFull, match="no space left"):
        replica.checkpoint()
    replica.close()
    replica = open_replica(tmp_path)
    assert replica.applied_index() == 2 and replica.digest() == before
    replica.apply(log.entries)
    assert replica.count() == 5002


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    replica.close()
    with closing(connect(str(database(tmp_path)))) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    with pytest.raises(UnsupportedFormat, match="99"):
        open_replica(tmp_path)


def test_a_directory_that_cannot_be_made_is_a_disk_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskFailed):
        open_replica(tmp_path / "file" / "r")


@pytest.mark.parametrize("column", ["metadata", "vector", "version"])
def test_verify_finds_a_changed_row(tmp_path: Path, column: str) -> None:
    replica, _ = filled(tmp_path)
    replica.close()
    table, value = ("vectors", b"\0" * 12) if column == "vector" else ("documents", b"5" if column == "metadata" else 7)
    with closing(connect(str(database(tmp_path)))) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE row = 1 << 40", (value,))
    with pytest.raises(StorageError):
        open_replica(tmp_path).verify()


def test_verify_finds_a_document_that_the_sums_do_not_know(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    replica.close()
    with closing(connect(str(database(tmp_path)))) as connection:
        connection.execute("DELETE FROM ids WHERE id = 'a'")
    replica = open_replica(tmp_path)
    assert replica.damage is not None and "disagree" in replica.damage.message


def test_close_is_idempotent_and_later_calls_say_so(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.close()
    replica.close()
    with pytest.raises(StorageError, match="closed"):
        replica.apply(log.add(None))
    with pytest.raises(StorageError, match="closed"):
        replica.get("c", ["a"], False)


def test_of_documents_with_one_id_in_an_entry_the_last_is_applied_alone(tmp_path: Path) -> None:
    twice, once = open_replica(tmp_path / "twice"), open_replica(tmp_path / "once")
    for replica, batch in (
        (twice, put(["a", "b", "a"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [1, 2, 3])),
        (once, put(["b", "a"], [[0, 1, 0], [0, 0, 1]], [2, 3])),
    ):
        _, result = replica.apply(Log().add(CreateCollection(spec()), batch))
        assert result.count == 2
    assert [found.metadata for found in twice.get("c", ["a"], False)] == [b"3"]
    assert twice.digest() == once.digest()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EMFILE, TooManyFiles), (errno.EIO, DiskFailed)],
)
def test_only_a_disk_that_fails_is_a_failed_disk(tmp_path: Path, number: int, expected: type[NeedleError]) -> None:
    with pytest.raises(expected), disk_errors("x"):
        raise OSError(number, os.strerror(number))


def test_a_sync_that_fails_for_want_of_room_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    for call in (lambda: REAL_DISK.sync(str(tmp_path)), lambda: REAL_DISK.write(str(tmp_path / "a"), b"a")):
        with pytest.raises(DiskFailed):
            call()


def test_sqlite_that_can_open_no_file_more_is_no_failed_disk(tmp_path: Path) -> None:
    held: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        with pytest.raises(TooManyFiles), disk_errors("x"):
            connect(str(tmp_path / "x.db")).execute("PRAGMA journal_mode=WAL")
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
