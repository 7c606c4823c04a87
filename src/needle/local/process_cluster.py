"""N real node processes in a temporary directory, to be killed, paused and restarted at will.

    async with ProcessCluster(tmp_path, nodes=3) as cluster:
        async with cluster.connect() as client:
            await client.insert("a", [1.0] * 8)
            cluster.kill(await client.leader())

Every wait has a deadline; nothing sleeps for a fixed time. Node names are node-1, node-2, ...
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import needle
from needle.base.errors import NeedleError
from needle.connecting import Connecting
from needle.local.free_ports import free_ports

START_SECONDS = 60.0
LOOK_SECONDS = 0.02


async def wait_for(condition: Callable[[], Any], deadline: float, what: str = "the condition") -> Any:
    """The first truthy value of `condition()` (may be async; a NeedleError counts as not yet) within `deadline` s."""
    end = time.monotonic() + deadline
    last: object = None
    while True:
        try:
            value: Any = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            last = value
        except NeedleError as error:
            last = error
        if time.monotonic() >= end:
            raise TimeoutError(f"{what} did not come about within {deadline:g} s; last: {last!r}")
        await asyncio.sleep(LOOK_SECONDS)


class NodeProcess:
    """One node: its configuration file, its process, its log file."""

    def __init__(self, name: str, directory: Path, settings: dict[str, Any]) -> None:
        self.name = name
        self.directory = directory
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return str(self.settings["listen"])

    @property
    def http(self) -> str:
        return str(self.settings["http_address"])

    @property
    def data_dir(self) -> Path:
        return Path(self.settings["data_dir"])

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def start(self, failpoint: str | None = None) -> None:
        """Start the process; does not wait until it serves."""
        if self.running():
            raise RuntimeError(f"{self.name} runs already")
        path = self.directory / f"{self.name}.json"
        path.write_text(json.dumps(self.settings))
        command = [sys.executable, "-m", "needle.server", str(path)]
        if failpoint is not None:
            command += ["--failpoint", failpoint]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run; see {self.log}")
        self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code, once the process has ended."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.wait(timeout)

    def output(self) -> str:
        """Everything the node wrote to its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class ProcessCluster:
    """`nodes` processes. settings: of RaftConfig, for every node (None: not set). peers_through: addresses under which
    each node (first) reaches the others, {(from, to): address}; for tests with link proxies."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        *,
        peers_through: dict[tuple[str, str], str] | None = None,
        ports: list[int] | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        through = peers_through or {}
        names = [f"node-{n + 1}" for n in range(nodes)]
        ports = ports or free_ports(2 * nodes)
        own = {name: f"127.0.0.1:{ports[n]}" for n, name in enumerate(names)}
        common = {name: value for name, value in {"dimensions": 8, **settings}.items() if value is not None}
        self.nodes: dict[str, NodeProcess] = {}
        for n, name in enumerate(names):
            self.nodes[name] = NodeProcess(
                name,
                directory,
                {
                    "node_id": name,
                    "cluster_nodes": [f"{peer}={through.get((name, peer), own[peer])}" for peer in names],
                    "listen": own[name],
                    "http_address": f"127.0.0.1:{ports[nodes + n]}",
                    "data_dir": str(directory / name),
                    **common,
                },
            )

    # --- life --------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> ProcessCluster:
        try:
            await self.start()
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stop()

    async def start(self) -> None:
        """Start every node and wait until all are ready."""
        for node in self.nodes.values():
            node.start()
        await self.ready()

    async def ready(self, *names: str, deadline: float = START_SECONDS) -> None:
        """Wait until these nodes (default: all) answer /readyz with 200."""
        for name in names or tuple(self.nodes):
            await wait_for(partial(self.is_ready, name), deadline, f"{name} being ready")

    async def is_ready(self, name: str) -> bool:
        node = self.nodes[name]
        if not node.running():
            raise AssertionError(f"{name} does not run:\n{node.output()[-2000:]}")
        return (await self.http(name, "/readyz"))[0] == 200

    def stop(self) -> None:
        """End every process, at once."""
        for node in self.nodes.values():
            if node.running():
                node.signal(signal.SIGCONT)
                node.signal(signal.SIGKILL)
        for node in self.nodes.values():
            if node.process is not None:
                node.process.wait(60)

    # --- faults ------------------------------------------------------------------------------------------------------
    def kill(self, name: str) -> None:
        """kill -9, and wait until the process is gone."""
        self.nodes[name].signal(signal.SIGKILL)
        self.nodes[name].wait()

    def pause(self, name: str) -> None:
        """SIGSTOP: the process keeps its connections and says nothing."""
        self.nodes[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self.nodes[name].signal(signal.SIGCONT)

    def terminate(self, name: str) -> int:
        """SIGTERM; the exit code."""
        self.nodes[name].signal(signal.SIGTERM)
        return self.nodes[name].wait()

    def restart(self, name: str, failpoint: str | None = None) -> None:
        """Start a node that was killed; does not wait."""
        self.nodes[name].start(failpoint)

    # --- asking ------------------------------------------------------------------------------------------------------
    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes.values()]

    def connect(self, *names: str, **options: Any) -> Connecting:
        """A client that is told the addresses of these nodes (default: all)."""
        return needle.connect([self.nodes[name].address for name in names] or self.addresses, **options)

    async def leader(self, deadline: float = 60.0) -> str:
        """The id of the leader, once there is one that is running."""
        async with self.connect() as client:

            async def running_leader() -> str | None:
                found = await client.leader()
                return found if found is not None and self.nodes[found].running() else None

            return str(await wait_for(running_leader, deadline, "a leader"))

    async def equal_digests(self, deadline: float = 60.0) -> str:
        """Wait until all nodes have applied the same index, and return their digest; raises if it differs."""
        async with self.connect() as client:

            async def same_index() -> str | None:
                found = await client.digests()
                if len(found) != len(self.nodes) or len({digest.applied_index for digest in found.values()}) != 1:
                    return None
                digests = {name: digest.digest for name, digest in found.items()}
                if len(set(digests.values())) != 1:
                    raise AssertionError(f"digests differ at one applied index: {digests}")
                return next(iter(digests.values()))

            return str(await wait_for(same_index, deadline, "one applied index on all nodes"))

    async def http(self, name: str, path: str) -> tuple[int, str]:
        """(status, body) of GET; (0, reason) when the node does not answer."""
        host, _, port = self.nodes[name].http.rpartition(":")
        try:
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                answer = await reader.read()
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            return 0, str(error)
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body.decode()
