"""What a power cut takes from a simulated machine's files: only what was not synced, and then at any byte."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import needle.shard
from needle.sim.event_loop import SimLoop
from needle.sim.machines import SimFiles, SimMachine, SimReplicaDisk
from needle.sim.process import Process
from needle.sim.spec import REPLICA_FAILPOINTS

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
    source = "".join(path.read_text() for path in Path(needle.shard.__file__).parent.glob("*.py"))
    assert re.search(rf'failpoint\("{name}"\)', source)
