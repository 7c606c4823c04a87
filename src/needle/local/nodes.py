"""Node processes of a local cluster: starts, kills and stops them, and leaves none behind.

Invariant: a process in `_processes` was started here and not yet reaped. Unless the cluster is detached, its
processes die with this one, however it ends. Knows nothing of Raft or of what the nodes store.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from needle.base.errors import StorageError, Unavailable

STOP_TIMEOUT = 10.0
STATE_FILE = "demo.json"


class LocalCluster:
    """`count` nodes on 127.0.0.1, each with its own data directory and log file below `directory`.

    settings: passed to every node as its TOML file's other keys (numbers, strings and tables of them).
    detached: the nodes outlive this process.
    """

    def __init__(self, directory: Path, ports: Sequence[int], settings: dict[str, Any], *, detached: bool) -> None:
        self.directory = directory
        self.detached = detached
        self.addresses = {f"node-{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports, start=1)}
        self._settings = settings
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kept: dict[str, int] = {}

    @property
    def cluster(self) -> str:
        """What --cluster takes."""
        return ",".join(self.addresses.values())

    def pids(self) -> dict[str, int]:
        return {node: process.pid for node, process in self._processes.items()}

    def data_directory(self, node: str) -> Path:
        return self.directory / node

    def log_file(self, node: str) -> Path:
        return self.directory / f"{node}.log"

    def index_files(self, node: str) -> list[Path]:
        """The published index files of a node, complete ones only (docs/segments.md); by name."""
        return sorted(self.data_directory(node).glob("shards/*/state-*/segments/*.seg"), key=lambda path: path.name)

    def start_all(self) -> None:
        for node in self.addresses:
            self.start(node)

    def start(self, node: str) -> None:
        """Start a node on what its data directory holds. Call from the main thread: the kernel watches the thread."""
        config = self.directory / f"{node}.toml"
        config.write_text(self._toml(node), encoding="utf-8")
        parent = 0 if self.detached else os.getpid()
        command = [sys.executable, "-m", "needle.cli.demo.child", str(parent), "serve", "--config", str(config)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NEEDLE_")}
        with self.log_file(node).open("ab") as log:
            self._processes[node] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the nodes in order
            )
        self._write_state()  # from now on `stop_kept` finds it, even if this process is killed

    def _toml(self, node: str) -> str:
        alone = "sharding" in self._settings  # such nodes learn of each other when the cluster is created
        nodes = [f"{name}={at}" for name, at in self.addresses.items() if name == node or not alone]
        values = {
            "node_id": node,
            "cluster_nodes": nodes,
            "data_dir": str(self.data_directory(node)),
            **self._settings,
        }
        lines = [f"{key} = {_literal(value)}" for key, value in values.items() if not isinstance(value, dict)]
        for table, inner in values.items():
            if isinstance(inner, dict):
                lines += [f"\n[{table}]"] + [f"{key} = {_literal(value)}" for key, value in inner.items()]
        return "\n".join(lines) + "\n"

    def check_alive(self) -> None:
        """Raises Unavailable, with the end of its log, for a node that ended although nobody stopped it."""
        for node, process in self._processes.items():
            code = process.poll()
            if code is not None:
                log = f"the end of {self.log_file(node)}:\n{self.tail(node)}"
                raise Unavailable(f"{node} ended by itself with exit code {code}; {log}")

    def tail(self, node: str, lines: int = 15) -> str:
        """The last lines a node wrote."""
        path = self.log_file(node)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def kill(self, node: str) -> None:
        """kill -9, and wait until the process is gone."""
        process = self._processes.pop(node)
        process.kill()
        process.wait()

    def stop_all(self) -> None:
        """End every node: SIGTERM, then SIGKILL for what is still there after STOP_TIMEOUT seconds."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for node in list(self._processes):
            process = self._processes[node]
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            del self._processes[node]

    def release(self) -> None:
        """Leave the nodes running; `kept` then holds their pids, and `stop_kept` can stop them."""
        self._write_state()
        self.kept = self.pids()
        for process in self._processes.values():
            process.returncode = 0  # not ours to wait for any more
        self._processes.clear()

    def _write_state(self) -> None:
        state = {"pids": self.pids(), "addresses": self.addresses}
        (self.directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _literal(value: object) -> str:
    """A TOML literal; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def kept_pids(directory: Path) -> dict[str, int]:
    """Nodes that an earlier demo left running in `directory` and that still run, by name."""
    path = directory / STATE_FILE
    if not path.exists():
        return {}
    try:
        pids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["pids"]
    except (ValueError, KeyError) as error:
        raise StorageError(f"{path} is not what `needle demo --keep` writes: {error!r}") from None
    return {node: pid for node, pid in pids.items() if _is_node_of(pid, directory)}


def _is_node_of(pid: int, directory: Path) -> bool:
    """Whether process `pid` is a node started for `directory`: pids are used again, so its command line must say so."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            arguments = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
    else:  # macOS
        ps = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
        arguments = ps.stdout.split()
    return "needle.cli.demo.child" in arguments and any(part.startswith(f"{directory}/") for part in arguments)


def stop_kept(directory: Path) -> list[str]:
    """Stop the nodes that `needle demo --keep` left in `directory`; returns their names."""
    running = kept_pids(directory)
    for pid in running.values():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while (left := kept_pids(directory)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    return list(running)
