"""Three Needle node processes on 127.0.0.1 for a benchmark, stopped and removed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

import needle
from needle.base.errors import Unavailable
from needle.client import Client
from needle.local.free_ports import free_ports
from needle.local.nodes import LocalCluster


class NeedleCluster:
    """Use as a context manager. settings: any node setting, e.g. dimensions, election_timeout."""

    def __init__(self, **settings: object) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="bench-needle-"))
        self._nodes = LocalCluster(self._directory, free_ports(3), settings, detached=False)

    def __enter__(self) -> NeedleCluster:
        self._nodes.start_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._nodes.stop_all()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def client(self) -> Client:
        """A client, once the cluster has a leader."""
        client = await needle.connect(list(self._nodes.addresses.values()))
        while await client.leader() is None:
            self._nodes.check_alive()
            await asyncio.sleep(0.05)
        return client

    def kill(self, node: str) -> None:
        self._nodes.kill(node)

    def restart(self, node: str) -> None:
        self._nodes.start(node)

    async def caught_up(self, client: Client) -> None:
        """Returns when every node answers and has applied the same index."""
        while True:
            with contextlib.suppress(Unavailable):
                applied = [(await client.node_status(node, timeout=1.0)).last_applied for node in self._nodes.addresses]
                if len(set(applied)) == 1:
                    return
            self._nodes.check_alive()
            await asyncio.sleep(0.05)

    async def indexed(self, rows: int, seal_rows: int) -> int:
        """Returns when no replica has `seal_rows` or more of `rows` vectors outside its index and all hold the same
        index files; says how many files that is."""
        while True:
            names = [[path.name for path in self._nodes.index_files(node)] for node in self._nodes.addresses]
            covered = sum(rows_of(name) for name in names[0])
            if covered > rows - seal_rows and all(found == names[0] for found in names):
                return len(names[0])
            self._nodes.check_alive()
            await asyncio.sleep(0.02)

    def memory_mb(self) -> list[float]:
        """Resident memory of each node in MB (10^6 bytes): anonymous pages and the mapped segments it touched."""
        used = []
        for pid in self._nodes.pids().values():
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
            used.append(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6)
        return used


def rows_of(name: str) -> int:
    """How many ordinals an index file covers, by its name `<collection>-<first>-<last>-<checksum>.seg`."""
    _, first, last, _ = name.split("-")
    return int(last) - int(first) + 1
