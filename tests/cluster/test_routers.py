"""A custom strategy by a callable of the user's, in every process that routes: nodes, clients and the command line."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.processes import ShardedProcesses, healthy
from needle.base.errors import ConfigError, InvalidArgument
from needle.connecting import system_caller
from needle.local.free_ports import free_ports
from needle.local.process_cluster import wait_for
from needle.routing.loading import load_routers
from needle.routing.strategy import ShardStrategy, register, router_names, routing_key
from needle.routing.topology import ClusterSettings
from needle.server.catalog.founding import create_cluster

SOURCE = '''
from needle.routing.strategy import register

def by_prefix(id, metadata):
    """All documents of one namespace, "namespace/rest", live together."""
    return id.split("/")[0]

def by_owner(id, metadata):
    return metadata["owner"]

register("owners", by_owner)
'''
ROUTER = "prefix_routing:by_prefix"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the user's module, where this process and those it starts find it."""
    where = tmp_path / "modules"
    where.mkdir()
    (where / "prefix_routing.py").write_text(SOURCE)
    monkeypatch.setenv("PYTHONPATH", str(where))
    monkeypatch.syspath_prepend(where)
    return where


async def test_nodes_and_clients_route_by_a_callable_and_nodes_without_it_are_refused(
    tmp_path: Path, modules: Path
) -> None:
    load_routers([ROUTER], "routers")
    strategy = ShardStrategy("custom", (), ROUTER)
    async with ShardedProcesses(tmp_path, nodes=3) as processes:
        told = await wait_for(lambda: _refused(processes, strategy), 60, "the refusal")
        assert told.startswith(f"node-1, node-2, node-3 do not know the router {ROUTER!r}: start every node with")
        for name, node in processes.nodes.items():
            processes.kill(name)
            node.settings["sharding"] = {"router_modules": [ROUTER, "prefix_routing"]}
            node.start()
        await processes.create(4, 1, strategy)
        async with processes.connect() as client:
            await healthy(client)
            await client.create_collection("default", dimensions=4)
            ids = [f"space-{n % 12}/doc-{n}" for n in range(240)]
            rows = np.random.default_rng(1).normal(size=(240, 4)).astype("f4")
            await client.insert_batch(ids=ids, vectors=rows)
            router = client.documents  # type: ignore[attr-defined]
            wanted: dict[int, int] = {}
            for name in ids:
                shard = router.shard_of(name)
                assert shard == router.shard_of(name.split("/")[0])
                wanted[shard] = wanted.get(shard, 0) + 1
            assert {shard: count for shard, count in (await client.counts()).items() if count} == wanted
            assert len(wanted) > 1
            assert (await client.search(rows[7], 1, exact=True))[0].id == ids[7]
            assert (await client.delete(ids[:2])).count == 2

            # one that comes without it says what is missing, and does not serve
            late = processes.add(sharding={"join": [processes.nodes["node-1"].address]})
            processes.nodes[late].start()
            assert await asyncio.to_thread(processes.nodes[late].wait, 60) == 2
            assert "which node node-4 does not know: start it with --routers" in processes.nodes[late].output()
            processes.kill("node-2")
            del processes.nodes["node-2"].settings["sharding"]["router_modules"]
            processes.restart("node-2")
            assert await asyncio.to_thread(processes.nodes["node-2"].wait, 60) == 1
            assert "node node-2 cannot start: " in processes.nodes["node-2"].output()


async def _refused(processes: ShardedProcesses, strategy: ShardStrategy) -> str:
    """Why the cluster is not created; other errors mean that the nodes do not answer yet."""
    caller = system_caller("needle")
    settings = ClusterSettings(shard_count=4, replication_factor=1, strategy=strategy)
    try:
        await create_cluster(caller, settings, processes.addresses, rng=random.Random(1), timeout=10)
    except InvalidArgument as error:
        return error.message
    finally:
        await caller.close()
    raise AssertionError("created")


async def test_the_commands_take_routers(tmp_path: Path, modules: Path) -> None:
    ports = free_ports(1)
    address = f"127.0.0.1:{ports[0]}"
    environment = {**os.environ, "NEEDLE_CLUSTER": address}
    needle = [sys.executable, "-m", "needle"]

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*needle, *arguments], env={**environment, **more}, capture_output=True, text=True, timeout=60, check=False
        )

    serving = ["serve", "--node-id", "node-1", "--listen", address, "--data-dir", str(tmp_path / "data")]
    refused = run(*serving, "--routers", "no_such_module:x")
    assert refused.returncode != 0
    assert "sharding.router_modules = 'no_such_module:x'" in refused.stderr
    with (tmp_path / "node.log").open("wb") as log:
        command = [*needle, *serving, "--routers", ROUTER]
        node = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:

        async def made() -> bool:
            create = ("cluster", "create", "--shards", "2", "--replicas", "1", "--dimensions", "2")
            done = await asyncio.to_thread(run, *create, "--strategy", f"router:{ROUTER}", f"node-1={address}")
            return done.returncode == 0

        await wait_for(made, 60, "the cluster's creation")
        np.save(tmp_path / "v.npy", np.ones((3, 2)))
        unknown = run("insert", str(tmp_path / "v.npy"))
        assert unknown.returncode != 0
        assert "a router registered in this process" in unknown.stderr
        known = run("insert", str(tmp_path / "v.npy"), NEEDLE_ROUTERS=ROUTER)
        assert known.returncode == 0, known.stderr
    finally:
        node.kill()
        await node.wait()


def test_what_is_no_router_is_refused(modules: Path) -> None:
    for name in ("no_such_module", "prefix_routing:nothing", "prefix_routing:", ":by_prefix"):
        with pytest.raises(ConfigError, match="routers = "):
            load_routers([name], "routers")
    load_routers(["prefix_routing"], "routers")
    assert "owners" in router_names()
    owners = ShardStrategy("custom", (), "owners")
    assert routing_key(owners, 4, "a", {"owner": "x"}) == routing_key(owners, 4, "b", {"owner": "x"})
    with pytest.raises(InvalidArgument, match=r"router 'owners' fails on document 'a'.*owner"):
        routing_key(owners, 4, "a", {})
    with pytest.raises(InvalidArgument, match="must give a string"):
        routing_key(owners, 4, "a", {"owner": 7})
    with pytest.raises(InvalidArgument, match="no other router"):
        register("owners", lambda id, metadata: id)
