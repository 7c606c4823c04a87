"""`needle changes`: what changed, a line each."""

from __future__ import annotations

import json
from pathlib import Path

from cli.test_changes import fill


def test_changes_are_told_a_line_each_with_the_token_behind_them(needle, tmp_path: Path) -> None:
    fill(needle, tmp_path, 5)
    lines = needle.run("changes", "--since", "start", "--limit", "5", "--json", "--with-vectors").splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["kind"] for one in told] == ["reset", *["insert"] * 5]
    assert [one["id"] for one in told[1:]] == [f"d{n:02}" for n in range(5)]
    assert told[2]["vector"] == [1, 1, 2, 3]
    assert all(one["token"] for one in told)
    fill(needle, tmp_path, 6)
    again = needle.run("changes", "--since", told[-1]["token"], "--limit", "5")  # the scan goes on behind d04
    assert {line.split("  ")[0] for line in again.splitlines()} >= {"update d00", "update d04"}
    some = needle.run("changes", "--since", "start", "--limit", "2", "--where", '{"n": {"$gte": 4}}').splitlines()
    assert [line.split("  ")[0] for line in some] == ["reset", "insert d04", "insert d05"]
    needle.run("changes", "--where", "7", expect=2)
    needle.run("changes", "--since", "nonsense", expect=1)
    assert "[invalid_argument]" in needle.notes
    assert "since" in needle.notes
