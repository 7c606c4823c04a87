"""Some rounds of chaos on six real nodes with four shards: every promise holds, and a spoiled record is found out."""

import json
from pathlib import Path

import pytest

from chaos.documented import undocumented
from proof.chaos.__main__ import main, table
from proof.chaos.check import check
from proof.chaos.history_file import read
from proof.chaos.run import ChaosRun
from proof.chaos.spec import ChaosSpec
from proof.checkers.violation import Violation

ROUNDS = 6
SEED = 397
"""Its first faults: a cut link, a lost shard, silence, the catalog's leader killed, a node that moves, a cut router."""


async def test_chaos_on_shards(tmp_path: Path) -> None:
    run = ChaosRun(ChaosSpec(seed=SEED, nodes=6, shards=4, seconds=0.0, rounds=ROUNDS), tmp_path)
    outcome = await run.run()
    assert outcome.failure is None, "\n".join(table(outcome, 0.0))
    assert {"lose-shard", "kill-catalog", "move", "cut-router"} <= set(outcome.faults)
    assert outcome.recoveries
    verdict = outcome.verdict
    assert verdict is not None
    assert verdict.replicas == 4 * 3
    assert verdict.operations["ok"] > 200
    assert verdict.reads.exact > 20
    assert verdict.reads.partial

    lines = run.file.read_text().splitlines()
    assert undocumented(lines) == set()
    assert main(["check", str(run.file)]) == 0
    spoiled = tmp_path / "spoiled.jsonl"
    spoiled.write_text("\n".join(miss_a_shard(lines)))
    assert main(["check", str(spoiled)]) == 1
    with pytest.raises(Violation):
        check(read(spoiled.read_text().splitlines()))


def miss_a_shard(lines: list[str]) -> list[str]:
    """The record of a database whose last large exact search forgot one shard."""
    events = [json.loads(line) for line in lines]
    asked = {event["id"]: event for event in events if event["type"] == "invoke"}
    shard_of = {event["key"]: event["shard"] for event in asked.values() if event["key"]}
    for event in reversed(events):
        question = asked.get(event.get("id"), {})
        if event["type"] == "ok" and event["f"] == "search" and question["exact"] and event["hits"]:
            left = [hit for hit in event["hits"] if shard_of[hit[0]] != shard_of[event["hits"][0][0]]]
            event["hits"] = left
            break
    return [json.dumps(event) for event in events]
