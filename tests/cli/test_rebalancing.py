"""Growing, shrinking and emptying a cluster of real processes, by the commands that operators type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import needle
from harness.calm import CALM
from harness.commands import Run, until
from needle.local.process_cluster import ProcessCluster

DOCUMENTS = 1200


def _ids(at: str) -> list[str]:
    with needle.connect_sync(at) as client:
        hits = client.search(np.ones(8, np.float32), DOCUMENTS + 1, exact=True)
        assert sum(client.counts().values()) == DOCUMENTS
    return sorted(hit.id for hit in hits)


def test_a_cluster_is_grown_shrunk_and_a_node_emptied(tmp_path: Path, run: Run) -> None:
    settings = {**CALM, "sharding": {}}
    cluster = ProcessCluster(tmp_path, nodes=4, as_user=True, **settings)
    try:
        cluster.start_nodes()
        nodes = [f"{name}={address}" for name, address in cluster.addresses.items()]
        at = ("--cluster", cluster.cluster)
        create = ("cluster", "create", "--shards", "2", "--replicas", "3", "--dimensions", "8", *nodes)
        until(lambda: "2 shards on 4 nodes" in run(*create, expect=None))
        names = sorted(f"doc-{n}" for n in range(DOCUMENTS))
        with needle.connect_sync(cluster.cluster) as client:
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 8)).astype(np.float32)
            client.insert_batch(ids=names, vectors=vectors, timeout=30)

        def shown(*argv: str) -> Any:
            return json.loads(run(*argv, "--json", *at))

        def listing() -> Any:
            return json.loads(run("node", "list", "--json", *at))

        def shards() -> dict[int, Any]:
            return {shard["shard"]: shard for shard in shown("shard", "list")}

        def led() -> dict[int, Any] | None:
            found = shards()
            return found if all(one["leader"] for one in found.values()) else None

        def nodes_with_replicas() -> list[Any]:
            return [load for load in shown("cluster", "stats")["nodes"].values() if load["replicas"]]

        stats = shown("cluster", "stats")
        assert sum(one["documents"] for one in stats["shard_sizes"].values()) == DOCUMENTS
        assert all(one["bytes"] > 200 * one["documents"] for one in stats["shard_sizes"].values())
        assert sum(load["replicas"] for load in stats["nodes"].values()) == 6
        for load in stats["nodes"].values():
            assert load["alive"]
            assert 0 < load["free"] < load["total"]
        until(
            lambda: all(
                load["used"] > 50_000 for load in shown("cluster", "stats")["nodes"].values() if load["replicas"]
            )
        )
        assert "imbalance 0.0" in run("cluster", "stats", *at)

        wished = run("cluster", "plan", "--add-shard", *at)
        assert wished.startswith("1. add shard 2 on ")
        assert " of the least possible; imbalance of shards 0.5" in wished
        planned = shown("shard", "add", "--dry-run")
        assert [move["type"] for move in planned["moves"]] == ["found-shard", "move-range", "move-range"]
        assert planned["ratio"] <= 1.1
        assert planned["seconds"] > 0 and "takes about " in run("shard", "add", "--dry-run", *at)
        assert sorted(shown("cluster", "stats")["shard_sizes"]) == ["0", "1"]  # nothing was executed
        assert "was never rebalanced" in run("rebalance", "--status", *at, expect=1)

        assert " is done: 100 %" in run("shard", "add", "--throttle", "0.01", *at)
        stats = shown("cluster", "stats")
        assert sorted(stats["shard_sizes"]) == ["0", "1", "2"]
        assert stats["documents_imbalance"] < 0.2
        listed = shards()
        assert sorted(listed) == [0, 1, 2]
        assert sum(shard["documents"] for shard in listed.values()) == DOCUMENTS
        assert all(shard["leader"] in {*shard["nodes"], None} and len(shard["nodes"]) == 3 for shard in listed.values())
        assert _ids(cluster.cluster) == names
        assert shown("rebalance", "--status")["moved_documents"] > 300
        assert "is done, so there is nothing to pause" in run("rebalance", "--pause", *at, expect=1)

        assert "shard = 9 is not allowed" in run("shard", "remove", "9", *at, expect=1)
        assert shown("shard", "remove", "0")["is_complete"]
        assert sorted(shown("cluster", "stats")["shard_sizes"]) == ["1", "2"]
        assert _ids(cluster.cluster) == names

        before = until(led)
        assert "one of 1, 2" in run("shard", "split", "0", *at, expect=1)
        planned = shown("shard", "split", "1", "--dry-run")
        assert [move["type"] for move in planned["moves"]] == ["found-shard", "move-range"]
        assert shards().keys() == {1, 2}
        assert shown("shard", "split", "1", "--throttle", "0.01")["state"] == "done"
        after = until(led)
        assert after[2]["documents"] == before[2]["documents"]
        assert 0.4 < after[3]["documents"] / before[1]["documents"] < 0.6
        source, *others = after[3]["nodes"]
        (target,) = {"node-1", "node-2", "node-3", "node-4"} - set(after[3]["nodes"])
        assert f"a node that does not hold shard 3, as these do: {source}" in run(
            "shard", "move", "3", source, others[0], *at, expect=1
        )
        assert f"from {source} to {target}" in run("shard", "move", "3", source, target, "--dry-run", *at)
        slowly = shown("shard", "move", "3", source, target, "--dry-run", "--throttle", "1000")
        assert slowly["seconds"] >= slowly["documents"] > 0
        assert shards()[3]["nodes"] == after[3]["nodes"]
        assert shown("shard", "move", "3", source, target)["state"] == "done"
        assert shards()[3]["nodes"] == [target, *others]
        assert shown("shard", "move", "3", source, target)["moved_bytes"] == 0  # it may be repeated
        assert _ids(cluster.cluster) == names

        before = {node["id"]: node["catalog"] for node in listing()}
        (spare,) = [node for node, holds in before.items() if not holds]
        leaves = next(node for node, holds in before.items() if holds)
        planned = shown("shard", "move", "catalog", leaves, spare, "--dry-run")
        assert [(move["group"], move["after"].count(spare)) for move in planned["moves"]] == [(0, 1)]
        assert {node["id"]: node["catalog"] for node in listing()} == before
        assert shown("shard", "move", "catalog", leaves, spare)["state"] == "done"
        assert {node["id"] for node in listing() if node["catalog"]} == {*before} - {leaves}
        assert "the number of a shard, or catalog" in run("shard", "move", "none", leaves, spare, *at, expect=1)

        asked = shown("node", "weight", "node-1", "own", "--dry-run")
        assert asked["moves"] == shown("node", "weight", "node-1", "1", "--dry-run")["moves"]
        assert "moves copy" in run("node", "zone", "node-1", "--own", "--dry-run", *at)

        assert "drain = 'nobody'" in run("node", "drain", "nobody", *at, expect=1)
        assert json.loads(run("node", "drain", "node-1", "--json", *at))["state"] == "done"
        assert shown("cluster", "stats")["nodes"]["node-1"]["replicas"] == 0
        asked = run("node", "drain", "node-2", "--dry-run", *at, expect=1)
        assert "it would be refused now: node-2 keeps its replica of" in asked
        refused = run("node", "drain", "node-2", *at, expect=1)
        assert "node-2 cannot be emptied: node-2 keeps its replica of" in refused
        asked = run("node", "weight", "node-2", "0", "--dry-run", *at, expect=1)
        assert "it would be refused now: node-2 keeps its replica of" in asked
        assert "node-2 cannot be emptied: node-2 keeps its" in run("node", "weight", "node-2", "0", *at, expect=1)
        listed = {node["id"]: node for node in listing()}
        assert (listed["node-1"]["state"], listed["node-1"]["catalog"]) == ("draining", False)
        assert (listed["node-2"]["state"], listed["node-2"]["weight"]) == ("active", 1.0)
        undone = json.loads(run("node", "drain", "node-1", "--undo", "--json", *at).splitlines()[0])
        assert undone == {"node": "node-1", "state": "active"}
        assert next(node["state"] for node in listing() if node["id"] == "node-1") == "active"
        assert shown("rebalance")["is_complete"]
        assert _ids(cluster.cluster) == names

        planned = run("node", "remove", "node-1", "--dry-run", *at)
        assert "from node-1 to" in planned
        cluster.kill("node-1")
        assert "node-1 (does not answer)" in run("cluster", "stats", *at)
        assert "node-1 is lost" in run("cluster", "plan", "--lost", "node-1", *at)
        assert "node-1 is no longer a node" in run("node", "remove", "node-1", *at)
        assert shown("rebalance", "--status")["state"] == "done"
        assert "node-1" not in shown("cluster", "stats")["nodes"]
        assert _ids(cluster.cluster) == names
    finally:
        cluster.stop()
