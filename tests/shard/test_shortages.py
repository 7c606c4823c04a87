"""A shortage (no room, no file handle) in the middle of applying or installing: what is done counts, the rest is
repeated, and nothing differs from a replica that had room."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from needle.base.errors import DiskFailed, DiskFull, NeedleError, StorageError, TooManyFiles
from needle.base.model import WriteResult
from needle.multiraft.ports import Applied
from needle.protocol.commands import Command, CreateCollection, Delete, OpenSession, Session
from needle.protocol.move_commands import Forget, Freeze, Mark, PrepareMove, Release
from needle.routing.shard_map import KeyRange
from needle.routing.strategy import RANGE, ShardStrategy
from needle.shard.segments import files as segment_files
from needle.shard.state_machine import Replica
from shard.replica_util import Log, open_replica, put, spec

ALL: list[KeyRange] = [(b"", None)]
UPPER: list[KeyRange] = [(b"\x80", None)]


@contextmanager
def no_room(replica: Replica) -> Iterator[None]:
    """SQLite finds the disk full."""
    writer = replica._store.writer._connection
    writer.execute(f"PRAGMA max_page_count={writer.execute('PRAGMA page_count').fetchone()[0]}")
    try:
        yield
    finally:
        writer.execute("PRAGMA max_page_count=1000000000")


@contextmanager
def no_files() -> Iterator[None]:
    """This process may open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def large(count: int = 500) -> Command:
    return put([f"z{n}" for n in range(count)], [[1, 2, 3]] * count)


def test_of_several_runs_what_is_done_counts_and_the_rest_is_applied_later(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a", "z"], [[1, 2, 3]] * 2)))
    replica.apply(log.add(PrepareMove(9, 9, False, [(b"m", None)], ALL, RANGE, 2), Freeze(9)))
    replica.save()
    entries = log.add(put(["b"], [[1, 1, 1]]), put([f"c{n}" for n in range(500)], [[1, 2, 3]] * 500), Release(9), None)
    with no_room(replica):
        done = replica.apply(entries)
        assert [type(result) for result in done] == [WriteResult, WriteResult]
        assert replica.applied_index() == entries[1].index
        for _ in range(2):
            with pytest.raises(DiskFull):
                replica.apply(entries[2:])
        assert replica.apply(entries[:3]) == [None, None], "what was applied is skipped, and the rest is not lost"
    released, nothing = replica.apply(entries[2:])
    assert isinstance(released, WriteResult) and nothing is None
    assert replica.get("c", ["z"], False) == [] and len(replica.get("c", ["a", "b", "c499"], False)) == 3
    replica.verify()
    replica.close()


def test_a_write_that_cannot_be_judged_now_is_executed_once_later(tmp_path: Path) -> None:
    """Under custom routing what is stored decides; its session must not remember an attempt that came to nothing."""
    replica, log = open_replica(tmp_path), Log()
    session = log.session(replica)
    rows: list[Any] = [{"t": n} for n in range(500)]
    replica.apply(log.add(CreateCollection(spec())))
    replica.apply(log.add(PrepareMove(3, 3, False, UPPER, ALL, ShardStrategy.custom("t"), 2)))
    replica.save()
    entries = log.add(
        put([f"d{n}" for n in range(500)], [[1, 2, 3]] * 500, rows, session=Session(session, 1, 0)),
        Delete("c", ["gone"], session=Session(session, 2, 2)),
    )
    later = log.add(
        put(["new"], [[1, 1, 1]], [{"t": 1}], session=Session(session, 3, 2)),
        Delete("c", ["d7"], session=Session(session, 4, 4)),
        Delete("c", ["d7"], session=Session(session, 4, 4)),
    )
    with no_room(replica):
        assert len(replica.apply(entries)) == 2
        with pytest.raises(DiskFull):
            replica.save()  # until then it could be judged from memory
        before = (replica.sessions.rows(), replica.sessions.answers())
        done = replica.apply(later)
        assert [result.count for result in done] == [1]
        with pytest.raises(DiskFull):
            replica.apply(later[1:])
        rows_now = replica.sessions.rows()
        assert rows_now[0][2] == later[0].index, "as of the last entry that was applied"
        assert before[1] != replica.sessions.answers()
    first, again = replica.apply(later[1:])
    assert (first.count, again.count) == (1, 1) and first.index == again.index == later[1].index
    assert replica.get("c", ["d7"], False) == []
    replica.verify()
    replica.close()


def history(rng: random.Random) -> list[Command | None]:
    """Writes under numbers, some of them repeated, around the moves of ranges under custom routing."""
    made: list[Command | None] = [CreateCollection(spec()), OpenSession(1), OpenSession(2)]
    sessions, last = (2, 3), {2: 0, 3: 0}
    moves: list[Command] = [
        PrepareMove(3, 3, False, UPPER, ALL, ShardStrategy.custom("t"), 2),
        Mark(3, "c", 40),
        Freeze(3),
        Release(3),
        Forget(3, 5),
        Forget(3, 500),
        Forget(3, 500),
    ]
    for step in range(60):
        if step % 9 == 8 and moves:
            made.append(moves.pop(0))
        session = rng.choice(sessions)
        repeated = rng.random() < 0.2 and last[session]
        last[session] += 0 if repeated else 1
        numbered = Session(session, last[session], max(0, last[session] - 3))
        ids = [f"d{rng.randrange(80)}" for _ in range(rng.randint(1, 12))]
        if rng.random() < 0.3:
            made.append(Delete("c", ids, session=numbered))
        else:
            values: list[Any] = [{"t": rng.randrange(8), "pad": "x" * rng.randrange(600)} for _ in ids]
            made.append(put(ids, [[1, 2, 3]] * len(ids), values, session=numbered))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_shortages_at_any_place_change_no_result_and_no_state(tmp_path: Path, seed: int) -> None:
    rng, log = random.Random(seed), Log()
    log.add(*history(rng))
    calm, poor = open_replica(tmp_path / "calm"), open_replica(tmp_path / "poor")
    wanted, found = calm.apply(log.entries), []
    left: Sequence[Applied] = log.entries
    short = 0
    while left:
        some = left[: rng.randint(1, 12)]
        try:
            if rng.random() < 0.8:
                with no_room(poor):
                    done = poor.apply(some)
            else:
                done = poor.apply(some)
        except DiskFull:
            short += 1
            continue
        short += len(done) < len(some)
        found += done
        left = left[len(done) :]
    assert short > 1
    assert [str(result) for result in found] == [str(result) for result in wanted]
    assert poor.digest() == calm.digest()
    assert (poor.sessions.rows(), poor.sessions.answers()) == (calm.sessions.rows(), calm.sessions.answers())
    poor.verify()
    poor.close()
    again = open_replica(tmp_path / "poor")
    assert again.digest() == calm.digest()
    for replica in (again, calm):
        replica.close()


def states(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith("state-"))


class Installing:
    """A replica into which another one's image is installed while the process has no file handles from a step on."""

    def __init__(self, directory: Path, step: str) -> None:
        self.step, self.armed, self.held = step, False, False
        self.source, self.log = open_replica(directory / "source"), Log()
        self.source.apply(self.log.add(CreateCollection(spec()), large(), put(["new"], [[1, 2, 3]])))
        self.image = directory / "image"
        self.image.mkdir()
        self.source.export_snapshot(str(self.image))
        self.target = open_replica(directory / "target", failpoint=self.at)
        self.target.apply(self.log.entries[:2])
        self.target.get("c", ["z1"], False)  # so that it has a connection to read by
        self.directory = directory / "target"
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def at(self, step: str) -> None:
        if self.armed and step == self.step:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, self.limits[1]))

    def try_to(self) -> NeedleError | None:
        self.armed = True
        try:
            self.target.install_snapshot(str(self.image))
        except NeedleError as error:
            return error
        finally:
            self.armed = False
            resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        return None


@pytest.fixture(params=["install-verified", "install-staged", "install-synced", "install-swapped"])
def installing(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Installing]:
    made = Installing(tmp_path, request.param)
    yield made
    made.source.close()
    made.target.close()


def test_an_installation_without_file_handles_is_finished_later(installing: Installing) -> None:
    target = installing.target
    for _ in range(3):
        assert isinstance(installing.try_to(), TooManyFiles)
        assert target.applied_index() == 2
        with no_files():
            assert len(target.get("c", ["z1", "new"], False)) == 1, "reads go on, from the state before"
        assert len(states(installing.directory)) <= 2
    target.install_snapshot(str(installing.image))
    assert target.digest() == installing.source.digest() and len(states(installing.directory)) == 1
    target.apply(installing.log.add(put(["more"], [[1, 2, 3]])))
    target.verify()


def test_what_was_swapped_in_is_opened_before_anything_is_applied(installing: Installing) -> None:
    """Otherwise entries would go into a state that the next start does not open any more."""
    target = installing.target
    assert isinstance(installing.try_to(), TooManyFiles)
    entries = installing.log.add(put(["more"], [[1, 2, 3]]))
    before = installing.log.entries[2:3]
    results = target.apply([*before, *entries])
    target.verify()
    swapped = installing.step == "install-swapped"
    assert (results[0] is None) is swapped and isinstance(results[1], WriteResult)
    installing.source.apply(entries)
    digest = installing.source.digest()
    assert target.digest() == digest
    target.close()
    again = open_replica(installing.directory)
    assert again.digest() == digest and len(states(installing.directory)) == 1
    again.close()


def test_an_old_state_that_cannot_be_deleted_now_is_deleted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Installing(tmp_path, "never")
    inner = made.target._states._around.disk.remove_tree

    def full(path: str) -> None:
        if path.endswith("state-1"):
            raise DiskFull("no room to delete")
        inner(path)

    monkeypatch.setattr(made.target._states._around.disk, "remove_tree", full)
    assert made.try_to() is None
    assert made.target.digest() == made.source.digest() and len(states(made.directory)) == 2
    with pytest.raises(DiskFull):
        made.target.tidy(all_of_it=True)
    monkeypatch.undo()
    made.target.tidy(all_of_it=True)
    assert states(made.directory) == ["state-2"]
    made.target.close()
    made.source.close()


@contextmanager
def refused_writes(number: int) -> Iterator[None]:
    """The system refuses SQLite's writes with this number."""
    calls = apsw.VFS("refusing", base="unix-excl")

    @ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, use_errno=True)
    def refuse(_: int, __: int, ___: int) -> int:
        ctypes.set_errno(number)
        return -1

    # Whichever of these SQLite was compiled to use; what a call has besides these arguments does not matter.
    before = {name: found for name in ("write", "pwrite", "pwrite64") if (found := calls.xGetSystemCall(name))}
    for name in before:
        calls.xSetSystemCall(name, ctypes.cast(refuse, ctypes.c_void_p).value or 0)
    try:
        yield
    finally:
        for name, call in before.items():
            calls.xSetSystemCall(name, call)
        calls.unregister()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_the_system_refuses_to_sqlite_waits_for_room(tmp_path: Path, number: int) -> None:
    """SQLite itself knows ENOSPC only, and calls the quota of a user an error of the disk."""
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec()), put(["a"], [[1, 2, 3]])))
    replica.checkpoint()
    with refused_writes(number):
        assert len(replica.apply(log.add(large()))) == 1
        for _ in range(2):
            with pytest.raises(DiskFull):
                replica.save()
        with pytest.raises(DiskFull):
            replica.checkpoint()
        assert len(replica.apply(log.add(put(["b"], [[1, 2, 3]])))) == 1
    replica.save()
    with refused_writes(number), pytest.raises(DiskFull):
        replica.checkpoint()
    (tmp_path / "image").mkdir()
    with refused_writes(number), pytest.raises(DiskFull):
        replica.export_snapshot(str(tmp_path / "image"))
    replica.export_snapshot(str(tmp_path / "image"))
    replica.checkpoint()
    assert len(replica.get("c", ["a", "b", "z499"], True)) == 3
    replica.verify()
    replica.close()


def test_what_the_disk_refuses_for_another_reason_is_final(tmp_path: Path) -> None:
    replica, log = open_replica(tmp_path), Log()
    replica.apply(log.add(CreateCollection(spec())))
    replica.apply(log.add(large()))
    with refused_writes(errno.EIO), pytest.raises(DiskFailed):
        replica.save()
    with pytest.raises(StorageError):
        replica.apply(log.add(put(["b"], [[1, 2, 3]])))


def test_index_files_that_cannot_be_listed_or_deleted_now_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "1-0-1.seg.part"
    path.write_bytes(b"x")
    with no_files(), pytest.raises(TooManyFiles):
        segment_files.segment_files(str(tmp_path), lambda _: False)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Path, "unlink", full)
    for delete in (segment_files.delete, lambda one: segment_files.delete_all([one])):
        with pytest.raises(DiskFull):
            delete(str(path))


def test_a_state_that_searches_still_read_is_not_deleted_under_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caretaker's thread may tidy at any moment, also while an installation waits for the searches to leave."""
    made, seen = Installing(tmp_path, "never"), []
    inner = made.target._states

    def drain() -> None:
        inner.remove_left()
        seen.append(states(made.directory))

    monkeypatch.setattr(inner._in_flight, "drain", drain)
    assert made.try_to() is None
    monkeypatch.undo()
    assert seen == [["state-1", "state-2"]] and states(made.directory) == ["state-2"]
    made.target.close()
    made.source.close()
