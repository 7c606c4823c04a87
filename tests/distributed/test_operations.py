"""Looking after real processes: handing leadership over, maintenance, forced elections, membership, stopping."""

import asyncio
from pathlib import Path

import pytest

import needle
from harness.marked_documents import CALM
from needle.base.errors import InMaintenance, InvalidArgument
from needle.cli.app import main
from needle.local.free_ports import free_ports
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8


async def test_step_down_moves_leadership_and_loses_no_write(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        before = await cluster.leader()
        writes = [asyncio.create_task(client.insert_if_absent(f"d{n}", VECTOR)) for n in range(200)]
        target = next(name for name in cluster.nodes if name != before)
        assert await client.step_down(target) == target
        await asyncio.gather(*writes)
        assert await cluster.leader() == target
        assert await client.count() == 200
        assert await client.step_down() != target
        with pytest.raises(InvalidArgument, match="nobody"):
            await client.step_down("nobody")


async def test_maintenance_drains_a_leader_and_brings_it_back(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        node = await cluster.leader()
        await client.enter_maintenance_mode(node)
        assert await cluster.leader() != node
        status, why = await cluster.http(node, "/readyz")
        assert (status, why.strip()) == (503, "not ready: in maintenance")
        assert (await cluster.http(node, "/livez"))[0] == 200
        assert (await client.node_status(node)).maintenance
        async with cluster.connect(node) as drained:
            for _ in range(6):
                # The node itself refuses eventual reads; the client goes to the others.
                assert [hit.id for hit in await drained.search_eventual(VECTOR, 1, session=True)] == ["a"]
        with pytest.raises(InMaintenance):
            await client.force_new_election(node)
        await client.insert("b", VECTOR)
        await client.exit_maintenance_mode(node)
        assert (await client.node_status(node)).documents == 2
        await cluster.ready(node)
        await client.step_down(node)
        assert await cluster.leader() == node


async def test_a_forced_election_elects_and_keeps_the_data(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        for name in cluster.nodes:
            await client.force_new_election(name)
        await cluster.leader()
        await client.insert("b", VECTOR)
        assert await client.count() == 2
        await cluster.equal_digests()


async def test_a_node_is_added_as_learner_then_promoted_and_another_removed(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, snapshot_threshold=40, **CALM) as cluster, cluster.connect() as client:
        for n in range(120):
            await client.insert(f"d{n}", VECTOR)
        new = cluster.nodes[cluster.add(join=True)]
        new.start()
        voters = ["node-1", "node-2", "node-3"]
        with pytest.raises(InvalidArgument, match="node-4"):
            await client.change_membership(voters, ["node-4"])
        await client.change_membership(voters, ["node-4"], addresses={"node-4": new.address})
        await cluster.ready("node-4")
        assert (await client.node_status(new.address)).state == "Learner"
        assert (await client.node_status(new.address)).documents == 120
        await client.change_membership(["node-2", "node-3", "node-4"])
        members = ["node-2", "node-3", "node-4"]
        assert sorted((await client.status()).voters) == members
        # Nobody is sent to the node that was removed, and clients that knew it forget it.
        await wait_for(lambda: _knows(client, members), 60, "the client forgetting the removed node")
        async with cluster.connect() as fresh:
            await wait_for(lambda: _knows(fresh, members), 60, "a new client not hearing of the removed node")
        assert sorted(await client.digests()) == members
        cluster.kill("node-1")
        del cluster.nodes["node-1"]
        await client.insert("after", VECTOR)
        # The address of the new node survives a restart of those that learned it.
        for name in ("node-2", "node-3"):
            cluster.kill(name)
            cluster.restart(name)
        await cluster.ready()
        async with cluster.connect() as again:
            await again.insert("last", VECTOR)
            assert await again.count() == 122
            assert await _knows(again, members)


async def _knows(client: needle.Client, nodes: list[str]) -> bool:
    await client.leader()
    return sorted(client.nodes()) == nodes


async def test_sigterm_hands_over_and_exits_with_zero(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        leader = await cluster.leader()
        code = await asyncio.to_thread(cluster.terminate, leader)
        assert code == 0, cluster.nodes[leader].output()[-2000:]
        await client.insert("b", VECTOR)
        cluster.restart(leader)
        await cluster.ready(leader)
        await cluster.equal_digests()


async def test_readyz_comes_back_after_every_restart(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, snapshot_threshold=20, **CALM) as cluster, cluster.connect() as client:
        leader = await cluster.leader()
        follower = next(name for name in cluster.nodes if name != leader)
        cluster.kill(follower)
        for n in range(100):
            await client.insert(f"d{n}", VECTOR)
        cluster.restart(follower)
        await cluster.ready(follower)
        assert (await client.node_status(follower)).documents == 100
        cluster.kill(follower)
        cluster.restart(follower)
        await wait_for(cluster.nodes[follower].is_ready, 60, "the follower being ready again")


async def test_a_voter_with_a_new_address_is_back_by_one_command_also_for_one_that_was_away(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=5, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        leader = await cluster.leader()
        moved, away, *rest = (name for name in cluster.nodes if name != leader)
        (port,) = free_ports(1)
        node, address = cluster.nodes[moved], f"127.0.0.1:{port}"
        cluster.kill(moved)
        others = [text for text in node.settings["cluster_nodes"] if not text.startswith(f"{moved}=")]
        node.settings.update({"listen": address, "cluster_nodes": [*others, f"{moved}={address}"]})
        cluster.restart(moved)
        seeds = ",".join(cluster.nodes[name].address for name in (leader, *rest))
        wrong = f"{moved}={cluster.nodes[away].address}"  # another node is there
        assert await asyncio.to_thread(main, ["members", "move", wrong, "--cluster", seeds]) == 1
        cluster.kill(away)
        assert await asyncio.to_thread(main, ["members", "move", f"{moved}={address}", "--cluster", seeds]) == 0
        for name in rest:
            cluster.kill(name)
            cluster.restart(name)  # what they were told survives
        cluster.kill(rest[0])
        await wait_for(lambda: client.insert("b", VECTOR, timeout=5), 60, "the moved node being one of a majority of 3")
        await wait_for(lambda: _at(client, moved, address), 60, "a client that runs learning where it is")
        cluster.restart(away)
        told = cluster.nodes[away].data_dir / "moved.json"
        await wait_for(lambda: told.exists() and address in told.read_text(), 60, "the one that was away being told")


async def test_others_are_told_an_address_that_the_leader_was_configured_with(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        leader = await cluster.leader()
        moved, third = (name for name in cluster.nodes if name != leader)
        (port,) = free_ports(1)
        address = f"127.0.0.1:{port}"
        cluster.nodes[moved].settings["listen"] = address
        for name in (moved, leader):
            cluster.kill(name)
            node = cluster.nodes[name]
            others = [text for text in node.settings["cluster_nodes"] if not text.startswith(f"{moved}=")]
            node.settings["cluster_nodes"] = [*others, f"{moved}={address}"]
            cluster.restart(name)
        await wait_for(lambda: client.insert("b", VECTOR, timeout=5), 60, "a leader")
        if await cluster.leader() != leader:
            await client.step_down(leader)
        seeds = ",".join(cluster.nodes[name].address for name in (leader, third))
        assert await asyncio.to_thread(main, ["members", "move", f"{moved}={address}", "--cluster", seeds]) == 0
        told = cluster.nodes[third].data_dir / "moved.json"
        await wait_for(lambda: told.exists() and address in told.read_text(), 5, "the third node being told")


async def _at(client: needle.Client, node: str, address: str) -> bool:
    await client.leader()
    return client.nodes().get(node) == address
