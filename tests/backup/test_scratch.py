"""Scratch directories: what a killed command left is found again, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from needle.backup.scratch import PREFIX, remove_left, scratch_directory

HOLDS = """
import sys, time
from needle.backup.scratch import scratch_directory
with scratch_directory(sys.argv[1]) as directory:
    (directory / "large").write_bytes(b"x" * 1000)
    print(directory, flush=True)
    time.sleep(600)
"""


def holder(where: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(where)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_command_left_goes_when_the_next_one_begins(tmp_path: Path) -> None:
    (killed, left), (living, used) = holder(tmp_path), holder(tmp_path)
    try:
        assert (left / "large").exists() and (used / "large").exists()
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        assert (left / "large").exists()
        with scratch_directory(str(tmp_path)) as own:
            assert own.is_dir() and not left.exists() and not Path(f"{left}.lock").exists()
            assert (used / "large").exists(), "of a command that runs"
        assert sorted(tmp_path.iterdir()) == [used, Path(f"{used}.lock")]
    finally:
        living.kill()
        living.wait(30)


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("of somebody")
    (tmp_path / f"{PREFIX}without-a-lock").mkdir()
    (tmp_path / "other.lock").touch()
    os.symlink(elsewhere / "file", tmp_path / f"{PREFIX}link.lock")
    before = sorted(tmp_path.rglob("*"))
    assert remove_left(tmp_path) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_lock_without_a_directory_goes_too(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}0.lock").touch()
    assert remove_left(tmp_path) == []
    assert not list(tmp_path.iterdir())
