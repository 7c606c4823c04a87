"""Pure and process-free parts of the demo's supervisor; with processes it is tested in test_demo.py."""

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from needle.base.config import RaftConfig
from needle.base.errors import StorageError, Unavailable
from needle.local.free_ports import free_ports
from needle.local.kept import CHILD, STATE_FILE, kept_pids, stop_kept
from needle.local.process_cluster import ProcessCluster


def test_preferred_ports_only_when_all_are_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = free_ports(3, [port, port + 1, port + 2])
        assert len(set(ports)) == 3 and port not in ports
    free = free_ports(2)
    assert free_ports(2, free) == free


def test_every_node_gets_a_configuration_that_loads(tmp_path: Path) -> None:
    cluster = ProcessCluster(tmp_path, 2, ports=[7001, 7002], as_user=True, segments={"seal_rows": 5})
    assert cluster.cluster == "127.0.0.1:7001,127.0.0.1:7002"
    node = cluster.nodes["node-2"]
    config = RaftConfig.from_mapping(tomllib.loads(node.configuration()))
    assert config.node_id == "node-2" and config.address == "127.0.0.1:7002"
    assert config.dimensions == 8 and config.segments.seal_rows == 5
    assert config.data_dir == str(tmp_path / "node-2")


def test_a_node_that_ends_by_itself_is_reported_with_its_log(tmp_path: Path) -> None:
    cluster = ProcessCluster(tmp_path, 1, as_user=True, metric="nonsense")
    cluster.start_nodes()
    cluster.nodes["node-1"].wait(30)
    with pytest.raises(Unavailable, match=r"node-1 ended by itself with exit code 1(.|\n)*metric = 'nonsense'"):
        cluster.check_alive()
    cluster.stop()
    assert cluster.pids() == {}


def test_a_reused_pid_is_not_ours_to_stop(tmp_path: Path) -> None:
    assert kept_pids(tmp_path) == {} and stop_kept(tmp_path) == []
    (tmp_path / STATE_FILE).write_text(f'{{"pids": {{"node-1": {os.getpid()}}}}}')
    assert kept_pids(tmp_path) == {} and stop_kept(tmp_path) == []
    (tmp_path / STATE_FILE).write_text("{}")
    with pytest.raises(StorageError, match="is not what"):
        kept_pids(tmp_path)


def test_a_kept_process_is_stopped(tmp_path: Path) -> None:
    program = "import time; print('up', flush=True); time.sleep(60)"
    argv = [sys.executable, "-c", program, CHILD, f"{tmp_path}/node-1.toml"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        (tmp_path / STATE_FILE).write_text(f'{{"pids": {{"node-1": {process.pid}}}}}')
        assert kept_pids(tmp_path) == {"node-1": process.pid}
        assert stop_kept(tmp_path) == ["node-1"]
        assert process.wait(10) != 0
