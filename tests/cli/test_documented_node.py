"""What a real node writes to disk and publishes as metrics is what the documents say."""

import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from needle.cli.app import main
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster
from needle.local.published import of_one_cluster
from needle.server.metrics.table import BACKED_UP, METRICS, TLS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def single(tmp_path: Path):
    """A cluster of one node that answers HTTP and has an index file."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    settings = {"dimensions": 4, "http_address": address, "segments": {"seal_rows": 50}}
    cluster = ProcessCluster(tmp_path, 1, as_user=True, **settings)
    cluster.start_nodes()
    try:
        fetch(address, "/readyz")
        np.save(tmp_path / "v.npy", np.random.default_rng(1).normal(size=(120, 4)))
        assert main(["insert", str(tmp_path / "v.npy"), "--batch", "30", "--cluster", cluster.cluster]) == 0
        yield cluster, address
    finally:
        cluster.stop()


def fetch(address: str, path: str) -> str:
    """The body of a 200 answer; a node that has just started may say nothing, or 503, for a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
                return of_one_cluster(answer.read().decode())
        except urllib.error.HTTPError as error:
            assert error.code == 503 and time.monotonic() < deadline, error.read()
        except urllib.error.URLError as error:
            assert time.monotonic() < deadline, error


def _become_idle(address: str, names: tuple[str, ...]) -> None:
    """Wait until these samples are 0: what the node writes by itself may be under way."""
    deadline = time.monotonic() + 60
    while not all(re.search(rf"^{re.escape(name)} 0(\.0)?$", fetch(address, "/metrics"), re.M) for name in names):
        assert time.monotonic() < deadline, names


def test_every_metric_and_probe_is_documented(single) -> None:
    _, address = single
    documented = set(re.findall(r"^\| `(/\w+)` \|", (DOCS / "operations.md").read_text(), re.M))
    for path in ("/livez", "/readyz", "/metrics"):
        assert fetch(address, path) and path in documented
    published = set(re.findall(r"^# HELP (\S+)", fetch(address, "/metrics"), re.M))
    published = {name for name in published if not name.endswith("_created")}
    assert published == {name for name, row in METRICS.items() if row.only not in (TLS, BACKED_UP)}


def test_every_file_of_a_node_is_documented(single) -> None:
    cluster, _ = single
    (tree,) = re.findall(r"^```\n(data_dir/.*?)^```", (DOCS / "data-on-disk.md").read_text(), re.M | re.S)
    named = set(re.findall(r"^ *([^ ]+?)/?(?: |$)", tree, re.M))
    found = set()
    for path in cluster.nodes["node-1"].data_dir.rglob("*"):
        name = re.sub(r"^state-\d+$", "state-<n>", re.sub(r"\d{16}", "<number>", path.name))
        if path.parent.name != "segments":  # their names are described in segments.md
            found.add(name)
    assert "documents.db" in found and found - named == set(), "docs/data-on-disk.md does not name these"


def test_what_operators_need_is_measured(single) -> None:
    """Log, memory by part, connections, the event loop, and who was turned away."""
    _, address = single
    stranger = urllib.request.Request(f"http://{address}/v1/collections", headers={"authorization": "Bearer nobody"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(stranger, timeout=20)
    text = fetch(address, "/metrics")
    values = {name: float(value) for name, value in re.findall(r"^([^#\s]+(?:\{[^}]*\})?) (\S+)$", text, re.M)}
    for name in (
        'needle_memory_bytes{part="process"}',
        'needle_memory_bytes{part="documents"}',
        'needle_memory_bytes{part="change_feeds"}',
        "needle_log_bytes",
        "needle_disk_kept_free_bytes",
        "needle_loop_lag_seconds_count",
        "needle_fsync_seconds_count",
        'needle_connections{door="http"}',
        "needle_clock_monotonic_seconds",
    ):
        assert values[name] > 0, name
    assert sum(values[f'needle_memory_bytes{{part="{part}"}}'] for part in ("vectors", "index_files")) > 120 * 4 * 4 - 1
    assert values["needle_log_bytes"] < values["needle_log_bytes_max"]
    assert values["needle_disk_free_bytes"] < values["needle_disk_total_bytes"]
    assert values['needle_rejected_requests_total{door="http",reason="unauthenticated"}'] == 1
    assert values['needle_rejected_requests_total{door="binary",reason="unauthenticated"}'] == 0
    waiting = ('needle_apply_lag_entries{shard="0"}', 'needle_proposals_waiting{shard="0"}')
    _become_idle(address, waiting)
    elections = {name for name in values if name.startswith("needle_elections_total{") and 'shard="0"' in name}
    assert len(elections) == 4 and sum(values[name] for name in elections) >= 1, "causes that did not occur are 0"
