"""The chart's pods as processes of this machine: each runs the chart's own start script with the variables and the
settings that Kubernetes would give it, addresses and directories of this machine put in their place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from needle.connecting import connect
from needle.local.free_ports import free_ports
from proof.deployment.chart import Object

SECONDS = 60.0


class Pods:
    """directory: for their data and logs. objects: what Helm rendered."""

    def __init__(self, directory: Path, objects: dict[tuple[str, str], Object]) -> None:
        self._spec = _container(objects["StatefulSet", "needle"])
        self._archive = _container(objects["Deployment", "needle-archive"])
        self._files = objects["ConfigMap", "needle"]["data"]
        self._directory = directory
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: dict[int, tuple[int, int]] = {}

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{self._ports[number][0]}" for number in self._running]

    def start(self, numbers: Sequence[int]) -> None:
        """Pods by their numbers, at once."""
        free = iter(free_ports(2 * len(numbers)))
        self._ports.update({number: (next(free), next(free)) for number in numbers})
        for number in numbers:
            self._start(number)

    def _start(self, number: int) -> None:
        home = self._directory / f"needle-{number}"
        home.mkdir()
        for name, text in self._files.items():
            (home / name).write_text(self._here(text, home), encoding="utf-8")
        self._run(number, home)

    def _environment(self, number: int, home: Path) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {name: value for name, value in os.environ.items() if not name.startswith("NEEDLE_")}
        return given | self._variables(number, home) | {"PATH": path}

    def _run(self, number: int, home: Path) -> None:
        # It dies with this process. Its group is ended as a container is: the script waits in a shell of its own, too.
        command = ["setpriv", "--pdeathsig", "KILL", "sh", str(home / "start.sh")]
        with (home / "log").open("ab") as log:
            self._running[number] = subprocess.Popen(
                command, env=self._environment(number, home), stdout=log, stderr=log, start_new_session=True
            )

    def _variables(self, number: int, home: Path) -> dict[str, str]:
        port, http = self._ports[number]
        found: dict[str, str] = {}
        for one in self._spec["env"]:
            if "value" in one:
                found[one["name"]] = self._here(str(one["value"]), home)
        found |= {"NEEDLE_NODE_ID": f"needle-{number}", "NEEDLE_LISTEN": f"127.0.0.1:{port}"}
        found |= {"NEEDLE_ADVERTISE": f"127.0.0.1:{port}", "NEEDLE_HTTP_ADDRESS": f"127.0.0.1:{http}"}
        return found

    def _here(self, text: str, home: Path) -> str:
        """Names and paths of a pod as those of this machine."""
        text = re.sub(
            r"needle-(\d+)\.needle-nodes\.default\.svc:\d+",
            lambda found: f"127.0.0.1:{self._ports[int(found[1])][0]}",
            text,
        )
        for path, place in {"/etc/needle": home, "/run/needle": home / "run", "/var/lib/needle": home / "data"}.items():
            text = text.replace(path, str(place))
        return text

    def probe(self, number: int) -> str:
        """Where Kubernetes asks whether a pod is alive."""
        return f"http://127.0.0.1:{self._ports[number][1]}{self._spec['livenessProbe']['httpGet']['path']}"

    def wait_ready(self) -> None:
        """Until the probe of every pod says so. Raises TimeoutError with a pod's log."""
        path = self._spec["readinessProbe"]["httpGet"]["path"]
        for number, process in self._running.items():
            until = time.monotonic() + SECONDS
            while not _answers(f"http://127.0.0.1:{self._ports[number][1]}{path}"):
                log = (self._directory / f"needle-{number}" / "log").read_text(encoding="utf-8")[-2000:]
                if process.poll() is not None or time.monotonic() > until:
                    raise TimeoutError(f"needle-{number} is not ready:\n{log}")
                time.sleep(0.1)

    async def nodes(self) -> list[str]:
        """The names of the cluster's nodes, once a document was written and read."""
        async with await connect(self.addresses) as client:
            await client.insert("a", [1.0] * 256)
            if await client.get("a") is None:
                raise RuntimeError("a document that was written is not there")
            return sorted(info.id for info in (await client.refresh_topology()).nodes)

    def archive(self) -> None:
        """Run the archive's pod, into a directory, until it leads to an instant. Raises TimeoutError with its log."""
        target = self._directory / "archive"
        program, *command, _ = self._archive["command"]
        command = [str(Path(sys.executable).parent / program), *command, str(target)]
        names = {one["name"]: self._here(str(one["value"]), target) for one in self._archive["env"] if "value" in one}
        with (self._directory / "archive.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], env=dict(os.environ) | names, stdout=log, stderr=log
            )
        try:
            until = time.monotonic() + SECONDS
            while not _instants(target):
                if process.poll() is not None or time.monotonic() > until:
                    log_text = (self._directory / "archive.log").read_text(encoding="utf-8")[-2000:]
                    raise TimeoutError(f"the archive leads to no instant:\n{log_text}")
                time.sleep(0.5)
        finally:
            process.terminate()
            process.wait(SECONDS)

    def restart(self, number: int) -> None:
        """End one pod as Kubernetes does, and start the next one on its volume."""
        home, process = self._directory / f"needle-{number}", self._running[number]
        _, script = self._spec["lifecycle"]["preStop"]["exec"]["command"]
        script = self._here(script, home)
        subprocess.run(["sh", script], env=self._environment(number, home), timeout=SECONDS, check=True)
        process.terminate()
        process.wait(SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._run(number, home)

    def wait_resting(self, number: int, wanted: bool) -> None:
        """Until the catalog says that a pod's node is in maintenance, or no more. Raises TimeoutError."""
        until = time.monotonic() + SECONDS
        while asyncio.run(self._resting(number)) != wanted:
            if time.monotonic() > until:
                raise TimeoutError(f"needle-{number} is {'not ' * wanted}in maintenance")
            time.sleep(0.2)

    async def _resting(self, number: int) -> bool:
        async with await connect(self.addresses) as client:
            info = (await client.refresh_topology(confirmed=True, timeout=SECONDS)).node(f"needle-{number}")
            return info is not None and bool(info.maintenance)

    async def maintain(self, number: int, on: bool) -> None:
        """As an operator does."""
        async with await connect(self.addresses) as client:
            ask = client.enter_maintenance_mode if on else client.exit_maintenance_mode
            await ask(f"needle-{number}", timeout=SECONDS)

    def stop(self) -> None:
        """End them in order, within the time that the chart gives them."""
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(SECONDS)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _container(of: Object) -> Object:
    found: Object = of["spec"]["template"]["spec"]["containers"][0]
    return found


def _instants(target: Path) -> bool:
    """Whether `needle backup list` knows instants that can be restored."""
    argv = [str(Path(sys.executable).parent / "needle"), "backup", "list", str(target), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and any(one["until"] for one in json.loads(done.stdout)["archives"])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait_alive(url: str) -> None:
    until = time.monotonic() + SECONDS
    while not _answers(url):
        if time.monotonic() > until:
            raise TimeoutError(f"{url} does not answer")
        time.sleep(0.1)


def trial(directory: Path, objects: dict[tuple[str, str], Object]) -> None:
    """Three pods found a cluster, a fourth joins, the archive's reads it; a pod that is replaced is back in service,
    and one that an operator had put into maintenance is not. Raises RuntimeError or TimeoutError."""
    pods = Pods(directory, objects)
    try:
        for numbers in ([0, 1, 2], [3]):
            pods.start(numbers)
            pods.wait_ready()
        if (found := asyncio.run(pods.nodes())) != [f"needle-{number}" for number in range(4)]:
            raise RuntimeError(f"the cluster has the nodes {found}")
        pods.archive()
        pods.restart(1)
        pods.wait_resting(1, False)
        pods.wait_ready()
        asyncio.run(pods.maintain(1, True))
        pods.restart(1)
        _wait_alive(pods.probe(1))
        pods.wait_resting(1, True)
        asyncio.run(pods.maintain(1, False))
        pods.wait_ready()
    finally:
        pods.stop()
