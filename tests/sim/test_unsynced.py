"""What a power cut takes from a simulated machine's files: only what was not synced, and then at any byte."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import needle.shard
from needle.base.errors import DiskFailed
from proof.sim.event_loop import SimLoop
from proof.sim.machines import SimFiles, SimMachine, SimReplicaDisk
from proof.sim.process import Process
from proof.sim.spec import REPLICA_FAILPOINTS

CONTENT = bytes(range(1, 200))
TRIES = 40


def outcomes(tmp_path: Path, work: Callable[[SimReplicaDisk, SimFiles, Path], None]) -> set[bytes | None]:
    """What is left of the file `name` after a power cut, over many tries; None: it is not there."""
    found: set[bytes | None] = set()
    for seed in range(TRIES):
        root = tmp_path / str(seed)
        machine = SimMachine("n1", "n1:1", str(root), SimLoop(random.Random(1)), seed, 0.0)
        process = machine.boot()
        assert isinstance(process, Process)
        here = Path(machine.data_dir)
        (here / "source").write_bytes(CONTENT)
        work(SimReplicaDisk(machine, process), SimFiles(machine, process), here)
        machine.crash(power_cut=True)
        found.add((here / "name").read_bytes() if (here / "name").exists() else None)
        shutil.rmtree(root)
    return found


def copied(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
    disk.copy(str(here / "source"), str(here / "name"))


def test_a_copy_without_sync_is_lost_or_torn(tmp_path: Path) -> None:
    found = outcomes(tmp_path, copied)
    assert {None, CONTENT} < found
    torn = found - {None, CONTENT}
    assert any(data and len(data) < len(CONTENT) and CONTENT.startswith(data) for data in torn)
    assert any(data and len(data) == len(CONTENT) and data.endswith(b"\0") for data in torn)


def test_a_directory_that_was_renamed_may_have_its_old_name_again_until_that_is_synced(tmp_path: Path) -> None:
    def work(synced: bool) -> Callable[[SimReplicaDisk, SimFiles, Path], None]:
        def renamed(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
            disk.make_directory(str(here / "old"))
            disk.copy(str(here / "source"), str(here / "old" / "file"))
            disk.sync(str(here / "old" / "file"))
            disk.sync(str(here / "old"))
            disk.rename(str(here / "old"), str(here / "new"))
            if synced:
                disk.sync(str(here))

        return renamed

    def left(synced: bool) -> set[str]:
        found = set()
        for seed in range(TRIES):
            machine = SimMachine("n1", "n1:1", str(tmp_path / f"{synced}{seed}"), SimLoop(random.Random(1)), seed, 0.0)
            process, here = machine.boot(), Path(machine.data_dir)
            (here / "source").write_bytes(CONTENT)
            work(synced)(SimReplicaDisk(machine, process), SimFiles(machine, process), here)
            machine.crash(power_cut=True)
            (name,) = {path.name for path in here.resolve().iterdir()} - {"source"}
            assert (here / name / "file").read_bytes() == CONTENT
            found.add(name)
        return found

    assert left(False) == {"old", "new"}
    assert left(True) == {"new"}


def test_a_synced_file_may_lose_its_name_only(tmp_path: Path) -> None:
    def work(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        copied(disk, files, here)
        disk.sync(str(here / "name"))

    assert outcomes(tmp_path, work) == {None, CONTENT}


def test_a_synced_file_in_a_synced_directory_stays(tmp_path: Path) -> None:
    def work(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        copied(disk, files, here)
        disk.sync(str(here / "name"))
        disk.sync(str(here))

    assert outcomes(tmp_path, work) == {CONTENT}


def test_a_link_is_as_safe_as_what_it_links_to(tmp_path: Path) -> None:
    def work(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        disk.copy(str(here / "source"), str(here / "first"))
        disk.link(str(here / "first"), str(here / "name"))
        disk.sync(str(here))

    assert len(outcomes(tmp_path, work)) > 3

    def synced(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        work(disk, files, here)
        disk.sync(str(here / "first"))

    assert outcomes(tmp_path / "synced", synced) == {CONTENT}


def test_a_rename_is_undone_unless_its_directory_was_synced(tmp_path: Path) -> None:
    def work(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        disk.write(str(here / "name"), b"old")
        disk.sync(str(here))
        disk.write(str(here / "name.new"), b"new")
        disk.rename(str(here / "name.new"), str(here / "name"))

    assert outcomes(tmp_path, work) == {b"old", b"new"}


def test_snapshot_chunks_are_safe_after_the_tree_is_synced(tmp_path: Path) -> None:
    def work(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        files.write_at(str(here / "name"), 0, CONTENT)

    assert len(outcomes(tmp_path, work)) > 3

    def synced(disk: SimReplicaDisk, files: SimFiles, here: Path) -> None:
        work(disk, files, here)
        files.sync_tree(str(here))

    assert outcomes(tmp_path / "synced", synced) == {CONTENT}


def finished(disk: SimReplicaDisk, here: Path, *, file: bool, directory: bool) -> None:
    """What is done to an index file: written by system calls of its own, synced, named, its directory synced."""
    (here / "name.tmp").write_bytes(CONTENT)
    if file:
        disk.sync(str(here / "name.tmp"))
    disk.rename(str(here / "name.tmp"), str(here / "name"))
    if directory:
        disk.sync(str(here))


def test_a_file_that_is_named_before_it_is_synced_is_torn(tmp_path: Path) -> None:
    found = outcomes(tmp_path, lambda disk, files, here: finished(disk, here, file=False, directory=True))
    assert len(found) > 3
    assert None not in found


def test_a_new_name_is_lost_until_its_directory_is_synced(tmp_path: Path) -> None:
    found = outcomes(tmp_path, lambda disk, files, here: finished(disk, here, file=True, directory=False))
    assert found == {None, CONTENT}
    whole = outcomes(tmp_path / "all", lambda disk, files, here: finished(disk, here, file=True, directory=True))
    assert whole == {CONTENT}


def test_what_was_lost_in_spite_of_its_name_is_told_but_not_after_a_failed_sync(tmp_path: Path) -> None:
    told: dict[bool, set[str]] = {True: set(), False: set()}
    for seed in range(TRIES):
        for fails in told:
            root = tmp_path / f"{seed}-{fails}"
            machine = SimMachine("n1", "n1:1", str(root), SimLoop(random.Random(1)), seed, 0.0)
            disk = SimReplicaDisk(machine, machine.boot())
            finished(disk, Path(machine.data_dir), file=True, directory=False)
            if fails:
                machine.log_disk.fail_commits = "EIO"
                with pytest.raises(DiskFailed):
                    disk.sync(machine.data_dir)
            machine.crash(power_cut=True)
            told[fails].add(machine.unsynced.broken)
    assert told == {False: {"", "name"}, True: {""}}


def test_a_rotten_index_file_differs_in_one_bit(tmp_path: Path) -> None:
    machine = SimMachine("n1", "n1:1", str(tmp_path), SimLoop(random.Random(1)), 1, 0.0)
    assert machine.rot_segment() is None
    name = f"3-0-9-{'a' * 32}.seg"
    (Path(machine.data_dir) / name).write_bytes(CONTENT)
    assert machine.rot_segment() == name
    found = (Path(machine.data_dir) / name).read_bytes()
    assert sum((one ^ other).bit_count() for one, other in zip(found, CONTENT, strict=True)) == 1


def test_a_process_crash_takes_nothing(tmp_path: Path) -> None:
    machine = SimMachine("n1", "n1:1", str(tmp_path), SimLoop(random.Random(1)), 1, 0.0)
    here = Path(machine.data_dir)
    (here / "source").write_bytes(CONTENT)
    copied(SimReplicaDisk(machine, machine.boot()), SimFiles(machine, Process("n1", 1)), here)
    machine.crash(power_cut=False)
    assert (here / "name").read_bytes() == CONTENT
    assert machine.unsynced.lost == 0


@pytest.mark.parametrize("name", REPLICA_FAILPOINTS)
def test_the_failpoints_of_a_replica_are_in_its_code(name: str) -> None:
    source = "".join(path.read_text() for path in Path(needle.shard.__file__).parent.rglob("*.py"))
    assert re.search(rf'failpoint\("{name}"\)', source)
