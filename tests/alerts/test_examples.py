"""The examples by which promtool checks the rules leave out no rule, and say what the table says of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from needle.client.alerts import ALERTS, ROWS
from needle.server.metrics.row import CLUSTER_LABEL
from needle.server.metrics.table import METRICS
from proof.alerts.examples import EXAMPLES, OF_CATALOG, STEP, WELL, Example, Level, Rising, unharmed
from proof.alerts.prometheus import with_holds
from proof.alerts.promtool import RULES, unit_tests

ALERT_FAULTS = Path(__file__).resolve().parents[2] / "proof" / "alerts"


def test_every_rule_has_an_example() -> None:
    assert set(EXAMPLES) == {row.name for row in ROWS if row.expression}


def test_every_rule_is_caused_on_real_processes() -> None:
    """Before a real Prometheus, by `make alerts`."""
    files = ("faults", "holdings", "machines", "releases")
    faults = "".join((ALERT_FAULTS / f"{name}.py").read_text() for name in files)
    assert {row.name for row in ROWS if row.expression and f'"{row.name}"' not in faults} == set()


def test_rules_that_judge_replicas_have_one_of_the_catalog() -> None:
    """All that read series of `Consensus`, except those that only shards have."""
    of_shards = {"NeedleShardNoLeader", "NeedleShardsUneven", "NeedleArchiveBehind"}
    of_documents = {"NeedleCollectionWorn", "NeedleRecallLow", "NeedleUnknownCollections"}
    judged = {row.name for row in ROWS if _shared(row.expression)}
    assert set(OF_CATALOG) == judged - of_shards - of_documents


def _shared(expression: str) -> set[str]:
    """The metrics of an expression that tell of one shard."""
    return {name for name in METRICS if name in expression and "shard" in METRICS[name].labels}


@pytest.mark.parametrize("alert", EXAMPLES)
def test_an_example_has_series_as_nodes_publish_them(alert: str) -> None:
    for series in EXAMPLES[alert].series:
        name, labels = series.rstrip("}").split("{")
        given = {pair.split("=")[0] for pair in labels.split(", ")} - {"job", "instance", "le", CLUSTER_LABEL}
        assert name == "up" or given == set(METRICS[name.removesuffix("_bucket")].labels), series


def test_a_series_has_a_sample_for_each_step() -> None:
    example = Example({"gauge": Level(0, 1), "counter": Rising(1, 0)}, {}, "", lead=30)
    when = example.instants("NeedleDiskFull")
    assert when == {"before": WELL, "fires": 95, "clear": 155}, "it fires at once: there is no too early"
    assert example.values("NeedleDiskFull", Level(0, 1)) == "0+0x12 1+0x6 0+0x11"
    assert sum(int(part.split("x")[1]) + 1 for part in ["0+0x12", "1+0x6", "0+0x11"]) == 155 // STEP + 1
    assert example.values("NeedleDiskFull", Rising(1, 0)) == "0+5x11 60+0x6 60+5x11"


def test_another_cluster_in_the_same_job_stands_beside_each_example() -> None:
    """What it says would hide the fault from rules that do not tell clusters apart."""
    for alert, example in EXAMPLES.items():
        beside = {one: shape for one, shape in example.all_series().items() if "beside-" in one}
        assert bool(beside) and all(shape == unharmed(shape) for shape in beside.values()), alert


def test_each_rule_is_looked_at_before_while_and_after() -> None:
    tests = json.loads(unit_tests(RULES))["tests"]
    for one in tests:
        looks = one["alert_rule_test"]
        fires = [bool(look["exp_alerts"]) for look in looks]
        assert sum(fires) == 1 and not fires[0] and not fires[-1]
        assert len(fires) == (4 if ALERTS[one["name"]].hold else 3)


def test_short_runs_wait_less_and_judge_the_same() -> None:
    rules = Path(RULES).read_text()
    short = with_holds(rules, 0.1)
    assert "for: 6s" in short and "for: 60s" not in short and "for: 600s" not in with_holds(rules, 1.0)
    assert [line for line in short.splitlines() if "for: " not in line] == [
        line for line in rules.splitlines() if "for: " not in line
    ]
