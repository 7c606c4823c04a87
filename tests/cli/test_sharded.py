"""A cluster of several shards through the commands: nodes without lists of nodes, created, shown, used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.calm import CALM
from harness.commands import Run, until
from needle.cli.app import main
from needle.local.process_cluster import ProcessCluster


def test_a_sharded_cluster_through_the_commands(tmp_path: Path, run: Run) -> None:
    settings = {**CALM, "sharding": {"zone": "a"}}
    cluster = ProcessCluster(tmp_path, as_user=True, **settings)
    try:
        cluster.start_nodes()
        nodes = [f"{name}={address}" for name, address in cluster.addresses.items()]
        at = ("--cluster", cluster.cluster)
        first = ("--dimensions", "3", "--index", "flat")
        create = ("cluster", "create", "--shards", "2", "--replicas", "3", *first, *nodes)
        until(lambda: "`needle cluster create`" in run("node", "list", *at, expect=None))
        until(lambda: "2 shards on 3 nodes" in run(*create, expect=None))
        assert f"; export NEEDLE_CLUSTER={cluster.cluster}\n" in run(*create)  # may be repeated
        assert "flat" in run("collections", "describe", "default", *at)
        fewer = run("cluster", "create", "--replicas", "3", *nodes[:2], expect=1)
        assert "replication_factor = 3 is not allowed" in fewer or "other settings" in fewer
        other = run("cluster", "create", "--shards", "3", *nodes, expect=1)
        assert "other settings: 2 shards, 3 replicas, strategy consistent_hash, 100 virtual nodes" in other

        def healthy() -> Any:
            found = json.loads(run("status", "--json", *at, expect=None))  # 1 while there is an election
            return found["healthy"] and found

        status: dict[str, Any] = until(healthy)
        assert sorted(status["shards"]) == ["0", "1"]
        assert len(status["replicas"]) == 6
        lines = "\n".join(
            json.dumps({"id": f"doc-{n}", "vector": [1, n, 2 * n], "metadata": {"n": n}}) for n in range(20)
        )
        (tmp_path / "documents.jsonl").write_text(lines)
        run("insert", str(tmp_path / "documents.jsonl"), *at)

        def led() -> Any:
            text = run("status", *at, expect=None)
            return (text.count("Leader"), text.count("Follower")) == (3, 6) and text

        assert "balance: of a fair share" in until(led)
        found = json.loads(run("get", "doc-3", "--json", *at))
        assert "doc-3" in json.dumps(found)
        run("step-down", "--shard", "1", *at)
        for command in ("leader", "step-down", "force-election"):  # which of the two shards?
            assert "This cluster has 2: name one, from 0 to 1" in run(command, *at, expect=1)
            for shard in ("2", "99", "-1"):
                refused = run(command, "--shard", shard, *at, expect=1)
                assert f"shard = {shard}" in refused and ("from 0 to 1" in refused or "at least 0" in refused)
        replicas = json.loads(run("status", "--json", *at, expect=None))["replicas"]
        assert {replica["shard"] for replica in replicas} == {0, 1}
        until(lambda: run("leader", "--shard", "1", *at, expect=None).strip() in cluster.addresses)
        run("force-election", "--shard", "1", *at)
        led_by = until(lambda: run("leader", "--shard", "catalog", *at, expect=None).strip())
        other = next(name for name in cluster.addresses if name != led_by)
        run("step-down", "--shard", "catalog", "--to", other, *at)
        until(lambda: run("leader", "--shard", "catalog", *at, expect=None).strip() == other)
        run("force-election", led_by, "--shard", "catalog", *at)
        assert "the number of a shard, or catalog" in run("leader", "--shard", "catalogue", *at, expect=1)
        catalog = json.loads(run("status", "--json", *at, expect=None))["catalog"]
        assert sorted(one["node"] for one in catalog["replicas"]) == sorted(cluster.addresses)
        assert "shard = 2 is not allowed" in run("force-election", "node-1", "--shard", "2", *at, expect=1)
        listed = json.loads(run("node", "list", "--json", *at))
        assert [(node["id"], node["shards"], node["catalog"]) for node in listed] == [
            (name, [0, 1], True) for name in sorted(cluster.addresses)
        ]
        cluster.kill("node-3")
        assert "unreachable" in run("status", *at, expect=1)
        assert "unreachable" in run("node", "list", *at)
        cluster.restart("node-3")
        until(healthy)
    finally:
        cluster.stop()


@pytest.mark.campaign
def test_the_demos_cluster_grows_while_it_is_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "demo"
    argv = ["demo", "--shards", "2", "--nodes", "4", "--limit", "400", "--json", "--dir", str(place)]
    code = main(argv)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    outcome = json.loads(captured.out)
    growth = outcome["growth"]
    assert outcome["nodes"] == 3 and outcome["proof"]["missing"] == 0
    assert (growth["shards"], growth["nodes"], growth["unknown"]) == (2, 4, 0)
    assert growth["acknowledged"] > 0 and growth["moved_bytes"] > 0
    assert sum(growth["documents"].values()) == outcome["passages"] == 400 and min(growth["documents"].values()) > 50
    assert not place.exists()
    assert main(["demo", "--nodes", "8"]) == 1
    assert "--shards" in capsys.readouterr().err
