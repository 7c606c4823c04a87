"""What is damaged on disk is never served: it is found when it is read, when the file is opened, and by looking."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.fake_shards import virtually
from harness.damage import flip_bit
from needle.base.errors import (
    CorruptDocuments,
    CorruptSnapshot,
    DiskFailed,
    DiskFull,
    NeedleError,
    ReplicaDamaged,
    TooManyFiles,
)
from needle.base.model import SearchRequest
from needle.protocol.commands import CreateCollection, Delete, Session
from needle.shard.disk import ReplicaDisk
from needle.shard.documents.digest import MODULUS, hash_of_format_3
from needle.shard.documents.image import write_image
from needle.shard.documents.row_check import verify_image_file
from needle.shard.documents.sqlite_file import FILE_NAME, TABLES, connect
from needle.shard.documents.store import DocumentStore
from needle.shard.state_machine import Replica
from shard.replica_util import Log, caretaker, floats, open_replica, put, spec

IDS = [f"document-{n}" for n in range(300)]
ASKED = SearchRequest(collection="c", vector=floats([1, 2, 3]), k=400, exact=True, with_vectors=True)


def filled(directory: Path, **options: Any) -> tuple[Replica, Log]:
    replica, log = open_replica(directory, **options), Log()
    replica.apply(log.add(CreateCollection(spec()), CreateCollection(spec("empty"))))
    session = log.session(replica)
    rows = [[n, n % 7, 1] for n in range(300)]
    replica.apply(log.add(put(IDS, rows, [{"n": n, "pad": "x" * 60} for n in range(300)])))
    replica.apply(
        log.add(put(IDS[:9], [[0, 0, n] for n in range(9)], session=Session(session, 1, 0)), Delete("c", IDS[9:12]))
    )
    replica.checkpoint()
    return replica, log


def database(directory: Path) -> Path:
    (path,) = directory.glob("state-*/documents.db")
    return path


def answers(replica: Replica) -> tuple[Any, ...]:
    """Everything that a replica can be asked."""
    return (
        replica.get("c", IDS, True),
        replica.get("c", IDS, False),
        replica.search(ASKED),
        replica.counts(),
        replica.stored_digest(),
        replica.sessions.rows(),
    )


@pytest.mark.parametrize("running", [False, True])
def test_two_flipped_bits_anywhere_are_never_served(tmp_path: Path, running: bool) -> None:
    first, _ = filled(tmp_path / "whole")
    right = answers(first)
    first.close()
    size, seen = database(tmp_path / "whole").stat().st_size, 0
    for seed in range(60):
        rng = random.Random(seed)
        directory = tmp_path / f"{seed}"
        shutil.copytree(tmp_path / "whole", directory)
        replica = open_replica(directory) if running else None
        for _ in range(2):
            flip_bit(database(directory), rng.randrange(100 if seed % 10 == 0 else size), rng.randrange(8))
        if replica is None:
            replica = open_replica(directory)
        try:
            assert answers(replica) == right, seed
            assert replica.damage is None
        except ReplicaDamaged:
            seen += 1
            assert isinstance(replica.damage, CorruptDocuments)
            with pytest.raises(ReplicaDamaged):
                replica.get("c", IDS[:1], False)
        replica.close()
        # A restart does not bring it back.
        again = open_replica(directory)
        assert again.damage is not None or replica.damage is None, seed
        again.close()
        shutil.rmtree(directory)
    assert seen > 40


@pytest.mark.parametrize("size", [0, 50, 4096, 4096 * 5 + 17])
def test_a_file_that_was_cut_is_damaged(tmp_path: Path, size: int) -> None:
    replica, _ = filled(tmp_path)
    replica.close()
    with database(tmp_path).open("r+b") as file:
        file.truncate(size)
    replica = open_replica(tmp_path)
    assert replica.damage is not None
    with pytest.raises(ReplicaDamaged):
        replica.get("c", IDS[:1], False)
    with pytest.raises(ReplicaDamaged):
        replica.apply([])


@pytest.mark.parametrize("name", ["documents.db", "CURRENT"])
def test_a_file_that_is_missing_is_not_taken_for_a_new_replica(tmp_path: Path, name: str) -> None:
    """What was written since the last checkpoint, an election for example, was put into a new, empty file, which was
    served as all that the log had given; and data was deleted to begin again where nothing said which is in use."""
    replica, log = filled(tmp_path / "r")
    replica.apply(log.add(None))
    before = answers(replica)
    replica.close()
    (missing,) = (tmp_path / "r").rglob(name)
    there = missing.read_bytes()
    missing.unlink()
    replica = open_replica(tmp_path / "r")
    assert replica.damage is not None and f"{name} is missing" in replica.damage.message
    with pytest.raises(ReplicaDamaged):
        answers(replica)
    replica.close()
    missing.write_bytes(there)  # nothing was deleted: who finds the file again has everything
    (tmp_path / "r" / "state-1" / "DAMAGED").unlink(missing_ok=True)
    assert answers(open_replica(tmp_path / "r")) == before


def test_what_cannot_be_looked_at_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = ReplicaDisk()
    assert disk.exists(str(tmp_path)) and not disk.exists(str(tmp_path / "a")) and not disk.exists("a\0b")
    assert not disk.exists(str(tmp_path / ("a" * 5000)))
    (tmp_path / "file").write_bytes(b"")
    assert not disk.exists(str(tmp_path / "file" / "a"))

    def broken(path: str) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patched, pytest.raises(DiskFailed, match="Input/output error"):
        patched.setattr(os, "stat", broken)
        disk.exists("anything")


def test_an_image_brings_a_damaged_replica_back(tmp_path: Path) -> None:
    source, log = filled(tmp_path / "source")
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    broken, _ = filled(tmp_path / "broken")
    for page in range(2, database(tmp_path / "broken").stat().st_size // 4096):
        flip_bit(database(tmp_path / "broken"), page * 4096 + 1000)
    with pytest.raises(ReplicaDamaged):
        answers(broken)
    assert broken.held.collection_vectors() == [] and not broken.waits
    broken.install_snapshot(str(tmp_path / "image"))
    assert broken.damage is None and answers(broken) == answers(source)
    entries = log.add(put(["new"], [[1, 1, 1]]))
    assert source.apply(entries) == broken.apply(entries)
    broken.close()
    assert answers(open_replica(tmp_path / "broken")) == answers(source)


def changed(path: Path, statement: str, *values: Any) -> None:
    """As if the row had been written so: its page has a right checksum."""
    with closing(connect(str(path))) as connection:
        connection.execute(statement, values)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


LIES = {
    "metadata": "UPDATE documents SET metadata = x'37' WHERE row = (SELECT max(row) - 3 FROM documents)",
    "vector": "UPDATE vectors SET vector = zeroblob(12) WHERE row = (SELECT max(row) - 3 FROM vectors)",
    "a document is missing": "DELETE FROM documents WHERE row = (SELECT max(row) - 3 FROM documents)",
    "a vector is missing": "DELETE FROM vectors WHERE row = (SELECT max(row) - 3 FROM vectors)",
    "an id is missing": "DELETE FROM ids WHERE id = 'document-5'",
    "an id too many": "INSERT INTO ids SELECT collection_id, 'new', ordinal, version, hash, vector, 0 FROM ids LIMIT 1",
    "sum": "UPDATE collections SET digest = zeroblob(16) WHERE id = 1",
    "count": "UPDATE collections SET documents = 1 WHERE id = 1",
}


@pytest.mark.parametrize("lie", LIES)
def test_rows_that_are_not_what_the_log_wrote_are_found_by_looking(tmp_path: Path, lie: str) -> None:
    replica, _ = filled(tmp_path)
    changed(database(tmp_path), LIES[lie])
    with pytest.raises((CorruptDocuments, ReplicaDamaged)):
        replica.check_sums()
        last = ""
        while page := replica.check_rows(1, last, 100):
            last = page.last
    assert replica.damage is not None


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("later", [False, True], ids=["at start", "later"])
def test_a_caretaker_finds_them_though_nobody_asks(tmp_path: Path, lie: str, later: bool) -> None:
    async def work() -> None:
        replica, _ = filled(tmp_path)
        if not later:
            changed(database(tmp_path), LIES[lie])
        caring = asyncio.create_task(caretaker(replica, 60.0).run())
        if later:
            await asyncio.sleep(30)
            assert not caring.done()
            changed(database(tmp_path), LIES[lie])
        with pytest.raises((CorruptDocuments, ReplicaDamaged)):
            async with asyncio.timeout(90 if later else 5):
                await caring
        assert replica.damage is not None
        replica.close()

    virtually(work())


@pytest.mark.parametrize("lie", LIES)
def test_a_snapshot_of_such_rows_is_neither_made_nor_taken(tmp_path: Path, lie: str) -> None:
    source, _ = filled(tmp_path / "source")
    image = tmp_path / "image"
    image.mkdir()
    source.export_snapshot(str(image))
    changed(image / FILE_NAME, LIES[lie])
    write_image(str(image), source.applied_index(), 1, [], ReplicaDisk())
    target, log = open_replica(tmp_path / "target"), Log()
    target.apply(log.add(CreateCollection(spec())))
    with pytest.raises(CorruptSnapshot, match="Nothing was installed"):
        target.install_snapshot(str(image))
    assert target.damage is None and target.counts()[0][1] == 0
    changed(database(tmp_path / "source"), LIES[lie])
    (tmp_path / "second").mkdir()
    with pytest.raises(CorruptDocuments):
        source.export_snapshot(str(tmp_path / "second"))
    assert source.damage is not None


def test_a_damaged_page_met_while_applying_stops_nothing_else(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.close()
    replica = open_replica(tmp_path)
    for page in range(2, database(tmp_path).stat().st_size // 4096):
        flip_bit(database(tmp_path), page * 4096 + 1000)
    with pytest.raises(CorruptDocuments):
        replica.apply(log.add(put(IDS, [[1, 2, 3]] * 300)))
    with pytest.raises(ReplicaDamaged):
        replica.apply(log.add(put(["x"], [[1, 2, 3]])))
    with pytest.raises(ReplicaDamaged):
        replica.checkpoint()
    replica.close()


@pytest.mark.parametrize("shortage", [DiskFull, TooManyFiles])
def test_damage_that_cannot_be_written_down_for_now_is_damage_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortage: type[NeedleError]
) -> None:
    replica, _ = filled(tmp_path)
    for page in range(2, database(tmp_path).stat().st_size // 4096):
        flip_bit(database(tmp_path), page * 4096 + 1000)

    def refuse(_: ReplicaDisk, path: str, __: bytes) -> None:
        raise shortage(f"no room for {path}")

    monkeypatch.setattr(ReplicaDisk, "write", refuse)
    with pytest.raises(ReplicaDamaged):
        answers(replica)
    assert replica.damage is not None
    replica.close()
    again = open_replica(tmp_path)
    with pytest.raises(ReplicaDamaged):
        answers(again)
    again.close()


def overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Replica:
    """A replica into which an image is installed just when this method of its store begins."""
    source, _ = filled(tmp_path / "source")
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    replica, _ = filled(tmp_path / "replica")
    former, method = replica._store, getattr(DocumentStore, name)

    def first_install(store: DocumentStore, *values: Any, **named: Any) -> Any:
        if store is former and replica._store is former:
            replica.install_snapshot(str(tmp_path / "image"))
        return method(store, *values, **named)

    monkeypatch.setattr(DocumentStore, name, first_install)
    return replica


@pytest.mark.parametrize("name", ["checkpoint", "check_sums", "check_rows"])
def test_background_work_that_an_installation_overtakes_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replica = overtaken(tmp_path, monkeypatch, name)
    while replica.tidy(all_of_it=True):
        pass
    replica.check_sums()
    replica.check_rows(1, "", 100)
    assert replica.damage is None
    replica.apply([])
    replica.verify()


def test_damage_of_a_state_that_was_replaced_is_not_held_against_the_new_one(tmp_path: Path) -> None:
    source, _ = filled(tmp_path / "source")
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    replica, _ = filled(tmp_path / "replica")
    former = replica._store
    for page in range(2, database(tmp_path / "replica").stat().st_size // 4096):
        flip_bit(database(tmp_path / "replica"), page * 4096 + 1000)
    with former.reading():  # as a search does that began before
        pass
    load = replica._states._load

    def load_while_somebody_reads(state: str) -> None:
        load(state)
        with pytest.raises(CorruptDocuments):
            former.by_id(1, IDS, vectors=True)

    replica._states._load = load_while_somebody_reads  # type: ignore[method-assign]
    replica.install_snapshot(str(tmp_path / "image"))
    replica.close()
    again = open_replica(tmp_path / "replica")
    assert again.damage is None and answers(again) == answers(source)


# --- files of older releases ---
OLD_COLUMNS = {
    "documents": "(row INTEGER PRIMARY KEY, id TEXT NOT NULL, version INTEGER NOT NULL, metadata BLOB NOT NULL)",
    "ids": "(collection_id INTEGER, id TEXT, ordinal INTEGER NOT NULL, version INTEGER NOT NULL, hash BLOB NOT NULL, "
    "PRIMARY KEY (collection_id, id)) WITHOUT ROWID",
    "graves": "(row INTEGER PRIMARY KEY)",
    "sessions": "(id INTEGER PRIMARY KEY, nonce BLOB NOT NULL, used INTEGER NOT NULL, state BLOB NOT NULL)",
}


def aged(path: Path, state: bytes, version: int = 1) -> None:
    """Write the file as releases before this one did: without checksums and with one session, or of format 3."""
    old = path.with_suffix(".old")
    old.touch()
    with closing(connect(str(old)) if version == 3 else sqlite3.connect(old)) as target:
        if version == 3:
            target.reserve_bytes("main", 8)
        target.execute("PRAGMA journal_mode=WAL").fetchall()
        with closing(connect(str(path))) as source:
            copy_as_old(source, target, state, version)
        target.execute("UPDATE meta SET value = ? WHERE name = 'format'", (version,))
        if version == 3:  # what is in a write-ahead log is not renamed with the file
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            target.commit()
    path.unlink()
    old.rename(path)


def copy_as_old(source: Any, target: Any, state: bytes, version: int) -> None:
    hashes, totals = {}, Counter[int]()
    for collection, *row in source.execute(
        "SELECT i.collection_id, i.id, i.ordinal, i.version, d.metadata, v.vector FROM ids i JOIN documents d ON "
        "d.row = (i.collection_id << 40 | i.ordinal) JOIN vectors v ON v.row = d.row"
    ).fetchall():
        hashes[collection, row[0]] = hash_ = hash_of_format_3(row[1], row[2], row[0], row[3], row[4])
        totals[collection] += int.from_bytes(hash_, "little")
    for name, columns in TABLES.items():
        if name == "answers" and version < 3:
            continue
        older = name in OLD_COLUMNS and (name != "sessions" or version < 3)
        target.execute(f"CREATE TABLE {name} {OLD_COLUMNS[name] if older else columns}")
        rows = source.execute(f"SELECT * FROM {name}").fetchall()
        if name in ("documents", "graves"):
            rows = [row[:-1] for row in rows]
        elif name == "ids":
            rows = [(*row[:4], hashes[row[0], row[1]]) for row in rows]
        elif name == "collections":
            rows = [(*row[:4], (totals[row[0]] % MODULUS).to_bytes(16, "little")) for row in rows]
        elif name == "sessions" and version < 3:
            rows = [(*row[:3], state) for row in rows]
        if rows:
            target.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(rows[0]))})", rows)


@pytest.mark.parametrize("version", [1, 3])
def test_a_file_of_an_older_release_is_rewritten_with_checksums(tmp_path: Path, version: int) -> None:
    replica, log = filled(tmp_path)
    right, kept = answers(replica), replica.sessions.answers()
    replica.close()
    state = msgspec.msgpack.encode([1, {seq: msgspec.msgpack.decode(answer) for _, seq, answer in kept}])
    aged(database(tmp_path), state, version)
    replica = open_replica(tmp_path)
    assert answers(replica) == right and replica.sessions.answers() == kept
    replica.apply(log.add(put(["new"], [[1, 1, 1]])))
    replica.checkpoint()
    replica.close()
    assert verify_image_file(str(database(tmp_path))).at.index == len(log.entries)
    flip_bit(database(tmp_path), 4096 * 7 + 2000)
    with pytest.raises(CorruptDocuments, match="checksum"):
        verify_image_file(str(database(tmp_path)))


@pytest.mark.parametrize("version", [1, 3])
def test_a_damaged_file_of_an_older_release_is_not_taken_over(tmp_path: Path, version: int) -> None:
    replica, _ = filled(tmp_path)
    replica.close()
    aged(database(tmp_path), msgspec.msgpack.encode([1, {}]), version)
    if version == 3:  # flipped bits are the checksums' business
        changed(database(tmp_path), LIES["metadata"])
    else:
        at = database(tmp_path).read_bytes().find(b'"n": 200,')
        flip_bit(database(tmp_path), at + 6)
    replica = open_replica(tmp_path)
    assert replica.damage is not None and "what was written" in replica.damage.message
