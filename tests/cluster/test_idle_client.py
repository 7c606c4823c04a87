"""A client that rests while all nodes of its cluster are replaced finds the cluster afterwards."""

from __future__ import annotations

from pathlib import Path

from cluster.processes import ShardedProcesses, healthy
from needle.client.client import Client
from needle.local.process_cluster import wait_for


async def test_a_client_that_rests_hears_of_new_nodes_before_the_last_old_one_goes(tmp_path: Path) -> None:
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        await processes.create(2, 3)
        async with processes.connect() as resting, processes.connect() as operator:
            await healthy(operator)
            await operator.create_collection("default", dimensions=2)
            await resting.insert_batch([(f"doc-{n}", [n, 1.0]) for n in range(20)])
            seeds = list(processes.addresses.values())
            for old in list(processes.nodes):
                new = processes.add(sharding={"join": [seeds[-1]]})
                processes.restart(new)
                await processes.ready(new)
                await wait_for(lambda name=new: _knows(operator, name), 60, "the catalog to know the new node")
                await operator.replace_node(old, new, timeout=120)
                assert not await _knows(operator, old)
                # Nothing is called meanwhile: `nodes` says what the client has heard.
                await wait_for(lambda name=old: name not in resting.nodes(), 30, "a client that rests to hear of it")
                processes.kill(old)
                seeds.append(processes.addresses[new])
            assert set(resting.nodes()) == {"node-4", "node-5", "node-6"}
            assert await resting.count(timeout=10) == 20
            await resting.insert("after", [0.0, 1.0], timeout=10)
            assert (await resting.get("after", timeout=10)) is not None


async def _knows(client: Client, node: str) -> bool:
    return node in (await client.refresh_topology(confirmed=True, timeout=5)).addresses()
