"""A node in the place of another one, dead or alive, by the operator's commands; and what weights do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import needle
from harness.calm import CALM
from harness.commands import Run, until
from needle.local.process_cluster import ProcessCluster

DOCUMENTS = 400


def test_a_dead_node_and_a_live_one_are_replaced(tmp_path: Path, run: Run) -> None:
    settings = {**CALM, "sharding": {}}
    cluster = ProcessCluster(tmp_path, nodes=3, as_user=True, **settings)
    at = ("--cluster", cluster.cluster)

    def listed() -> dict[str, Any]:
        return {node["id"]: node for node in json.loads(run("node", "list", "--json", *at))}

    def whole() -> bool:
        with needle.connect_sync(cluster.cluster) as client:
            hits = client.search(np.ones(8, np.float32), DOCUMENTS + 1, exact=True)
            return len({hit.id for hit in hits}) == DOCUMENTS

    try:
        cluster.start_nodes()
        named = [f"{name}={address}" for name, address in cluster.addresses.items()]
        create = ("cluster", "create", "--shards", "2", "--replicas", "3", "--dimensions", "8", *named)
        until(lambda: "2 shards on 3 nodes" in run(*create, expect=None))
        with needle.connect_sync(cluster.cluster) as client:
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 8)).astype(np.float32)
            client.insert_batch(ids=[f"doc-{n}" for n in range(DOCUMENTS)], vectors=vectors, timeout=30)
        first = cluster.addresses["node-1"]
        for _ in range(2):
            cluster.restart(cluster.add(sharding={"join": [first]}))
        until(lambda: {"node-4", "node-5"} <= listed().keys())

        cluster.kill("node-2")
        planned = run("node", "replace", "node-2", "node-4", "--dry-run", *at)
        assert "replica of shard 1 from node-2 to node-4" in planned and "node-4 replaces node-2" in planned
        assert "; takes about " in planned and " s at this pace" in planned
        slow = ("--dry-run", "--json", "--batch", "1", "--throttle", "10")
        quick, slowly = (
            json.loads(run("node", "replace", "node-2", "node-4", *options, *at)) for options in (slow[:2], slow)
        )
        assert len(quick["moves"]) == 3 and slowly["documents"] == quick["documents"] >= DOCUMENTS
        assert slowly["seconds"] > quick["seconds"] + 10
        assert listed()["node-4"]["shards"] == []
        assert "node-9 has not joined" in run("node", "replace", "node-2", "node-9", "--timeout", "1", *at, expect=1)
        assert "holds the catalog already" in run("node", "replace", "node-2", "node-3", *at, expect=1)
        assert "node-4 is in the place of node-2" in run("node", "replace", "node-2", "node-4", *at)
        after = listed()
        assert (after["node-2"]["state"], after["node-2"]["shards"]) == ("removed", [])
        assert after["node-4"]["shards"] == [0, 1] and after["node-4"]["catalog"]
        assert run("node", "replace", "node-2", "node-4", *at)  # may be repeated
        assert whole()

        told = json.loads(run("node", "replace", "node-1", "node-5", "--json", *at).splitlines()[0])
        assert told == {"removed": "node-1", "replaced_by": "node-5"}
        at = ("--cluster", cluster.addresses["node-5"])
        until(lambda: json.loads(run("status", "--json", *at, expect=None))["healthy"])
        cluster.kill("node-1")  # nobody misses it
        assert whole()
        assert listed()["node-5"]["shards"] == [0, 1]

        run("node", "weight", "node-4", "3", *at)
        assert run("node", "zone", "node-4", "rack-9", "--dry-run", *at)
        assert listed()["node-4"]["zone"] == ""
        assert json.loads(run("node", "zone", "node-4", "rack-9", "--json", *at).splitlines()[0])["state"] == "done"
        cluster.terminate("node-4")
        cluster.restart("node-4")  # its own setting is 1 still
        until(lambda: listed()["node-4"]["condition"] == "")
        assert (listed()["node-4"]["weight"], listed()["node-4"]["weighed"]) == (3.0, True)
        assert (listed()["node-4"]["zone"], listed()["node-4"]["zoned"]) == ("rack-9", True)
        run("node", "zone", "node-4", "--own", *at)
        until(lambda: (listed()["node-4"]["zone"], listed()["node-4"]["zoned"]) == ("", False))
        assert "either ZONE or --own" in run("node", "zone", "node-4", *at, expect=1)
        run("node", "weight", "node-4", "own", *at)
        until(lambda: (listed()["node-4"]["weight"], listed()["node-4"]["weighed"]) == (1.0, False))
        assert "weight of node-4" in run("node", "weight", "node-4", "1001", "--dry-run", *at, expect=1)
        assert "0 to 1000" in run("node", "weight", "node-4", "heavy", *at, expect=1)
    finally:
        cluster.stop()
