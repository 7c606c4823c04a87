"""The catalog's file has a row for each collection: a change is written as one, and nothing of it is lost or left."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import create, entry, spec
from needle.base.errors import CorruptDocuments, CorruptSnapshot, DiskFailed, DiskFull, UnsupportedFormat
from needle.base.model import WriteResult
from needle.catalog.machine import BY_ROWS, FORMAT_VERSION, IMAGE_NAME, ROWS_SINCE, CatalogMachine
from needle.protocol.catalog_commands import (
    CatalogCommand,
    CreateCluster,
    CreateCollection,
    DeclareField,
    DropCollection,
    RaiseVersion,
)
from needle.routing.topology import Topology


def founded(knows: int = ROWS_SINCE) -> CreateCluster:
    made = create()
    made.nodes[:] = [msgspec.structs.replace(one, knows=knows) for one in made.nodes]
    return made


def changes(seed: int, count: int, first: int = 2) -> Iterator[tuple[int, CatalogCommand]]:
    """Collections come, are altered, and go."""
    rng, ids = random.Random(seed), dict[str, int]()
    for index in range(first, first + count):
        name = f"c{rng.randrange(30):02}"
        if name not in ids:
            ids[name] = index
            yield index, CreateCollection(spec(name), False, index)
        elif rng.random() < 0.5:
            yield index, DeclareField(name, ids[name], f"f{index}", True)
        else:
            yield index, DropCollection(name, ids.pop(name))


def stored(directory: Path) -> tuple[int, list[int]]:
    """The format of the file, and the ids of its rows."""
    with sqlite3.connect(directory / "catalog.db") as db:
        state = msgspec.msgpack.decode(db.execute("SELECT state FROM catalog WHERE id = 1").fetchone()[0])
        assert state["format"] == FORMAT_VERSION or not state["topology"]["collections"]
        some = db.execute("SELECT name FROM sqlite_master WHERE name = 'collections'").fetchone() is not None
        rows = [one for (one,) in db.execute("SELECT id FROM collections ORDER BY id")] if some else []
    db.close()
    return state["format"], rows


def ids_of(now: Topology) -> list[int]:
    return sorted(info.id for info in now.collections)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_was_applied_is_there_when_the_file_is_opened(tmp_path: Path, seed: int) -> None:
    rng, one, other = random.Random(seed), CatalogMachine(str(tmp_path / "one")), CatalogMachine(str(tmp_path / "two"))
    entries = [entry(1, founded()), *(entry(index, command) for index, command in changes(seed, 150))]
    at = 0
    while at < len(entries):
        step = rng.choice([1, 1, 3, 20])
        results = one.apply(entries[at : at + step])
        assert all(isinstance(result, WriteResult) for result in results)
        other.apply(entries[at : at + step])
        at += step
        if rng.random() < 0.2:
            now, digest = one.topology, one.compared.at(one.applied_index())
            one.close()
            one = CatalogMachine(str(tmp_path / "one"))
            assert one.damage is None and one.topology == now
            assert one.compared.at(one.applied_index()) == digest == other.compared.at(one.applied_index())
    assert one.digest() == other.digest() and len(one.topology.collections) > 5
    for machine in (one, other):
        machine.close()
    assert stored(tmp_path / "one") == (BY_ROWS, ids_of(one.topology))


def test_until_all_nodes_know_rows_the_release_before_can_open_the_file(tmp_path: Path) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded(ROWS_SINCE - 1)), *(entry(index, one) for index, one in changes(1, 20))])
    now = machine.topology
    machine.close()
    assert stored(tmp_path) == (FORMAT_VERSION, [])
    machine = CatalogMachine(str(tmp_path))
    said = [(info.id, ROWS_SINCE) for info in now.nodes]
    machine.apply([entry(30, RaiseVersion(ROWS_SINCE, said))])
    now = machine.topology
    machine.close()
    assert stored(tmp_path) == (BY_ROWS, ids_of(now))
    machine = CatalogMachine(str(tmp_path))
    assert machine.topology == now and now.cluster_version == ROWS_SINCE and now.collections
    machine.close()


def test_an_image_is_one_piece_that_the_release_before_reads_and_takes_the_place_of_all_rows(tmp_path: Path) -> None:
    source, target = CatalogMachine(str(tmp_path / "source")), CatalogMachine(str(tmp_path / "target"))
    source.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(2, 60))])
    target.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(3, 40))])
    (tmp_path / "image").mkdir()
    source.export_snapshot(str(tmp_path / "image"))
    image = msgspec.msgpack.decode((tmp_path / "image" / IMAGE_NAME).read_bytes())
    assert image["format"] == FORMAT_VERSION and len(image["topology"]["collections"]) > 5
    target._db.execute("UPDATE collections SET row = x'00'")  # whatever stood there
    target.install_snapshot(str(tmp_path / "image"))
    target.apply([entry(100, CreateCollection(spec("one-more"), False, 1))])
    source.apply([entry(100, CreateCollection(spec("one-more"), False, 1))])
    assert target.compared.at(100) == source.compared.at(100)
    target.close()
    assert stored(tmp_path / "target") == (BY_ROWS, ids_of(source.topology))
    again = CatalogMachine(str(tmp_path / "target"))
    assert again.topology == source.topology and again.digest() == source.digest()
    (tmp_path / "image" / IMAGE_NAME).write_bytes(msgspec.msgpack.encode({**image, "format": BY_ROWS}))
    with pytest.raises(CorruptSnapshot):
        again.check_snapshot(str(tmp_path / "image"))
    again.close()
    source.close()


def test_what_finds_no_room_changes_neither_rows_nor_state(tmp_path: Path) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(4, 20))])
    now, pages = machine.topology, machine._db.execute("PRAGMA page_count").fetchone()[0]
    machine._db.execute(f"PRAGMA max_page_count={pages}")
    many = [entry(100 + n, CreateCollection(spec(f"d{n:0200}"), False, n)) for n in range(100)]
    for _ in range(2):
        with pytest.raises(DiskFull):
            machine.apply(many)
        assert machine.topology is now
    assert stored(tmp_path) == (BY_ROWS, ids_of(now))
    machine._db.execute("PRAGMA max_page_count=100000")
    assert all(isinstance(result, WriteResult) for result in machine.apply(many))
    now = machine.topology
    machine.close()
    again = CatalogMachine(str(tmp_path))
    assert again.topology == now and len(now.collections) > 100
    again.close()


def test_rows_of_another_release_are_written_again(tmp_path: Path) -> None:
    """One that leaves a field out has other bytes of the same collection."""
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(5, 30))])
    now = machine.topology
    machine.close()
    rewritten(tmp_path)
    machine = CatalogMachine(str(tmp_path))
    assert machine.topology == now and machine.damage is None
    first = now.collections[0]
    machine.apply([entry(50, DropCollection(first.spec.name, first.id))])
    now = machine.topology
    machine.close()
    assert stored(tmp_path) == (BY_ROWS, ids_of(now))
    again = CatalogMachine(str(tmp_path))
    assert again.topology == now
    again.close()


def rewritten(directory: Path) -> None:
    """Rows without the field that came last, with their sums."""
    import xxhash

    with sqlite3.connect(directory / "catalog.db") as db:
        found = db.execute("SELECT id, row FROM collections").fetchall()
        rows = []
        for key, row in found:
            fields = msgspec.msgpack.decode(row)
            del fields["sparse"]
            rows.append((msgspec.msgpack.encode(fields), key))
        db.executemany("UPDATE collections SET row = ? WHERE id = ?", rows)
        state = msgspec.msgpack.decode(db.execute("SELECT state FROM catalog WHERE id = 1").fetchone()[0])
        state["rows"] = sum(xxhash.xxh3_64_intdigest(row) for row, _ in rows) % 2**64
        data = msgspec.msgpack.encode(state)
        db.execute("UPDATE catalog SET state = ? WHERE id = 1", (data,))
        db.execute("UPDATE catalog SET state = ? WHERE id = 2", (xxhash.xxh3_128_digest(data),))
    db.close()


def test_rows_that_are_not_those_of_the_state_are_damage(tmp_path: Path) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(6, 30))])
    machine.close()
    whole = (tmp_path / "catalog.db").read_bytes()
    for harm in (
        "DELETE FROM collections WHERE id = (SELECT max(id) FROM collections)",
        "UPDATE collections SET row = (SELECT min(row) FROM collections) WHERE id = (SELECT max(id) FROM collections)",
        "UPDATE collections SET row = CAST(row AS TEXT) WHERE id = (SELECT min(id) FROM collections)",
        "DROP TABLE collections",
    ):
        (tmp_path / "catalog.db").write_bytes(whole)
        with sqlite3.connect(tmp_path / "catalog.db") as db:
            db.execute(harm)
        db.close()
        hurt = CatalogMachine(str(tmp_path))
        assert hurt.damage is not None and hurt.topology == Topology(), harm
        with pytest.raises(CorruptDocuments):
            hurt.apply([entry(90, None)])
        hurt.close()


def test_rows_that_the_disk_does_not_give_are_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a whole file would wait for a snapshot, and be deleted for it."""
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(6, 30))])
    now = machine.topology
    machine.close()

    class Refusing(sqlite3.Connection):
        def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
            if "FROM collections" in sql:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
                raise error
            return super().execute(sql, *more)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Refusing))
        with pytest.raises(DiskFailed):
            CatalogMachine(str(tmp_path))
    again = CatalogMachine(str(tmp_path))
    assert again.damage is None and again.topology == now
    again.close()


def test_a_flipped_bit_is_found_and_a_snapshot_mends_it(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    source = CatalogMachine(str(tmp_path / "source"))
    source.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(7, 30))])
    source.export_snapshot(str(tmp_path / "image"))
    source.close()
    path, seen = tmp_path / "source" / "catalog.db", 0
    whole = path.read_bytes()
    schema = whole.index(b"CREATE TABLE")
    flips = [(at, at % 8) for at in (*range(0, len(whole), 61), *range(schema - 40, schema + 160))]
    for at, bit in flips:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        machine = CatalogMachine(str(tmp_path / "source"))
        if machine.damage is None:
            assert machine.applied_index() == 0 or machine.topology == source.topology
            with suppress(CorruptDocuments):
                machine.apply([entry(machine.applied_index() + 1, None)])
        else:
            seen += 1
        machine.install_snapshot(str(tmp_path / "image"))
        assert machine.damage is None and machine.topology == source.topology
        machine.apply([entry(100, CreateCollection(spec("one-more"), False, 1))])
        now = machine.topology
        machine.close()
        again = CatalogMachine(str(tmp_path / "source"))
        assert again.damage is None and again.topology == now
        again.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert seen > len(flips) / 4


def test_rows_under_other_ids_are_written_again(tmp_path: Path) -> None:
    """No sum is over the ids: such a row stayed when its collection was dropped, and at the next start the catalog was
    damaged."""
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded()), *(entry(index, one) for index, one in changes(8, 40))])
    machine._db.execute("UPDATE collections SET id = id + 1000")
    dropped = machine.topology.collections[1]
    machine.close()
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(100, DropCollection(dropped.spec.name, dropped.id))])
    now = machine.topology
    assert machine.damage is None and now.named(dropped.spec.name) is None and len(now.collections) > 3
    machine.close()
    again = CatalogMachine(str(tmp_path))
    assert again.damage is None and again.topology == now
    again.close()
    assert stored(tmp_path) == (BY_ROWS, ids_of(now))


def test_a_release_that_knows_no_rows_refuses_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = CatalogMachine(str(tmp_path))
    machine.apply([entry(1, founded())])
    machine.close()
    monkeypatch.setattr(CatalogMachine._decode, "__defaults__", ((FORMAT_VERSION,),))
    with pytest.raises(UnsupportedFormat):
        CatalogMachine(str(tmp_path))


def test_each_commit_is_synced_before_and_after_a_snapshot(tmp_path: Path) -> None:
    """What is applied of the catalog counts as durable, in the simulation too (proof/sim/sqlite_crash.py)."""
    machine, target = CatalogMachine(str(tmp_path / "a")), CatalogMachine(str(tmp_path / "b"))
    full = (2,)
    assert machine._db.execute("PRAGMA synchronous").fetchone() == full
    machine.apply([entry(1, founded())])
    machine.export_snapshot(str(tmp_path))
    target.install_snapshot(str(tmp_path))
    assert target._db.execute("PRAGMA synchronous").fetchone() == full
    target.damage = CorruptDocuments("as found by a look")
    target.install_snapshot(str(tmp_path))  # into another file
    assert target.topology == machine.topology and target._db.execute("PRAGMA synchronous").fetchone() == full
    machine.close()
    target.close()
