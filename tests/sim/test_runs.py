"""Whole runs: one seed is one run, on every interpreter; old failures stay fixed; a planted bug is seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from needle.base.ids import CATALOG_GROUP
from needle.catalog import machine
from needle.catalog.machine import CatalogMachine
from needle.multiraft.lives import Lives
from needle.protocol import commands
from needle.raft.messages import MessageType
from needle.server.service import documents
from needle.shard.state_machine import Replica
from proof.checkers import linearizability
from proof.checkers.digests import Digests
from proof.checkers.violation import Violation
from proof.sim import runner
from proof.sim.__main__ import main
from proof.sim.disk import LogDisk
from proof.sim.observer import Observer
from proof.sim.runner import run, shrink
from proof.sim.shards.known import KnownTopologies
from proof.sim.spec import DATABASE_FROM, DATABASE_KINDS, DIRECTORY_NUMBER, Spec, profile
from proof.sim.world import World

REGRESSIONS = Path(__file__).with_name("regressions.txt")


def trace_hash(hash_seed):
    command = [sys.executable, "-m", "proof.sim", "--seed", "2", "--minutes", "0.4", "--nodes", "3"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return re.search(r"trace ([0-9a-f]{32})", done.stdout).group(1)


def test_one_seed_is_one_run_under_every_hash_seed():
    assert trace_hash("1") == trace_hash("2")


def test_another_seed_is_another_run():
    first, second = (run(Spec(seed=seed, seconds=5))[0] for seed in (1, 2))
    assert first.failure is None
    assert second.failure is None
    assert first.trace_hash != second.trace_hash
    assert first.counts.operations > 5


def regressions():
    """Those whose bug has a test of its own are run by `make regressions` only, the others by `make campaigns` too."""
    every = "NEEDLE_REGRESSIONS" in os.environ
    lines = [line.partition("#") for line in REGRESSIONS.read_text().splitlines()]
    shown = [arguments.split() for arguments, _, why in lines if every or "; by " not in why]
    return [tuple(line) for line in shown if line]


@pytest.mark.campaign
@pytest.mark.parametrize("arguments", regressions(), ids=" ".join)
def test_a_seed_that_once_failed_holds(arguments, capsys):
    code = main([*arguments, "--shrink", "0"])
    assert code == 0, capsys.readouterr().out


def test_an_acknowledgement_before_its_fsync_is_seen(monkeypatch):
    write = LogDisk.write
    monkeypatch.setattr(LogDisk, "write", lambda self, changes, sync: write(self, changes, False))
    report, _ = run(Spec(seed=1, seconds=5))
    assert report.checker == "durable before ack"
    assert any("VIOLATION" in line for line in report.story)


def test_a_failure_is_made_small_and_says_how_to_replay_it(monkeypatch):
    write = LogDisk.write
    monkeypatch.setattr(LogDisk, "write", lambda self, changes, sync: write(self, changes, False))
    report, _ = run(Spec(seed=4, seconds=10))
    small = shrink(report, 6, lambda line: None)
    assert small.checker == report.checker
    assert small.spec.faults == ()
    assert "--faults none" in small.spec.replay_command()


def test_faults_that_share_a_number_are_left_out_together(monkeypatch):
    spec = Spec(seed=5035, nodes=4, seconds=60, sharded=True)
    numbers = [fault.number for fault in spec.schedule()]
    assert len(set(numbers)) < len(numbers)
    failed, tried = run(Spec(seed=1, seconds=1))[0], []

    def fails(some):
        tried.append(some.faults)
        return msgspec.structs.replace(failed, spec=some, failure="it fails", checker="a checker")

    monkeypatch.setattr(runner, "_run", fails)
    shrink(msgspec.structs.replace(failed, spec=spec, failure="it fails", checker="a checker"), 20, lambda line: None)
    assert len({len(faults) for faults in tried[:3]}) == 3
    assert all(len(set(faults)) == len(faults) for faults in tried)


def test_a_bit_that_rots_in_the_documents_is_found_and_had_again():
    numbers = tuple(range(DATABASE_FROM, DATABASE_FROM + 10))
    report, _ = run(Spec(seed=971000, seconds=20, faults=numbers))
    assert report.failure is None
    assert set(report.faults) == set(DATABASE_KINDS)
    assert report.counts.repaired


COPIED = Spec(seed=17, nodes=5, seconds=30, faults=(DIRECTORY_NUMBER,))
"""A leader that comes back as a copy of itself, made while it led."""


@pytest.mark.campaign
def test_a_copy_of_a_leader_that_ran_is_noticed():
    report, trace = run(COPIED, keep_trace=True)
    assert report.failure is None
    assert report.faults == {"rollback": 1}
    assert any("its disks are a copy of when it led" in line for line in trace)
    assert any("says that it lost what others count on" in line for line in trace)


@pytest.mark.campaign
def test_a_copy_of_a_leader_that_is_accepted_is_seen(monkeypatch):
    told = Lives.told
    silent = (MessageType.APPEND, MessageType.HEARTBEAT)
    monkeypatch.setattr(Lives, "told", lambda self, frm, group, m: m.type in silent or told(self, frm, group, m))
    report, _ = run(COPIED)
    assert report.failure is not None


def test_leaving_out_a_fault_does_not_change_the_others():
    spec = Spec(seed=9)
    every = spec.schedule()
    assert len(every) > 3
    kept = tuple(fault.number for fault in every[1:])
    assert Spec(seed=9, faults=kept).schedule() == every[1:]
    assert Spec(seed=9, calm=True).schedule() == []
    assert profile(9) == profile(9)


def test_the_command_prints_one_line_a_seed_and_a_summary(capsys):
    assert main(["--seed", "3", "--minutes", "0.05", "--nodes", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("seed 3, 3 nodes: ok")
    assert out[-1].startswith("1 seeds, 0 failed")


def test_a_history_that_nobody_could_judge_is_not_called_good_in_silence(capsys, monkeypatch):
    monkeypatch.setattr(linearizability, "CONFIGURATIONS_MAX", 0)
    assert main(["--seed", "3", "--minutes", "0.05", "--nodes", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.search(r": ok, but [1-9]\d* keys not judged", out[0])
    assert re.search(r" 0 failed, [1-9]\d* keys not judged", out[-1])


def test_work_that_holds_a_nodes_loop_is_seen_and_named(monkeypatch):
    judge = documents.judged

    def slowly(node, hosted, command, *asked):
        data = commands.encode(command)
        for _ in range(200_000):
            commands.decode(data)
        return judge(node, hosted, command, *asked)

    monkeypatch.setattr(documents, "judged", slowly)
    report, _ = run(Spec(seed=1, seconds=5))
    assert report.checker == "event loop"
    # In which of the two functions of the decoder it was when somebody looked is chance.
    assert re.search(r"needle\.protocol\.commands:(decode|_decoded) held", report.failure)


def test_the_product_finds_a_replica_that_applies_an_entry_otherwise(monkeypatch):
    """What the checkers see at once, leaders see by themselves some seconds later."""
    apply, done = Replica.apply, []

    def planted(self, entries):
        if "n2" in self.directory.split(os.sep) and self.applied_index() > 3:
            entries = [_otherwise(entry, done) for entry in entries]
        return apply(self, entries)

    monkeypatch.setattr(Replica, "apply", planted)
    spec = Spec(seed=3, seconds=25, faults=())
    report, _ = run(spec)
    assert report.checker == "equal replicas"
    monkeypatch.setattr(Digests, "observe", lambda *_: None)
    done.clear()
    report, _ = run(spec)
    assert (report.checker, len(done)) == ("divergence", 1)
    assert "n2 differs from most" in report.failure


def test_the_product_finds_a_replica_of_the_catalog_that_applies_an_entry_otherwise(monkeypatch):
    """The same for the catalog, of which nobody reads when the last backup began."""
    execute = machine.execute_once
    apply, on = CatalogMachine.apply, []

    def planted(self, entries):
        on[:] = [self] if "n2" in self._path.split(os.sep) else []
        return apply(self, entries)

    def otherwise(topology, executed, index, data):
        topology, executed, result = execute(topology, executed, index, data)
        return msgspec.structs.replace(topology, backed_up=1) if on else topology, executed, result

    monkeypatch.setattr(CatalogMachine, "apply", planted)
    monkeypatch.setattr(machine, "execute_once", otherwise)
    spec = Spec(seed=3, seconds=25, faults=())
    report, _ = run(spec)
    assert report.checker == "equal replicas"
    monkeypatch.setattr(Digests, "observe", lambda *_: None)
    monkeypatch.setattr(KnownTopologies, "look", lambda _: None)
    report, _ = run(spec)
    assert report.checker == "divergence"
    assert "leads group 0" in report.failure and "n2 differs from most" in report.failure


@pytest.mark.parametrize("check", ["compare_logs", "compare_digests"])
def test_what_is_compared_now_and_then_ends_the_run(check, monkeypatch):
    def broken(self, groups):
        raise Violation("planted", check)

    monkeypatch.setattr(Observer, check, broken)
    world = World(Spec(seed=3, seconds=10, faults=()))
    report = world.run()
    assert report.checker == "planted"
    assert report.counts.virtual_seconds < 20


def _otherwise(entry, done):
    """Documents of the first insert expire in many years: no reader would notice."""
    command = commands.decode_logged(entry.data) if entry.data and not done else None
    if not isinstance(command, commands.Insert):
        return entry
    done.append(entry.index)
    other = msgspec.structs.replace(command, expires=[1 << 52] * len(command.ids))
    return msgspec.structs.replace(entry, data=commands.encode(other))


def test_leaders_compare_replicas_in_every_run():
    world = World(Spec(seed=3, seconds=25, faults=()))
    assert world.run().failure is None
    compared = {group for group, index in world.stage.comparisons if index}
    assert len(compared) > 1 and CATALOG_GROUP in compared
