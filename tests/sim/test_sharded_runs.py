"""Whole runs of a cluster: one seed is one run, seeds hold, and bugs of routing that are planted are seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType

import msgspec
import pytest

from proof.mutants.planting import Edit, _bugged
from proof.sim.__main__ import main
from proof.sim.runner import run
from proof.sim.shards import several
from proof.sim.shards.profile import sharded_shape
from proof.sim.spec import (
    DATABASE_KINDS,
    DIRECTORY_KINDS,
    DIRECTORY_NUMBER,
    FIELD_KINDS,
    KINDS,
    LATE_KINDS,
    MEMORY_KINDS,
    MORE_KINDS,
    MORE_SHARD_KINDS,
    REPLICA_KINDS,
    STRANGER_KINDS,
    TROUBLE_KINDS,
    WAY_BACK_KINDS,
    Spec,
)


def trace_hash(hash_seed: str, *how: str) -> str:
    command = [sys.executable, "-m", "proof.sim", "--sharded", "--seed", "5", *how]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"trace ([0-9a-f]{32})", done.stdout)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("how", ["--backups --minutes 0.15", pytest.param("--minutes 0.3", marks=pytest.mark.campaign)])
def test_one_seed_is_one_run_under_every_hash_seed(how: str) -> None:
    assert trace_hash("1", *how.split()) == trace_hash("2", *how.split())


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (3, 7))])
def test_a_seed_holds(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sharded", "--seed", str(seed), "--minutes", "0.5", "--shrink", "0"]) == 0, capsys.readouterr().out
    assert "ok;" in capsys.readouterr().out


def test_seeds_draw_every_kind_of_cluster_and_the_faults_of_shards() -> None:
    profiles = [sharded_shape(seed) for seed in range(1, 60)]
    assert {profile.shards for profile in profiles} == {1, 2, 3, 4}
    assert {profile.replicas for profile in profiles} == {1, 3}
    assert {profile.lasting for profile in profiles} == {True, False}
    assert {profile.strategy.kind for profile in profiles} == {"consistent_hash", "hash", "range", "custom"}
    kinds = {fault.kind for seed in range(1, 60) for fault in Spec(seed=seed, sharded=True).schedule()}
    assert {"catalog-leader", "client-off-catalog", "node-off-shard", "move", "join"} <= kinds
    later = {*MORE_SHARD_KINDS, *STRANGER_KINDS, *DATABASE_KINDS, *DIRECTORY_KINDS, *LATE_KINDS, *REPLICA_KINDS}
    later |= {*WAY_BACK_KINDS, *FIELD_KINDS, *TROUBLE_KINDS, *MEMORY_KINDS}
    assert later <= kinds
    plain = Spec(seed=9, sharded=True, plain=True)
    assert not {fault.kind for fault in plain.schedule()} & later
    assert set(plain.schedule()) < set(Spec(seed=9, sharded=True).schedule())
    assert "--plain" in plain.replay_command()
    single = {*KINDS, *MORE_KINDS, *STRANGER_KINDS, *DATABASE_KINDS, *DIRECTORY_KINDS, *FIELD_KINDS, *MEMORY_KINDS}
    assert not {fault.kind for fault in Spec(seed=9).schedule()} - single
    assert "--sharded" in Spec(seed=9, sharded=True).replay_command()


@pytest.mark.campaign
def test_who_takes_part_in_a_move_may_hear_nobody_or_have_a_slow_or_full_disk() -> None:
    spec = Spec(seed=15, nodes=3, seconds=30, sharded=True)
    kinds = {*TROUBLE_KINDS, "move-range", "move-replica"}
    numbers = tuple(fault.number for fault in spec.schedule() if fault.kind in kinds)
    report, trace = run(msgspec.structs.replace(spec, faults=numbers), keep_trace=True)
    assert report.failure is None
    for how in ("with a disk that is slow", "mute to the others' leaders", "without room"):
        assert any("after " in line and line.endswith(how) for line in trace), how


@pytest.mark.parametrize(
    ("seed", "kind"),
    [(8, "rollback"), *(pytest.param(*one, marks=pytest.mark.campaign) for one in ((17, "rollback"), (66, "wipe")))],
)
def test_a_node_whose_directory_was_replaced_is_noticed_and_stays_lost(seed: int, kind: str) -> None:
    report, trace = run(
        Spec(seed=seed, nodes=3 + seed % 3, seconds=30, sharded=True, faults=(DIRECTORY_NUMBER,)), keep_trace=True
    )
    assert report.failure is None
    assert report.faults == {kind: 1}
    assert any("says that it lost what others count on" in line for line in trace)


SEEDS_MAX = 8
LASTING = {"aliases", "scans", "counts", "changes by a filter", "declared fields", several.RULE}
"""Checkers of proof/sim/shards/lasting.py, and of named vectors."""
ANSWERED = "if answer.epoch != owned.epoch or"
NO_EPOCHS = Edit("server.service.checks:Ownerships.of", "if owned.epoch > epoch:", "if owned.epoch < 0:")
PLANTED = {
    "the epoch of an answer is not compared": (
        (
            NO_EPOCHS,
            Edit("client.router.fan_out:checked", ANSWERED, "if answer.epoch < 0 and"),
            Edit("client.router.by_node:_check", "if answer.epoch != owned.epoch or", "if answer.epoch < 0 and"),
        ),
        4,
        {"read freshness", "linearizability", "search replay", "coverage", *LASTING},
    ),
    "a shard takes what it does not own": (
        (
            NO_EPOCHS,
            Edit(
                "server.service.checks:Ownerships._check_owner",
                "if isinstance(command, commands.Insert):",
                "if command is None:",
            ),
        ),
        102,
        {"ownership"},
    ),
    "a shard that fails is left out": (
        (Edit("client.router.fan_out:FanOut._many", "gather(asking, partial)", "gather(asking, True)"),),
        8,
        {"coverage", "search replay", "collections", "linearizability", *LASTING},
    ),
    "a shard's hits are merged twice": (
        (
            Edit(
                "shard.several:_nearer",
                "for place, (_, part) in parts.items():",
                "for place, (_, part) in 2 * [*parts.items()]:",
            ),
            Edit(
                "client.router.merge:merged_hits",
                "list[Sequence[int] | int](by_shard)",
                "list[Sequence[int] | int](by_shard); batches, owners = batches * 2, owners * 2",
            ),
        ),
        1,
        {"search replay", "collections", *LASTING},
    ),
}
"""By what is wrong: the edits, the first seed to try, and the checkers that may be first to see it."""


@pytest.fixture
def plant() -> Iterator[Callable[[tuple[Edit, ...]], None]]:
    """Plants bugs and takes them out again."""
    planted: list[tuple[FunctionType, CodeType]] = []

    def one(edits: tuple[Edit, ...]) -> None:
        for edit in edits:
            function, code = _bugged(edit)
            planted.append((function, function.__code__))
            function.__code__ = code

    yield one
    for function, code in reversed(planted):
        function.__code__ = code


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen(bug: str, plant: Callable[[tuple[Edit, ...]], None]) -> None:
    edits, seed, checkers = PLANTED[bug]
    plant(edits)
    for tried in range(seed, seed + SEEDS_MAX):
        report, _ = run(Spec(seed=tried, nodes=3 + tried % 3, seconds=30, sharded=True))
        if report.checker:
            assert report.checker in checkers, report.failure
            return
    raise AssertionError(f"not seen in {SEEDS_MAX} seeds")
