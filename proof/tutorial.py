"""docs/tutorial.md as a script for a shell: its commands as they stand there, only ports are others, and the clone that
it begins in is this one.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from needle.local.free_ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
PLACE = "shop"
"""The directory that it makes."""
PROMETHEUS = "The same in Prometheus"
"""The chapter that installs something of Debian's."""
PORTS = ("7001", "7002", "7003", "7004", "7101", "7102", "7103", "9190")
OURS = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "SHORT")
"""What a make that runs this tells those that the page runs."""


def chapters() -> dict[str, list[str]]:
    """The blocks of each chapter that are for a shell here; the demo has a test of its own."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: re.findall(r"^```sh\n(.*?)^```", body, re.MULTILINE | re.DOTALL) for name, body in found}


def script(names: Collection[str]) -> str:
    """The commands of these chapters, in the page's order."""
    text = "\n".join(block for name, blocks in chapters().items() if name in names for block in blocks)
    for written, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        text = text.replace(f":{written}", f":{port}")
        if written == PORTS[-1]:
            text = text.replace("make -C .. prometheus", f"make -C '{ROOT}' prometheus PROMETHEUS_AT=127.0.0.1:{port}")
    return text.replace('"$PWD/.venv/bin:$PATH"', f'"{Path(sys.executable).parent}:$PATH"')


def run(directory: Path, names: Collection[str], seconds: float) -> Path:
    """Runs these chapters in a directory; the one that they make. Raises AssertionError with what they said if a
    command fails, subprocess.TimeoutExpired after so many seconds; leaves no process behind."""
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment["NEEDLE_DISK_RESERVE_BYTES"] = str(64 << 20)
    shell = subprocess.Popen(
        ["bash", "-eu", "-c", script(names)],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = shell.communicate(timeout=seconds)
    finally:
        # Its nodes, if it did not come to their end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    if shell.returncode != 0:
        raise AssertionError(f"the tutorial ended with {shell.returncode}:\n{told}")
    return directory / PLACE
