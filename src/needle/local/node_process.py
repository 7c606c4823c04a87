"""One node process on this machine: its configuration file, its process, its log file.

Invariant: a process that was started here dies with this one, however it ends, unless it is detached. Knows nothing of
Raft or of what a node stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

from needle.base.errors import Unavailable
from needle.local.kept import CHILD

TICKS = os.sysconf("SC_CLK_TCK")
TAIL_LINES, LAST_WORDS = 15, 400
"""Of a node that had to end by force the last lines are where each of its threads and tasks stood."""
EXIT_FAILED = 2
"""See needle.server.process.main, which takes a second to load."""
END_SECONDS = 90.0
"""A node that cannot stop ends by force after a minute, and says first where it stands: that is waited for."""


class Started(Protocol):
    """A process that was started: what is used of `subprocess.Popen`."""

    returncode: int | None

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Launch(Protocol):
    """Starts a process."""

    def __call__(self, arguments: list[str], environment: dict[str, str], log: IO[bytes], /) -> Started:
        """log: where all that it prints goes."""
        ...


def start_process(arguments: list[str], environment: dict[str, str], log: IO[bytes]) -> Started:
    """See Launch. In a session of its own: Ctrl-C is for this process, which then stops the nodes in order."""
    process: Started = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    return process


class NodeProcess:
    """settings: of RaftConfig and [sharding], read at each start. as_user: run `needle serve` as people do; otherwise
    `python -m needle.server` on one thread a library, which leaves cores to the other nodes. detached: outlives this
    process. launch: how all of them are started."""

    launch: ClassVar[Launch] = staticmethod(start_process)

    def __init__(
        self, name: str, directory: Path, settings: dict[str, Any], *, as_user: bool = False, detached: bool = False
    ) -> None:
        self.name = name
        self.directory = directory
        self.settings = settings
        self.process: Started | None = None
        self.source: Path | None = None
        """Where another release's package `needle` is, to run that one from the next start on."""
        self._as_user, self._detached = as_user, detached
        self._told_to_end = False

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

    def configuration(self) -> str:
        """Its file, as TOML."""
        return "".join(f"{key} = {_literal(value)}\n" for key, value in self.settings.items())

    # --- life --------------------------------------------------------------------------------------------------------
    def start(self, failpoint: str | None = None) -> None:
        """Start the process; does not wait until it serves. Call from the main thread: the kernel watches the thread.
        failpoint: "name:count", where it kills itself; not as_user."""
        if self.running():
            raise RuntimeError(f"{self.name} runs already")
        config = self.directory / f"{self.name}.toml"
        config.write_text(self.configuration(), encoding="utf-8")
        node = ["needle", "serve", "--config"] if self._as_user else ["needle.server"]
        ending = ["--failpoint", failpoint] if failpoint is not None else []
        parent = 0 if self._detached else os.getpid()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NEEDLE_")}
        if self.source is not None:
            environment["PYTHONPATH"] = str(self.source)
        if not self._as_user:
            environment["OMP_NUM_THREADS"] = "1"
        arguments = [sys.executable, "-m", CHILD, str(parent), *node, str(config), *ending]
        with self.log.open("ab") as log:
            self.process = self.launch(arguments, environment, log)
        self._told_to_end = False

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def state(self) -> str:
        """In words, for messages."""
        if self.process is None:
            return "never started"
        code = self.process.poll()
        return "running" if code is None else f"ended with exit code {code}"

    def signal(self, number: int) -> None:
        """Raises RuntimeError if it does not run."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run; see {self.log}")
        self._told_to_end |= number in (signal.SIGKILL, signal.SIGTERM)
        self.process.send_signal(number)

    def wait(self, timeout: float = END_SECONDS) -> int:
        """The exit code, once the process has ended. Raises subprocess.TimeoutExpired."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.wait(timeout)

    def check_alive(self) -> None:
        """Raises Unavailable, with the end of its log, if it ended although nobody told it to."""
        if self.process is None or self._told_to_end or (code := self.process.poll()) is None:
            return
        raise Unavailable(f"{self.name} ended by itself with exit code {code}; the end of {self.log}:\n{self.tail()}")

    def release(self) -> None:
        """Leave it running: from now on nobody here waits for it."""
        if self.process is not None:
            self.process.returncode = 0
            self.process = None

    # --- asking ------------------------------------------------------------------------------------------------------
    @property
    def pid(self) -> int:
        """Raises RuntimeError if it was never started."""
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process.pid

    async def is_ready(self) -> bool:
        """Whether it serves. Raises AssertionError if it does not run."""
        if not self.running():
            raise AssertionError(f"{self.name} does not run:\n{self.output()[-2000:]}")
        return (await self.get("/readyz"))[0] == 200

    async def get(self, path: str) -> tuple[int, str]:
        """(status, body) of an HTTP GET; (0, reason) when the node does not answer."""
        host, _, port = self.http.rpartition(":")
        try:
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=self._http_tls())
                writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
                answer = await reader.read()
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            return 0, str(error)
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body.decode()

    def _http_tls(self) -> ssl.SSLContext | None:
        tls = self.settings.get("tls", {})
        if tls.get("mode") != "require":
            return None
        made = ssl.create_default_context(cafile=tls["ca"])
        made.load_cert_chain(tls["certificate"], tls["key"])
        return made

    def output(self) -> str:
        """Everything it wrote to its log."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def tail(self) -> str:
        """The last lines it wrote; more if it failed."""
        failed = self.process is not None and self.process.poll() == EXIT_FAILED
        return "\n".join(self.output().splitlines()[-(LAST_WORDS if failed else TAIL_LINES) :])

    def index_files(self) -> list[Path]:
        """Its published index files, complete ones only (docs/segments.md); by name."""
        return sorted(self.data_dir.glob("shards/*/state-*/segments/*.seg"), key=lambda path: path.name)

    def memory_mb(self) -> float:
        """Resident memory in MB (10^6 bytes): anonymous pages and the mapped segments that it touched."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def _literal(value: object) -> str:
    """A TOML literal; JSON's strings, numbers and booleans are TOML's too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
