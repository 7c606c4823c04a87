"""The table of alerts: each row can be judged, is explained, and says the guide's rows as the guide does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import needle
from needle.client.alerts import ALERTS, ROWS, Alert, holds
from needle.server.metrics.row import CLUSTER_LABEL
from needle.server.metrics.table import METRICS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCES = Path(needle.__file__).parent
GUIDE = {
    "Leader election in progress": ("Warning", "NeedleElection"),
    "Shard has no leader": ("Critical", "NeedleShardNoLeader"),
    "Replication lag > 1s": ("Warning", "NeedleReplicationLag"),
    "Replication lag > 10s": ("Critical", "NeedleReplicationLagLong"),
    "Shard imbalance > 20%": ("Warning", "NeedleShardsUneven"),
    "Node unreachable": ("Critical", "NeedleNodeUnreachable"),
}
"""The alert table of the operations guide."""
ALSO = {
    *("NeedleDiskNearlyFull", "NeedleFsyncSlow", "NeedleClockRateOff", "NeedleUnderReplicated"),
    *("NeedleCertificateExpires", "NeedleLogNearlyFull", "NeedleBackupTooOld"),
}
GIVEN = {"job", "instance", "namespace", CLUSTER_LABEL}
"""Labels that Prometheus gives, and the one of every series."""


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_guides_rows_are_there_with_their_severity() -> None:
    assert {said: (ALERTS[name].severity.title(), name) for said, (_, name) in GUIDE.items()} == GUIDE
    assert all(ALERTS[name].expression for name in ALSO)
    assert len(ALERTS) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=ALERTS)
def test_a_row_can_be_judged_and_is_explained(row: Alert) -> None:
    assert row.severity in ("critical", "warning") and row.summary
    assert row.condition or row.expression, "neither a look nor Prometheus can tell it"
    document, anchor = row.runbook.split("#")
    sections = re.split(r"^## ", (ROOT / document).read_text(), flags=re.M)
    assert anchor in anchors(ROOT / document)
    (section,) = [text for text in sections if text.startswith(f"{row.name}\n")]
    assert len(section.split()) > 10, "a runbook says what to do"


@pytest.mark.parametrize("row", [row for row in ROWS if row.expression], ids=lambda row: row.name)
def test_a_rule_asks_for_metrics_and_labels_that_there_are(row: Alert) -> None:
    asked = {name.removesuffix("_bucket") for name in re.findall(r"\b(?:needle|raft)_\w+", row.expression)}
    assert asked <= set(METRICS) | {CLUSTER_LABEL} and asked - {CLUSTER_LABEL}
    asked -= {CLUSTER_LABEL}
    labels = {label for name in asked for label in METRICS[name].labels} | GIVEN | {"le"}
    used = {label for group in re.findall(r"(?:by|on) \(([^)]*)\)", row.expression) for label in group.split(", ")}
    assert used - {""} <= labels
    shown = set(re.findall(r"\$labels\.(\w+)", row.summary))
    kept = re.findall(r"^max by \(([^)]*)\)|^min by \(([^)]*)\)", row.expression)
    left = set("".join(kept[0]).split(", ")) if kept else labels
    assert shown <= left, "the summary names a label that the expression drops"


def test_conditions_come_of_the_table_only() -> None:
    made = [path.name for path in SOURCES.rglob("*.py") if re.search(r"\bCondition\(\s*severity", path.read_text())]
    assert sorted(made) == ["alerts.py"]
    others = [path.read_text() for path in SOURCES.rglob("*.py") if path.name != "alerts.py"]
    named = {name for text in others for name in re.findall(r'"(Needle[A-Z]\w+)"', text)}
    assert named == {row.name for row in ROWS if row.condition}, (
        "a row that nobody can tell, or tells though it says not"
    )
    one = holds("NeedleDiskFull", "node-1", "free space")
    assert (one.name, one.severity, one.runbook) == ("disk full", "critical", "docs/alerts.md#needlediskfull")
    assert one.told_at("") == one and one.told_at("https://x.org/#").runbook == "https://x.org/#needlediskfull"


@pytest.mark.parametrize("name", ["alerts.md", "metrics.md"])
def test_links_lead_somewhere(name: str) -> None:
    for document, anchor in re.findall(r"\]\(([\w-]+\.md)?#?([\w-]*)\)", (DOCS / name).read_text()):
        target = DOCS / (document or name)
        assert target.is_file() and (not anchor or anchor in anchors(target)), f"{document}#{anchor}"
