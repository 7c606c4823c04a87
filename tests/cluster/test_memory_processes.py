"""What memory a real node has."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from needle.local.free_ports import free_ports
from needle.local.node_process import NodeProcess
from needle.local.process_cluster import ProcessCluster


def own_mb(node: NodeProcess) -> float:
    """Of its own: what it maps of files is the system's to take back."""
    lines = Path(f"/proc/{node.pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, and only glibc keeps what was freed")
async def test_a_node_that_read_its_log_again_does_not_keep_the_memory_of_that(tmp_path: Path) -> None:
    """That was 27 MB more than after its first start."""
    async with (
        ProcessCluster(tmp_path, 1, ports=free_ports(2), as_user=True, dimensions=64) as cluster,
        cluster.connect() as client,
    ):
        node = cluster.nodes["node-1"]
        vectors = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32)
        await client.insert_batch(ids=[f"v{n}" for n in range(2000)], vectors=vectors)
        before = own_mb(node)
        cluster.kill("node-1")
        cluster.restart("node-1")
        await cluster.ready()
        assert await client.get("v7") is not None
        assert own_mb(node) < before + 12
