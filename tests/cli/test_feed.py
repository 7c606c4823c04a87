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
    again = needle.run("changes", "--since", told[-1]["token"], "--limit", "1")  # not all of them were told: anew
    assert again.splitlines()[0] == "reset"
    assert again.splitlines()[1].startswith("insert d00  version ")
    needle.run("changes", "--since", "nonsense", expect=1)
    assert "[invalid_argument]" in needle.notes
    assert "since" in needle.notes
