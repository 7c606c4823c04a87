"""Backups, maintenance without force and recovered directories in the simulation: what judges them, and whole runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from needle.base.errors import StorageError
from proof.checkers.copies import Copied, Copy, Logs, check_copy
from proof.checkers.replay import LogModel, ModelDocument
from proof.checkers.violation import Violation
from proof.sim.event_loop import SimLoop
from proof.sim.process import Killed, Process
from proof.sim.runner import run
from proof.sim.shards.bringing_back import Clocks, expires_late
from proof.sim.shards.careful import Careful
from proof.sim.spec import Spec
from proof.sim.target import SimTarget, Target

WHOLE = [(b"", None)]
HALVES = {0: [(b"", b"m")], 1: [(b"m", None)]}


def document(number: int, version: int = 1) -> ModelDocument:
    return ModelDocument(version, np.array([number, 1], np.float32), {"n": number})


def copied(name: str, number: int) -> Copied:
    return Copied(name, np.array([number, 1], np.float32), {"n": number}, 0)


def logs(owned: Callable[[int, int], Any], last: Callable[[int, str, int], int | None] = lambda *_: None) -> Logs:
    """Shard 0 wrote a at 3 and again at 8, b at 5; shard 1 wrote x at 4."""
    models = {0: LogModel(), 1: LogModel()}
    models[0].write(3, "a", document(1))
    models[0].write(5, "b", document(2))
    models[0].write(8, "a", document(3))
    models[1].write(4, "x", document(9))
    return Logs(models, str.encode, owned, last)


def halves(shard: int, _: int) -> Any:
    return HALVES[shard]


def copy(*documents: Copied, torn: bool = False, **cuts: int) -> Copy:
    return Copy(label="it", cuts={int(name[1:]): at for name, at in cuts.items()}, documents=list(documents), torn=torn)


def test_a_copy_is_what_the_logs_say_at_its_cuts() -> None:
    check_copy(logs(halves), copy(copied("a", 1), copied("b", 2), copied("x", 9), s0=7, s1=4))
    check_copy(logs(halves), copy(copied("a", 3), copied("b", 2), s0=8, s1=3))


@pytest.mark.parametrize(
    "documents",
    [
        [("a", 1), ("x", 9)],  # lost
        [("a", 1), ("b", 2), ("b", 2), ("x", 9)],  # doubled
        [("a", 1), ("b", 2), ("c", 2), ("x", 9)],  # invented
        [("a", 3), ("b", 2), ("x", 9)],  # of later
        [("a", 1), ("b", 9), ("x", 2)],  # each other's
    ],
)
def test_a_copy_that_is_not_is_seen(documents: list[tuple[str, int]]) -> None:
    with pytest.raises(Violation):
        check_copy(logs(halves), copy(*(copied(*one) for one in documents), s0=7, s1=4))


def test_a_range_on_its_way_is_allowed_where_clocks_cut_only() -> None:
    """Shard 0 gave all of it up at 9, and the cut of shard 1 is before it took that."""
    gone = logs(lambda shard, _: [] if shard == 0 else HALVES[1], lambda shard, name, at: 8 if shard == 0 else None)
    found = [copied("a", 3), copied("b", 2), copied("x", 9)]
    check_copy(gone, copy(*found, torn=True, s0=9, s1=4))
    with pytest.raises(Violation):
        check_copy(gone, copy(*found, s0=9, s1=4))
    with pytest.raises(Violation):
        check_copy(gone, copy(copied("a", 1), *found[1:], torn=True, s0=9, s1=4))
    both = logs(lambda *_: WHOLE)
    check_copy(both, copy(copied("a", 1), copied("b", 2), copied("x", 9), torn=True, s0=7, s1=4))
    with pytest.raises(Violation):
        check_copy(both, copy(copied("a", 1), copied("b", 2), copied("x", 9), s0=7, s1=4))


def test_documents_that_nobody_asks_about_are_left_out() -> None:
    check_copy(logs(halves), copy(copied("a", 1), s0=7, s1=4), lambda name: name == "a")


@pytest.mark.parametrize(
    ("was", "there", "right"),
    [
        (90, None, True),  # it has expired since
        (101, None, False),  # no clock has come to that yet
        (90, 110, True),  # its instant had passed, and it lives for a moment more
        (90, 111, False),  # for longer than that
        (105, 104, False),  # sooner than it should
        (200, 210, False),  # its instant had not passed
    ],
)
def test_what_expires_is_restored_for_a_moment_at_most(was: int, there: int | None, right: bool) -> None:
    one = copied("a", 1)._replace(expires=was)
    found = None if there is None else msgspec.structs.replace(document(1), expires=there)
    assert expires_late(one, found, Clocks(now=100, late=110)) is right
    if found is not None:
        assert not expires_late(one._replace(metadata={"n": 2}), found, Clocks(now=100, late=110))


class Faults:
    """Gives these numbers, one after the other, then such that nothing fails."""

    def __init__(self, *numbers: float) -> None:
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0) if self._numbers else 0.99

    def __getattr__(self, name: str) -> Any:
        return getattr(random.Random(1), name)


def target(*numbers: float) -> tuple[Target, SimTarget, Process]:
    process = Process("archiver", 1)
    faults: Any = Faults(*numbers)
    there = Target(SimLoop(random.Random(1)), faults)
    return there, SimTarget(there, process, lambda: setattr(process, "alive", False)), process


def test_a_store_refuses_or_does_what_it_does_not_say_or_leaves_a_part_beside() -> None:
    there, store, _ = target(0.005, 0.010, 0.015)
    for name in ("refused", "lost", "torn"):
        with pytest.raises(StorageError, match=name):
            store.put(f"a/{name}", b"1234")
    names = sorted(there.names("a/"))
    assert names[0] == "a/lost" and names[1].startswith("a/torn.partial-") and len(names) == 2
    assert there.get(names[1]) == b"12"
    store.put("a/lost", b"56")
    assert store.get("a/lost") == b"56"


def test_who_uses_a_store_is_killed_before_or_after_a_call_and_is_known_to_be_dead() -> None:
    for before, left in ((True, None), (False, b"2")):
        there, store, process = target()
        store.put("making/one", b"1")
        store.kill_at(1, before=before)
        with pytest.raises(Killed):
            store.put("making/two", b"2")
        assert there.get("making/two") == left
        assert not process.alive
        assert "making/one" in there.left_by_the_dead(("making/",))
        with pytest.raises(Killed):
            store.get("making/one")


def careful(voters: list[str], down: dict[str, float], resting: Collection[str] = ()) -> Careful:
    raft = SimpleNamespace(conf=SimpleNamespace(voters=voters, voters_outgoing=[]))
    node: Any = SimpleNamespace(groups=lambda: {1: SimpleNamespace(raft=raft)})
    fleet = SimpleNamespace(down_since=down, leader=lambda _: voters[0], nodes={voters[0]: node})
    nodes = [SimpleNamespace(id=name, maintenance=name in resting) for name in voters]
    truth: Any = SimpleNamespace(now=SimpleNamespace(nodes=nodes), groups=lambda: [1])
    stage: Any = SimpleNamespace(spec=SimpleNamespace(seed=1), fleet=fleet)
    client: Any = None
    return Careful(stage, client, truth)


def test_who_is_needed_for_a_majority_must_not_be_let_into_maintenance() -> None:
    three = ["n1", "n2", "n3"]
    assert not careful(three, {}).needed("n1", 10.0)
    assert careful(three, {"n2": 9.0}).needed("n1", 10.0)
    assert not careful(three, {"n2": 11.0}).needed("n1", 10.0)  # its leader need not know that yet
    assert not careful([*three, "n4", "n5"], {"n2": 9.0}).needed("n1", 10.0)
    assert careful([*three, "n4", "n5"], {"n2": 9.0, "n3": 9.0}).needed("n1", 10.0)
    assert careful(three, {}, {"n2", "n3"}).needed("n1", 10.0)  # nobody could lead
    assert not careful(three, {}, {"n2"}).needed("n1", 10.0)
    assert not careful(["n1"], {}).needed("n1", 10.0)  # it cannot be otherwise


def test_backups_are_made_and_judged() -> None:
    """That a seed with backups is one run: test_sharded_runs.py."""
    spec = Spec(seed=13, nodes=3, seconds=8, sharded=True, backups=True)
    report, story = run(spec, keep_trace=True)
    assert report.failure is None
    assert "--backups" in spec.replay_command()
    (told,) = [line for line in story if "copies are as the logs say" in line]
    assert int(told.split()[1]) > 1
    assert any("backups: " in line and "stay" in line for line in story)
    assert any("documents are restored into the cluster as backup" in line for line in story)


def test_what_is_left_of_a_node_is_recovered_and_judged() -> None:
    report, story = run(Spec(seed=3, nodes=3, seconds=15, sharded=True), keep_trace=True)
    assert report.failure is None
    (told,) = [line for line in story if "directories recovered" in line]
    assert int(told.split()[1]) > 0
