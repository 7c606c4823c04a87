"""Each program in examples/, run as its first lines say: what it finds is what a reader expects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from needle.local.process_cluster import ProcessCluster

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The addresses of three nodes."""
    with ProcessCluster(Path(tmp_path_factory.mktemp("cluster")), 3).running() as started:
        yield started.cluster


def run(name: str, *arguments: str) -> list[str]:
    """What it prints."""
    argv = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def below(lines: list[str], head: str) -> list[str]:
    """The first word of each line that is indented below `head`."""
    rest = lines[lines.index(head) + 1 :]
    ended = next((n for n, line in enumerate(rest) if not line.startswith("  ")), len(rest))
    return [line.split()[0] for line in rest[:ended]]


@pytest.mark.parametrize("where", ["memory", "cluster"])
def test_first_steps(where: str, request: pytest.FixtureRequest) -> None:
    lines = run("first_steps.py", *([request.getfixturevalue("cluster")] if where == "cluster" else []))
    assert below(lines, "nearest to the question:")[0] == "csv" and len(below(lines, "of the short ones:")) == 3
    assert "starred: csv" in lines
    stored, (gone, left) = (
        int(lines[0].split()[0]),
        [int(word) for word in lines[-1].replace(",", "").split() if word.isdigit()][::2],
    )
    assert gone > 0 and stored == gone + left


@pytest.mark.parametrize("where", ["memory", "cluster"])
def test_follow_changes(where: str, request: pytest.FixtureRequest) -> None:
    lines = run("follow_changes.py", *([request.getfixturevalue("cluster")] if where == "cluster" else []))
    assert lines == ["at first: ['nails', 'screws']", "later: ['bolts', 'nails'], nails left: {'left': 39}"]


def test_langchain() -> None:
    lines = run("langchain_retriever.py")
    assert "smtplib" in below(lines, "long modules about e-mail:")
    assert len(set(below(lines, "different from each other:"))) == 3


def test_llamaindex() -> None:
    assert below(run("llamaindex_index.py"), "short modules about random numbers:")[0] == "secrets"


def test_haystack() -> None:
    assert "socket" in below(run("haystack_pipeline.py"), "long modules about sockets:")


def test_mcp(cluster: str) -> None:
    lines = run("mcp_tools.py", cluster)
    assert "search" in lines[0] and "insert" not in lines[0] and "argparse" in "\n".join(lines[1:])


def test_moving_in(cluster: str) -> None:
    lines = run("move_in_from_chroma.py", cluster)
    assert lines[-1].startswith("nearest in the cluster: heapq")
