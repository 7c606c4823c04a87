"""Raft's rules as traces to read: tests/raft/traces/*.txt, a script each, with all that the core does about it.

After a change that is meant, `pytest tests/raft --rewrite-traces` writes the outputs again; read the difference as a
reviewer: every line of it is something that the core now does otherwise. How to read and write a trace is said in
trace_commands.py.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from raft.trace_commands import COMMAND, OUTPUT, Script

TRACES = sorted((Path(__file__).parent / "traces").glob("*.txt"))
SOURCE = re.compile(r"\((paper|thesis|etcd|ours)\b[^)]*\)")


def played(text: str) -> str:
    """The trace with the outputs that its commands give now; everything else is kept."""
    script, lines = Script(), []
    for line in text.splitlines():
        if line.startswith(COMMAND):
            lines += [line, *(OUTPUT + found for found in script.run(line.removeprefix(COMMAND)))]
        elif not line.startswith(OUTPUT):
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_the_core_does_what_the_trace_says(path: Path, request: pytest.FixtureRequest) -> None:
    expected = path.read_text()
    found = played(expected)
    if request.config.getoption("--rewrite-traces", False):
        path.write_text(found)
        return
    difference = list(difflib.unified_diff(expected.splitlines(), found.splitlines(), path.name, "now", lineterm=""))
    assert not difference, "\n".join(["the core does something else (--rewrite-traces if that is meant)", *difference])


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_trace_says_first_which_rule_it_shows_and_where_that_is_written(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    assert SOURCE.search(head) and head.endswith("."), head


def test_a_trace_that_is_not_what_happens_fails() -> None:
    """What guards the guard: a missing, an additional and a changed line."""
    sound = played("(ours).\n\n> nodes 1\n> tick 1\n")
    assert "leader t1" in sound and played(sound) == sound
    for broken in (sound.replace("  1 leader t1\n", ""), sound + "  1 leader t2\n", sound.replace("t1", "t2", 1)):
        assert broken != sound and played(broken) == sound
