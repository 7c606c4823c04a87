"""A node of a cluster whose data directory was emptied, on real processes."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from catalog.catalog_util import topology
from cluster.processes import ShardedProcesses
from needle.base.errors import InvalidArgument, LostState
from needle.base.model import RaftStatus
from needle.cli.app import main
from needle.cli.status import look
from needle.client.health import ReplicaStatus, judge
from needle.connecting import system_caller
from needle.local.process_cluster import wait_for
from needle.protocol.peer_calls import WhoAnswer
from needle.routing.strategy import CONSISTENT_HASH
from needle.routing.topology import ClusterSettings
from needle.server.catalog.founding import create_cluster
from needle.server.catalog.registration import LOOK_SECONDS

pytestmark = pytest.mark.campaign


async def test_no_cluster_is_made_of_a_node_that_others_know_with_another_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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

        async def status(name: str) -> tuple[int, str]:
            code = await asyncio.to_thread(main, ["status", "--cluster", processes.nodes[name].address])
            captured = capsys.readouterr()
            return code, captured.out + captured.err

        async def refused() -> str | None:
            code, shown = await status("node-1")
            return shown if code == 1 and "Lost" in shown else None

        # The emptied node knows no address to ask at before the other one tells it, as it does every LOOK_SECONDS.
        await wait_for(refused, 3 * LOOK_SECONDS, "the other node's word")
        assert (
            await asyncio.to_thread(main, ["node", "list", "--json", "--cluster", processes.nodes["node-1"].address])
            == 0
        )
        listed = {one["id"]: one["condition"] for one in json.loads(capsys.readouterr().out)}
        assert listed == {"node-1": "", "node-2": "Lost"}
        code, shown = await status("node-2")
        assert code == 1
        assert "a new name" in " ".join(shown.split())
        assert "not created yet" not in shown
        assert node.output().count("node node-1 could not be asked who it is: no address") <= 1
        node.signal(signal.SIGTERM)
        await wait_for(lambda: not node.running(), 30, "the emptied node stopping")


@pytest.mark.parametrize("told", ["by itself", "by its leader"])
async def test_a_replica_that_does_not_go_on_is_critical_though_its_shard_serves(told: str) -> None:
    now = topology()
    shard = now.shards[0]
    leader, victim = shard.replicas[0], shard.replicas[1]

    def status(node: str) -> ReplicaStatus:
        found = RaftStatus(
            node_id=node,
            group=1,
            state="Leader" if node == leader else "Follower",
            current_term=3,
            leader=leader,
            commit_index=5,
            last_applied=5,
            first_index=1,
            last_index=5,
            peers=[],
            voters=list(shard.replicas),
            learners=[],
            lease_remaining=0.0,
            leader_changes=1,
            lost="emptied" if node == victim and told == "by itself" else "",
            refused={victim: "emptied"} if node == leader and told == "by its leader" else {},
        )
        return ReplicaStatus(shard=0, node=node, address="a:1", status=found)

    async def cluster_status(timeout: float) -> list[ReplicaStatus]:
        return [status(node) for node in shard.replicas]

    async def catalog_status(timeout: float) -> RaftStatus:
        return status(leader).status or pytest.fail()

    async def catalog_replicas(timeout: float) -> list[ReplicaStatus]:
        return []

    async def describe_node(node: str, timeout: float) -> WhoAnswer:
        return WhoAnswer(node, "a:1", 1, "", 1.0, 1, 1)

    client: Any = SimpleNamespace(
        cluster_status=cluster_status,
        describe_node=describe_node,
        catalog_status=catalog_status,
        catalog_replicas=catalog_replicas,
        topology=lambda: msgspec.structs.replace(now, shards=(shard,)),
    )
    seen = await look(client, [])
    health = seen.health
    assert seen.critical
    assert any(victim in condition.subject and "emptied" in condition.subject for condition in seen.conditions)
    assert health.shards[0].state == "degraded"
    assert any(victim in problem and "emptied" in problem for problem in health.shards[0].problems)
    leaderless = [r for r in seen.replicas if r.node != leader]
    said = judge(client.topology(), leaderless).shards[0].problems
    assert any("emptied" in problem for problem in said) == (told == "by itself")
