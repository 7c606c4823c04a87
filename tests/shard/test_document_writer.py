"""Batches that wait in memory: readers find them, a crash takes whole ones, a failed commit ends the replica."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from needle.base.errors import DiskFull, StorageError, VersionMismatch
from needle.base.model import SearchRequest
from needle.protocol.commands import CreateCollection, Delete, DropCollection, PublishSegment
from needle.shard.documents.sqlite_file import connect
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec


def filled(directory: Path, **options: int) -> tuple[Replica, Log]:
    replica, log = open_replica(directory, **options), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 2, 3], [4, 5, 6]])))
    replica.save()
    return replica, log


def committed(directory: Path) -> int:
    """The applied index that another process would find in the file."""
    with closing(connect(str(directory / "state-1" / "documents.db"))) as connection:
        return int(connection.execute("SELECT value FROM meta WHERE name = 'index'").fetchone()[0])


def search(replica: Replica) -> list[str]:
    return replica.search(SearchRequest(collection="c", vector=floats([1, 2, 3]), k=5, exact=True)).ids


def test_batches_wait_until_somebody_reads(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.apply(log.add(Delete("c", ["a"])))
    assert replica.applied_index() == 3 and committed(tmp_path) == 2
    assert search(replica) == ["b"] and committed(tmp_path) == 2  # what it found was committed before
    assert replica.get("c", ["a"], False) == [] and committed(tmp_path) == 3
    replica.apply(log.add(put(["z"], [[1, 2, 2]])))
    assert committed(tmp_path) == 3
    assert [found.id for found in replica.get("c", ["a", "b", "z"], True)] == ["b", "z"]
    assert committed(tmp_path) == 4
    replica.apply(log.add(Delete("c", ["z"])))
    assert search(replica) == ["b"]


def test_a_search_waits_for_the_commit_of_what_it_found_only(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.apply(log.add(CreateCollection(spec("k")), put(["x"], [[1, 2, 3]], collection="k")))
    replica.save()
    replica.apply(log.add(put(["far"], [[90, 90, 90]])))
    nearest = SearchRequest(collection="c", vector=floats([1, 2, 3]), k=1, exact=True, with_vectors=True)
    assert replica.search(nearest).ids == ["a"] and committed(tmp_path) == 4
    replica.apply(log.add(put(["near"], [[1, 2, 3]], [{"n": 1}]), Delete("c", ["a"])))
    replica.apply(log.add(put(["y"], [[1, 2, 3]], collection="k")))
    assert replica.search(nearest).ids == ["near"] and committed(tmp_path) == 8


def test_ids_and_metadata_of_what_waits_need_no_commit(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.apply(log.add(CreateCollection(spec("k")), put(["x"], [[1, 2, 3]], collection="k")))
    replica.save()
    replica.apply(log.add(put(["near", "a"], [[1, 2, 3], [1, 2, 4]], [{"n": 1}, None])))
    replica.apply(log.add(put(["y"], [[1, 2, 3]], [{"n": 2}], collection="k")))
    before = committed(tmp_path)

    def told(collection: str, *, metadata: bool) -> list[tuple[str, int, bytes]]:
        request = SearchRequest(collection=collection, vector=floats([1, 2, 3]), k=5, exact=True)
        found = replica.search(msgspec.structs.replace(request, with_metadata=metadata))
        assert replica.reads().is_short(msgspec.structs.replace(request, with_metadata=False))
        return list(zip(found.ids, found.versions, found.metadata or [b""] * 5, strict=False))

    shown = [told(name, metadata=metadata) for name in "ck" for metadata in (True, False)]
    assert committed(tmp_path) == before < replica.applied_index()
    assert shown[0] == [("near", before + 1, b'{"n": 1}'), ("a", before + 1, b"null"), ("b", 2, b"null")]
    assert {entry[0] for entry in shown[2]} == {"x", "y"}
    replica.save()
    assert committed(tmp_path) == replica.applied_index()
    assert [told(name, metadata=metadata) for name in "ck" for metadata in (True, False)] == shown


def test_after_a_failed_commit_nothing_is_read_from_memory(tmp_path: Path) -> None:
    """What memory holds may not be what the file holds."""
    broken: list[str] = []

    def failpoint(name: str) -> None:
        if name in broken:
            raise StorageError("the disk fails")

    replica, log = open_replica(tmp_path, failpoint=failpoint), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "b"], [[1, 2, 3], [4, 5, 6]])))
    assert search(replica) == ["a", "b"]
    broken.append("apply-before-commit")
    with pytest.raises(StorageError):
        replica.save()
    broken.clear()
    with pytest.raises(StorageError):
        search(replica)


def test_many_rows_or_bytes_do_not_wait(tmp_path: Path) -> None:
    replica, log = filled(tmp_path, commit=4)
    replica.apply(log.add(put(["c", "d"], [[1, 1, 1]] * 2)))
    assert committed(tmp_path) == 2
    replica.apply(log.add(put(["a"], [[1, 1, 1]])))  # four rows wait: three documents, and one that is superseded
    assert committed(tmp_path) == 4
    large, log = filled(tmp_path / "large")
    large.apply(log.add(put(["c"], [[1, 1, 1]], [{"text": "x" * (15 << 10)}])))
    assert committed(tmp_path / "large") == 2
    large.apply(log.add(put(["d"], [[1, 1, 1]], [{"text": "x" * (16 << 10)}])))
    assert committed(tmp_path / "large") == 4


def test_commands_see_what_waits(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    (once,) = replica.apply(log.add(put(["a"], [[1, 1, 1]], expected=2)))
    (twice,) = replica.apply(log.add(put(["a"], [[2, 2, 2]], expected=2)))
    (gone,) = replica.apply(log.add(Delete("c", ["b", "x"])))
    (absent,) = replica.apply(log.add(put(["b"], [[3, 3, 3]], expected=0)))
    assert (once.existed, gone.count, absent.existed) == (True, 1, False) and isinstance(twice, VersionMismatch)
    assert committed(tmp_path) == 2
    replica.verify()
    assert {found.id: found.version for found in replica.get("c", ["a", "b"], False)} == {"a": 3, "b": 6}


def test_a_crash_takes_what_waits_and_the_log_brings_it_back(tmp_path: Path) -> None:
    replica, log = filled(tmp_path / "node")
    assert search(replica) == ["a", "b"]
    replica.apply(log.add(put(["a", "c"], [[7, 7, 7], [8, 8, 8]]), Delete("c", ["b"])))
    shutil.copytree(tmp_path / "node", tmp_path / "crashed")
    crashed = open_replica(tmp_path / "crashed")
    assert crashed.applied_index() == 2 and search(crashed) == ["a", "b"]
    crashed.apply(log.entries)
    assert crashed.digest() == replica.digest()
    crashed.verify()


def test_closing_commits_what_waits(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path)
    digest = replica.digest()
    replica.close()
    assert committed(tmp_path) == 2
    assert open_replica(tmp_path).digest() == digest


def test_what_files_are_judged_by_does_not_wait(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.apply(log.add(CreateCollection(spec("k")), put(["x", "y"], [[1, 1, 1]] * 2, collection="k")))
    replica.apply(log.add(put(["z"], [[1, 1, 1]], collection="k")))
    replica.apply(log.add(PublishSegment(2, 0, 1, 2, 10, "0" * 32)))
    assert committed(tmp_path) == 6
    replica.apply(log.add(put(["z"], [[1, 1, 2]], collection="k")))
    replica.apply(log.add(DropCollection("k")))
    assert committed(tmp_path) == 8
    replica.checkpoint()
    with closing(connect(str(tmp_path / "state-1" / "documents.db"))) as connection:
        for table, where in (
            ("collections", "id = 2"),
            ("segments", "collection_id = 2"),
            ("ids", "collection_id = 2"),
            ("documents", f"row >= {2 << 40}"),
            ("vectors", f"row >= {2 << 40}"),
        ):
            assert connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone() == (0,), table


def test_what_finds_no_room_waits_for_it_and_is_not_read_before(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    search(replica)
    writer = replica._store.writer._connection
    writer.execute(f"PRAGMA max_page_count={writer.execute('PRAGMA page_count').fetchone()[0]}")
    replica.apply(log.add(put([f"x{at}" for at in range(500)], [[1, 2, 3]] * 500)))
    assert len(search(replica)) == 5  # nobody has tried yet
    with pytest.raises(DiskFull, match="no space left"):
        replica.save()
    with pytest.raises(DiskFull, match="no space left"):
        search(replica)
    assert replica.waits
    replica.apply(log.add(put(["y"], [[1, 2, 3]])))  # it waits, too: nothing may be committed before it
    with pytest.raises(DiskFull, match="no space left"):
        replica.save()
    with pytest.raises(DiskFull, match="no space left"):
        search(replica)
    writer.execute("PRAGMA max_page_count=1000000")  # there is room again
    replica.apply(log.add(put(["z"], [[1, 2, 3]])))
    assert {document.id for document in replica.get("c", ["x0", "x499", "y", "z"], False)} == {"x0", "x499", "y", "z"}
    assert not replica.waits
    replica.verify()
    replica.close()
    again = open_replica(tmp_path)
    assert again.applied_index() == 5 and again.count() == 504
    again.close()


def test_a_dropped_collection_leaves_no_manifest_though_both_waited_for_room(tmp_path: Path) -> None:
    replica, log = filled(tmp_path)
    replica.apply(log.add(CreateCollection(spec("k")), put(["x", "y"], [[1, 1, 1]] * 2, collection="k")))
    replica.save()
    writer = replica._store.writer._connection
    writer.execute(f"PRAGMA max_page_count={writer.execute('PRAGMA page_count').fetchone()[0]}")
    replica.apply(log.add(put([f"x{at}" for at in range(500)], [[1, 2, 3]] * 500)))
    replica.apply(log.add(PublishSegment(2, 0, 1, 2, 10, "0" * 32)))
    replica.apply(log.add(DropCollection("k")))
    assert replica.waits
    writer.execute("PRAGMA max_page_count=1000000")
    replica.checkpoint()
    with closing(connect(str(tmp_path / "state-1" / "documents.db"))) as connection:
        assert connection.execute("SELECT * FROM segments").fetchall() == []
