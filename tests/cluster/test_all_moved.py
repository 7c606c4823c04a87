"""Every node of a cluster comes back at a new address: one seed each is enough to find each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.client.client import Client
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for

pytestmark = pytest.mark.campaign


async def test_nodes_that_all_moved_find_each_other_along_a_chain_of_seeds(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=4) as processes:
        await processes.create(2, 3)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=2)
            await client.insert_batch([(f"doc-{n}", [n, 1.0]) for n in range(20)])
        for name in processes.nodes:
            processes.kill(name)
        ports = free_ports(2 * len(processes.nodes))
        before = ""
        for n, node in enumerate(processes.nodes.values()):
            at = f"127.0.0.1:{ports[2 * n]}"
            node.settings["listen"] = at
            node.settings["http_address"] = f"127.0.0.1:{ports[2 * n + 1]}"
            node.settings["sharding"] |= {"join": [before]} if before else {}
            before = at
            node.start()
        await wait_for(lambda: _serve(processes, 20), 60, "the cluster at its new addresses")
        async with processes.connect() as client:
            await wait_for(lambda: _knows_all(client, processes), 60, "the catalog to know all addresses")
            await healthy(client)
            await client.insert("after", [1.0, 1.0])
        for name, node in processes.nodes.items():  # the addresses are kept: now they come back without seeds
            processes.kill(name)
            node.settings["sharding"].pop("join", None)
        for node in processes.nodes.values():
            node.start()
        await wait_for(lambda: _serve(processes, 21), 60, "the cluster after a restart")


async def _serve(processes: ShardedProcesses, documents: int) -> bool:
    async with processes.connect() as client:
        return await client.count(timeout=2) == documents


async def _knows_all(client: Client, processes: ShardedProcesses) -> bool:
    topology = await client.refresh_topology(confirmed=True, timeout=2)
    return topology.addresses() == processes.addresses
