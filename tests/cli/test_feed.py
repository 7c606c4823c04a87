"""`needle changes`: what changed, a line each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_changes import fill
from needle import connect_sync
from needle.base.model import VectorSpec
from needle.cli import feed_command
from needle.client import Change
from needle.local.process_cluster import ProcessCluster


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


def test_what_comes_near_is_told_and_what_leaves(needle, processes: ProcessCluster, tmp_path: Path) -> None:
    fill(needle, tmp_path, 5)
    with connect_sync(list(processes.addresses.values())) as client, client.changes() as feed:
        token = feed.token
    fill(needle, tmp_path, 3)
    near = ("--like", "d01", "--max-distance", "0.0001", "--since", token, "--limit", "1")
    assert needle.run("watch", *near).startswith("update d01  version ")
    assert "what comes near in default" in needle.notes
    (told,) = map(json.loads, needle.run("watch", *near, "--json", "--with-vectors").splitlines())
    assert (told["kind"], told["id"], told["vector"]) == ("update", "d01", [1, 1, 2, 3])
    assert 0 <= told["distance"] < 0.0001
    for wrong in ((), ("words", "--like", "d01")):
        needle.run("watch", *wrong, "--max-distance", "1", expect=2)
        assert "give words, --vector or --like" in needle.notes
    needle.run("watch", "--like", "absent", "--max-distance", "1", expect=1)
    assert "like = 'absent'" in needle.notes
    needle.run("watch", "--like", "d01", expect=1)
    assert "max_distance" in needle.notes


def test_named_vectors_are_told_and_watched(needle, processes: ProcessCluster) -> None:
    with connect_sync(list(processes.addresses.values())) as client:
        client.create_collection("named", dimensions=2, vectors={"title": VectorSpec(dimensions=3, metric="l2")})
        with client.changes("named") as feed:
            token = feed.token
        client.insert("a", [1, 2], vectors={"title": [1, 0, 0]}, collection="named")
        client.insert("b", [1, 2], vectors={"title": [0, 0, 9]}, collection="named")
    told = needle.run("changes", "named", "--since", token, "--limit", "2", "--vector-name", "title", "--json")
    assert {one["id"]: one["vectors"] for one in map(json.loads, told.splitlines())} == {
        "a": {"title": [1, 0, 0]}, "b": {"title": [0, 0, 9]},
    }  # fmt: skip
    near = ("--like", "b", "--vector-name", "title", "--max-distance", "0.5", "--since", token, "--limit", "1")
    assert needle.run("watch", *near, "--collection", "named").startswith("insert b  version ")
    needle.run("changes", "named", "--vector-name", "other", "--json", expect=1)
    assert "[invalid_argument]" in needle.notes and "'other'" in needle.notes
    needle.run(
        "watch", "--like", "b", "--vector-name", "other", "--max-distance", "1", "--collection", "named", expect=1
    )
    assert "'other'" in needle.notes


@pytest.mark.parametrize(("limit", "told"), [(0, "reset abc ready"), (3, "reset abc"), (2, "reset ab")])
async def test_without_a_limit_a_feed_goes_on_behind_its_reset(
    limit: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended there, for nothing had been told so far, and nothing was the limit."""

    class Feed:
        """Of three documents."""

        token = "t"

        async def __aenter__(self) -> Feed:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def __aiter__(self) -> AsyncIterator[Change]:
            yield Change(kind="reset")
            for id in "abc":
                yield Change(kind="insert", id=id, version=1)
            yield Change(kind="ready")

    feed: Any = Feed()
    await feed_command._tell(feed, "changes", limit, json=False)
    seen = [line.split()[1] if line.startswith("insert") else line for line in capsys.readouterr().out.splitlines()]
    assert "".join(one if len(one) == 1 else f" {one} " for one in seen).strip() == told
