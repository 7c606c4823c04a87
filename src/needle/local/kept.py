"""Processes that outlive who started them: which of a directory still run, and how to stop them.

A ProcessCluster writes STATE_FILE into its directory. Pids are used again: a process counts only if its command line
says that it was started for that directory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from needle.base.errors import StorageError

CHILD = "needle.local.child"
STATE_FILE = "processes.json"
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.05


def write_state(directory: Path, pids: Mapping[str, int], addresses: Mapping[str, str]) -> None:
    """pids and addresses: by node."""
    state = {"pids": dict(pids), "addresses": dict(addresses)}
    (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def kept_pids(directory: Path) -> dict[str, int]:
    """Nodes that were started for `directory` and still run, by name."""
    path = directory / STATE_FILE
    if not path.exists():
        return {}
    try:
        pids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["pids"]
    except (ValueError, KeyError) as error:
        raise StorageError(f"{path} is not what `needle demo --keep` writes: {error!r}") from None
    return {node: pid for node, pid in pids.items() if _is_node_of(pid, directory)}


def _is_node_of(pid: int, directory: Path) -> bool:
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            arguments = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
    else:  # macOS
        ps = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
        arguments = ps.stdout.split()
    return CHILD in arguments and any(part.startswith(f"{directory}/") for part in arguments)


def stop_kept(directory: Path) -> list[str]:
    """Stop the nodes that run in `directory`: SIGTERM, then SIGKILL after STOP_SECONDS; returns their names."""
    running = kept_pids(directory)
    for pid in running.values():
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while (left := kept_pids(directory)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    return list(running)
