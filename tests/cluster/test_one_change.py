"""One more collection is told, and written, as one, however many there are: on real nodes, one of which holds no
replica of the catalog."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import needle
from needle.distributed import ClusterConfig, DistributedCluster
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.protocol import calls
from needle.protocol.peer_calls import TOPOLOGY
from needle.rpc.transport import RpcClient
from needle.server.cluster_files import load_topology

MANY = 150


async def test_one_more_collection_is_told_and_written_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    call = RpcClient.call

    async def counted(self: Any, address: str, method: str, *more: Any, **named: Any) -> Any:
        answer = await call(self, address, method, *more, **named)
        if method == TOPOLOGY:
            sent.append(len(answer))
        return answer

    monkeypatch.setattr(RpcClient, "call", counted)
    cluster = DistributedCluster(ClusterConfig(shard_count=1, replication_factor=3, dimensions=2))
    try:
        for n, port in enumerate(free_ports(4)):
            await cluster.add_local_node(f"node-{n}", f"127.0.0.1:{port}", str(tmp_path / f"node-{n}"))
        await cluster.start()
        client, nodes = await cluster.client(), cluster.local_nodes()
        assert any(node.catalog is None for node in nodes)
        await asyncio.gather(*(client.create_collection(f"c{n:03}", dimensions=2, timeout=60) for n in range(MANY)))

        async def told(version: int) -> bool:
            return all(node.topology.version >= version for node in nodes)

        async with await needle.connect([node.address for node in nodes]) as other:
            whole = len(calls.encode(nodes[0].topology))
            for n in range(5):
                version = client.topology().version
                assert await wait_for(lambda v=version: told(v), 30)  # type: ignore[misc]
                await other.refresh_topology(version)
                before = written(tmp_path)
                sent.clear()
                made = await client.create_collection(f"d{n}", dimensions=2)
                await other.refresh_topology(made.version)
                assert other.topology().collection(f"d{n}") is not None
                assert await wait_for(lambda v=made.version: told(v), 30)  # type: ignore[misc]
                assert sent and max(sent) < 1500 < 20_000 < whole
                for node in nodes:
                    assert node.topology == client.topology() == other.topology()
                assert all(written(tmp_path)[name] - size < 1500 for name, size in before.items())
            await client.drop_collection("c100")
            await other.refresh_topology(client.topology().version)
            assert other.topology() == client.topology() and max(sent) < 2500
    finally:
        await cluster.stop()
    for node in nodes:
        assert load_topology(str(tmp_path / node.node_id)) == node.topology


def written(directory: Path) -> dict[str, int]:
    """Bytes of the files with the topology of each node."""
    return {
        str(path): path.stat().st_size
        for name in ("topology.bin", "topology.changes")
        for path in directory.glob(f"*/{name}")
    }
