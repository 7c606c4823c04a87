"""`needle maintenance enter --note` and `exit --note`: a program ends what it began, not what somebody else did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from cli.conftest import Needle
from needle.base.errors import NoQuorum
from needle.cli.maintenance_commands import Note, _is_noted
from needle.routing.topology import NodeInfo, NodeState, Topology


def is_resting(needle: Needle, node: str) -> bool:
    (found,) = needle.json("maintenance", "status", node)
    return bool(found["maintenance"])


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note.json"


def enter(needle: Needle, *more: str, expect: int = 0) -> None:
    needle.run("maintenance", "enter", "node-2", *more, "--timeout", "30", expect=expect)


def leave(needle: Needle, *more: str, expect: int = 0) -> None:
    needle.run("maintenance", "exit", "node-2", *more, "--timeout", "60", expect=expect)


def test_what_was_noted_is_ended_and_only_that(needle: Needle, note: Path) -> None:
    enter(needle, "--note", str(note))
    assert is_resting(needle, "node-2")
    enter(needle, "--note", str(note.with_name("second.json")))
    assert "somebody else began" in needle.notes and not note.with_name("second.json").exists()
    leave(needle, "--note", str(note))
    assert not is_resting(needle, "node-2") and not note.exists()

    enter(needle)  # by hand
    leave(needle, "--note", str(note))
    assert "is not there" in needle.notes and is_resting(needle, "node-2")
    enter(needle, "--note", str(note))
    assert not note.exists() and is_resting(needle, "node-2")
    leave(needle)


def test_what_would_be_done_is_shown_and_refused_as_it_would_be(needle: Needle, note: Path) -> None:
    before = needle.json("maintenance", "enter", "node-2", "--dry-run")
    assert (before["maintenance"], before["answers"], before["changes"]) == (False, True, True)
    assert not needle.json("maintenance", "exit", "node-2", "--dry-run")["changes"]
    needle.run("maintenance", "enter", "node-2", "--dry-run", "--note", str(note))
    assert not is_resting(needle, "node-2") and not note.exists()
    assert needle.json("maintenance", "enter", "node-2", "--timeout", "30") == {"node": "node-2", "begun": True}
    assert not needle.json("maintenance", "enter", "node-2", "--dry-run")["changes"]
    assert not needle.json("maintenance", "exit", "node-2", "--dry-run", "--note", str(note))["changes"]
    assert needle.json("maintenance", "exit", "node-2", "--note", str(note)) == {"node": "node-2", "ended": False}
    assert needle.json("maintenance", "exit", "node-2", "--dry-run")["changes"]
    needle.run("maintenance", "enter", "node-1", "--timeout", "30")
    needle.run("maintenance", "enter", "node-3", "--dry-run", expect=1)
    assert "nobody could lead" in needle.notes
    needle.run("maintenance", "enter", "node-9", "--dry-run", expect=1)
    assert "no node of this cluster" in needle.notes
    for node in ("node-1", "node-2"):
        assert needle.json("maintenance", "exit", node, "--timeout", "60") == {"node": node, "ended": True}
    assert not is_resting(needle, "node-2")


def test_maintenance_that_was_begun_anew_by_hand_goes_on(needle: Needle, note: Path) -> None:
    enter(needle, "--note", str(note))
    leave(needle)
    enter(needle)
    leave(needle, "--note", str(note))
    assert "is over" in needle.notes and not note.exists() and is_resting(needle, "node-2")
    leave(needle)


def test_a_note_of_who_died_while_it_began_is_good_and_a_wrong_one_is_refused(needle: Needle, note: Path) -> None:
    enter(needle, "--note", str(note))
    told: dict[str, Any] = json.loads(note.read_text())
    assert told["since"] > told["after"] > 0
    for wrong in ("{}", "no note", json.dumps({**told, "node": "node-3"})):
        note.write_text(wrong)
        leave(needle, "--note", str(note), expect=1)
        assert is_resting(needle, "node-2") and note.exists()
    note.write_text(json.dumps({**told, "since": 0}))
    leave(needle, "--note", str(note))
    assert not is_resting(needle, "node-2")
    enter(needle, "--note", str(note.with_name("no") / "such" / "place"), expect=1)
    assert not is_resting(needle, "node-2"), "what cannot be noted is not begun"


def test_what_was_refused_leaves_no_note_by_which_another_maintenance_would_end(needle: Needle, note: Path) -> None:
    for other in ("node-1", "node-3"):
        needle.run("maintenance", "enter", other, "--timeout", "30")
    enter(needle, "--note", str(note), expect=1)
    assert not note.exists()
    for other in ("node-1", "node-3"):
        needle.run("maintenance", "exit", other, "--timeout", "60")


KNOWN = Note(node="node-2", after=5, since=6)


@pytest.mark.parametrize(("began", "ends"), [(0, None), (6, True), (9, None)])
async def test_what_nodes_know_without_the_catalog_ends_a_maintenance_but_never_says_that_it_is_over(
    began: int, ends: bool | None
) -> None:
    """A pod deleted its note because a node had heard of nothing yet, and stayed in maintenance forever."""
    resting = NodeInfo(id="node-2", address="127.0.0.1:1", incarnation=1, maintenance=began)

    class Client:
        async def refresh_topology(self, *, confirmed: bool, timeout: float) -> Topology:
            raise NoQuorum("the catalog has no leader")

        def topology(self) -> Topology:
            return Topology(nodes=(resting,))

    asked = _is_noted(cast(Any, Client()), "node-2", KNOWN, 1.0)
    if ends is None:
        with pytest.raises(NoQuorum):
            await asked
    else:
        assert await asked is ends


@pytest.mark.parametrize("state", [NodeState.ACTIVE, NodeState.REMOVED])
async def test_a_node_that_was_removed_is_in_no_maintenance(state: NodeState) -> None:
    info = NodeInfo(id="node-2", address="127.0.0.1:1", incarnation=1, maintenance=6, state=state)

    class Client:
        async def refresh_topology(self, *, confirmed: bool, timeout: float) -> Topology:
            return Topology(nodes=(info,))

    assert await _is_noted(cast(Any, Client()), "node-2", KNOWN, 1.0) is (state is NodeState.ACTIVE)
