"""A lost node of a cluster is replaced by the commands of the guide (docs/sharding.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.calm import CALM
from harness.commands import Run, until
from needle.local.process_cluster import ProcessCluster


@pytest.mark.campaign
def test_a_lost_node_is_replaced_through_the_commands(tmp_path: Path, run: Run) -> None:
    def nodes() -> dict[str, Any]:
        return {node["id"]: node for node in json.loads(run("node", "list", "--json", *at))}

    settings: dict[str, Any] = {**CALM, "sharding": {}}
    cluster = ProcessCluster(tmp_path, nodes=4, as_user=True, **settings)
    at = ("--cluster", cluster.cluster)
    try:
        cluster.start_nodes()
        named = [f"{name}={address}" for name, address in cluster.addresses.items()]
        create = ("cluster", "create", "--shards", "2", "--replicas", "3", "--dimensions", "2", *named)
        until(lambda: "2 shards on 4 nodes" in run(*create, expect=None))
        lines = [json.dumps({"id": f"doc-{n}", "vector": [1, n]}) for n in range(50)]
        (tmp_path / "documents.jsonl").write_text("\n".join(lines))
        until(lambda: "50" in run("insert", str(tmp_path / "documents.jsonl"), *at, expect=None))

        assert "nodes of this cluster: node-1, node-2" in run("shard", "replicas", "0", "node-9", *at, expect=1)
        assert "SHARD = 7" in run("shard", "replicas", "7", "node-1", *at, expect=1)
        assert "or catalog" in run("shard", "replicas", "first", "node-1", *at, expect=1)

        before = nodes()
        gone = next(name for name, node in before.items() if node["shards"] and node["catalog"])
        cluster.kill(gone)
        shutil.rmtree(tmp_path / gone)
        for shard in before[gone]["shards"]:
            held = [name for name, node in before.items() if shard in node["shards"] and name != gone]
            fresh = next(name for name, node in before.items() if shard not in node["shards"])
            assert f"shard {shard} is on " in run("shard", "replicas", str(shard), fresh, *held, *at)
        catalog = [name for name in before if name != gone]
        assert "the catalog is on " in run("shard", "replicas", "catalog", *catalog, *at)
        assert f"{gone} is no longer a node" in run("node", "remove", gone, *at)
        assert f"{gone} is no longer a node" in run("node", "remove", gone, *at)  # may be repeated
        until(lambda: json.loads(run("status", "--json", *at, expect=None))["healthy"])
        after = nodes()
        assert after[gone]["shards"] == [] and not after[gone]["catalog"]
        assert sorted(name for name, node in after.items() if node["catalog"]) == sorted(catalog)
        away = catalog[-1]  # the new replicas count
        cluster.kill(away)
        until(lambda: "doc-49" in run("get", "doc-49", "doc-7", "--json", *at, expect=None))
        assert f"{gone}" in run("shard", "replicas", "0", gone, *catalog[:2], *at, expect=1)
    finally:
        cluster.stop()
