"""What the command refuses."""

from pathlib import Path

import pytest

from proof.chaos.__main__ import main


def test_a_used_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "history.jsonl").write_text("")
    assert main(["--directory", str(tmp_path), "--minutes", "0.1"]) == 2
    assert "not empty" in capsys.readouterr().out


def test_a_file_that_is_no_history_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x"
    assert main(["check", str(file)]) == 2
    file.write_text("hello\n")
    assert main(["check", str(file)]) == 2
    assert "line 1" in capsys.readouterr().out
    assert main(["check"]) == 2
