"""Images: round trip, refusal of damage, and installations killed at every step."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from needle.base.errors import (
    CorruptSnapshot,
    DiskFull,
    NeedleError,
    ReplicaDamaged,
    StorageError,
    TooManyFiles,
)
from needle.base.model import SearchRequest
from needle.multiraft.ports import Applied
from needle.protocol.commands import CreateCollection, Delete, PublishSegment, Session
from needle.shard.documents.image import IMAGE_NAME, INSTALL_STEPS
from needle.shard.documents.sqlite_file import FILE_NAME, FORMAT_VERSION, PAGE_BYTES, READ_SINCE, connect
from needle.shard.plan import PublishedSegment
from needle.shard.segments.format import verify_file
from needle.shard.segments.sealed import segment_file
from needle.shard.state_machine import Replica
from shard.replica_util import Log, floats, open_replica, put, spec


def filled(directory: Path) -> tuple[Replica, Log]:
    replica, log = open_replica(directory), Log()
    replica.apply(log.add(CreateCollection(spec())))
    session = log.session(replica)
    replica.apply(log.add(put(["a", "b", "c"], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [{"n": 1}, None, {"n": 2}])))
    replica.apply(log.add(put(["a"], [[2, 0, 0]], session=Session(session, 1, 0)), Delete("c", ["b"])))
    replica.apply([Applied(len(log.entries) + 1, 3, b"", b"conf")])
    return replica, log


def exported(replica: Replica, directory: Path) -> Path:
    directory.mkdir()
    replica.export_snapshot(str(directory))
    return directory


def test_round_trip_carries_everything(tmp_path: Path) -> None:
    source, _ = filled(tmp_path / "source")
    (tmp_path / "image").mkdir()
    index, term, conf, files = source.export_snapshot(str(tmp_path / "image"))
    assert (index, term, conf) == (6, 3, b"conf") == (source.applied_index(), source.applied_term(), source.conf())
    assert sorted(file.name for file in files) == sorted(os.listdir(tmp_path / "image"))
    assert all((tmp_path / "image" / file.name).stat().st_size == file.size for file in files)

    target, log = open_replica(tmp_path / "target"), Log()
    target.apply(log.add(CreateCollection(spec("other")), put(["x"], [[1, 1, 1]], collection="other")))
    target.install_snapshot(str(tmp_path / "image"))
    for replica in (target, open_replica(tmp_path / "again")):
        if replica is not target:
            replica.install_snapshot(str(tmp_path / "image"))
        assert replica.digest() == source.digest() and replica.sessions.rows() == source.sessions.rows()
        assert (replica.applied_index(), replica.applied_term(), replica.conf()) == (6, 3, b"conf")
        assert replica.search(SearchRequest(collection="c", vector=floats([2, 0, 0]), k=1)).versions == [4]
        replica.verify()
        # Both go on from there alike, and the image stays as it was.
        new = Applied(7, 3, source_entry(), None)
        assert replica.apply([new])[0].version == 7
        replica.close()
    source.apply([Applied(7, 3, source_entry(), None)])
    target = open_replica(tmp_path / "target")
    assert target.digest() == source.digest()
    target.install_snapshot(str(tmp_path / "image"))
    assert target.applied_index() == 6


def test_a_snapshot_for_nodes_of_the_release_before_is_in_their_format(tmp_path: Path) -> None:
    source, _ = filled(tmp_path / "source")
    source.close()
    at = [1]
    source = open_replica(tmp_path / "source", version=lambda: at[0])
    image = exported(source, tmp_path / "image")
    assert sorted(os.listdir(image)) == [FILE_NAME, IMAGE_NAME]  # and no write-ahead log
    assert _format_and_columns(image) == (4, ["collection_id", "id", "ordinal", "version", "hash", "vector"])
    target = open_replica(tmp_path / "target")
    target.install_snapshot(str(image))
    target.verify()
    assert target.digest() == source.digest() and target.sessions.rows() == source.sessions.rows()
    at[0] = READ_SINCE
    assert _format_and_columns(exported(source, tmp_path / "later"))[0] == FORMAT_VERSION


def test_what_the_format_before_cannot_hold_is_never_left_out(tmp_path: Path) -> None:
    source, log = open_replica(tmp_path / "source", version=lambda: 1), Log()
    source.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 0, 0]], expires=[1 << 40])))
    image = exported(source, tmp_path / "image")
    assert _format_and_columns(image)[0] == FORMAT_VERSION
    target = open_replica(tmp_path / "target")
    target.install_snapshot(str(image))
    assert target.digest() == source.digest()


def _format_and_columns(image: Path) -> tuple[int, list[str]]:
    with closing(connect(str(image / FILE_NAME))) as connection:
        ((found,),) = connection.execute("SELECT value FROM meta WHERE name = 'format'")
        return found, [name for (name,) in connection.execute("SELECT name FROM pragma_table_info('ids')")]


def source_entry() -> bytes:
    log = Log()
    return log.add(put(["z"], [[5, 5, 5]]))[0].data


def test_segment_files_that_are_here_travel_and_missing_ones_do_not_matter(tmp_path: Path) -> None:
    source, log = filled(tmp_path / "source")
    log.entries.append(log.entries[-1])  # filled() applied one entry more
    publish = [PublishSegment(1, 0, 1, 2, 4, "0" * 32), PublishSegment(1, 2, 3, 2, 4, "1" * 32)]
    source.apply(log.add(*publish))
    (vectors,) = source.held.collection_vectors()
    name = segment_file(PublishedSegment(1, 0, 1, 2, 4, "0" * 32))
    Path(vectors.directory, name).write_bytes(b"file")
    image = exported(source, tmp_path / "image")
    assert sorted(os.listdir(image)) == sorted(["documents.db", IMAGE_NAME, name])
    assert (image / name).read_bytes() == b"file"
    (image / name).unlink()
    with pytest.raises(CorruptSnapshot, match=name):
        open_replica(tmp_path / "target").install_snapshot(str(image))


@pytest.mark.parametrize("name", ["documents.db", IMAGE_NAME])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_image_is_refused_and_nothing_changes(tmp_path: Path, name: str, damage: str) -> None:
    source, _ = filled(tmp_path / "source")
    image = exported(source, tmp_path / "image")
    path = image / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    target, log = open_replica(tmp_path / "target"), Log()
    target.apply(log.add(CreateCollection(spec("mine"))))
    before = target.digest()
    with pytest.raises(CorruptSnapshot, match="Nothing was installed"):
        target.install_snapshot(str(image))
    assert target.digest() == before and target.applied_index() == 1
    target.apply(log.add(put(["x"], [[1, 1, 1]], collection="mine")))
    target.close()
    assert open_replica(tmp_path / "target").count("mine") == 1


def test_an_image_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    source, _ = filled(tmp_path / "source")
    image = exported(source, tmp_path / "image")
    text = (image / IMAGE_NAME).read_text().replace('"documents.db"', '"../documents.db"')
    (image / IMAGE_NAME).write_text(text)
    with pytest.raises(CorruptSnapshot, match="outside"):
        open_replica(tmp_path / "target").install_snapshot(str(image))


class Killed(BaseException):
    """A process that dies at a failpoint."""


@pytest.mark.parametrize("step", INSTALL_STEPS)
def test_killed_at_each_step_of_an_installation(tmp_path: Path, step: str) -> None:
    source, _ = filled(tmp_path / "source")
    image = exported(source, tmp_path / "image")

    def failpoint(at: str) -> None:
        if at == step:
            raise Killed

    target, log = open_replica(tmp_path / "target", failpoint), Log()
    target.apply(log.add(CreateCollection(spec("mine"))))
    old = target.digest()
    with pytest.raises(Killed):
        target.install_snapshot(str(image))
    with pytest.raises(StorageError, match="restart"):
        target.apply(log.add(None))
    target.close()

    target = open_replica(tmp_path / "target")
    assert target.digest() == (source.digest() if step == "install-swapped" else old)
    assert len([name for name in os.listdir(tmp_path / "target") if name.startswith("state-")]) == 1
    target.install_snapshot(str(image))
    assert target.digest() == source.digest()
    target.verify()
    target.close()


def pages(path: Path) -> set[bytes]:
    content = path.read_bytes()
    return {content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)}


def test_an_image_shares_its_pages_with_the_files_of_other_replicas(tmp_path: Path) -> None:
    """So that only changed pages have to travel: also when rows were purged, what was written is not checkpointed yet,
    and the other replica committed at other times, or has got its state from an image."""
    rng, log = np.random.default_rng(0), Log()
    ids = [f"d{number}" for number in range(4000)]

    def writes(ids: list[str]) -> list[Applied]:
        parts = [ids[at : at + 50] for at in range(0, len(ids), 50)]
        return log.add(*(put(part, rng.standard_normal((len(part), 32)).tolist()) for part in parts))

    source, other = open_replica(tmp_path / "source", commit=1), open_replica(tmp_path / "other", commit=170)
    first = [*log.add(CreateCollection(spec(dimensions=32))), *writes(ids), *writes(ids[::3])]
    for replica in (source, other):
        replica.apply(first)
        replica.checkpoint()
    installed = open_replica(tmp_path / "installed")
    installed.install_snapshot(str(exported(source, tmp_path / "image")))
    source.apply(writes(ids[1000:1050]))
    wanted = pages(exported(source, tmp_path / "later") / "documents.db")
    assert len(wanted) > 200
    for replica, state in ((other, "other/state-1"), (installed, "installed/state-2")):
        assert len(wanted - pages(tmp_path / state / "documents.db")) < len(wanted) // 8
        assert replica.similar_file("documents.db") == str(tmp_path / state / "documents.db")
        assert replica.similar_file("image.json") is None
    for replica in (source, other, installed):
        replica.close()


def test_a_replica_whose_state_is_gone_serves_nothing_until_it_has_another(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path / "r")
    (tmp_path / "image").mkdir()
    replica.export_snapshot(str(tmp_path / "image"))
    digest = replica.digest()
    replica.close()
    (tmp_path / "r" / "CURRENT").write_text("state-9")
    replica = open_replica(tmp_path / "r")
    assert replica.damage is not None and "state-9" in replica.damage.message
    with pytest.raises(ReplicaDamaged):
        replica.get("c", ["a"], False)
    replica.install_snapshot(str(tmp_path / "image"))
    assert replica.damage is None and replica.digest() == digest
    replica.close()


def test_what_an_image_replaces_gives_its_memory_back(tmp_path: Path) -> None:
    source, log = open_replica(tmp_path / "source"), Log()
    source.apply(log.add(CreateCollection(spec())))
    target, used = open_replica(tmp_path / "target"), []
    asked = SearchRequest(collection="c", vector=floats([1, 1, 1]), k=9, filter=b'{"n": {"$gte": 0}}')
    for n in range(3):
        source.apply(log.add(put([f"d{n}"], [[1, 1, 1]], [{"n": n}])))
        target.install_snapshot(str(exported(source, tmp_path / f"image{n}")))
        assert len(target.search(asked).ids) == 1 + n
        used.append(target.field_indexes.used)
    assert max(used) < 1.5 * used[0]
    target.close()
    assert target.field_indexes.used == 0


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFull), (errno.EMFILE, TooManyFiles)])
def test_an_installation_that_finds_no_room_changes_nothing_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[NeedleError]
) -> None:
    source, _ = filled(tmp_path / "source")
    image = exported(source, tmp_path / "image")
    target, log = open_replica(tmp_path / "target"), Log()
    target.apply(log.add(CreateCollection(spec("mine"))))
    old, names = target.digest(), sorted(os.listdir(tmp_path / "target"))

    def no_room(_: str, to: str) -> None:
        Path(to).write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", no_room)
    for _ in range(2):
        with pytest.raises(kind):
            target.install_snapshot(str(image))
        assert sorted(os.listdir(tmp_path / "target")) == names, "nothing half made takes room"
    target.apply(log.add(None))
    assert target.digest() == old
    monkeypatch.undo()
    target.install_snapshot(str(image))
    assert target.digest() == source.digest()
    target.close()
    source.close()


def test_an_index_file_that_cannot_be_opened_now_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "1-0-1-x.seg"
    path.write_bytes(b"x" * 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(TooManyFiles):
            verify_file(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
