"""A node that is told to stop ends, also where something it waits for never does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from needle.local.free_ports import free_ports

# What closes the node waits for a thread that waits for ever, on the event loop, as for a disk that does not answer.
STUCK = """
import sys, threading
from needle.base.config import RaftConfig
from needle.server.node import Node
from needle.server.process import main

async def stop(self, **options):
    threading.Event().wait()

Node.stop = stop
main.STOP_SECONDS = 0.5
main.serve(RaftConfig(node_id="a", cluster_nodes=["a=" + sys.argv[1]], data_dir=sys.argv[2], dimensions=2))
"""


def test_a_node_whose_disk_never_answers_ends_by_force(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STUCK, f"127.0.0.1:{free_ports(1)[0]}", str(tmp_path / "a")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as node:
        try:
            assert node.stderr is not None
            assert any("listens on" in line for line in iter(node.stderr.readline, ""))
            node.send_signal(signal.SIGTERM)
            _, said = node.communicate(timeout=60)
        finally:
            node.kill()
    assert node.returncode == 2
    assert "node a has not stopped within 0.5 s" in said
