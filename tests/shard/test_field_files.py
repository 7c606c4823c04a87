"""Kept field indexes: used after a restart, never for documents that they are not of, whatever happens to the files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from needle.base.config import Limits
from needle.base.model import SearchRequest
from needle.protocol.commands import Change, CreateCollection, Delete, DropCollection, Patch, Session
from needle.shard.disk import REAL_DISK, ReplicaDisk
from needle.shard.fields import reader, run_format
from needle.shard.fields.field_files import FieldFiles, place_of
from needle.shard.fields.field_index import Run
from needle.shard.fields.filter_match import Key
from needle.shard.fields.index_budget import IndexRows
from needle.shard.fields.run_making import run_of
from needle.shard.state_machine import Replica
from shard.replica_util import SEGMENTS, Log, put, spec

KEY: Key = (("n",), False)
VALUES: list[Any] = [1, 1.5, 2**63, "a", "b" * 100, "x\0y", None, True, False, [1, "a", {}], 2**70, -3]
FIRST_FORMAT = "4e06ba7f44592aea"


def opened(directory: Path, disk: ReplicaDisk = REAL_DISK, bytes_max: int = 1 << 30) -> Replica:
    """With indexes of however few documents, and batches that are on disk when they are applied."""
    return Replica(
        str(directory),
        limits=Limits(commit_rows_max=1, field_index_bytes_max=bytes_max),
        segments=SEGMENTS,
        disk=disk,
        purge_rows_min=1,
        index_rows=IndexRows(few=0, kept=1, settled=1),
    )


def filled(directory: Path, values: list[Any], **kw: Any) -> tuple[Replica, Log]:
    replica, log = opened(directory, **kw), Log()
    replica.apply(log.add(CreateCollection(spec())))
    add(replica, log, values)
    return replica, log


def add(replica: Replica, log: Log, values: list[Any], prefix: str = "d") -> None:
    names = [f"{prefix}{at}" for at in range(len(values))]
    rows = [[float(at), 0.0, 0.0] for at in range(len(values))]
    replica.apply(log.add(put(names, rows, [{"n": value, "m": value} for value in values])))


def found(replica: Replica, value: Any, field: str = "n") -> list[str]:
    condition = json.dumps({field: value}).encode()
    vector = np.zeros(3, "<f4").tobytes()
    return sorted(replica.search(SearchRequest(collection="c", vector=vector, k=100, filter=condition, exact=True)).ids)


def kept(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.field"))


def save(replica: Replica) -> int:
    """How many fields were saved."""
    saved = 0
    while replica.held.save_fields(1):
        saved += 1
    return saved


def of(values: list[Any], first: int = 0, key: Key = KEY) -> Run:
    documents = [{"n": value} for value in values]
    ordinals = list(range(first, first + len(values)))
    return run_of(key[0], first, first + len(values), ordinals, documents, kind=key[1])


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which ordinals on documents are read for indexes."""
    firsts: list[int] = []
    fetch = reader.Reader.next

    def noted(self: Any, first: int, end: int) -> Any:
        firsts.append(first)
        return fetch(self, first, end)

    monkeypatch.setattr(reader.Reader, "next", noted)
    return firsts


# --- the format ------------------------------------------------------------------------------------------------------
def test_a_file_holds_what_was_put_in_and_nothing_else_is_taken() -> None:
    run = of(VALUES)
    data = b"".join(run_format.encode(7, KEY, 5, run))
    again = run_format.decode(data, 7, KEY, 5)
    assert again is not None and b"".join(run_format.encode(7, KEY, 5, again)) == data
    assert (again.first, again.end, again.rows, again.nbytes) == (run.first, run.end, run.rows, run.nbytes)
    assert run_format.decode(data, 8, KEY, 5) is None
    assert run_format.decode(data, 7, (("n",), True), 5) is None
    assert run_format.decode(data, 7, KEY, 4) is None
    for at in range(len(data)):
        assert run_format.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], 7, KEY, 5) is None
        assert run_format.decode(data[:at], 7, KEY, 5) is None


def test_files_of_this_format_are_the_same_in_every_release() -> None:
    """If this fails, what is in old files means something else now: change run_format.MAGIC, and the digest."""
    of_texts = run_format.encode(7, KEY, 5, of(VALUES))
    of_instants = run_format.encode(7, (("n",), True), 5, of(["2026-01-01T00:00:00Z", "x"], key=(("n",), True)))
    assert (run_format.MAGIC, xxhash.xxh3_64_hexdigest(b"".join([*of_texts, *of_instants]))) == (
        b"NDLFLD01",
        FIRST_FORMAT,
    )


# --- a restart -------------------------------------------------------------------------------------------------------
def test_after_a_restart_the_file_is_used_and_later_documents_are_added(tmp_path: Path, fetched: list[int]) -> None:
    replica, log = filled(tmp_path, [1, 2, 1])
    assert found(replica, 1) == ["d0", "d2"]
    assert save(replica) == 1 and save(replica) == 0
    add(replica, log, [1], "e")
    replica.close()
    replica = opened(tmp_path)
    fetched.clear()
    assert found(replica, 1) == ["d0", "d2", "e0"]
    assert fetched == [3]
    replica.close()


def test_what_came_since_is_saved_beside_what_is_kept(tmp_path: Path, fetched: list[int]) -> None:
    replica, log = filled(tmp_path, [1] * 64)
    found(replica, 1)
    save(replica)
    first = kept(tmp_path)
    add(replica, log, [1, 2], "e")
    found(replica, 1)
    save(replica)
    assert set(first) < set(kept(tmp_path)) and len(kept(tmp_path)) == 2
    replica.close()
    replica = opened(tmp_path)
    fetched.clear()
    assert len(found(replica, 1)) == 65 and fetched == []
    replica.close()


def test_a_file_does_not_serve_what_was_before_a_change(tmp_path: Path) -> None:
    """Patched, replaced, deleted and purged documents, in the same process, after a restart, and saved once more."""
    replica, log = filled(tmp_path, [1, 1, 1, 1])
    found(replica, 1)
    save(replica)
    replica.apply(log.add(Patch("c", ["d0"], Change(set=[("n", b"2")]), session=Session())))
    replica.apply(log.add(put(["d1"], [[0.0, 0.0, 0.0]], [{"n": 3}])))
    replica.apply(log.add(Delete("c", ["d2"], session=Session())))
    for again in range(3):
        assert [found(replica, value) for value in (1, 2, 3)] == [["d3"], ["d0"], ["d1"]]
        while replica.tidy(all_of_it=True):
            pass
        if again == 1:
            save(replica)
        replica.close()
        replica = opened(tmp_path)
    assert [found(replica, value) for value in (1, 2, 3)] == [["d3"], ["d0"], ["d1"]]
    replica.close()


def test_an_absent_field_has_no_file(tmp_path: Path) -> None:
    """Whoever filters on made-up names must not fill the directory."""
    replica, _ = filled(tmp_path, [1, 2])
    assert found(replica, 1, "made-up") == [] and save(replica) == 0
    replica.close()


def test_old_directories_have_no_files(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path, [1, 2])
    replica.close()
    assert not list(tmp_path.rglob("fields"))
    replica = opened(tmp_path)
    assert found(replica, 1) == ["d0"] and save(replica) == 1
    replica.close()


# --- files that must not be used -------------------------------------------------------------------------------------
def test_files_of_a_later_index_than_the_documents_are_not_taken(tmp_path: Path) -> None:
    """As after a power cut that took SQLite's last transactions, or where an older documents.db was put back."""
    ahead, _ = filled(tmp_path / "ahead", [1, 1, 1])
    found(ahead, 1)
    save(ahead)
    ahead.close()
    behind, log = opened(tmp_path / "behind"), Log()
    behind.apply(log.add(CreateCollection(spec())))
    behind.close()
    for path in kept(tmp_path / "ahead"):
        target = tmp_path / "behind" / path.relative_to(tmp_path / "ahead")
        os.makedirs(target.parent, exist_ok=True)
        shutil.copy(path, target)
    behind = opened(tmp_path / "behind")
    add(behind, log, [2, 2, 1])
    assert found(behind, 1) == ["d2"]
    assert not kept(tmp_path / "behind")
    behind.close()


def test_a_file_without_what_was_purged_is_not_taken_for_documents_of_before(tmp_path: Path) -> None:
    """The ordinals are the same; a row that a later index deleted and purged is alive again."""
    replica, log = filled(tmp_path, [1, 2, 1])
    replica.checkpoint()
    replica.close()
    (documents,) = tmp_path.rglob("documents.db")
    older = documents.read_bytes()
    replica = opened(tmp_path)
    replica.apply(log.add(Delete("c", ["d0"], session=Session())))
    while replica.tidy(all_of_it=True):
        pass
    assert found(replica, 1) == ["d2"] and save(replica) == 1
    replica.close()
    documents.write_bytes(older)
    documents.with_name("documents.db-wal").unlink(missing_ok=True)
    replica = opened(tmp_path)
    assert found(replica, 1) == ["d0", "d2"]
    replica.close()


def test_a_file_with_another_index_in_its_name_is_not_taken(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path, [1, 2])
    found(replica, 1)
    save(replica)
    replica.close()
    (path,) = kept(tmp_path)
    collection, applied, rest = path.name.split("-", 2)
    path.rename(path.with_name(f"{collection}-{int(applied) - 1}-{rest}"))
    replica = opened(tmp_path)
    assert found(replica, 1) == ["d0"] and not kept(tmp_path)
    replica.close()


def test_files_of_ordinals_that_no_document_had_are_not_taken(tmp_path: Path) -> None:
    files = FieldFiles(str(tmp_path), REAL_DISK, 9, {1: 9}, 1 << 20)
    assert files.save(1, KEY, 5, [of([1, 2, 3])])
    assert FieldFiles(str(tmp_path), REAL_DISK, 9, {1: 2}, 1 << 20).end(place_of(1, KEY)) == 0
    assert not kept(tmp_path)


def test_what_is_damaged_is_made_anew(tmp_path: Path, fetched: list[int]) -> None:
    """A bit of the second file: the first one is used all the same."""
    replica, log = filled(tmp_path, [1] * 64)
    found(replica, 1)
    save(replica)
    add(replica, log, [1, 2], "e")
    found(replica, 1)
    save(replica)
    replica.close()
    first, second = kept(tmp_path)
    data = second.read_bytes()
    second.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    replica = opened(tmp_path)
    fetched.clear()
    assert len(found(replica, 1)) == 65 and fetched == [64]
    assert kept(tmp_path) == [first]
    assert save(replica) and len(kept(tmp_path)) == 2
    replica.close()


def test_a_collection_made_anew_under_the_name_has_no_old_files(tmp_path: Path) -> None:
    replica, log = filled(tmp_path, [1, 1])
    found(replica, 1)
    save(replica)
    replica.apply(log.add(DropCollection("c")))
    replica.apply(log.add(CreateCollection(spec())))
    add(replica, log, [2, 1], "e")
    assert found(replica, 1) == ["e1"]
    old = kept(tmp_path)
    save(replica)
    assert not set(old) & set(kept(tmp_path))
    replica.close()
    replica = opened(tmp_path)
    assert found(replica, 1) == ["e1"]
    replica.close()


def test_each_collection_has_its_own_files(tmp_path: Path) -> None:
    replica, log = filled(tmp_path, [1, 2])
    replica.apply(log.add(CreateCollection(spec("other"))))
    replica.apply(log.add(put(["d0", "d1"], [[0.0] * 3] * 2, [{"n": 2}, {"n": 1}], collection="other")))
    found(replica, 1)
    save(replica)
    other = json.dumps({"n": 1}).encode()
    replica.count_matching("other", other)
    save(replica)
    replica.close()
    replica = opened(tmp_path)
    request = SearchRequest(collection="other", vector=np.zeros(3, "<f4").tobytes(), k=9, filter=other, exact=True)
    assert (found(replica, 1), list(replica.search(request).ids)) == (["d0"], ["d1"])
    replica.close()


def test_a_snapshot_brings_no_files_and_uses_none(tmp_path: Path) -> None:
    sender, _ = filled(tmp_path / "sender", [2, 2, 1])
    found(sender, 1)
    save(sender)
    image = tmp_path / "image"
    image.mkdir()
    sender.export_snapshot(str(image))
    assert not kept(image)
    receiver, _ = filled(tmp_path / "receiver", [1])
    found(receiver, 1)
    save(receiver)
    before = receiver._states.opened
    receiver.install_snapshot(str(image))
    assert found(receiver, 1) == ["d2"] and not kept(tmp_path / "receiver")
    assert before is not None and before.save_fields(1) is False
    assert save(receiver) == 1
    for one in (sender, receiver):
        one.close()


def test_whoever_closes_waits_for_what_is_written_and_nothing_is_deleted_after(tmp_path: Path) -> None:
    """Otherwise a file could come into a directory that an installation deletes."""
    seen: list[bool] = []

    class Disk(ReplicaDisk):
        def write(self, path: str, *parts: bytes | memoryview) -> None:
            seen.append(files._lock.acquire(blocking=False))
            super().write(path, *parts)

    files = FieldFiles(str(tmp_path), Disk(), 9, {1: 9}, 1 << 20)
    assert files.save(1, KEY, 5, [of([1, 2])]) and seen == [False]
    files.close()
    assert not files.save(1, KEY, 6, [of([3], 2)])
    files.drop_others(())
    assert len(kept(tmp_path)) == 1
