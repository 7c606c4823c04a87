"""Files of a running node that nobody may write any more: an error that is reported, never a signal that ends it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from needle.base.errors import NeedleError
from needle.local.process_cluster import ProcessCluster, wait_for

VECTOR = [1.0] * 8


def shared_mappings(pid: int) -> list[str]:
    """Lines of the writable mappings of files."""
    maps = Path(f"/proc/{pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not tell a process's mappings")
    return [line for line in maps.read_text().splitlines() if line.split()[1] == "rw-s"]


def make_immutable(directory: Path, how: str) -> bool:
    """Whether it could be done: it needs root, and a file system that has the attribute."""
    chattr = shutil.which("chattr")
    if chattr is None:
        return False
    return not subprocess.run([chattr, "-R", how, directory], check=False, capture_output=True).returncode


async def test_no_file_is_written_through_a_mapping(tmp_path: Path) -> None:
    """A store to a page without a block is a SIGBUS: disk full, file made immutable, file cut short."""
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        await client.get("a")
        process = cluster.nodes["node-1"].process
        shared = shared_mappings(process.pid if process else 0)
        assert not [line for line in shared if str(tmp_path) in line]


async def test_a_node_whose_files_became_immutable_says_so(tmp_path: Path) -> None:
    async with ProcessCluster(tmp_path, nodes=1) as cluster, cluster.connect() as client:
        await client.insert("a", VECTOR)
        node = cluster.nodes["node-1"]
        if not make_immutable(node.data_dir, "+i"):
            pytest.skip("files cannot be made immutable here")
        try:
            with pytest.raises(NeedleError):
                await client.insert("b", VECTOR, timeout=2.0)
            await wait_for(lambda: not node.running(), 60, "the node giving up")
        finally:
            make_immutable(node.data_dir, "-i")
        assert node.wait() == 2, node.output()
        assert "[disk_failed]" in node.output()
