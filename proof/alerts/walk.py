"""A stranger's way, by docs/tutorial.md only: a cluster, its dashboard, a metric and an alert in Prometheus, a document
deleted by mistake and restored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proof.tutorial import PROMETHEUS, chapters, run

SHORT = ("See it once", "A cluster of your own", "Documents", PROMETHEUS, "Stop")
SECONDS = 400.0
ALERT = "NeedleNodeUnreachable"


def walk(directory: Path, short: bool, say: Callable[[str], None]) -> None:
    """Runs the page, in short the chapter on Prometheus and what it needs. Raises AssertionError if it shows anything
    else than it says."""
    begun = time.monotonic()
    directory.mkdir()
    made = run(directory, SHORT if short else chapters().keys(), SECONDS)
    counts = _result(made / "metric.json", "result")
    assert counts and all(one["metric"]["needle_cluster"] and one["value"][1] == "4" for one in counts), counts
    alerts = _result(made / "alerts.json", "alerts")
    (told,) = [one for one in alerts if one["labels"]["alertname"] == ALERT and one["state"] == "firing"]
    assert "node-3" in told["annotations"]["summary"], told
    assert told["annotations"]["runbook_url"].endswith(f"/ui#/runbooks/{ALERT.lower()}"), told
    if not short:
        assert "<html" in (made / "dashboard.html").read_text(encoding="utf-8")
        assert (made / "restored.txt").read_text(encoding="utf-8").strip() == "4"
    say(f"the tutorial, with Prometheus: as it says, in {time.monotonic() - begun:.0f} s")


def _result(path: Path, name: str) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["data"][name]
