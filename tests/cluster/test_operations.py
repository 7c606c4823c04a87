"""Looking after real processes: handing leadership over, maintenance, forced elections, membership, stopping."""

import asyncio
from pathlib import Path

import pytest

import needle
from harness.calm import CALM
from needle.base.errors import InMaintenance, InvalidArgument, Unavailable
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


async def test_the_last_that_could_lead_goes_into_maintenance_only_if_it_is_forced(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        leader = await cluster.leader()
        other, dead = (name for name in cluster.nodes if name != leader)
        cluster.kill(dead)

        async def needed() -> bool:
            status = await client.node_status(leader)
            return not next(peer for peer in status.peers if peer.id == dead).recently_active

        await wait_for(needed, 30, "the leader missing its follower")
        for node in (leader, other):
            with pytest.raises(InvalidArgument, match=f"no majority: {dead} does not answer"):
                await client.enter_maintenance_mode(node)
        await client.enter_maintenance_mode(other, force=True)
        with pytest.raises(InvalidArgument, match=f"nobody could lead .*: {dead} does not answer; {other} is in maint"):
            await client.enter_maintenance_mode(leader)
        await client.insert("b", VECTOR)  # nothing has changed for the last one
        cluster.restart(dead)
        await client.exit_maintenance_mode(other, timeout=30)


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
            await drained.insert("a", VECTOR)  # its session holds no more than what it did itself
            for _ in range(6):
                # The node itself refuses eventual reads; the client goes to the others.
                assert [hit.id for hit in await drained.search_eventual(VECTOR, 1, session=True)] == ["a"]
        with pytest.raises(InMaintenance):
            await client.force_new_election(node)
        await client.insert("b", VECTOR)
        cluster.kill(node)
        with pytest.raises(Unavailable, match="by the catalog"):
            await client.enter_maintenance_mode(node)
        cluster.restart(node)
        in_maintenance = (503, "not ready: in maintenance\n")

        async def is_back() -> bool:
            return (await cluster.http(node, "/readyz"))[1].startswith("not ready: in maintenance")

        await wait_for(is_back, 60, "maintenance after the restart")
        assert await cluster.http(node, "/readyz") == in_maintenance
        assert node in " ".join((await client.health_check()).warnings)
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


async def test_a_node_is_added_and_another_removed(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, snapshot_threshold=40, **CALM) as cluster, cluster.connect() as client:
        for n in range(120):
            await client.insert(f"d{n}", VECTOR)
        with pytest.raises(InvalidArgument, match="node-4"):
            await client.set_replicas(None, ["node-1", "node-2", "node-4"])
        new = cluster.nodes[cluster.add(sharding={"join": list(cluster.addresses.values())})]
        new.start()

        async def joined() -> bool:
            return "node-4" in (await client.refresh_topology(timeout=0.1)).addresses()

        await wait_for(joined, 60, "the new node joining")
        members = ["node-2", "node-3", "node-4"]
        await client.set_replicas(None, members)
        await client.set_catalog_nodes(members)
        assert (await client.node_status("node-4")).documents == 120
        assert sorted((await client.status()).voters) == members
        assert sorted(await client.digests()) == members
        await client.remove_node("node-1")
        # Nobody is sent to the node that was removed, and clients that knew it forget it.
        await wait_for(lambda: _knows(client, members), 60, "the client forgetting the removed node")
        async with cluster.connect() as fresh:
            await wait_for(lambda: _knows(fresh, members), 60, "a new client not hearing of the removed node")
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
    await client.refresh_topology(timeout=0.1)
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


async def test_a_voter_with_a_new_address_is_back_by_itself_also_for_one_that_was_away(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=5, **CALM) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        leader = await cluster.leader()
        moved, away, *rest = (name for name in cluster.nodes if name != leader)
        (port,) = free_ports(1)
        node, address = cluster.nodes[moved], f"127.0.0.1:{port}"
        cluster.kill(moved, away)
        others = [text for text in node.settings["cluster_nodes"] if not text.startswith(f"{moved}=")]
        node.settings.update({"listen": address, "cluster_nodes": [*others, f"{moved}={address}"]})
        cluster.restart(moved)
        await wait_for(lambda: _at(client, moved, address), 60, "a client that runs learning where it is")
        for name in rest:
            cluster.kill(name)
            cluster.restart(name)  # what they were told survives
        await cluster.ready(*rest)
        cluster.kill(rest[0])
        await wait_for(lambda: client.insert("b", VECTOR, timeout=5), 60, "the moved node being one of a majority of 3")
        cluster.restart(away)
        cluster.kill(leader)
        await wait_for(lambda: client.insert("c", VECTOR, timeout=5), 60, "the one that was away reaching it")


async def _at(client: needle.Client, node: str, address: str) -> bool:
    await client.refresh_topology(timeout=0.1)
    return client.nodes().get(node) == address
