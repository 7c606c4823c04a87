"""A cluster of real processes gets more replicas and fewer, by the commands that operators type; and is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import needle
from harness.calm import CALM
from harness.commands import Run, until
from needle.local.process_cluster import ProcessCluster

DOCUMENTS = 300


def test_the_replication_factor_is_raised_lowered_and_kept_by_rebalances(tmp_path: Path, run: Run) -> None:
    settings = {**CALM, "sharding": {}}
    cluster = ProcessCluster(tmp_path, nodes=5, as_user=True, **settings)
    try:
        cluster.start_nodes()
        nodes = [f"{name}={address}" for name, address in cluster.addresses.items()]
        at = ("--cluster", cluster.cluster)
        create = ("cluster", "create", "--shards", "2", "--replicas", "3", "--dimensions", "8", *nodes)
        until(lambda: "2 shards on 5 nodes" in run(*create, expect=None))
        with needle.connect_sync(cluster.cluster) as client:
            vectors = np.random.default_rng(1).normal(size=(DOCUMENTS, 8)).astype(np.float32)
            client.insert_batch(ids=[f"doc-{n}" for n in range(DOCUMENTS)], vectors=vectors, timeout=30)

        def shown(*argv: str) -> Any:
            return json.loads(run(*argv, "--json", *at))

        def held() -> list[int]:
            return [len(shard["nodes"]) for shard in shown("shard", "list")]

        factor = ("cluster", "replication-factor")
        assert run(*factor, *at) == "3\n"
        assert "at most 5, one on each node" in run(*factor, "6", *at, expect=1)
        planned = shown(*factor, "5", "--dry-run")
        grown = [move for move in planned["moves"] if move["type"] == "move-replicas" and move["group"]]
        assert len(grown) == 2 and all(len(move["after"]) == 5 for move in grown) and planned["bytes"] > 0
        assert held() == [3, 3] and run(*factor, *at) == "3\n"  # nothing was executed

        done = shown(*factor, "5", "--throttle", "0")
        assert (done["state"], held()) == ("done", [5, 5])
        first = done["id"]
        assert shown(*factor)["replication_factor"] == 5
        assert "nothing has to move" in run(*factor, "5", *at, expect=None)
        until(lambda: shown("shard", "list")[0]["state"] == "healthy")

        # A replica fewer, by hand: health misses it by the new number, and says what to do.
        by_hand = ("shard", "replicas", "0")
        four = [f"node-{n}" for n in (1, 2, 3, 4)]
        would = shown(*by_hand, *four, "--dry-run")
        assert would["moves"][0]["after"] == four and would["bytes"] == 0 and held() == [5, 5]
        assert "remove the replica of shard 0 on node-5" in run(*by_hand, *four, "--dry-run", *at)
        assert "is not allowed" in run(*by_hand, "node-9", "--dry-run", *at, expect=1)
        assert shown(*by_hand, *four)["is_complete"]
        assert held() == [4, 5]
        until(lambda: "shard 0 has 4 of 5 replicas" in run("status", *at, expect=None))
        progress = run(*by_hand, *four, "node-5", *at)
        assert "shard 0 is on node-1, node-2, node-3, node-4, node-5" in progress
        assert "replica of shard 0 also to node-5" in progress  # how far it was

        assert "with two replicas both nodes must run" in run(*factor, "2", "--throttle", "0", *at)
        assert held() == [2, 2]
        assert "given fewer" not in run("status", *at, expect=None)
        with needle.connect_sync(cluster.cluster) as client:
            assert sum(client.counts().values()) == DOCUMENTS

        # Fewer nodes hold the catalog than could.
        run("shard", "replicas", "catalog", "node-1", "node-2", *at)
        until(lambda: "3 nodes could hold the catalog, and 2 do" in " ".join(run("status", *at, expect=None).split()))
        assert " is done" in run("rebalance", *at)
        assert "could hold the catalog" not in " ".join(run("status", *at, expect=None).split())

        # What became of the one before the last is told by its id.
        assert shown("rebalance", "--status")["id"] > first
        before = shown("rebalance", str(first), "--status")
        assert (before["id"], before["state"], before["is_complete"]) == (first, "done", True)
        missing = run("rebalance", "--status", "1", *at, expect=1)
        assert "rebalance 1 is not known: the last one is" in missing and str(first) in missing
        assert "ID = 1 is not allowed" in run("rebalance", "1", *at, expect=1)
    finally:
        cluster.stop()
