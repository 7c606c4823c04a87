"""Files of field indexes on disks that fail, that are full, and within their bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from needle.base.errors import DiskFailed, DiskFull, NeedleError
from needle.shard.disk import REAL_DISK, ReplicaDisk
from needle.shard.fields import run_format
from needle.shard.fields.field_files import FieldFiles, place_of
from needle.shard.fields.field_index import FieldState
from shard.test_field_files import KEY, add, fetched, filled, found, kept, of, opened, save

__all__ = ["fetched"]


# --- disks that fail -----------------------------------------------------------------------------------------------
class Failing(ReplicaDisk):
    """Fails at one operation on a file of a field index; `stop`: and at all that follow, as if the process had died."""

    def __init__(self, at: int, error: Exception, stop: bool) -> None:
        self.left, self._error, self._stop = at, error, stop

    def _step(self, path: str) -> None:
        if "fields" in path:
            self.left -= 1
            if self.left == 0 or (self._stop and self.left < 0):
                raise self._error

    def write(self, path: str, *parts: bytes | memoryview) -> None:
        super().write(path, *parts)  # half a write is as good as a whole one under that name
        self._step(path)

    def rename(self, source: str, target: str) -> None:
        self._step(target)
        super().rename(source, target)

    def sync(self, path: str) -> None:
        self._step(path)
        super().sync(path)

    def remove(self, path: str) -> None:
        self._step(path)
        super().remove(path)

    def make_directory(self, path: str) -> None:
        self._step(path)
        super().make_directory(path)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("error", [DiskFull("full"), DiskFailed("broken")])
@pytest.mark.parametrize("at", range(1, 16))
def test_a_failure_at_any_step_costs_at_most_work(tmp_path: Path, at: int, error: NeedleError, stop: bool) -> None:
    disk = Failing(at, error, stop)
    replica, log = filled(tmp_path, [1, 2, 1], disk=disk)
    for prefix in ("", "e", "f", "g"):
        if prefix:
            add(replica, log, [2, 1, 2], prefix)
        found(replica, 1)
        try:
            save(replica)
        except (DiskFull, DiskFailed):
            assert disk.left <= 0
    wanted = found(replica, 1)
    replica.close()
    replica = opened(tmp_path)
    assert found(replica, 1) == wanted == ["d0", "d2", "e1", "f1", "g1"]
    assert not list(tmp_path.rglob("*.new"))
    save(replica)
    replica.close()
    replica = opened(tmp_path)
    assert found(replica, 1) == wanted
    replica.close()


def test_a_replica_opens_also_where_files_cannot_be_listed(tmp_path: Path) -> None:
    replica, _ = filled(tmp_path, [1, 2])
    replica.close()
    (state,) = tmp_path.glob("state-*")
    (state / "fields").write_bytes(b"no directory")
    replica = opened(tmp_path)
    assert found(replica, 1) == ["d0"]
    with pytest.raises(DiskFailed):
        save(replica)
    assert found(replica, 2) == ["d1"]
    replica.close()


# --- room ------------------------------------------------------------------------------------------------------------
def three(directory: Path, held: Callable[[], set[tuple[int, str]]] = set) -> FieldFiles:
    run = of([1, 2])
    size = run_format.size_of(run_format.encode(1, (("a",), False), 1, run))
    files = FieldFiles(str(directory), REAL_DISK, 9, {1: 9}, size + run.nbytes)
    for at, name in enumerate("abc"):
        files.save(1, ((name,), False), at + 1, [run], held())
    return files


def ends(files: FieldFiles) -> list[int]:
    return [files.end(place_of(1, ((name,), False))) for name in "abc"]


def test_what_was_saved_longest_ago_makes_place(tmp_path: Path) -> None:
    files = three(tmp_path)
    assert ends(files) == [0, 2, 2] and len(kept(tmp_path)) == 2
    files.drop_others(set())
    assert not kept(tmp_path)


def test_what_is_in_use_makes_no_place(tmp_path: Path) -> None:
    """Otherwise two indexes would take the place from each other forever."""
    assert ends(three(tmp_path, lambda: {place_of(1, ((name,), False)) for name in "ab"})) == [2, 2, 0]


def test_a_lower_bound_holds_from_the_next_start_on(tmp_path: Path) -> None:
    three(tmp_path)
    size = kept(tmp_path)[0].stat().st_size
    assert ends(FieldFiles(str(tmp_path), REAL_DISK, 9, {1: 9}, size)) == [0, 0, 2]
    assert len(kept(tmp_path)) == 1


def test_of_files_that_overlap_the_longest_row_is_taken(tmp_path: Path) -> None:
    """A crash between writing a larger run and deleting those that it replaces."""
    files = FieldFiles(str(tmp_path), REAL_DISK, 9, {1: 9}, 1 << 20)
    files.save(1, KEY, 3, [of([1, 2])])
    files.save(1, KEY, 4, [of([3], 2)])
    small = {path: path.read_bytes() for path in kept(tmp_path)}
    files.save(1, KEY, 5, [of([1, 2, 3, 4])])
    for path, data in small.items():
        path.write_bytes(data)
    again = FieldFiles(str(tmp_path), REAL_DISK, 9, {1: 9}, 1 << 20)
    state = again.load(1, KEY)
    assert (state.end, len(state.runs), len(kept(tmp_path))) == (4, 1, 1)


def test_a_file_that_was_replaced_while_it_was_read_takes_nothing_along(tmp_path: Path) -> None:
    class Disk(ReplicaDisk):
        def read(self, path: str) -> bytes:
            if not replaced:
                replaced.append(files.save(1, KEY, 5, [of([1, 2, 3])]))
            return super().read(path)

    replaced: list[bool] = []
    files = FieldFiles(str(tmp_path), Disk(), 9, {1: 9}, 1 << 20)
    files.save(1, KEY, 3, [of([1, 2])])
    assert files.load(1, KEY) == FieldState()
    assert replaced == [True] and files.load(1, KEY).end == 3


def test_a_field_that_was_taken_back_comes_from_its_file(tmp_path: Path, fetched: list[int]) -> None:
    """There is memory for one of two fields: each is read again, and neither made again."""
    replica, _ = filled(tmp_path, [1, 2, 1])
    for name in ("n", "m"):
        assert found(replica, 1, name) == ["d0", "d2"]
        save(replica)
    fetched.clear()
    budget = replica.field_indexes
    for holder in list(budget._holders):
        budget.release(holder)
    assert found(replica, 1, "n") == found(replica, 1, "m") == ["d0", "d2"] and fetched == []
    replica.close()
