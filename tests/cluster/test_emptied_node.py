"""A node of a sharded cluster whose data directory was emptied, on real processes."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses
from harness.process_cluster import wait_for
from needle.base.errors import InvalidArgument, LostState
from needle.base.routing.strategy import CONSISTENT_HASH
from needle.base.routing.topology import ClusterSettings
from needle.server.cluster_create import create_cluster
from needle.server.cluster_main import system_caller


async def test_no_cluster_is_made_of_a_node_that_others_know_with_another_directory(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=2) as processes:
        await processes.create(1, 2)
        async with processes.connect() as client:
            await client.create_collection("default", dimensions=2)
        processes.kill("node-2")
        shutil.rmtree(tmp_path / "node-2")
        processes.restart("node-2")
        node = processes.nodes["node-2"]
        await wait_for(lambda: "node node-1 speaks to this node" in node.output(), 60, "the other node's frames")
        settings = ClusterSettings(shard_count=1, replication_factor=1, strategy=CONSISTENT_HASH)
        caller = system_caller("needle")
        try:
            with pytest.raises((InvalidArgument, LostState), match="a new name"):
                await create_cluster(caller, settings, {"node-2": node.address}, rng=random.Random(1), timeout=20)
        finally:
            await caller.close()
        assert not (tmp_path / "node-2" / "catalog").exists()
        node.signal(signal.SIGTERM)
        await wait_for(lambda: not node.running(), 30, "the emptied node stopping")
