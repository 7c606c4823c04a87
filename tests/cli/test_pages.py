"""Which section of docs/alerts.md, and which command of docs/operations.md, is run by which test: none is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.alert_page import commands
from harness.page_commands import between_blocks
from needle.client.alerts import ALERTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROMETHEUS_ONLY = {"NeedleNodeNotScraped", "NeedleClusterNotScraped"}
"""Not of `needle status`: `make alerts` causes them before a real Prometheus (proof/alerts/faults.py)."""
ALERTS_ELSEWHERE = {
    ("NeedleArchiveBehind", "needle backup archive"): "tests/cli/test_tutorial.py, which runs the tutorial",
    ("NeedleBackupTooOld", "needle backup forget"): "as in NeedleArchiveBehind",
    ("NeedleUnderReplicated", "needle cluster replication-factor"): "test_replication.py",
    ("NeedleUnderReplicated", "needle maintenance exit"): "test_operations_page.py",
    ("NeedleUnderReplicated", "needle rebalance --resume"): "test_operations_page.py",
    ("NeedleReplicasNotInPlace", "needle rebalance --resume"): "test_operations_page.py",
    ("NeedleClusterNotScraped", "needle recover"): "tests/cluster/test_recover.py",
    ("NeedleReplicaDivergence", "needle node replace"): "the section says not to",
    ("NeedleDiskNearlyFull", "needle rebalance"): "as in NeedleMemoryNearlyFull",
    ("NeedleUnderReplicated", "needle rebalance"): "tests/catalog/planning/test_planner.py, by its plan",
    ("NeedleUnderReplicated", "needle shard replicas"): "test_alert_moves.py",
}
"""Where these commands of a section are run, or why they are not."""
STATUS = "needle status"
"""All these tests run it all the time."""
OPERATIONS_ELSEWHERE = {
    "needle cluster replication-factor N": "test_replication.py",
    "needle node add node-4": "test_runbooks.py",
    "needle node drain node-2": "test_runbooks.py",
    "needle node drain node-2 --undo": "test_runbooks.py",
    "needle node remove node-2": "test_runbooks.py, of node-3",
    "needle node replace node-2 node-5": "test_runbooks.py",
    "needle maintenance enter node-2": "test_runbooks.py",
    "needle shard replicas": "test_alert_moves.py",
    "needle recover": "tests/cluster/test_recover.py",
    "needle restore": "tests/cli/test_tutorial.py",
    "needle serve": "test_runbooks.py",
    "needle cluster create": "test_alert_moves.py",
    "needle get ...": "tests/cli/test_tutorial.py",
    "needle insert": "tests/cli/test_tutorial.py",
    "needle node remove": "test_runbooks.py",
    "needle node add": "test_runbooks.py",
}
"""Where what the page names is run, if not in test_operations_page.py."""
UPGRADE = "needle rolling-restart "
"""What begins so is found there by that."""
RUNNERS = (
    "test_alert_runbooks.py",
    "test_alert_faults.py",
    "test_alert_moves.py",
    "test_alert_full_log.py",
    "test_operations_page.py",
)


def runners(alert: str) -> list[str]:
    """The test files that name the alert."""
    return [name for name in RUNNERS if f'"{alert}"' in (HERE / name).read_text()]


@pytest.mark.parametrize("alert", ALERTS)
def test_each_section_is_run_under_its_fault(alert: str) -> None:
    if alert in PROMETHEUS_ONLY:
        assert not ALERTS[alert].condition and f'"{alert}"' in (ROOT / "proof/alerts/faults.py").read_text()
    else:
        assert runners(alert), f"no test causes {alert}: tell of it in one of {RUNNERS}"


def test_each_command_of_alerts_is_run() -> None:
    text = "".join((HERE / name).read_text() for name in RUNNERS)
    named = {(alert, command) for alert in ALERTS for command in commands(alert) if command != STATUS}
    assert ALERTS_ELSEWHERE.keys() <= named, "of commands that the page names no more"
    missing = {(alert, command) for alert, command in named if f'"{alert}", "{command}"' not in text}
    assert missing <= ALERTS_ELSEWHERE.keys(), f"run by no test: {missing - ALERTS_ELSEWHERE.keys()}"


def test_each_command_of_operations_is_run() -> None:
    text = (HERE / "test_operations_page.py").read_text()
    named = {one for one in between_blocks("operations.md") if not one.startswith(UPGRADE)}
    missing = {one for one in named if f'.says("{one}"' not in text}
    assert missing == OPERATIONS_ELSEWHERE.keys(), missing ^ OPERATIONS_ELSEWHERE.keys()


def test_every_page_is_in_the_table_of_contents_of_the_site() -> None:
    """`make docs` refuses a page that is left out, minutes later and with packages of npm."""
    listed = {line.strip().removeprefix("- ") for line in (ROOT / "mkdocs.yml").read_text().splitlines()}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert len(pages) > 30
    assert pages <= listed, pages - listed
