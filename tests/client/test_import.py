"""What a client loads: nothing of the server, and no library that only a server needs."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in (
    *("apsw", "faiss", "httptools", "immutables", "prometheus_client"),
    *("pyroaring", "sqlite3", "typer", "uvloop", "wordllama"),
):
    sys.modules[name] = None  # importing it raises ImportError
import needle
assert not [name for name in sys.modules if name.startswith("needle.")]
assert needle.connect and needle.connect_sync and needle.Client and needle.SyncClient
loaded = [name for name in sys.modules if name.startswith("needle.")]
of_a_node = {"catalog", "distributed", "multiraft", "raft", "server", "shard"}
servers = [name for name in loaded if name.split(".")[1] in of_a_node]
assert not servers, servers
"""


def test_a_client_needs_nothing_of_the_server() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
