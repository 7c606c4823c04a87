"""`needle repair`: given a directory that it must not touch."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiraft.wal_util import open_wal
from needle.cli.app import main

COMMANDS = ("term", "resume")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_of_something_else_is_refused_and_stays_as_it_is(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/var has a directory `log`, too."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "syslog").write_text("words")
    for given in (tmp_path, tmp_path / "log", tmp_path / "log" / "syslog", tmp_path / "nothing"):
        assert main(["repair", command, str(given)]) == 1
        assert "the data directory of a node" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["log", "syslog"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_directory_of_a_node_that_runs_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.json").write_text("{}")
    running = open_wal(str(tmp_path / "log"))
    try:
        assert main(["repair", command, str(tmp_path)]) == 1
        assert "another process uses" in capsys.readouterr().err
    finally:
        running.close()
