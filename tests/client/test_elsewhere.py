"""A client where nodes do not run: without the server's libraries, and without what only Unix has."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.calm import CALM
from needle.local.process_cluster import ProcessCluster

# As on Windows, as far as that can be had on Linux: what is not there is taken away before ours is loaded.
PROGRAM = """
import os, signal, socket, sys, time
import asyncio, concurrent.futures, logging, ssl, subprocess, tempfile, numpy  # not ours: they use what is there
for name in (
    *("apsw", "faiss", "httptools", "immutables", "prometheus_client", "pyroaring", "rich", "starlette", "typer"),
    *("uvicorn", "uvloop", "fcntl", "grp", "pwd", "resource", "termios", "sqlite3"),
):
    sys.modules[name] = None  # importing it raises ImportError
for module, names in (
    (os, "fork register_at_fork getuid geteuid getppid fdatasync pread pwrite posix_fadvise O_NOFOLLOW uname"),
    (signal, "SIGKILL SIGHUP SIGUSR1"),
    (socket, "SO_REUSEPORT"),
    (time, "clock_gettime CLOCK_MONOTONIC CLOCK_BOOTTIME"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
import needle
address = sys.argv[1]
with needle.connect_sync([address]) as client:
    client.create_collection("docs", dimensions=2)
    client.insert("a", [1.0, 0.0], {"n": 1}, collection="docs")
    client.insert_batch(ids=["b", "c"], vectors=[[0.0, 1.0], [1.0, 1.0]], collection="docs")
    assert [hit.id for hit in client.search([1.0, 0.0], 2, collection="docs")] == ["a", "c"]
    assert [document.id for document in client.scan(collection="docs")] == ["a", "b", "c"]

async def main():
    async with needle.connect([address]) as client:
        assert await client.count({"n": 1}, collection="docs") == 1
        await client.delete("a", collection="docs")

asyncio.run(main())
try:
    needle.RaftCluster
except ModuleNotFoundError as error:
    assert "pip install 'needle-vdb[server]'" in str(error), error
else:
    raise AssertionError("a cluster in this process needs the server")
"""


async def test_a_client_works_without_the_server_and_without_unix(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, 1, **CALM) as cluster:
        (address,) = cluster.addresses.values()
        program = [sys.executable, "-c", PROGRAM, address]
        done = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("typer", []),
        ("typer", ["serve", "--help"]),
        ("uvloop", ["serve"]),
        ("uvloop", ["serve", "--config", "a.toml"]),
    ],
)
def test_the_command_says_what_it_needs(missing: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('node_id = "a"\ndata_dir = "data"\ncluster_nodes = ["a=127.0.0.1:5999"]\n')
    program = f"import sys; sys.modules[{missing!r}] = None; from needle.cli import main; main()"
    settings = {"NEEDLE_CONFIG": "a.toml"} if words == ["serve"] else {}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))} | settings,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr == f"the needle command needs the server ({missing} is missing): pip install 'needle-vdb[server]'\n"
    )
