"""Starts the tests' node processes by a fork of one that has loaded everything (fork_server.py).

Also `needle serve`, which then does what it does when a person starts it. Not those of another release, and those that
outlive who starts them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from needle.local.kept import CHILD
from needle.local.node_process import NodeProcess, Started, start_process

MODULES_STARTED = ("needle.server", "needle")
PYTHON, MODULES = sys.executable, os.environ.get("PYTHONPATH")
"""Tests put others in their place."""


class Fork:
    """One process, with what is used of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._ends = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._after(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        code = self._after(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([f"node {self.pid}"], timeout or 0)
        return code

    def _after(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            waits = select.poll()
            waits.register(self._ends, select.POLLIN)
            if waits.poll(None if timeout is None else timeout * 1000):
                self.returncode = self._server.ask({"ended": self.pid})
                os.close(self._ends)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As os.kill; nothing once it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("fork_server.py")),
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._channel = ours
        self._lock = threading.Lock()

    def ask(self, what: dict[str, Any], *files: int) -> int:
        """Ask, and return the answer."""
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(what).encode()], files)
            answer = self._channel.recv(1 << 16)
        if not answer:
            raise RuntimeError(f"the process that forks nodes has ended: {self._process.wait()}")
        found: int = json.loads(answer)
        return found

    def start(self, arguments: list[str], environment: dict[str, str], log: IO[bytes]) -> Started:
        """A node; see `NodeProcess.start`."""
        python, _, child, parent, module, *_ = arguments
        other = environment.get("PYTHONPATH") != MODULES or "LD_PRELOAD" in environment
        if python != PYTHON or child != CHILD or parent == "0" or module not in MODULES_STARTED or other:
            return start_process(arguments, environment, log)
        asked = {"arguments": arguments[4:], "environment": environment, "cwd": os.getcwd()}
        return Fork(self, self.ask(asked, log.fileno()))


_servers: list[ForkServer] = []


def start_by_fork() -> None:
    """How nodes are started from now on, where the system can tell when a process has ended."""
    if not hasattr(os, "pidfd_open"):
        NodeProcess.launch = staticmethod(start_process)
        return
    if not _servers:
        _servers.append(ForkServer())
    NodeProcess.launch = staticmethod(_servers[0].start)
