"""The table of metrics says what there is, and the files made from it are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import needle
from needle.cli.watch_files import FILES
from needle.server.metrics import families
from needle.server.metrics.table import METRICS, PARTS

ROOT = Path(__file__).resolve().parents[3]
SOURCES = Path(needle.__file__).parent
GUIDE = (
    *("raft_term", "raft_commit_index", "raft_apply_index", "raft_leader_changes", "raft_replication_lag"),
    *("needle_cluster_healthy", "needle_shard_vector_count", "needle_shard_leader", "needle_shard_followers"),
    *("needle_replication_lag_ms", "needle_search_fanout_count", "needle_search_merge_time_ms"),
)
GUIDE_LABELS = {
    "needle_shard_vector_count": {"shard"},
    "needle_shard_leader": {"shard", "node"},
    "needle_shard_followers": {"shard"},
    "needle_replication_lag_ms": {"shard", "follower"},
}
BOUNDED = {
    *("shard", "node", "follower", "collection", "reason", "event", "method", "code", "door", "direction", "part"),
    *("function", "key", "limit", "address"),
}


def test_each_name_is_there_once() -> None:
    assert len(METRICS) == sum(map(len, PARTS.values()))


def test_every_name_of_the_guide_is_there_with_its_labels() -> None:
    assert {row.guide for row in METRICS.values()} - {""} == set(GUIDE)
    for name, labels in GUIDE_LABELS.items():
        assert set(METRICS[name].labels) == labels


@pytest.mark.parametrize("row", METRICS.values(), ids=METRICS)
def test_a_row_is_complete(row) -> None:
    assert row.meaning.endswith(".") and (SOURCES / row.source).is_file(), row.source
    assert row.name.endswith("_total") == (row.kind == "counter")
    assert set(row.labels) <= BOUNDED, "a label that callers can give new values makes series without end"
    assert row.unit in ("", "seconds", "milliseconds", "bytes", "ratio")
    if row.unit in ("seconds", "bytes", "ratio") and row.name != "raft_lease_seconds":
        assert row.unit in row.name, "the name of a metric says its unit"


def test_what_has_no_row_cannot_be_published() -> None:
    with pytest.raises(KeyError):
        families.read("needle_unheard_of")


def test_only_the_metrics_package_knows_prometheus() -> None:
    knowing = {p for p in SOURCES.rglob("*.py") if re.search(r"^(from|import) prometheus_client", p.read_text(), re.M)}
    assert {p.parent for p in knowing} == {SOURCES / "server" / "metrics"}


@pytest.mark.parametrize("name", FILES)
def test_what_is_made_from_the_tables_is_current(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / name).read_text() == FILES[name](), "run `python -m needle.cli.watch_files`"
