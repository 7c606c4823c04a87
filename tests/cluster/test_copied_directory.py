"""A copy of a node's data directory that is started beside it, by mistake, at another address."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.local.free_ports import free_ports
from needle.local.node_process import NodeProcess
from needle.local.process_cluster import wait_for

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("runs", [True, False])
async def test_a_copy_leaves_the_node_that_runs_its_place(tmp_path: Path, runs: bool) -> None:
    """The others would hear the copy instead, and the node would be lost for good. runs: while it is copied."""
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(shards=1, factor=3)
        async with processes.connect() as client:
            await healthy(client)
            node = processes.nodes["node-2"]
            if not runs:
                processes.kill("node-2")
            shutil.copytree(node.data_dir, tmp_path / "copy")
            if not runs:
                processes.restart("node-2")
                await processes.ready("node-2")
            address = f"127.0.0.1:{free_ports(1)[0]}"
            settings = {
                **copy.deepcopy(node.settings),
                "data_dir": str(tmp_path / "copy"),
                "listen": address,
                "cluster_nodes": [f"node-2={address}"],
            }
            del settings["http_address"]
            (tmp_path / "logs").mkdir()
            twin = NodeProcess("node-2", tmp_path / "logs", settings)
            twin.start()
            try:
                await wait_for(lambda: not twin.running(), 60, "the end of the copy")
                assert "node-2 runs already" in twin.output()
            finally:
                if twin.running():
                    twin.process.kill()  # type: ignore[union-attr]
            await healthy(client)
            assert await node.is_ready()
            assert (await client.refresh_topology(timeout=5.0)).address_of("node-2") == node.address
