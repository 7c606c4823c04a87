"""Unit tests of the rules for promtool, made from the examples: each fires under its series, neither before nor too
early, and clears after them.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from needle.client.alerts import ALERTS
from proof.alerts.examples import EXAMPLES, OF_CATALOG, STEP, Example

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "needle.rules.yml"


def unit_tests(rules: Path) -> str:
    """For `promtool test rules`. JSON, which is YAML."""
    tests = [_test(alert, example) for alert, example in (*EXAMPLES.items(), *OF_CATALOG.items())]
    return json.dumps({"rule_files": [str(rules)], "evaluation_interval": f"{STEP}s", "tests": tests}, indent=1)


def _test(alert: str, example: Example) -> dict[str, Any]:
    row = ALERTS[alert]
    told = {
        "exp_labels": {**example.labels, "severity": row.severity},
        "exp_annotations": {"summary": example.summary, "runbook_url": f"{example.runbooks}{alert.lower()}"},
    }
    return {
        "name": alert,
        "interval": f"{STEP}s",
        "input_series": [
            {"series": one, "values": example.values(alert, shape)} for one, shape in example.all_series().items()
        ],
        "alert_rule_test": [
            {"eval_time": f"{at}s", "alertname": alert, "exp_alerts": [told] if when == "fires" else []}
            for when, at in sorted(example.instants(alert).items(), key=lambda item: item[1])
        ],
    }


def check(directory: Path, rules: Path = RULES) -> str:
    """What promtool says of the rules and their tests. Raises AssertionError with its words."""
    tests = directory / "needle.tests.json"
    tests.write_text(unit_tests(rules), encoding="utf-8")
    said = ""
    for command in (["check", "rules", str(rules)], ["test", "rules", str(tests)]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"promtool {' '.join(command)}:\n{done.stdout}{done.stderr}")
        said += done.stdout
    return said
