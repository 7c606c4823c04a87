"""Judge a recorded history, and nothing but it: is it what a correct database could have answered?

Per key: the linearizability checker of the simulation. Searches and eventual gets: its replay of the log, which the
answers reveal (revealed_log.py), shard by shard (check_shards.py). At the end: the replicas.
It must not know processes or the network.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

import msgspec

from proof.chaos.check_shards import replay_shards
from proof.chaos.history_file import Recorded, Replica, read
from proof.chaos.revealed_log import Replayed
from proof.checkers import linearizability
from proof.checkers.history import History
from proof.checkers.violation import Violation

FINAL = "final"
"""Name of the client that reads everything once more at the end."""


class Verdict(msgspec.Struct):
    """What was checked. given_up: keys whose orders were too many to try. replicas: of all shards."""

    operations: dict[str, int]
    keys: int = 0
    reads: Replayed = msgspec.field(default_factory=Replayed)
    given_up: int = 0
    replicas: int = 0


def check(recorded: Recorded) -> Verdict:
    """Raises Violation with the evidence."""
    history = recorded.history
    verdict = Verdict(dict(sorted(Counter(op.outcome for op in history.operations).items())))
    verdict.given_up = linearizability.check(history)
    verdict.keys = len(history.by_key())
    if recorded.facts.get("growing"):  # a key's shard is another one from time to time: what a log says is not told
        return verdict
    shards, metric = recorded.facts["shards"], recorded.facts["metric"]
    verdict.reads = replay_shards(history, shards, metric, recorded.ranges)
    verdict.replicas = len(recorded.replicas)
    owners = {op.key: op.details["shard"] for op in history.operations if op.key}
    for shard in range(shards):
        _replicas(history, [r for r in recorded.replicas if r.shard == shard], owners, shard)
    return verdict


def _replicas(history: History, replicas: list[Replica], owners: dict[str, int], shard: int) -> None:
    """At the end all replicas of a shard hold the same documents, and those are what strong reads find."""
    if len({replica.digest for replica in replicas}) > 1:
        raise Violation("equal replicas", f"{[(r.node, r.applied_index, r.digest) for r in replicas]}")
    final = {op.key: op.version for op in history.operations if op.client == FINAL and op.outcome == "ok"}
    for replica in replicas:
        for key, version in final.items():
            held = replica.documents.get(key, 0)
            if owners[key] == shard and held != version:
                raise Violation(
                    "every acknowledged write on every replica",
                    f"{replica.node} holds version {held} of {key!r}, strong reads find {version}",
                    key,
                )


class Outcome(Protocol):
    """What a run showed."""

    verdict: Verdict | None
    failure: Violation | None
    story: list[str]


def judge(outcome: Outcome, file: Path, happened: list[str]) -> None:
    """The verdict on a run, by its file; what failed in the run itself counts before that. happened: in the run."""
    recorded = read(file.read_text().splitlines())
    try:
        outcome.verdict = check(recorded)
    except Violation as violation:
        outcome.failure = outcome.failure or violation
    if outcome.failure is not None:
        outcome.story = [*happened[-30:], *story(recorded, outcome.failure)]


def story(recorded: Recorded, violation: Violation) -> list[str]:
    """What clients did to the key of a violation, in order."""
    return [
        linearizability.describe(op) for op in recorded.history.operations if violation.key and op.key == violation.key
    ]
