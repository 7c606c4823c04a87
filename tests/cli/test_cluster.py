"""Looking after nodes through the commands, against real processes: every condition is caused, seen and cleared."""

import asyncio
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from needle import connect
from needle.local.free_ports import free_ports
from needle.local.node_process import NodeProcess


def states(needle) -> dict[str, str]:
    return {node["node"]: node["status"]["state"] for node in needle.status()["replicas"] if node["status"]}


def test_status_of_a_healthy_cluster(needle) -> None:
    shown = needle.run("status")
    assert shown.count("Follower") == 4 and shown.count("Leader") == 2  # of the shard, and of the catalog
    assert "CRITICAL" not in shown and "WARNING" not in shown
    status = needle.status()
    assert [node["node"] for node in status["replicas"]] == ["node-1", "node-2", "node-3"]
    assert all(node["lag_entries"] == 0 for node in status["replicas"])
    assert needle.run("leader").strip() == needle.leader() == needle.json("leader")["leader"]


def test_one_address_is_enough_to_see_all_nodes(needle) -> None:
    from needle.cli.app import main

    for address in needle.cluster.addresses.values():
        needle._capsys.readouterr()
        assert main(["status", "--cluster", address]) == 0
        assert len(re.findall(r"\bnode-\d", needle._capsys.readouterr().out, re.MULTILINE)) == 2 * 3


def test_an_address_that_is_no_nodes_is_said_and_not_waited_for(needle) -> None:
    from needle.cli.app import main

    (free,) = free_ports(1)
    assert main(["status", "--cluster", f"{needle.cluster.cluster},127.0.0.1:{free}"]) == 0
    assert f"WARNING not a member: 127.0.0.1:{free}" in needle._capsys.readouterr().out


def test_nodes_that_are_a_cluster_do_not_become_another_one_and_say_why(needle) -> None:
    from needle.cli.app import main

    nodes = [f"{name}={address}" for name, address in needle.cluster.addresses.items()]
    assert main(["cluster", "create", "--shards", "4", *nodes]) == 1
    assert "with other settings: 1 shards, 3 replicas" in needle._capsys.readouterr().err


def test_leadership_moves_where_it_is_told(needle) -> None:
    for node in ("node-1", "node-2", "node-3"):
        if needle.leader() != node:
            needle.run("step-down", "--to", node)
        needle.until(lambda node=node: needle.leader() == node)
    before = needle.leader()
    needle.json("step-down")
    needle.until(lambda: needle.leader() not in (None, before))
    needle.run("step-down", "--to", "nobody", expect=1)
    assert "nobody" in needle.notes


def test_force_election_leaves_a_leader(needle) -> None:
    assert needle.json("force-election")["leader"] in needle.cluster.addresses
    needle.run("force-election", "nobody", expect=1)
    assert "[invalid_argument]" in needle.notes


def test_maintenance_keeps_leadership_off_a_node(needle) -> None:
    node = needle.leader()
    needle.run("maintenance", "enter", node)
    try:
        assert states(needle)[node] == "Follower"
        assert "Follower, maintenance" in needle.run("status")
        told = {one["node"]: one for one in needle.json("maintenance", "status")}
        assert [name for name, one in told.items() if one["maintenance"]] == [node]
        assert told[node]["answers"] and not told[node]["leads"]
        needle.cluster.kill(node)
        needle.until(lambda: not needle.json("maintenance", "status", node)[0]["answers"])
        needle.until(lambda: f"node unreachable: {node}" in " ".join(needle.conditions()))
        needle.until(lambda: needle.leader() is not None)
        assert "WARNING node unreachable" in needle.run("status")
        needle.cluster.restart(node)
        needle.until(lambda: "Follower, maintenance" in needle.run("status"))
        needle.run("step-down", "--to", node, "--timeout", "2", expect=1)
    finally:
        needle.run("maintenance", "exit", node)
    # A step-down that was tried again until its timeout may still be under way, and succeed now.
    needle.until(lambda: needle.conditions() == [])
    assert "maintenance" not in needle.run("status")
    needle.run("maintenance", "enter", "nobody", expect=1)
    assert "node = 'nobody'" in needle.notes


def test_a_dead_node_is_a_critical_condition_until_it_is_back(needle) -> None:
    needle.cluster.kill("node-1")
    needle.until(lambda: needle.leader() is not None)
    needle.run("step-down", "--to", "node-1", expect=1)
    assert "node-1" in needle.notes and "did not answer within" not in needle.notes  # it does not blame the leader
    shown = needle.run("status", expect=1)
    assert "CRITICAL node unreachable: node-1" in shown
    needle.cluster.restart("node-1")
    needle.until(lambda: needle.conditions() == [])


def test_no_majority_is_no_leader_until_nodes_are_back(needle, tmp_path: Path) -> None:
    needle.cluster.kill("node-1")
    needle.cluster.kill("node-2")
    needle.until(lambda: any(condition.startswith("no leader") for condition in needle.conditions()))
    needle.run("leader", expect=1)
    needle.cluster.restart("node-1")
    needle.until(lambda: needle.leader() is not None)
    assert not any(condition.startswith("no leader") for condition in needle.conditions())


def test_a_stalled_follower_lags_until_it_goes_on(needle, tmp_path: Path) -> None:
    followers = [node for node, state in states(needle).items() if state == "Follower"]
    stalled, pid = followers[0], needle.cluster.pids()[followers[0]]
    (tmp_path / "a.jsonl").write_text('{"id": "lag", "vector": [1, 2, 3, 4]}')
    os.kill(pid, signal.SIGSTOP)
    try:
        needle.run("insert", str(tmp_path / "a.jsonl"))
        lagging = f"replication lag > 1 s: {stalled} is"
        needle.until(lambda: any(condition.startswith(lagging) for condition in needle.conditions()))
    finally:
        os.kill(pid, signal.SIGCONT)
    needle.until(lambda: needle.conditions() == [])


def holders(needle) -> list[str]:
    found = [one for one in needle.json("node", "list") if one["shards"] or one["catalog"]]
    assert all(one["shards"] == [0] and one["catalog"] for one in found)
    return [one["id"] for one in found]


def test_a_node_joins_and_leaves(needle, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "joined", "vector": [1, 2, 3, 4]}')
    needle.run("insert", str(tmp_path / "a.jsonl"))
    (port,) = free_ports(1)
    settings = {
        "node_id": "node-4",
        "listen": f"127.0.0.1:{port}",
        "data_dir": str(tmp_path / "node-4"),
        "sharding": {"join": list(needle.cluster.addresses.values())},
    }
    fourth = NodeProcess("node-4", tmp_path, settings, as_user=True)
    fourth.start()
    try:
        needle.run("node", "add", "node-4", "--everywhere", "--timeout", "60")
        assert holders(needle) == ["node-1", "node-2", "node-3", "node-4"]
        needle.until(lambda: "node-4" in states(needle))
        documents = {node["node"]: node["status"]["documents"] for node in needle.status()["replicas"]}
        assert documents["node-4"] == documents["node-1"] > 0
        needle.run("node", "add", "node-4", "--everywhere")
        needle.run("node", "remove", "node-3", "--dry-run")  # the three others hold all
        needle.run("node", "remove", "node-4", "--fewer-replicas")
        needle.run("node", "remove", "node-3", expect=1)  # nobody else can take what it holds
        assert "--fewer-replicas does without" in needle.notes
    finally:
        fourth.signal(signal.SIGKILL)
        fourth.wait()
    assert holders(needle) == ["node-1", "node-2", "node-3"]
    needle.until(lambda: needle.conditions() == [])

    async def digests() -> list[str]:  # the nodes still know the address of the one that left
        async with connect(list(needle.cluster.addresses.values())) as client:
            return sorted(await client.digests())

    assert asyncio.run(digests()) == ["node-1", "node-2", "node-3"]
    needle.run("node", "remove", "nobody", expect=1)
    assert "nobody is no node of this cluster" in needle.notes


def test_a_node_that_is_not_there_holds_nothing(needle) -> None:
    needle.run("node", "add", "node-9", "--everywhere", "--timeout", "1", expect=1)
    assert "nothing was changed" in needle.notes
    assert holders(needle) == ["node-1", "node-2", "node-3"]
    needle.run("leader", "--shard", "1", expect=1)
    assert "shard = 1 is not allowed" in needle.notes


def test_an_unknown_cluster_id_is_refused(needle, monkeypatch) -> None:
    monkeypatch.setenv("NEEDLE_CLUSTER_ID", "another")
    needle.run("get", "x", expect=1)
    assert "[wrong_cluster]" in needle.notes


@pytest.mark.parametrize("deleted", ["shards", "shards/0/state-*/segments", "snapshots"])
def test_what_may_be_deleted_comes_back(needle, tmp_path: Path, deleted: str) -> None:
    """docs/data-on-disk.md, "What may be deleted"."""
    np.save(tmp_path / "v.npy", np.random.default_rng(3).normal(size=(200, 4)))
    needle.run("insert", str(tmp_path / "v.npy"), "--id-prefix", "kept-", "--batch", "40")
    needle.until(lambda: is_healthy(needle) and all(names(needle, node) for node in needle.cluster.addresses))
    before = {node["node"]: node["status"]["documents"] for node in needle.status()["replicas"]}
    needle.cluster.kill("node-2")
    for path in needle.cluster.nodes["node-2"].data_dir.glob(deleted):
        shutil.rmtree(path)
    needle.cluster.restart("node-2")
    needle.until(lambda: is_healthy(needle))
    assert {node["node"]: node["status"]["documents"] for node in needle.status()["replicas"]} == before
    needle.until(lambda: names(needle, "node-2") != ())
    needle.until(lambda: len({names(needle, node) for node in needle.cluster.addresses}) == 1)


def is_healthy(needle) -> bool:
    return (
        not needle.conditions()
        and len({one["status"]["last_applied"] for one in needle.status()["replicas"] if one["status"]}) == 1
    )


def names(needle, node: str) -> tuple[str, ...]:
    """Names of a node's published index files."""
    return tuple(path.name for path in needle.cluster.nodes[node].index_files())
