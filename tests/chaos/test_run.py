"""Some rounds of chaos on three real nodes: every promise holds, and a spoiled record of it is found out."""

import json
import random
from pathlib import Path

import pytest

from chaos.documented import undocumented
from needle.local.process_cluster import ProcessCluster
from proof.chaos.__main__ import main, table
from proof.chaos.check import check
from proof.chaos.history_file import read
from proof.chaos.injector import Injector
from proof.chaos.run import ChaosRun
from proof.chaos.schedule import Fault
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation

ROUNDS = 6
"""Counted, not timed: a busy machine meets the same faults. Those of seed 11: a minority killed, all killed, the shard
lost, a node that moves, a full disk, a forced election."""


@pytest.mark.campaign
async def test_chaos(tmp_path: Path) -> None:
    run = ChaosRun(ChaosSpec(seed=11, nodes=3, seconds=0.0, rounds=ROUNDS), tmp_path)
    outcome = await run.run()
    assert outcome.failure is None, "\n".join(table(outcome, 0.0))
    assert sum(outcome.faults.values()) >= ROUNDS and outcome.recoveries
    verdict = outcome.verdict
    assert verdict is not None and verdict.replicas == 3
    assert verdict.operations["ok"] > 200 and verdict.reads.exact > 20 and verdict.reads.eventual_gets > 5

    lines = run.file.read_text().splitlines()
    assert undocumented(lines) == set()
    assert main(["check", str(run.file)]) == 0
    spoiled = tmp_path / "spoiled.jsonl"
    spoiled.write_text("\n".join(lose_a_write(lines)))
    assert main(["check", str(spoiled)]) == 1
    with pytest.raises(Violation):
        check(read(spoiled.read_text().splitlines()))


def lose_a_write(lines: list[str]) -> list[str]:
    """The record of a database that forgot what its last strong reads found."""
    events = [json.loads(line) for line in lines]
    last = next(e for e in reversed(events) if e["type"] == "ok" and e["process"] == "final" and e["version"])
    last |= {"version": 0, "value": ""}
    return [json.dumps(event) for event in events]


async def test_a_paused_node_that_is_killed_is_healed_once(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as operator:
        injector = Injector(cluster, {}, operator, random.Random(1), 0.5)
        faults = [Fault(n, kind, "any", 1.0, 0.5) for n, kind in enumerate(("pause", "kill"))]
        for order in (faults, faults[::-1]):
            hurt = [await injector.begin(fault, "node-1") for fault in order]
            with pytest.raises(Violation):
                injector.down.clear()  # as if nobody had been told to kill it
                injector.check_processes()
            injector.down.add("node-1")
            for injured in hurt:
                await injured.heal()
            injector.check_processes()
            await cluster.ready()
