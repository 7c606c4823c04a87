"""Nodes that cannot start, or must stop: one clear line, an exit code, and nothing changed.

Exit codes: 1 when a node cannot start, 2 when its disk or state failed while it ran.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

import needle
from harness.calm import CALM
from needle.base.errors import NeedleError, NoQuorum, ProtocolError, WrongCluster
from needle.local.free_ports import free_ports
from needle.local.node_process import NodeProcess
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8


async def refused(node: NodeProcess) -> str:
    """The last line of a node that must not start."""
    node.start()
    await wait_for(lambda: not node.running(), 60, "the node giving up")
    assert node.wait() == 1
    assert "Traceback" not in node.output(), node.output()
    return node.output().strip().splitlines()[-1]


def node(directory: Path, **settings: Any) -> NodeProcess:
    ports = free_ports(2)
    values = {
        "node_id": "node-1",
        "cluster_nodes": [f"node-1=127.0.0.1:{ports[0]}"],
        "http_address": f"127.0.0.1:{ports[1]}",
        "data_dir": str(directory / "data"),
        "dimensions": 8,
    }
    return NodeProcess("node-1", directory, {**values, **settings})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"elction_timeout": 1}, "elction_timeout"),
        ({"segments": {"seal": 1}}, "segments"),
        ({"election_timeout": 0.01}, "election_timeout"),
        ({"heartbeat_interval": "often"}, "heartbeat_interval"),
        ({"cluster_nodes": ["node-1=127.0.0.1:99999"]}, "cluster_nodes"),
        ({"node_id": "node-9"}, "node_id"),
        ({"metric": "hamming"}, "metric"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
async def test_a_setting_that_is_not_allowed_is_named(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    line = await refused(node(tmp_path, **settings))
    assert says in line
    assert "[invalid_config]" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("setting", ["listen", "http_address"])
async def test_a_port_in_use_is_named(setting: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = await refused(node(tmp_path, **{setting: address}))
    assert address in line
    assert "in use" in line
    free = node(tmp_path)  # what the failed start left behind is a directory that works
    free.start()
    await wait_for(lambda: "listens on" in free.output(), 60, "the node listening")
    free.signal(9)
    free.wait()


async def test_a_data_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for data_dir in (str(tmp_path / "file"), str(tmp_path / "file" / "below"), "/proc/needle", "/dev/null"):
        line = await refused(node(tmp_path, data_dir=data_dir))
        assert data_dir in line
        assert "cannot start" in line
    assert (tmp_path / "file").read_text() == "mine"


async def test_parts_of_a_data_directory_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for part in ("log", "shards", "snapshots", "node.json", "addresses.json"):
        directory = tmp_path / part
        (directory / "data").mkdir(parents=True)
        if part.endswith(".json"):
            (directory / "data" / part).mkdir()
        else:
            (directory / "data" / part).write_text("in the way")
        line = await refused(node(directory))
        assert "cannot start" in line
        assert "[internal]" not in line
        assert part in line


async def test_nodes_of_another_cluster_are_refused_by_name_and_disturb_nobody(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, **CALM) as cluster:
        async with cluster.connect() as client:
            await client.insert("a", VECTOR)
            before = await client.status()
            ports = free_ports(1)
            stranger = node(
                tmp_path,
                node_id="stranger",
                cluster_id="other",
                cluster_nodes=[
                    f"stranger=127.0.0.1:{ports[0]}",
                    *(f"{name}={n.address}" for name, n in cluster.nodes.items()),
                ],
            )
            stranger.start()
            try:
                await wait_for(lambda: "other" in stranger.output() and "needle" in stranger.output(), 60, "a refusal")
                await client.insert("b", VECTOR)
                assert (await client.status()).current_term == before.current_term
                assert sorted((await client.status()).voters) == sorted(cluster.nodes)
            finally:
                stranger.signal(9)
                stranger.wait()
        with pytest.raises(WrongCluster, match="other"):
            async with cluster.connect(cluster_id="other"):
                pass


async def test_the_wrong_port_gives_a_named_error_in_time(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        http = cluster.nodes["node-1"].http  # speaks another protocol
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()  # accepts, and says nothing
            silent = f"127.0.0.1:{mute.getsockname()[1]}"
            nobody = f"127.0.0.1:{free_ports(1)[0]}"
            loop = asyncio.get_running_loop()
            for address, kind, says in (
                (http, ProtocolError, "speaks HTTP"),
                (silent, NoQuorum, silent),
                (nobody, NoQuorum, nobody),
            ):
                start = loop.time()
                with pytest.raises(kind, match=says):
                    async with needle.connect([address]) as lost:
                        await lost.insert("b", VECTOR, timeout=1.5)
                assert loop.time() - start < 7
        assert await client.count() == 1


@pytest.mark.parametrize("limit", [1 << 16, 64])
async def test_a_node_whose_log_cannot_be_written_stops_with_2_and_the_others_go_on(limit: int, tmp_path: Path) -> None:
    """limit: bytes of a file that can still be written; with 64 not even its last words can."""
    async with ProcessCluster(tmp_path) as cluster, cluster.connect() as client:
        acknowledged = [f"d{n}" for n in range(20)]
        for id in acknowledged:
            await client.insert(id, VECTOR, {"text": "x" * 8000})
        leader = await cluster.leader()
        failing = cluster.nodes[leader]
        assert failing.process is not None
        # From now on every write of that process behind the first bytes of a file fails, as on a broken disk.
        limits = resource.prlimit(failing.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(failing.process.pid, resource.RLIMIT_FSIZE, (limit, limits[1]))
        for n in range(20):
            try:
                await client.insert_if_absent(f"e{n}", VECTOR, timeout=5.0)
            except NeedleError:
                continue
            acknowledged.append(f"e{n}")
        await wait_for(lambda: not failing.running(), 60, "the node stopping by itself")
        assert failing.wait() == 2
        if limit > 64:
            last = failing.output().strip().splitlines()[-3:]  # a thread may still say what it could not commit
            assert any(line.startswith("needle: ") and "[disk_failed]" in line for line in last)
        assert len(acknowledged) > 30, "the others did not go on"
        cluster.restart(leader)
        await cluster.ready()
        await cluster.equal_digests()
        found = {document.id for document in await client.get(acknowledged, with_vectors=False)}
        assert found == set(acknowledged)


async def test_a_directory_that_this_user_may_not_write_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if os.geteuid() == 0:
        # Root may write anywhere; a file system in memory that is full refuses it all the same.
        data = Path("/proc/1/task")
    else:
        data.chmod(0o500)
    line = await refused(node(tmp_path, data_dir=str(data)))
    assert str(data) in line
    assert "cannot start" in line
